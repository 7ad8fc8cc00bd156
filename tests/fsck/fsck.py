#!/usr/bin/env python3
"""`cfs fsck` on stores that are right, and on copies of them that are wrong in one place.

Goal: nothing is said of a store that a node has left, in good order or not, and nothing in it
changes; each kind of damage is found, and nothing else with it. Method: stores of real mounts, of
one node and of a cluster of three; `damage` edits records of copies.
"""

import contextlib
import json
import os
import random
import shutil
import socket
import stat
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
for folder in ("mount", "cluster"):
    sys.path.insert(0, str(REPOSITORY / "tests" / folder))
import harness  # noqa: E402  (It is where the path above says.)
from cluster import Cluster  # noqa: E402
from harness import case, cfs, check, equal, make, opened, run_checked  # noqa: E402

BUILD = os.environ.get("CFS_BUILD", str(REPOSITORY / "build" / "meson"))
DAMAGE = f"{BUILD}/tests/fsck/damage"
DIRECTORY, REGULAR = 4, 8  # DT_DIR, DT_REG
UNAVAILABLE, USAGE, DATAERR, CONFIG = 69, 64, 65, 78


def snapshot(store):
    """All that opening it might change."""
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_size)
            for path in sorted(Path(store).rglob("*"))}


def fsck(*stores, options=()):
    """Its report; fails if anything changes or the exit code is not that of the report."""
    before = [snapshot(store) for store in stores]
    done = cfs("fsck", "--json", *options, *stores)
    check(done.returncode in (0, 1), f"exit {done.returncode}: {done.stderr}")
    report = json.loads(done.stdout)
    equal(done.returncode, int(report["errors"] > 0), "exit code")
    equal([snapshot(store) for store in stores], before, "the stores afterwards")
    return report


def kinds(report, level):
    return sorted(f["kind"] for f in report["findings"] if f["level"] == level)


def expect_clean(*stores, notes=(), options=()):
    report = fsck(*stores, options=options)
    equal((report["errors"], report["findings"] if not notes else kinds(report, "note")),
          (0, sorted(notes)), "errors and notes")
    return report


def expect_errors(wanted, *stores, where=(), notes=(), options=()):
    """Exactly these kinds; each of the texts `where` is in what is said."""
    report = fsck(*stores, options=options)
    equal((kinds(report, "error"), kinds(report, "note")), (sorted(wanted), sorted(notes)),
          f"findings of {report['findings']}")
    said = "\n".join(f"{f['where']}: {f['what']}" for f in report["findings"])
    for text in where:
        check(text in said, f"{text!r} is not in {said!r}")
    return report


class Tree:
    """What the stores of these tests have, made below a directory."""

    def __init__(self, root):
        for path in ("a", "a/b", "a/b/c", "a/other", "moved"):
            os.mkdir(f"{root}/{path}")
        for number in range(20):
            make(f"{root}/a/b/f{number}", b"x" * number)
        os.link(f"{root}/a/b/f1", f"{root}/a/linked")
        os.symlink("f1", f"{root}/a/symlink")
        os.mkfifo(f"{root}/a/fifo")
        make(f"{root}/new\nline")
        with socket.socket(socket.AF_UNIX) as s, harness.opened(root, os.O_RDONLY) as fd:
            s.bind(f"/proc/self/fd/{fd}/socket")
        os.setxattr(f"{root}/a/b/f2", "user.name", b"value")
        os.setxattr(f"{root}/a/b", "system.posix_acl_default", ACL)
        make(f"{root}/a/b/inherits")
        os.rename(f"{root}/a/b/c", f"{root}/moved/c")
        os.rename(f"{root}/a/b/f10", f"{root}/moved/f10")
        os.rename(f"{root}/a/b/f11", f"{root}/a/b/f12")
        os.unlink(f"{root}/a/b/f13")
        os.mkdir(f"{root}/gone")
        os.rmdir(f"{root}/gone")
        self.of_backing = {}
        for path, _, names in os.walk(root):
            for st in (os.lstat(f"{path}/{name}") for name in names):
                if stat.S_ISREG(st.st_mode):
                    self.of_backing[backing_of(st.st_ino)] = st.st_ino
        self.ino = {path: os.lstat(f"{root}/{path}").st_ino
                    for path in ("a", "a/b", "a/other", "moved", "moved/c", "a/b/f1", "a/b/f2",
                                 "a/b/f3", "a/b/inherits", "a/fifo")}


# user::rwx user:nobody:r-- group::r-x mask::r-x other::r--
ACL = b"".join([(2).to_bytes(4, "little")] + [
    tag.to_bytes(2, "little") + perm.to_bytes(2, "little") + who.to_bytes(4, "little")
    for tag, perm, who in ((1, 7, 2**32 - 1), (2, 4, 65534), (4, 5, 2**32 - 1),
                           (16, 5, 2**32 - 1), (32, 4, 2**32 - 1))])


