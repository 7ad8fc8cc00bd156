"""What the suites around a C++ program of this directory share."""

import argparse
import os
import random
import subprocess
import sys
from pathlib import Path

import harness


def parse_options(**numbers):
    """--long, --seed and --NUMBER, and the rest of the command line for the harness."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_known_args()


def start(name, *arguments):
    """Starts the program that was built along with cfs."""
    build = Path(harness.BINARY).parent
    directories = [Path(os.environ.get("CFS_BUILD", build / "meson")), build]
    candidates = [d / "tests" / "mount" / name for d in directories]
    binary = next((c for c in candidates if c.exists()), None)
    harness.check(binary, f"{candidates[0]} has not been built")
    return subprocess.Popen([binary, *map(str, arguments)], stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process, wanted=0):
    """Its output; fails unless it ends with the exit status `wanted`."""
    output = process.communicate()[0]
    if process.returncode != wanted:
        print(output, file=sys.stderr)
        summary = " ".join(line.strip() for line in output.splitlines()
                           if line.startswith(("MISMATCH", "FAILED", "  step:", "  model:",
                                               "  subject:", "replay:")))
        raise harness.Failure(f"exit {process.returncode}: {summary or output.strip()}")
    return output


def run(name, *arguments, wanted=0):
    return finish(start(name, *arguments), wanted)
