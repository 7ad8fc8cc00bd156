#!/usr/bin/env python3
"""Slots that go from node to node, and operations on names that several nodes own.

    hand_over.py [--long] [--mode MODE] [--filter REGEX]

Goal: while nodes join, are killed at each named point of the protocols and start again, every
acknowledged change is there afterwards, once, and seen by all nodes; every slot has one owner.
Method: processes work on the mounts of real clusters and note what was acknowledged; CFS_TEST_DIE_AT
ends a node at a point, and the case fails if that point was not reached.
"""

import contextlib
import fcntl
import functools
import itertools
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "mount"))
import harness  # noqa: E402  (It is where the path above says.)
from arrangement import OPTIONS, OTHERS  # noqa: E402
from cluster import SLOTS  # noqa: E402
from harness import (Child, Holder, check, dying_at, equal, in_child, make,  # noqa: E402
                     need_fault_points, opened, outcome, read, wait_until)
from names import FACTOR, IO_TIMEOUT, Names, content, new_cluster, wait_dead  # noqa: E402
from syscalls import OFD_SETLK, lock  # noqa: E402


def case(function):
    return harness.case(function, timeout=180)


def owners(cluster):
    return [node.status()["slots"]["owned"] for node in cluster.nodes if node.pid is not None]


def check_all_done(workers, roots):
    for names in workers:
        failed = [step for step in names.steps() if step[2] != "ok"]
        check(not failed, f"failed: {failed[:3]}")
        check(names.check(roots) > 20, "empty pass: too few names")


@case
def joins_under_load(t):
    """One node joins, then four at once, while others work; every change is there afterwards."""
    with new_cluster(t, 6, late=5, serve_only=(3, 4, 5)) as cluster:
        a, b, c, *others = cluster.nodes
        first = Names(t, a.mnt, "first")
        first.wait(100)
        cluster.join(b)
        second = Names(t, b.mnt, "second")
        second.wait(50)
        cluster.wait_balanced()
        cluster.join(c, *others)
        third = Names(t, c.mnt, "third")
        third.wait(50)
        cluster.wait_balanced()
        for names in (first, second, third):
            names.wait(20)
            names.stop()
        check_all_done((first, second, third), cluster.roots)
        counts = owners(cluster)
        check(max(counts) <= 1.15 * SLOTS / 6, f"slots are not balanced: {counts}")
        spread = {node.name: node.status()["peers"]["transactions"]["committed"]
                  for node in cluster.nodes}
        check(sum(spread.values()) > 20, f"empty pass: hardly a transaction: {spread}")
        freeze = max(n.status()["peers"]["hand_over"]["longest_freeze_us"] for n in cluster.nodes)
        print(f"# longest freeze of a slot: {freeze / 1000:.0f} ms; owned: {counts}", flush=True)


@case
def cut_while_a_node_joins(t):
    """Requests whose answers are lost are made once, also where their slots go elsewhere meanwhile."""
    with new_cluster(t, 3, late=1) as cluster:
        a, b, c = cluster.nodes
        cluster.wait_balanced()
        workers = [Names(t, node.mnt, f"w{node.name}") for node in (a, b)]
        for names in workers:
            names.wait(30)
        c.launch()
        faults = [cluster.cut, cluster.reset, functools.partial(cluster.cut, one_way=True)]
        for number in range(9):
            faults[number // 3](*((a, b), (b, c), (c, a))[number % 3])
            time.sleep(0.3 * FACTOR)  # Far below the time after which a node is down.
            cluster.heal()
            time.sleep(0.3)
        c.wait_ready()

        def asked_again():
            return sum(node.status()["peers"]["retries"] for node in cluster.nodes)
        # Nobody has to have been waiting for an answer whenever a connection was lost.
        for pair in itertools.islice(itertools.cycle(((a, b), (b, a))), 30):
            if asked_again() > 0:
                break
            cluster.reset(*pair)
            time.sleep(0.3 * FACTOR)
            cluster.heal()
            time.sleep(2)  # A node that nobody answers finds out with its next sign of life.
        cluster.wait_members()
        cluster.wait_balanced(60)
        for names in workers:
            names.wait(30)
            names.stop()
        check_all_done(workers, cluster.roots)
        check(asked_again() > 0, "empty pass: nothing was asked again")
        check(all(count > SLOTS / 4 for count in owners(cluster)), "slots were not handed over")


LOCKS = {
    "flock": lambda fd: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB),
    "record": lambda fd: lock(fd, fcntl.F_SETLK, fcntl.F_WRLCK),
    "ofd": lambda fd: lock(fd, OFD_SETLK, fcntl.F_WRLCK),
}