class Copy:
    """A copy of stores, of which one is made wrong."""

    def __init__(self, stores, workspace):
        self.stores = []
        for store in stores:
            self.stores.append(f"{workspace.new_directory()}/store")
            shutil.copytree(store, self.stores[-1], copy_function=copy_file)

    def damage(self, *words, store=0):
        run_checked(DAMAGE, self.stores[store], *map(str, words))
        return self

    def backing(self, number, store=0):
        return (f"{self.stores[store]}/data/{number >> 20:03x}/{number >> 10 & 1023:03x}/"
                f"{number:012x}")

    def expect(self, *wanted, **kwargs):
        return expect_errors(wanted, *self.stores, **kwargs)


def copy_file(source, target):
    """Not sockets, and what is sparse stays so."""
    if stat.S_ISREG(os.lstat(source).st_mode):
        run_checked("cp", "-a", "--sparse=always", source, target)


def backing_of(ino):
    """On one node it is the counter of the inode."""
    return ino & (1 << 48) - 1


@contextlib.contextmanager
def one_store(t):
    """The store of a node that has ended, what is in it, and a maker of copies."""
    with t.new_mount() as m:
        tree = Tree(m.mnt)
        m.stop()
        yield m, tree, lambda: Copy([m.store], t.workspace)


@case
def clean_after_a_good_end(t):
    with one_store(t) as (m, tree, _):
        del tree
        report = expect_clean(m.store, options=["--strict"])
        equal((report["inodes"], report["names"], report["files"]), (29, 29, 20), "what there is")
        m.start()
        m.stop()
        expect_clean(m.store)


@case
def clean_after_a_kill(t):
    """With a removed file that is open, a directory that is somebody's, and no end to the log."""
    with t.new_mount() as m:
        tree = Tree(m.mnt)
        with opened(make(f"{m.mnt}/open", b"x")) as fd:
            os.unlink(f"{m.mnt}/open")
            unlinked = os.fstat(fd).st_ino
            os.mkdir(f"{m.mnt}/removed")
            with opened(f"{m.mnt}/removed", os.O_RDONLY):
                os.rmdir(f"{m.mnt}/removed")
                m.kill()
        expect_clean(m.store)
        copy = Copy([m.store], t.workspace).damage("no-queue", unlinked)
        copy.expect("orphan not queued", where=[f"inode {unlinked}: "])
        # It may never have been on the disk: the next start makes it again, empty.
        copy = Copy([m.store], t.workspace)
        os.unlink(copy.backing(backing_of(tree.ino["a/b/f3"])))
        expect_clean(*copy.stores, notes=["unsynced file"])
        m.start()
        m.stop()
        expect_clean(m.store)


@case
def refused_stores(t):
    with t.new_mount() as m, t.new_mount() as other:
        for wanted, words, stores in [
                (UNAVAILABLE, "in use by process", [m.store]),
                (CONFIG, "not a cfs store", [os.getcwd()]),
                (66, "missing", [f"{os.getcwd()}/missing"])]:
            done = cfs("fsck", *stores)
            equal((done.returncode, words in done.stderr), (wanted, True), done.stderr)
        m.stop()
        other.stop()
        for wanted, words, stores in [
                (USAGE, "different clusters", [m.store, other.store]),
                (USAGE, "both of node", [m.store, f"{m.store}/../store"])]:
            done = cfs("fsck", *stores)
            equal((done.returncode, words in done.stderr), (wanted, True), done.stderr)
        copy = Copy([m.store], t.workspace)
        current = next(Path(copy.stores[0]).glob("meta/MANIFEST*"))
        current.write_bytes(b"not a manifest" * 100)
        done = cfs("fsck", *copy.stores)
        equal((done.returncode, "cannot be read" in done.stderr), (DATAERR, True), done.stderr)


