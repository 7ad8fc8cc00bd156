#!/usr/bin/env python3
"""Random I/O of all kinds to single files of a mounted cfs, checked against memory.

    fsx.py [--long] [--seed N] [--mode MODE] [--store KIND] [--filter REGEX] [--reference DIR]

The work is done by the program fsx, which prints how to replay a failure.
"""

import os
import sys

import exerciser
import harness

OPTIONS, OTHERS = exerciser.parse_options()
FACTOR = 20 if OPTIONS.long else 1


def run(path, *options, wanted=0):
    return exerciser.run("fsx", "--seed", OPTIONS.seed, *options, path, wanted=wanted)


def case(seconds):
    return harness.case(timeout=60 + 3 * seconds * FACTOR)


@case(seconds=8)
def one_file(t):
    run("file", "--seconds", 8 * FACTOR)


@case(seconds=6)
def three_files_at_once(t):
    """Sizes to 16 MiB: more than one request, and more than the pages of a small cache."""
    running = [exerciser.start("fsx", "--seed", OPTIONS.seed + i, "--seconds", 6 * FACTOR,
                               "--size-max", size, f"file{i}")
               for i, size in enumerate((16 << 10, 1 << 20, 16 << 20))]
    for process in running:
        exerciser.finish(process)


@case(seconds=4)
def calls_that_the_store_has(t):
    """What a file system can't do, fsx leaves out and names."""
    native, ours = ({*run(f"{directory}/fsx", "--steps", 3000).splitlines()[-1].split()}
                    for directory in (t.native, "."))
    # Linux does not pass these two on to FUSE file systems.
    missing = ours - native - {"collapse_range", "insert_range"}
    harness.check(not missing, f"the store has it, the mount has not: {sorted(missing)}")


def compare_after(t, restart):
    if not t.on_cfs:
        raise harness.Skip("a reference directory has no daemon to restart")
    with t.new_mount() as mount:
        path = f"{mount.mnt}/file"
        for _ in range(FACTOR):
            run(path, "--seconds", 2, "--model", f"{mount.native}/model")
            restart(mount)
            harness.check(harness.read(path) == harness.read(f"{mount.native}/model"),
                          f"the file differs after a restart, seed {OPTIONS.seed}")
            os.unlink(path)


@case(seconds=4)
def content_there_after_remount(t):
    def restart(mount):
        mount.stop()
        mount.start()

    compare_after(t, restart)


@case(seconds=4)
def content_there_after_kill(t):
    def restart(mount):
        mount.kill()
        mount.start()

    compare_after(t, restart)


@case(seconds=1)
def notices_damage(t):
    output = run("file", "--steps", 2000, "--self-test", wanted=1)
    harness.check("first of 1 bad bytes" in output, "fsx failed for another reason")


if __name__ == "__main__":
    sys.exit(harness.main(__doc__, argv=OTHERS))