def refused(root, count):
    """Takes each lock on each file; which it does not get."""
    result = set()
    for number in range(count):
        for kind, take in LOCKS.items():
            answer = outcome(take, os.open(f"{root}/d{number}/{kind}", os.O_RDWR))
            if isinstance(answer, str):
                result.add((number, kind, answer))
    return result


@case
def locks_and_removed_files_go_with_their_slots(t):
    """Two nodes join one on which files are locked, or open without a name; one starts again."""
    count = 12
    everything = {(number, kind, "EAGAIN") for number in range(count) for kind in LOCKS}
    with new_cluster(t, 3, late=2) as cluster, contextlib.ExitStack() as stack:
        a, b, c = cluster.nodes
        removed = {}
        for number in range(count):
            folder = f"{a.mnt}/d{number}"
            os.mkdir(folder)
            for kind in LOCKS:
                make(f"{folder}/{kind}")
            make(f"{folder}/removed", content(folder))
            removed[folder] = stack.enter_context(opened(f"{folder}/removed"))
            os.unlink(f"{folder}/removed")
        holder = Holder((refused, a.mnt, count))

        def check_held(when):
            for node in cluster.nodes:
                if node.pid is not None:
                    equal(in_child(refused, node.mnt, count), everything,
                          f"refused {when} on {node.name}")
            for folder, fd in removed.items():
                equal(os.pread(fd, 1000, 0), content(folder), f"removed file of {folder} {when}")
                os.pwrite(fd, content(folder), 0)
                equal(os.fstat(fd).st_nlink, 0, "links")

        check_held("at first")
        cluster.join(b, c)
        cluster.wait_balanced()
        here = a.status()["node"]
        moved = sum(a.stat(folder)["owner"] != here for folder in removed)
        check(moved > count / 4, f"empty pass: only {moved} of {count} directories have moved")
        check_held("after the hand-over")
        b.stop()
        b.start()
        cluster.wait_members()
        wait_until(lambda: outcome(check_held, "after a restart") is None, 30 * FACTOR,
                   "all is as it was")
        # One that waits gets it when the holder ends.
        waiter = Child(lambda: fcntl.flock(os.open(f"{c.mnt}/d0/flock", os.O_RDWR), fcntl.LOCK_EX))
        waiter.wait_blocked()
        holder.child.kill()
        waiter.result(20 * FACTOR)
        equal(in_child(refused, b.mnt, count), set(), "refused afterwards")


@case
def what_a_dead_node_owns_fails_and_all_else_goes_on(t):
    with new_cluster(t, 3) as cluster:
        cluster.wait_balanced()
        nodes = {node.status()["node"]: node for node in cluster.nodes}
        a = cluster.nodes[0]
        folders = {}  # Owner -> directories, each with a file of every node.
        for number in range(30):
            folder = f"d{number}"
            os.mkdir(f"{a.mnt}/{folder}")
            folders.setdefault(a.stat(f"{a.mnt}/{folder}")["owner"], []).append(folder)
            for node in cluster.nodes:
                make(f"{node.mnt}/{folder}/{node.name}", content(node.name))
        equal(len(folders), 3, "nodes that own a directory")
        root = a.stat(a.mnt)["owner"]
        dead = next(owner for owner in nodes if owner != root and nodes[owner] is not a)
        living = [node for number, node in nodes.items() if number != dead]
        nodes[dead].kill()
        down = (lambda: any(n["id"] == dead and n["state"] == "down" for n in a.members()))
        wait_until(down, 20 * FACTOR, "the map says that the node is down")
        # Who asks it first waits; on each node somebody has to find out.
        for node in living:
            first = Child(outcome, os.stat, f"{node.mnt}/{folders[dead][0]}")
            equal(first.result(IO_TIMEOUT + 20 * FACTOR), "EIO", "stat of a directory of the dead")
        for node in living:
            for owner, names in folders.items():
                for folder in names:
                    start = time.monotonic()
                    if owner == dead:
                        equal(outcome(os.stat, f"{node.mnt}/{folder}"), "EIO", "stat")
                    else:
                        for other in living:
                            equal(read(f"{node.mnt}/{folder}/{other.name}"), content(other.name))
                        # Also directories whose place by hash is on the dead node.
                        os.mkdir(f"{node.mnt}/{folder}/new-{node.name}")
                        make(f"{node.mnt}/{folder}/new-{node.name}/f", b"x")
                    seconds = time.monotonic() - start
                    check(seconds < 1.5 * FACTOR, f"{folder} of {owner} took {seconds:.1f} s")
            equal(len(os.listdir(node.mnt)), 30, "names in the root directory")
        nodes[dead].start()
        cluster.wait_members()
        for node in cluster.nodes:
            for folder in itertools.chain(*folders.values()):
                for other in cluster.nodes:
                    wait_until(lambda path=f"{node.mnt}/{folder}/{other.name}", name=other.name:
                               outcome(read, path) == content(name), 20 * FACTOR, "all is back")