@case(timeout=120)
def damaged_records(t):
    with one_store(t) as (_, tree, copy):
        ino = tree.ino
        f2, f3 = ino["a/b/f2"], ino["a/b/f3"]
        copy().damage("inode", f3).expect(
            "missing inode", "stray backing file",
            where=[f"inode {ino['a/b']} (/a/b): its entry f3 is inode {f3}"])
        copy().damage("inode", f2).expect("missing inode", "stray xattrs", "stray backing file")
        copy().damage("garbage", ino["a/fifo"]).expect("malformed record", "missing inode")
        copy().damage("inode", f3, "nlink", 2).expect(
            "wrong nlink", where=[f"inode {f3} (/a/b/f3): it has 1 name, and its record counts 2"])
        copy().damage("inode", ino["a/other"], "nlink", 2).expect("wrong nlink")
        copy().damage("inode", ino["moved/c"], "parent", ino["a/b"]).expect(
            "wrong parent", where=[f"inode {ino['moved/c']} (/moved/c): "])
        copy().damage("inode", f2, "xattr_list_bytes", 3).expect("wrong xattr count")
        copy().damage("inode", f3, "xattr_list_bytes", 3).expect("wrong xattr count")
        copy().damage("inode", ino["a/b/inherits"], "flags", 0).expect("wrong ACL flags")
        copy().damage("bucket", ino["moved"], 7).expect(
            "wrong bucket", where=["it has 2 entries, 1 of them directories", "counts 7 and 0"])
        copy().damage("bucket", f3, 1).expect("stray bucket")
        copy().damage("dentry", ino["a/b"], "f3", f3, DIRECTORY).expect(
            "wrong type", "wrong bucket", where=["its name f3 in", "says a directory"])
        copy().damage("no-dentry", ino["a/b"], "f3").expect("wrong bucket", "wrong nlink")
        # Two names of a directory, in its place and below itself.
        copy().damage("dentry", ino["moved/c"], "up", ino["moved"], DIRECTORY).expect(
            "wrong bucket", "wrong nlink")
        copy().damage("dentry", f3, "name", f2, REGULAR).expect("stray names", "wrong nlink")
        copy().damage("queue", f3).expect("wrong orphan", where=["and has links"])
        copy().damage("queue", 12345).expect("wrong orphan", where=["is not there"])
        copy().damage("mark", f3).expect()
        copy().damage("mark", 12345).expect("stray open mark")
        copy().damage("inode", 1).expect("no root", "stray bucket", "stray names")
        copy().damage("hand-over").expect("malformed record", notes=["hand-over"])


@case
def cycles(t):
    with one_store(t) as (_, tree, copy):
        a, b = tree.ino["a"], tree.ino["a/b"]
        wrong = copy().damage("no-dentry", 1, "a").damage("dentry", b, "up", a, DIRECTORY)
        wrong.damage("inode", a, "parent", b).expect("cycle", "wrong bucket", "wrong bucket")


@case
def damaged_data(t):
    with one_store(t) as (_, tree, copy):
        f2, f3 = tree.ino["a/b/f2"], tree.ino["a/b/f3"]
        number = backing_of(f3)
        missing = copy()
        os.unlink(missing.backing(number))
        missing.expect("missing backing file", where=[f"inode {f3} (/a/b/f3): its file",
                                                      f"/{number:012x} is missing"])
        for name, kind in ((2, "stray backing file"), (1 << 30, "stray backing file")):
            stray = copy()
            os.makedirs(os.path.dirname(stray.backing(name)), exist_ok=True)
            make(stray.backing(name))
            stray.expect(kind, where=[f"/{name:012x}: "])
        strange = copy()
        make(f"{strange.stores[0]}/data/core")
        make(f"{strange.stores[0]}/data/000/{number:012x}")
        strange.expect("strange file", "strange file")
        copy().damage("inode", f3, "backing", backing_of(f2)).expect(
            "shared backing file", "stray backing file")
        copy().damage("inode", f3, "home", 5).expect("unknown home", "stray backing file")


@case
def transactions(t):
    """What is decided counts as done, what is only prepared as not begun."""
    with one_store(t) as (_, tree, copy):
        words = [tree.ino["moved"], "f", tree.ino["a/b/f3"], REGULAR]
        prepared = copy().damage("prepared", *words)
        prepared.expect(notes=["prepared"])
        prepared.expect("prepared", options=["--strict"])
        copy().damage("decided", *words).expect("wrong nlink", notes=["outcome", "prepared"],
                                                where=["it has 2 names"])


@case
def many_findings(t):
    """A hundred of a kind are shown, and all are counted."""
    with t.new_mount() as m:
        for number in range(150):
            make(f"{m.mnt}/{number}")
        m.stop()
        copy = Copy([m.store], t.workspace)
        shutil.rmtree(f"{copy.stores[0]}/data/000")
        report = fsck(*copy.stores)
        equal((report["errors"], len(report["findings"])), (150, 100), "errors, and what is shown")
        done = cfs("fsck", *copy.stores)
        lines = done.stdout.splitlines()
        equal(lines[-2:], ["50 more, of kinds that 100 are shown of",
                           "151 inodes, 150 names, 0 files: 150 errors, 0 notes"], "last lines")
        check(lines[0].startswith("error: inode "), lines[0])
        equal((done.returncode, done.stderr), (1, "cfs fsck: found 150 errors\n"), "outcome")


