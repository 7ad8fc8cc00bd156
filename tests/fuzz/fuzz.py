#!/usr/bin/env python3
"""Runs each fuzz target of a build for a while, two at a time.

Inputs that a target fails on are kept beside the build: PROGRAM INPUT tries one again.
"""

import argparse
import concurrent.futures
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

DONE = re.compile(r"^Done (\d+) runs", re.MULTILINE)
RUNS_MIN = 1000  # Fewer say nothing.
GRACE = 60  # Seconds for a target to end when its time is over.
LINES_SHOWN = 40


def fuzz(program, seconds, findings):
    """Nothing, or why it failed."""
    with tempfile.TemporaryDirectory() as corpus:
        subprocess.run([program, f"--seeds={corpus}"], check=True)
        seeds = len(os.listdir(corpus))
        if seeds == 0:
            return "has no seeds"
        # Inputs that take 25 s or 1 GiB fail too.
        done = subprocess.run(
            [program, corpus, f"-max_total_time={seconds}", "-timeout=25", "-rss_limit_mb=1024",
             f"-artifact_prefix={findings}/{program.name}-"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            encoding="utf-8", errors="replace", timeout=seconds + GRACE, check=False)
        runs = DONE.search(done.stdout)
        if done.returncode == 0 and runs and int(runs[1]) >= RUNS_MIN:
            print(f"{program.name}: {runs[1]} runs, {seeds} seeds, "
                  f"{len(os.listdir(corpus)) - seeds} inputs found", flush=True)
            return None
    print("\n".join(done.stdout.splitlines()[-LINES_SHOWN:]), flush=True)
    if done.returncode == 0:
        return "too few runs"
    kept = sorted(findings.glob(f"{program.name}-*"), key=os.path.getmtime)
    return f"to see it again: {program} {kept[-1]}" if kept else f"exit status {done.returncode}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True, type=Path, help="meson's directory")
    parser.add_argument("--seconds", required=True, type=int, help="for each target")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count()))
    args = parser.parse_args()
    programs = sorted((args.build / "tests" / "fuzz").glob("*_fuzz"))
    if not programs:
        sys.exit(f"no fuzz target in {args.build}")
    findings = args.build.parent / "findings"
    findings.mkdir(exist_ok=True)
    failed = False
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        results = {pool.submit(fuzz, program, args.seconds, findings): program
                   for program in programs}
        for result in concurrent.futures.as_completed(results):
            try:
                reason = result.result()
            except subprocess.TimeoutExpired:
                reason = "does not end"
            except subprocess.CalledProcessError as error:
                reason = f"cannot write its seeds: exit status {error.returncode}"
            name = results[result].name
            print(f"FAIL {name}: {reason}" if reason else f"ok {name}", flush=True)
            failed = failed or reason is not None
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
