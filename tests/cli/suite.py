"""Cases of the command line: one line a case, everything they left cleaned up."""

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
BINARY = os.environ.get("CFS", str(REPOSITORY / "build" / "cfs"))
TIMEOUT = 120
_cases = []


class Skip(Exception):
    """The case can't run here; the message says why."""


class Failure(AssertionError):
    """What the case claims is not so."""


def case(function):
    _cases.append(function)
    return function


def check(condition, message):
    if not condition:
        raise Failure(message)


def equal(actual, wanted, what):
    check(actual == wanted, f"{what} is {actual!r}, not {wanted!r}")


def run(*command, **kwargs):
    kwargs.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run([str(word) for word in command], capture_output=True, text=True,
                          timeout=TIMEOUT, check=False, **kwargs)


def cfs(*arguments, **kwargs):
    return run(BINARY, *arguments, **kwargs)


def succeeds(*arguments, **kwargs):
    """stdout of a cfs that must exit with 0 and say nothing on stderr."""
    done = cfs(*arguments, **kwargs)
    equal((done.returncode, done.stderr), (0, ""), f"outcome of cfs {arguments}")
    return done.stdout


def is_refusal(done, exit_code, *words):
    """Fails unless it was refused with this code and one line that has all the words."""
    text = f"exit {done.returncode}, stderr {done.stderr!r}"
    equal(done.returncode, exit_code, f"exit code ({text})")
    equal(done.stdout, "", "stdout")
    check(re.fullmatch(r"cfs( \w+)?: [^\n]+\n", done.stderr), f"not one line: {text}")
    for word in words:
        check(str(word) in done.stderr, f"{word!r} is not in the message: {text}")


def refused(exit_code, words, *arguments, **kwargs):
    is_refusal(cfs(*arguments, **kwargs), exit_code, *words)


def need_root():
    if os.geteuid() != 0:
        raise Skip("needs root")


def mounts():
    """(mount point, type, source) of every mount, in mount order."""
    result = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, right = line.split(" - ", 1)
        fields = [left.split()[4], *right.split()[:2]]
        result.append(tuple(re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), field)
                            for field in fields))
    return result


def mounts_at(path):
    return [mount for mount in mounts() if mount[0] == str(path)]


def wait_until(condition, what, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        check(time.monotonic() < deadline, f"{what}: not within {seconds} s")
        time.sleep(0.01)


def running(pid):
    """False also for a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def snapshot(directory):
    """Mode and content of all below a directory."""
    return {path: (oct(path.lstat().st_mode), path.read_bytes() if path.is_file() else None)
            for path in sorted(Path(directory).rglob("*"))}


def kill(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _daemons(work):
    """Processes of our binary that were told to work below `work`."""
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            if command[0] == os.fsencode(BINARY) and os.fsencode(work) in b"\0".join(command):
                yield int(entry)


def _clean(work):
    for pid in list(_daemons(work)):
        kill(pid)
    for path, _, _ in reversed(mounts()):
        if path.startswith(f"{work}/"):
            run("umount", "-l", path)
    shutil.rmtree(work)


def _run_case(function):
    work = Path(tempfile.mkdtemp(prefix="cfs-cli-"))
    work.chmod(0o755)
    try:
        function(work)
        return f"ok {function.__name__}"
    except Skip as skip:
        return f"skip {function.__name__}: {skip}"
    except Exception as error:  # A test that breaks has failed too.
        if not isinstance(error, Failure):
            traceback.print_exc()
        return f"FAIL {function.__name__}: {' '.join(str(error).split())}"
    finally:
        _clean(work)


def main(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("names", nargs="*", help="run only the cases with these names")
    wanted = parser.parse_args().names
    if not os.access(BINARY, os.X_OK):
        sys.exit(f"{BINARY} is not there; `make build` makes it, or set CFS")
    # A driver that loses its patience must not leave our mounts behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    lines = []
    for function in _cases:
        if not wanted or function.__name__ in wanted:
            lines.append(_run_case(function))
            print(lines[-1], flush=True)
    if not lines:
        sys.exit(f"no such case: {' '.join(wanted)}")
    sys.exit(any(line.startswith("FAIL") for line in lines))
