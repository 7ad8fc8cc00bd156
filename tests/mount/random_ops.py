#!/usr/bin/env python3
"""Random calls of all kinds in a mounted cfs and on the file system of its store, compared.

    random_ops.py [--long] [--seed N] [--roots N] [--mode MODE] [--store KIND] [--filter REGEX]
                  [--reference DIR]

The work is done by the program random_ops, which prints how to replay a mismatch. With several
roots each call goes to one of that many nodes, drawn at random: with --mode cluster to those of a
cluster (all of them, if it is not said how many), else to one mount that poses as several nodes.
"""

import os
import sys
import tempfile
from pathlib import Path

import exerciser
import harness

OPTIONS, OTHERS = exerciser.parse_options(roots=0)
FACTOR = 20 if OPTIONS.long else 1
DAMAGES = ("byte", "size", "mode", "owner", "xattr", "link", "entry", "time")


def run(model, subjects, *options, wanted=0):
    harness.need_root()
    return exerciser.run("random_ops", "--seed", OPTIONS.seed, *options, model, *subjects,
                         wanted=wanted)


def compare(t, subject, *options, wanted=0):
    with tempfile.TemporaryDirectory(dir=t.native) as model:
        return run(model, through_roots(t, subject), *options, wanted=wanted)


def through_roots(t, directory):
    """The directory as each of the nodes shows it."""
    path = os.path.abspath(directory)
    if not hasattr(t.mount, "roots") or not path.startswith(f"{t.mount.mnt}/"):
        return [directory]
    below = os.path.relpath(path, t.mount.mnt)
    return [f"{root}/{below}" for root in t.mount.roots[:OPTIONS.roots or None]]


def new_shared_mount(workspace, args):
    if OPTIONS.roots > 1 and args.mode != "cluster":
        return harness.new_cluster(workspace, args, nodes=1)
    return harness.new_shared_mount(workspace, args)


def case(seconds):
    return harness.case(timeout=60 + 3 * seconds * FACTOR)


@case(seconds=12)
def answers_as_the_store_does(t):
    compare(t, ".", "--seconds", 12 * FACTOR)


@case(seconds=8)
def threads_in_subtrees(t):
    compare(t, ".", "--seconds", 8 * FACTOR, "--threads", 3)


@case(seconds=5)
def inodes_forgotten_in_between(t):
    """What the kernel has dropped has to come back the same from the daemon."""
    compare(t, ".", "--seconds", 5 * FACTOR, "--walk-every", 300, "--drop-caches")


def compare_after(t, restart):
    if not t.on_cfs:
        raise harness.Skip("a reference directory has no daemon to restart")
    with t.new_mount() as mount:
        for _ in range(1 + FACTOR // 4):
            run(mount.native, [mount.mnt], "--seconds", 3, "--threads", 2, "--keep")
            restart(mount)
            run(mount.native, [mount.mnt], "--threads", 2, "--compare")


@case(seconds=10)
def everything_there_after_remount(t):
    def restart(mount):
        mount.stop()
        mount.start()

    compare_after(t, restart)


@case(seconds=10)
def everything_there_after_kill(t):
    """What a call has returned survives kill -9 of the daemon."""

    def restart(mount):
        mount.kill()
        mount.start()

    compare_after(t, restart)


@case(seconds=10)
def notices_damage(t):
    """The comparison of the trees itself: each kind of damage must be found by it."""
    for damage in DAMAGES:
        os.mkdir(damage)
        output = compare(t, damage, "--steps", 300, "--self-test", damage, wanted=1)
        harness.check("in comparing the trees" in output, f"{damage} was noticed elsewhere")


@case(seconds=10)
def notices_another_answer(t):
    """The comparison of the calls itself: a full file system must be told from another one."""
    harness.need_root()
    full = Path(t.workspace.new_directory())
    harness.run_checked("mount", "-t", "tmpfs", "-o", "nr_inodes=16", "tmpfs", str(full))
    try:
        output = compare(t, full, "--lenient", wanted=1)
        harness.check("in the answers" in output and "subject: -1 ENOSPC" in output,
                      "the answer ENOSPC was not noticed")
    finally:
        harness.run("umount", "-l", str(full))


if __name__ == "__main__":
    sys.exit(harness.main(__doc__, argv=OTHERS, new_shared=new_shared_mount))
