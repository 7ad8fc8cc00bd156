#!/usr/bin/env python3
"""Nodes that are lost for ever, and `cfs nodes --remove-lost`.

    remove_lost.py [--mode MODE] [--filter REGEX]

Goal: when a node's store is gone and it is removed, the command says what went with it, that can be
cleaned up, everything else is there, and the cluster goes on; whoever is killed on the way. Method:
real clusters with slots at all nodes; what depends on which node is asked of `cfs stat` before one is
killed, and its store deleted.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import stat
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "mount"))
import harness  # noqa: E402  (It is where the path above says.)
from arrangement import OTHERS  # noqa: E402
from cluster import SLOTS  # noqa: E402
from harness import (BINARY, Child, cfs, check, dying_at, equal, expect, make,  # noqa: E402
                     need_fault_points, outcome, read, run_checked, wait_until)
from names import FACTOR, Names, new_cluster, wait_dead  # noqa: E402

AT_ONCE = 1.5 * FACTOR  # Seconds; the time-out of operations is more than twice that.
DIRECTORIES = 12  # A node, with as many below each other.


def case(function):
    return harness.case(function, timeout=180)


def number(node):
    return node.status()["node"]


def victim_of(cluster):
    """A node that may be lost, and the one beside it that is not the keeper."""
    root = cluster.nodes[0].stat(cluster.nodes[0].mnt)["owner"]
    b, c = cluster.nodes[1:3]
    return (b, c) if number(c) == root else (c, b)


def state_of(asked, node_id):
    return next(m["state"] for m in asked.members() if m["id"] == node_id)


def lose(node, asked, node_id, keep_store=False):
    if node.pid is not None:
        node.kill()
    wait_until(lambda: state_of(asked, node_id) == "down", 30 * FACTOR, "the node is down")
    if not keep_store:
        shutil.rmtree(node.store)


def remove_lost(asked, *ids):
    """What the command says is lost."""
    return json.loads(run_checked(BINARY, "nodes", "--remove-lost", *map(str, ids), "--store",
                                  asked.store, "--json", timeout=120 * FACTOR))


def refusal(asked, *ids):
    done = cfs("nodes", "--remove-lost", *map(str, ids), "--store", asked.store)
    check(done.returncode != 0, f"removal of {ids} was not refused")
    return done.stderr


def make_tree(nodes):
    """Directories of all nodes below those of all nodes, with a file of each node in each."""
    files = []
    for node in nodes:
        for i in range(DIRECTORIES):
            path = f"{node.name}{i}"
            for _ in range(2):
                os.mkdir(f"{node.mnt}/{path}")
                for home in nodes:
                    make(f"{home.mnt}/{path}/{home.name}", path.encode() * 50)
                    files.append(f"{path}/{home.name}")
                path += "/below"
    return files


def describe(node, paths):
    return {path: node.stat(f"{node.mnt}/{path}") for path in paths}


def directories_of(files):
    return sorted({os.path.dirname(f) for f in files})


def elapsed(function, *args):
    begun = time.monotonic()
    return outcome(function, *args), time.monotonic() - begun


@case
def what_is_lost_is_named_and_the_rest_goes_on(t):
    with new_cluster(t, 3) as cluster:
        cluster.wait_balanced()
        a = cluster.nodes[0]
        victim, other = victim_of(cluster)
        lost = number(victim)
        slots = victim.status()["slots"]["owned"]
        files = make_tree(cluster.nodes)
        folders = directories_of(files)
        about = describe(a, files + folders)
        old_inodes = {d["ino"] for d in about.values()}

        def is_there(path):
            return not path or (about[path]["owner"] != lost and is_there(os.path.dirname(path)))
        kept = [f for f in files if is_there(f) and about[f]["home"] != lost]
        dataless = [f for f in files if is_there(f) and about[f]["home"] == lost]
        nameless = [d for d in folders if about[d]["owner"] == lost and is_there(os.path.dirname(d))]
        check(kept and dataless and nameless, "empty pass: nothing of one kind")
        names = [d for d in folders if about[d]["owner"] == lost
                 and (not os.path.dirname(d) or about[os.path.dirname(d)]["owner"] != lost)]
        at_home = [f for f in files if about[f]["owner"] != lost and about[f]["home"] == lost]

        # Files that are lost, with names in directories that are not.
        folder = os.path.dirname(kept[0])
        linked = [f"{folder}/linked{i}" for i in range(4)]
        for path in linked:
            os.link(f"{other.mnt}/{nameless[0]}/{other.name}", f"{other.mnt}/{path}")
        locked = kept[0]
        held = os.open(f"{victim.mnt}/{locked}", os.O_RDWR)
        fcntl.flock(held, fcntl.LOCK_EX)
        expect(errno.EWOULDBLOCK, flock_once, f"{a.mnt}/{locked}")
        stays_open = os.open(f"{a.mnt}/{dataless[0]}", os.O_RDWR)
        lose(victim, a, lost)
        with contextlib.suppress(OSError):
            os.close(held)

        losses = remove_lost(other, lost)
        equal((losses["slots"], losses["files"], losses["names"]),
              (slots, len(at_home), len(names) + len(linked)), "what is said to be lost")
        check({f"/{d}" for d in nameless} <= set(losses["paths_of_inodes"]), "paths of lost inodes")
        check({f"/{f}" for f in dataless} <= set(losses["paths_of_data"]), "paths of lost data")
        again = remove_lost(a, lost)
        equal((again["files"], again["names"]), (losses["files"], losses["names"]), "once more")
        text = run_checked(BINARY, "nodes", "--remove-lost", str(lost), "--store", other.store)
        check(f"lost inode     /{nameless[0]}\n" in text, f"what people are told: {text}")
        cluster.wait_balanced()
        equal(state_of(a, lost), "lost")

        for node in (a, other):
            root = node.mnt
            for path in kept:
                equal(read(f"{root}/{path}"), os.path.dirname(path).encode() * 50, path)
            for path in dataless[:10]:
                equal(stat.S_IFMT(os.stat(f"{root}/{path}").st_mode), stat.S_IFREG)
                answer, seconds = elapsed(read, f"{root}/{path}")
                equal(answer, "EIO", f"reading {path}")
                check(seconds < AT_ONCE, f"EIO of {path} took {seconds:.1f} s")
            for path in nameless[:10]:
                shown, seconds = elapsed(os.lstat, f"{root}/{path}")
                check(not isinstance(shown, str), f"lstat of {path}: {shown}")
                equal(shown.st_mode, stat.S_IFDIR, f"mode of {path}")
                check(seconds < AT_ONCE, f"lstat of {path} took {seconds:.1f} s")
            for path in linked:
                equal(os.lstat(f"{root}/{path}").st_mode, stat.S_IFREG, f"mode of {path}")
                answer, seconds = elapsed(read, f"{root}/{path}")
                check(answer == "EIO" and seconds < AT_ONCE, f"{path}: {answer} in {seconds:.1f} s")
            flock_once(f"{root}/{locked}")
        answer, seconds = elapsed(os.fsync, stays_open)
        check(answer == "EIO" and seconds < AT_ONCE, f"fsync: {answer} in {seconds:.1f} s")
        os.close(stays_open)

        # What is left of them can be replaced and removed.
        make(f"{other.mnt}/new", b"new")
        os.rename(f"{other.mnt}/new", f"{other.mnt}/{dataless[0]}")
        equal(read(f"{a.mnt}/{dataless[0]}"), b"new")
        os.unlink(f"{a.mnt}/{dataless[1]}")
        os.unlink(f"{a.mnt}/{linked[0]}")
        make(f"{a.mnt}/new", b"new")
        os.rename(f"{a.mnt}/new", f"{a.mnt}/{linked[1]}")
        equal(read(f"{other.mnt}/{linked[1]}"), b"new")
        check(not os.path.exists(f"{other.mnt}/{linked[0]}"), "a lost file was not unlinked")
        os.mkdir(f"{a.mnt}/new")
        os.rename(f"{a.mnt}/new", f"{a.mnt}/{nameless[0]}")
        equal(os.listdir(f"{other.mnt}/{nameless[0]}"), [])
        expect(errno.EIO, os.rename, f"{a.mnt}/{nameless[1]}", f"{a.mnt}/elsewhere")
        os.rmdir(f"{a.mnt}/{nameless[1]}")
        begun = time.monotonic()
        run_checked("rm", "-rf", *[f"{other.mnt}/{d}" for d in os.listdir(other.mnt)],
                    timeout=60 * FACTOR)
        check(time.monotonic() - begun < 20 * FACTOR, "rm -rf took too long")
        equal(os.listdir(a.mnt), [])

        # And new ones are made in all slots.
        for i in range(60):
            for node in (a, other):
                os.mkdir(f"{node.mnt}/{node.name}{i}")
                make(f"{node.mnt}/{node.name}{i}/f", b"again")
        for node, beside in ((a, other), (other, a)):
            for i in range(60):
                path = f"{beside.mnt}/{node.name}{i}"
                equal(read(f"{path}/f"), b"again")
                for made in (path, f"{path}/f"):
                    check(os.stat(made).st_ino not in old_inodes, "an inode number is used again")


def flock_once(path):
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(fd)


@case
def refusals(t):
    with new_cluster(t, 3) as cluster:
        cluster.wait_balanced()
        a, b, c = cluster.nodes
        ids = [number(n) for n in cluster.nodes]
        root = ids.index(a.stat(a.mnt)["owner"])
        check("no node 1" in refusal(a, 1), "an unknown node")
        check("is not down" in refusal(c, ids[1]), "a node that is up")
        check("keeps the cluster map" in refusal(b, ids[0]), "the keeper")
        check("is no node number" in refusal(a, "x"), "no number")
        for node in (b, c):
            node.kill()
        wait_until(lambda: [state_of(a, i) for i in ids[1:]] == ["down", "down"], 30 * FACTOR,
                   "both are down")
        text = refusal(a, ids[1])
        check("is down too" in text or (root == 1 and "root" in text), f"another one down: {text}")
        if root > 0:
            check("root directory" in refusal(a, *ids[1:]), "the owner of the root")
        for node in (b, c):
            node.start()
        cluster.wait_members()
        cluster.wait_balanced()


@case
def an_old_store_that_comes_back_is_refused(t):
    with new_cluster(t, 3) as cluster:
        cluster.wait_balanced()
        a = cluster.nodes[0]
        victim, other = victim_of(cluster)
        lost = number(victim)
        make(f"{victim.mnt}/f", b"of the victim")
        lose(victim, a, lost, keep_store=True)
        remove_lost(a, lost)
        victim.launch()
        wait_until(lambda: victim.died() is not None, 30 * FACTOR, "the old node ends")
        check(victim.died() != 0, "the old node was taken")
        said = victim.last_words()
        check("given up as lost" in said, f"it does not say why: {said}")
        equal(outcome(read, f"{other.mnt}/f"), "EIO")


@case
def a_node_that_was_only_cut_off_ends(t):
    with new_cluster(t, 3) as cluster:
        cluster.wait_balanced()
        a = cluster.nodes[0]
        victim, _ = victim_of(cluster)
        lost = number(victim)
        cluster.isolate(victim)
        wait_until(lambda: state_of(a, lost) == "down", 30 * FACTOR, "the node is down")
        remove_lost(a, lost)
        victim.expect_error("not in the cluster any more|given up as lost")
        cluster.heal()
        wait_until(lambda: victim.died() is not None, 60 * FACTOR, "the node ends")
        victim.pid = None
        os.mkdir(f"{a.mnt}/d")


def check_survivor_killed(t, point, keeper):
    """A survivor dies at a point of the removal, and starts again; it goes on by itself."""
    need_fault_points()
    with new_cluster(t, 3) as cluster:
        cluster.wait_balanced()
        a = cluster.nodes[0]
        victim, other = victim_of(cluster)
        dies, asked = (a, other) if keeper else (other, a)
        lost = number(victim)
        files = make_tree(cluster.nodes)
        about = describe(a, files + directories_of(files))
        def is_there(path):
            return not path or (about[path]["owner"] != lost and is_there(os.path.dirname(path)))
        kept = [f for f in files if is_there(f) and about[f]["home"] != lost]
        dies.stop()
        with dying_at(point):
            dies.start()
        cluster.wait_members()
        lose(victim, asked, lost)
        wait_until(lambda: state_of(a, number(dies)) == "up", 20 * FACTOR, "the survivor is up")
        command = Child(remove_lost, asked, lost)
        wait_dead(dies, point)
        dies.start()
        wait_until(lambda: not command.running(), 60 * FACTOR, "the removal")
        with contextlib.suppress(harness.Failure):
            command.result()  # Where the keeper did not answer, it is told so.
        losses = remove_lost(asked, lost)
        check(losses["names"] > 0, "nothing is lost")
        cluster.wait_balanced()
        for node in (a, other):
            for path in kept:
                equal(read(f"{node.mnt}/{path}"), os.path.dirname(path).encode() * 50, path)
        more = [Names(t, node.mnt, f"more{node.name}") for node in (a, other)]
        for each in more:
            each.wait(30)
            each.stop()
            each.check([a.mnt, other.mnt])


for _point in ("removal-claim", "adopt-unwritten", "adopt-written"):
    for _keeper in (False, True):
        def _killed(t, point=_point, keeper=_keeper):
            check_survivor_killed(t, point, keeper)
        _killed.__name__ = (f"{'keeper' if _keeper else 'survivor'}_killed_at_"
                            f"{_point.replace('-', '_')}")
        case(_killed)


@case
def a_joiner_is_lost_before_anybody_knows_what_it_took(t):
    """Its givers go on with what they had."""
    need_fault_points()
    with new_cluster(t, 3, late=1) as cluster:
        a, b, c = cluster.nodes
        cluster.wait_balanced()
        before = [Names(t, node.mnt, f"before{node.name}") for node in (a, b)]
        for each in before:
            each.wait(40)
            each.stop()
        with dying_at("take-owned"):
            c.launch()
        wait_dead(c, "take-owned")
        lost = next(m["id"] for m in a.members() if m["id"] not in (number(a), number(b)))
        lose(c, a, lost)
        equal(remove_lost(b, lost)["names"], 0, "lost names")
        cluster.wait_balanced()
        for each in (*before, Names(t, b.mnt, "after")):
            if each not in before:
                each.wait(30)
                each.stop()
            each.check([a.mnt, b.mnt])


@case
def a_joiner_is_lost_that_had_not_told_the_keeper_what_it_took(t):
    """Nobody has that any more, whatever the map says: it is taken over as the rest is."""
    need_fault_points()
    with new_cluster(t, 3, late=1) as cluster:
        a, b, c = cluster.nodes
        cluster.wait_balanced()
        before = Names(t, b.mnt, "before")
        before.wait(40)
        before.stop()
        with dying_at("claim"):
            c.launch()
        wait_dead(c, "claim")
        lost = next(m["id"] for m in a.members() if m["id"] not in (number(a), number(b)))
        time.sleep(2 * FACTOR)  # Its giver hears of it.
        given = SLOTS - sum(n.status()["slots"]["owned"] for n in (a, b))
        lose(c, a, lost)
        if isinstance(outcome(os.listdir, a.mnt), str):
            raise harness.Skip("the root directory's slot went along")
        remove_lost(b, lost)
        cluster.wait_balanced()
        check(given > 0, "empty pass: nothing was given to it")
        after = Names(t, a.mnt, "after")
        after.wait(30)
        after.stop()
        after.check([a.mnt, b.mnt])


@case
def what_was_taken_from_a_giver_that_is_lost_stays(t):
    need_fault_points()
    with new_cluster(t, 4, late=1) as cluster:
        a, joiner = cluster.nodes[0], cluster.nodes[3]
        cluster.wait_balanced()
        victim, other = victim_of(cluster)
        lost = number(victim)
        files = make_tree(cluster.nodes[:3])
        victim.stop()
        with dying_at("give-answered"):
            victim.start()
        cluster.wait_members()
        joiner.launch()
        wait_dead(victim, "give-answered")
        joiner.wait_ready()
        wait_until(lambda: state_of(a, lost) == "down", 30 * FACTOR, "the node is down")
        time.sleep(2 * FACTOR)  # Others' hand-overs, and claims.
        there = [f for f in files if os.path.basename(f) != victim.name
                 and not isinstance(outcome(os.stat, f"{a.mnt}/{f}"), str)]
        shutil.rmtree(victim.store)
        remove_lost(a, lost)
        cluster.wait_balanced()
        check(0 < len(there) < len(files), f"empty pass: {len(there)} of {len(files)} are there")
        for node in (a, other, joiner):
            for path in there:
                equal(read(f"{node.mnt}/{path}"), os.path.dirname(path).encode() * 50, path)


def check_coordinator_lost(t, point):
    """What others have prepared for a coordinator that is lost is aborted or committed."""
    need_fault_points()
    with new_cluster(t, 3) as cluster:
        cluster.wait_balanced()
        a = cluster.nodes[0]
        victim, other = victim_of(cluster)
        lost = number(victim)
        victim.stop()
        with dying_at(f"{point}:5"):
            victim.start()
        workers = [Names(t, victim.mnt, f"w{i}") for i in range(2)]
        wait_dead(victim, point)
        for worker in workers:
            worker.stop()
        lose(victim, a, lost)
        remove_lost(a, lost)
        cluster.wait_balanced()
        wait_until(lambda: all(n.status()["peers"]["transactions"]["unfinished"] == 0
                               for n in (a, other)), 20 * FACTOR, "transactions end")
        after = Names(t, other.mnt, "after")
        after.wait(30)
        after.stop()
        after.check([a.mnt, other.mnt])
        # Nothing is locked any more.
        time.sleep(3 * FACTOR)
        begun = time.monotonic()
        run_checked("rm", "-rf", *[f"{a.mnt}/{d}" for d in os.listdir(a.mnt)],
                    timeout=60 * FACTOR)
        check(time.monotonic() - begun < 20 * FACTOR, "rm -rf took too long")
        equal(os.listdir(other.mnt), [])


for _point in ("all-prepared", "decided", "decided-synced", "told"):
    def _lost(t, point=_point):
        check_coordinator_lost(t, point)
    _lost.__name__ = f"coordinator_lost_at_{_point.replace('-', '_')}"
    case(_lost)


if __name__ == "__main__":
    sys.exit(harness.main(__doc__, shared_mount=False, argv=OTHERS))