@case(timeout=120)
def clusters(t):
    with Cluster(t.workspace, 3, t.mode, store=t.store, one_owner=True) as cluster:
        a, b, c = cluster.nodes
        tree = Tree(a.mnt)
        make(f"{b.mnt}/a/of-b", b"x")
        os.mkdir(f"{c.mnt}/d")
        make(f"{c.mnt}/d/of-c", b"x")
        make(f"{c.mnt}/d/removed", b"x")
        os.unlink(f"{b.mnt}/d/removed")
        ino = os.stat(f"{a.mnt}/a/of-b").st_ino
        time.sleep(4 * harness.TIME_FACTOR)  # Removed files are gone by then.
        for node in (c, b, a):
            node.stop()
        stores = [node.store for node in cluster.nodes]
        expect_clean(*stores, options=["--strict"])
        expect_clean(*reversed(stores))
        expect_clean(a.store, c.store, notes=["missing store"])
        expect_clean(b.store, c.store, notes=["missing store"])

        def copy():
            return Copy(stores, t.workspace)

        with_file = copy()
        number = next(int(p.name, 16) for p in Path(with_file.stores[1]).glob("data/*/*/*"))
        os.unlink(with_file.backing(number, store=1))
        with_file.expect("missing backing file", where=[f"inode {ino} (/a/of-b): "])
        copy().damage("no-foreign", number, store=1).expect("no foreign record")
        copy().damage("foreign", number, tree.ino["a"], store=1).expect("wrong foreign record")
        copy().damage("foreign", number, 0, store=1).expect(notes=["uncertain create"])
        copy().damage("slot", 5, store=1).expect("slot with two owners", where=["slot 5: "])
        copy().damage("slot", 65535).expect("slot without owner", where=["slot 65535: "])
        lost = copy().damage("inode", ino)
        lost.expect("missing inode", notes=["left-over file"])

        # As slots will be spread: parents and children, names and inodes at different nodes.
        spread = copy()
        for path, to in (("a", 1), ("a/b", 2), ("moved", 1)):
            spread.damage("move", tree.ino[path] >> 48, spread.stores[to])
        # Files with their data on A and their inodes on C.
        for path in Path(spread.stores[0]).glob("data/*/*/*"):
            spread.damage("foreign", int(path.name, 16), tree.of_backing[int(path.name, 16)])
        expect_clean(*spread.stores, notes=["left over"])
        expect_clean(*spread.stores[:2], notes=["left over", "missing store"])
        expect_clean(*spread.stores[1:], notes=["missing store"])
        spread.damage("inode", tree.ino["a"], store=1)
        spread.damage("inode", tree.ino["moved/c"], "parent", tree.ino["a"])
        spread.damage("bucket", tree.ino["a/b"], 1, store=2)
        spread.expect("missing inode", "stray bucket", "stray names", "wrong parent",
                      "wrong bucket", notes=["left over"])


class Busy:
    """Processes that change names on all nodes, in the same directories, until they are killed."""

    def __init__(self, roots):
        self.children = [harness.Child(self._work, root, seed)
                         for seed, root in enumerate(roots)]

    @staticmethod
    def _work(root, seed):
        rng = random.Random(seed)
        names = [f"{root}/d{d}/{kind}{n}" for d in range(4) for kind in "fs" for n in range(6)]
        done = 0
        while True:
            a, b = rng.choice(names), rng.choice(names)
            step, *words = rng.choice([
                (os.open, a, os.O_CREAT | os.O_RDWR | os.O_NONBLOCK), (os.open, a, os.O_RDONLY),
                (os.mkdir, a), (os.rmdir, a), (os.unlink, a), (os.rename, a, b), (os.link, a, b),
                (os.symlink, "x", a), (os.setxattr, a, "user.x", b"y" * 10)])
            outcome = harness.outcome(step, *words)
            if isinstance(outcome, int):
                outcome = harness.outcome(os.close, outcome)
            if outcome in ("EIO", "ENOTCONN", "ECONNABORTED"):
                return done
            done += 1

    def end(self):
        return [child.result(60 * harness.TIME_FACTOR) for child in self.children]


@case(timeout=180)
def killed_clusters(t):
    """What all nodes killed at once leave is right, and again after they have started and ended."""
    with Cluster(t.workspace, 3, t.mode, store=t.store, io_timeout=3) as cluster:
        stores = [node.store for node in cluster.nodes]
        for number in range(4):
            os.mkdir(f"{cluster.nodes[0].mnt}/d{number}")
        for _ in range(2):
            busy = Busy([node.mnt for node in cluster.nodes])
            time.sleep(1.5 * harness.TIME_FACTOR)
            for node in cluster.nodes:
                node.kill()
            done = busy.end()
            check(min(done) > 10, f"empty pass: so many operations were done: {done}")
            report = fsck(*stores)
            equal(kinds(report, "error"), [], f"errors: {report['findings']}")
            for node in cluster.nodes:
                node.launch()
            for node in cluster.nodes:
                node.wait_ready()
            cluster.wait_members()


if __name__ == "__main__":
    sys.exit(harness.main(__doc__, shared_mount=False))
