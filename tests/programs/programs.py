#!/usr/bin/env python3
"""Real programs on a mounted cfs, each checked by what it knows itself.

git, sqlite, PostgreSQL, rsync, tar, cp, make, meson, fio, stress-ng, dbench and
everyday habits of programs; databases also with kill -9 of their processes and of
the daemon. Every case has a mount of its own.

  --long            full length instead of a few minutes in all
  --seed N          of all generated data and pauses (default: 1)
  --reference DIR   run on this plain directory instead of a mount
"""

import argparse
import importlib
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "mount")]

import harness  # noqa: E402
import sites  # noqa: E402

MODULES = ("git", "sqlite", "postgres", "copy", "build", "habit", "fio", "stress", "dbench")


def main() -> int:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--seed", type=int, default=sites.OPTIONS.seed)
    parser.add_argument("--reference", metavar="DIR")
    options, others = parser.parse_known_args()
    sites.OPTIONS.long, sites.OPTIONS.seed = options.long, options.seed
    for name in MODULES:  # Registers their cases, whose time limits depend on --long.
        importlib.import_module(f"{name}_cases")
    if options.reference:
        return harness.main(__doc__, argv=["--reference", options.reference, *others])
    return harness.main(__doc__, shared_mount=False, argv=others)


if __name__ == "__main__":
    sys.exit(main())