def check_killed(t, point, giver, power=False):
    """A node that dies at the point of a hand-over, with its power, and starts again."""
    need_fault_points()
    store = "loop-ext4" if power else t.store
    with contextlib.ExitStack() as stack:
        if giver:
            with dying_at(point):
                cluster = stack.enter_context(new_cluster(t, 2, late=1, store=store))
        else:
            cluster = stack.enter_context(new_cluster(t, 2, late=1, store=store))
        a, b = cluster.nodes
        names = Names(t, a.mnt, "names", synced=power)
        names.wait(60)
        if not giver:
            names.stop()
        victim = a if giver else b
        with contextlib.ExitStack() as armed:
            if not giver:
                armed.enter_context(dying_at(point))
            b.launch()
        wait_dead(victim, point)
        if power:
            victim.power_off()
        if giver:
            names.stop()
        if power:
            victim.power_on()
        victim.start()
        if giver:
            b.wait_ready()
        cluster.wait_members()
        cluster.wait_balanced()
        more = [Names(t, node.mnt, f"more{node.name}") for node in cluster.nodes]
        for each in more:
            each.wait(30)
            each.stop()
        for each in (names, *more):
            each.check(cluster.roots)
        check(min(owners(cluster)) > SLOTS / 3, f"slots were not handed over: {owners(cluster)}")


GIVER_POINTS = ("give-copied:3", "give-written:2", "give-answered:2", "give-ended:2")
TAKER_POINTS = ("take-piece:3", "take-unwritten:2", "take-written:2", "take-owned:2")


def register(check_point, points, what, **kwargs):
    """A case for each of the points."""
    for point in points:
        def run(t, point=point):
            check_point(t, point, **kwargs)
        run.__name__ = f"{what}_{point.replace('-', '_').replace(':', '_')}"
        case(run)


register(check_killed, GIVER_POINTS, "killed_at", giver=True)
register(check_killed, TAKER_POINTS, "killed_at", giver=False)
register(check_killed, GIVER_POINTS if OPTIONS.long else GIVER_POINTS[1:2], "power_lost_at",
         giver=True, power=True)
register(check_killed, TAKER_POINTS if OPTIONS.long else TAKER_POINTS[2:3], "power_lost_at",
         giver=False, power=True)


def check_transaction_killed(t, point, coordinator, power=False):
    need_fault_points()
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(
            new_cluster(t, 3, store="loop-ext4" if power else t.store))
        cluster.wait_balanced()
        victim, other = cluster.nodes[1], cluster.nodes[2]
        victim.stop()
        with dying_at(f"{point}:5"):
            victim.start()
        root = (victim if coordinator else other).mnt
        workers = [Names(t, root, f"w{i}", synced=power) for i in range(2)]
        wait_dead(victim, point)
        if power:
            victim.power_off()
        # What needs the node fails meanwhile, after its time-out.
        for worker in workers:
            worker.stop()
        if power:
            victim.power_on()
        victim.start()
        cluster.wait_members()
        after = Names(t, other.mnt, "after")
        after.wait(30)
        after.stop()
        for worker in (*workers, after):
            worker.check(cluster.roots)
        wait_until(lambda: all(n.status()["peers"]["transactions"]["unfinished"] == 0
                               for n in cluster.nodes), 20 * FACTOR, "transactions end")


COORDINATOR_POINTS = ("all-prepared", "decided", "decided-synced", "told")
PARTICIPANT_POINTS = ("prepared", "committed")
register(check_transaction_killed, COORDINATOR_POINTS, "transaction_killed_at", coordinator=True)
register(check_transaction_killed, PARTICIPANT_POINTS, "transaction_killed_at", coordinator=False)
# With CFS_TEST_PLANTED=outcome-not-synced the first of these fails, with prepare-not-synced the other.
register(check_transaction_killed, COORDINATOR_POINTS if OPTIONS.long else COORDINATOR_POINTS[3:],
         "transaction_power_lost_at", coordinator=True, power=True)
register(check_transaction_killed, PARTICIPANT_POINTS if OPTIONS.long else PARTICIPANT_POINTS[1:],
         "transaction_power_lost_at", coordinator=False, power=True)


if __name__ == "__main__":
    sys.exit(harness.main(__doc__, shared_mount=False, argv=OTHERS))
