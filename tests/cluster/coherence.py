#!/usr/bin/env python3
"""What is done on one node is seen on another one by the very next call.

    coherence.py [--nodes N] [--long] [--mode MODE] [--store KIND] [--filter REGEX]

Each case runs in many arrangements, which its name ends with: "A-B home-C writer" is done on
node A, seen on B, with a file that was made on C, where a process holds it open for writing.
A is the founder of the cluster. With --nodes 1 one mount poses as all nodes.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "mount"))
import harness  # noqa: E402  (It is where the path above says.)
from arrangement import OTHERS, new_cluster  # noqa: E402

import coherence_descriptors  # noqa: E402,F401  (They register their cases.)
import coherence_locks  # noqa: E402,F401
import coherence_operations  # noqa: E402,F401

if __name__ == "__main__":
    sys.exit(harness.main(__doc__, argv=OTHERS, new_shared=new_cluster))
