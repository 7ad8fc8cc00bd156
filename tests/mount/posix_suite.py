#!/usr/bin/env python3
"""POSIX and Linux semantics of a mounted cfs, operation by operation.

    posix_suite.py [--mode MODE] [--store KIND] [--filter REGEX] [--reference DIR]

The cases are in posix/*_cases.py, by operation group. All of them pass on ext4
(--reference), which is what makes them a measure.
"""

import importlib
import sys
from pathlib import Path

import harness

FOLDER = Path(__file__).resolve().parent / "posix"

if __name__ == "__main__":
    sys.path.insert(0, str(FOLDER))
    for path in sorted(FOLDER.glob("*_cases.py")):
        importlib.import_module(path.stem)
    sys.exit(harness.main(__doc__))
