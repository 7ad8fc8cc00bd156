#!/usr/bin/env python3
"""A mount in front of a directory that others change, too: cfs refresh.

    refresh.py [--mode MODE] [--filter REGEX]

Goal: after `cfs refresh` the mount shows what others have made of the backend; nothing that was changed
here is lost, nothing goes because of an error of the backend, and it may end anywhere and be run again.
Method: real mounts over real directories that are changed on both sides, compared name by name.
"""

import contextlib
import errno
import os
import random
import shutil
import stat
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "mount")]
import harness  # noqa: E402  (It is where the path above says.)
import trees  # noqa: E402
from harness import (BINARY, NOBODY, Child, case, cfs, check, equal, expect, make,  # noqa: E402
                     need_root, opened, outcome, read, run_checked, wait_until)
from trees import check_equal, fill, over, tree, walk  # noqa: E402

FACTOR = harness.TIME_FACTOR
MODES = ("readonly", "writeback")
# What the log may say, and how loudly, when the backend is away or has conflicts.
ERRORS = r"(?i)flush|backend"


def refresh(path, code=0, words=""):
    done = cfs("refresh", path, timeout=120 * FACTOR)
    check(done.returncode == code and words in done.stdout + done.stderr, f"refresh of {path}: {done}")
    return done


def status(mount):
    return mount.status()["backend"]


def sync(mount):
    run_checked(BINARY, "sync", mount.mnt, timeout=60 * FACTOR)


def check_same(mount, contents=True):
    """As trees.check_equal(), but for what a flush leaves to the backend's clock."""
    there, here = tree(mount.backend, contents), tree(mount.mnt, contents)
    equal(sorted(here), sorted(there), "names")
    for name, wanted in there.items():
        for what, value in wanted.items():
            if what != "ctime":
                equal(here[name][what], value, f"{what} of {name}")


def each_mode(t, **kwargs):
    """A mount in each mode, one after the other."""
    for mode in MODES:
        with over(t, mode=mode, **kwargs) as mount:
            mount.mode = mode
            yield mount


@case(timeout=120)
def all_that_has_changed_is_seen(t):
    need_root()
    for m in each_mode(t):
        fill(m.backend, kept_by_cfs=False)
        check_equal(m)
        refresh(m.mnt)  # What cfs keeps there was made since.
        refresh(m.mnt, words="0 new, 0 changed, 0 gone\n")
        top = m.backend
        make(f"{top}/new", b"data")
        os.makedirs(f"{top}/d0/x/y")
        make(f"{top}/d0/x/y/z", b"deep")
        gone = next(p for p in sorted(Path(top).rglob("f*")) if p.is_file())
        os.unlink(gone)
        os.unlink(f"{top}/dangling")
        os.unlink(f"{top}/null")
        os.rmdir(f"{top}/empty")
        make(f"{top}/sparse", b"no longer")
        os.chmod(f"{top}/fifo", 0o604)
        os.chown(f"{top}/long", NOBODY, 7, follow_symlinks=False)
        os.chmod(f"{top}/d1", 0o711)
        os.setxattr(f"{top}/d1", "user.x", b"y")
        run_checked("setfacl", "-m", "u:77:r", f"{top}/d0")
        os.rename(f"{top}/-rf", f"{top}/d1/-rf")
        os.unlink(f"{top}/ ")
        os.mkdir(f"{top}/ ")
        os.symlink("there", f"{top}/link")
        done = refresh(m.mnt)
        check("0 new" not in done.stdout and "0 gone" not in done.stdout, f"it says {done.stdout}")
        check_equal(m)
        refresh(m.mnt, words="0 new, 0 changed, 0 gone\n")
        m.kill()
        m.start()
        check_equal(m)


@case
def names_come_and_go(t):
    """Also for a kernel that remembers that there are, or are not, such names."""
    for m in each_mode(t):
        os.mkdir(f"{m.backend}/d")
        for name in ("stays", "goes", "d/goes"):
            make(f"{m.backend}/{name}", b"1")
        for name in ("new", "d/new", "newdir"):
            expect(errno.ENOENT, os.stat, f"{m.mnt}/{name}")
        equal(sorted(os.listdir(m.mnt)), ["d", "goes", "stays"], "names")
        for name in ("goes", "d/goes", "stays"):
            read(f"{m.mnt}/{name}")
        for name in ("goes", "d/goes"):
            os.unlink(f"{m.backend}/{name}")
        for name in ("new", "d/new"):
            make(f"{m.backend}/{name}", b"2")
        os.mkdir(f"{m.backend}/newdir")
        refresh(m.mnt, words="3 new, ")
        for name in ("goes", "d/goes"):
            expect(errno.ENOENT, os.stat, f"{m.mnt}/{name}")
        for name in ("new", "d/new"):
            equal(read(f"{m.mnt}/{name}"), b"2", name)
        equal(sorted(os.listdir(m.mnt)), ["d", "new", "newdir", "stays"], "names")
        equal(os.listdir(f"{m.mnt}/newdir"), [], "names in a new one")
        equal(os.stat(m.mnt).st_nlink, 4, "links of the top")
        check_equal(m)


def sizes(mount):
    return [os.stat(f"{mount.mnt}/{name}").st_size for name in ("a/f", "a/g", "a/b/f", "c/f")]


@case
def only_what_is_named_is_looked_at(t):
    for m in each_mode(t):
        for folder in ("a/b", "c", "never"):
            os.makedirs(f"{m.backend}/{folder}")
        for name in ("a/f", "a/g", "a/b/f", "c/f"):
            make(f"{m.backend}/{name}", b"old")
        for folder in ("", "a", "a/b", "c"):
            os.listdir(f"{m.mnt}/{folder}")
        for name in ("a/f", "a/g", "a/b/f", "c/f"):
            make(f"{m.backend}/{name}", b"newer")
        make(f"{m.backend}/a/new")
        refresh(f"{m.mnt}/a/f", words="0 new, 2 changed, 0 gone")  # With the directory's times.
        equal(sizes(m), [5, 3, 3, 3], "sizes")
        expect(errno.ENOENT, os.stat, f"{m.mnt}/a/new")
        refresh(f"{m.mnt}/a/new", words="1 new, 0 changed, 0 gone")
        check(os.path.exists(f"{m.mnt}/a/new"), "a name that was asked for")
        done = harness.run(BINARY, "refresh", cwd=f"{m.mnt}/a/b")
        equal(done.returncode, 0, "refresh of where one is")
        equal(sizes(m), [5, 3, 5, 3], "sizes")
        refresh(f"{m.mnt}/a/missing", words="0 new, 0 changed, 0 gone")
        refresh(f"{m.mnt}/a/")
        refresh(f"{m.mnt}/never")
        equal(m.stat(f"{m.mnt}/never").get("not_imported"), True, "a directory that nobody looked into")
        equal(os.stat(f"{m.mnt}/c/f").st_size, 3, "size elsewhere")
        refresh(m.mnt)
        check_equal(m)


@case
def copies_of_what_has_changed_are_dropped(t):
    for m in each_mode(t):
        names = ("same", "longer", "as_long", "mode", "older")
        for name in names:
            make(f"{m.backend}/{name}", b"old data")
            trees.old(f"{m.backend}/{name}")
        os.listdir(m.mnt)
        refresh(m.mnt)
        for name in names:
            equal(read(f"{m.mnt}/{name}"), b"old data", name)
        make(f"{m.backend}/longer", b"much longer data")
        make(f"{m.backend}/as_long", b"new data")
        os.chmod(f"{m.backend}/mode", 0o600)
        # Only the ctime tells.
        make(f"{m.backend}/older", b"NEW DATA")
        trees.old(f"{m.backend}/older")
        before = status(m)["staged_files"]
        refresh(m.mnt, words="0 new, 4 changed, 0 gone")
        for name, layout in (("same", "whole"), ("longer", "backend"), ("as_long", "backend"),
                             ("mode", "whole"), ("older", "backend")):
            equal(m.stat(f"{m.mnt}/{name}")["layout"], layout, f"layout of {name}")
        equal(os.stat(f"{m.mnt}/longer").st_size, 16, "size")
        equal(stat.S_IMODE(os.stat(f"{m.mnt}/mode").st_mode), 0o600, "mode")
        check_equal(m)
        equal(status(m)["staged_files"] - before, 3, "staged in again")
        equal(read(f"{m.mnt}/older"), b"NEW DATA", "content")


@case
def objects_are_replaced(t):
    need_root()
    for m in each_mode(t):
        top = m.backend
        for name in ("file", "was_file", "link"):
            make(f"{top}/{name}", b"old")
        os.makedirs(f"{top}/was_dir/sub/below")
        make(f"{top}/was_dir/sub/f", b"old")
        os.makedirs(f"{top}/dir/sub")
        make(f"{top}/dir/old", b"old")
        make(f"{top}/dir/both", b"old")
        make(f"{top}/dir/sub/f", b"old")
        check_equal(m)
        inode = os.stat(f"{m.mnt}/file").st_ino
        make(f"{top}/.t", b"new")
        os.rename(f"{top}/.t", f"{top}/file")
        os.unlink(f"{top}/was_file")
        os.mkdir(f"{top}/was_file")
        make(f"{top}/was_file/f", b"new")
        shutil.rmtree(f"{top}/was_dir")
        make(f"{top}/was_dir", b"new")
        os.unlink(f"{top}/link")
        os.symlink("file", f"{top}/link")
        os.rename(f"{top}/dir", f"{top}/dir.old")
        os.mkdir(f"{top}/dir")
        make(f"{top}/dir/both", b"new")
        with opened(f"{m.mnt}/file", os.O_RDONLY) as fd:
            refresh(m.mnt)
            equal(os.pread(fd, 10, 0), b"old", "a file that was open when it was replaced")
            equal(os.fstat(fd).st_nlink, 0, "its links")
            check(os.stat(f"{m.mnt}/file").st_ino != inode, "another file has the same inode")
            check_equal(m)
        equal(read(f"{m.mnt}/file"), b"new", "content")
        refresh(m.mnt, words="0 new, 0 changed, 0 gone\n")


@case
def open_files_wait_until_they_are_closed(t):
    for m in each_mode(t):
        make(f"{m.backend}/f", b"old data")
        make(f"{m.backend}/gone", b"gone data")
        make(f"{m.backend}/mode", b"data")
        with opened(f"{m.mnt}/f", os.O_RDONLY) as fd, opened(f"{m.mnt}/gone", os.O_RDONLY) as gone, \
             opened(f"{m.mnt}/mode", os.O_RDONLY) as mode:
            make(f"{m.backend}/f", b"new and longer")
            os.unlink(f"{m.backend}/gone")
            os.chmod(f"{m.backend}/mode", 0o604)
            done = refresh(m.mnt, 75, "cfs refresh: f: it is open")
            check("1 gone" in done.stdout, f"it says {done.stdout}")
            equal(status(m)["changed_while_open"], 1, "files that wait")
            equal(os.pread(fd, 100, 0), b"old data", "open file")
            equal(os.fstat(fd).st_size, 8, "its size")
            equal(os.pread(gone, 100, 0), b"gone data", "open file that is gone")
            expect(errno.ENOENT, os.stat, f"{m.mnt}/gone")
            equal(stat.S_IMODE(os.fstat(mode).st_mode), 0o604, "mode")
            time.sleep(1.5)
            equal(read(f"{m.mnt}/f"), b"old data", "opened once more")
        wait_until(lambda: os.stat(f"{m.mnt}/f").st_size == 14, 5 * FACTOR, "closed file is what it is there")
        equal(read(f"{m.mnt}/f"), b"new and longer", "content")
        equal(status(m)["changed_while_open"], 0, "files that wait")
        check_equal(m)


@case(timeout=60)
def a_link_that_is_not_there_yet_keeps_the_file(t):
    """Its first name went on the backend before the second one came there."""
    with over(t, mode="writeback", errors=ERRORS) as m:
        make(f"{m.backend}/a", b"content")
        os.mkdir(f"{m.backend}/d")
        equal(read(f"{m.mnt}/a"), b"content")
        os.setxattr(m.mnt, "user.cfs.flush", b"600s")
        sync(m)
        os.link(f"{m.mnt}/a", f"{m.mnt}/d/b")
        os.unlink(f"{m.backend}/a")
        cfs("refresh", m.mnt)
        equal(read(f"{m.mnt}/d/b"), b"content", "the link")
        sync(m)
        equal(read(f"{m.backend}/d/b"), b"content", "the link there")
        make(f"{m.mnt}/d/b", b"more of it")
        sync(m)
        equal(read(f"{m.backend}/d/b"), b"more of it", "what was written to it later")


@case
def links_are_counted(t):
    for m in each_mode(t):
        top = m.backend
        for folder in ("a", "b", "c"):
            os.mkdir(f"{top}/{folder}")
        make(f"{top}/a/f", b"data")
        make(f"{top}/a/g", b"other")
        os.link(f"{top}/a/g", f"{top}/b/g")
        os.link(f"{top}/a/g", f"{top}/c/g")
        check_equal(m)
        inode = os.stat(f"{m.mnt}/a/g").st_ino
        os.link(f"{top}/a/f", f"{top}/b/f")
        os.link(f"{top}/a/f", f"{top}/a/e")
        os.unlink(f"{top}/b/g")
        refresh(m.mnt)
        check_equal(m)
        equal(len({os.stat(f"{m.mnt}/{n}").st_ino for n in ("a/f", "b/f", "a/e")}), 1, "inodes of one file")
        equal({os.stat(f"{m.mnt}/{n}/g").st_ino for n in "ac"}, {inode}, "inodes of the other")
        # One directory only: what is elsewhere still has its name here.
        os.unlink(f"{top}/a/g")
        refresh(f"{m.mnt}/c")
        equal(read(f"{m.mnt}/a/g"), b"other", "a name nobody looked at")
        refresh(f"{m.mnt}/a")
        expect(errno.ENOENT, os.stat, f"{m.mnt}/a/g")
        equal(read(f"{m.mnt}/c/g"), b"other", "the last name")
        os.link(f"{top}/c/g", f"{top}/a/again")
        for name in ("f", "e"):
            os.unlink(f"{top}/a/{name}")
        refresh(f"{m.mnt}/a")
        refresh(f"{m.mnt}/b")
        refresh(m.mnt)
        check_equal(m)
        run_checked(BINARY, "evict", m.mnt)
        check_equal(m)
        os.unlink(f"{top}/b/f")
        os.unlink(f"{top}/c/g")
        refresh(m.mnt)
        check_equal(m)


@case
def a_name_that_is_still_here_counts(t):
    """What has a name here is not freed, though the backend has another number of links."""
    with over(t, mode="writeback", errors=ERRORS) as m:
        for folder in ("a", "b"):
            os.mkdir(f"{m.backend}/{folder}")
        make(f"{m.backend}/a/f", b"data")
        os.link(f"{m.backend}/a/f", f"{m.backend}/b/f")
        check_equal(m)
        os.unlink(f"{m.backend}/b/f")
        refresh(f"{m.mnt}/a")
        os.unlink(f"{m.mnt}/a/f")
        equal(os.stat(f"{m.mnt}/b/f").st_size, 4, "size")
        for _ in range(2):
            cfs("sync", m.mnt)
            refresh(m.mnt)
        check_same(m)


@case
def what_is_dirty_stays(t):
    with over(t, mode="writeback", errors=ERRORS) as m:
        top = m.backend
        os.makedirs(f"{top}/d/e/clean")
        for name in ("changed", "attr", "removed", "gone", "replaced", "d/clean", "d/e/f"):
            make(f"{top}/{name}", b"old")
        check_equal(m)
        # All of it within the second before anything is flushed.
        ours = ("changed", "gone", "replaced", "d/e/f", "made", "d/e/new")
        for name in ours:
            make(f"{m.mnt}/{name}", b"ours")
        os.unlink(f"{m.mnt}/removed")
        os.chmod(f"{m.mnt}/attr", 0o611)
        make(f"{top}/changed", b"theirs")
        make(f"{top}/attr", b"theirs")
        make(f"{top}/made", b"theirs")
        os.unlink(f"{top}/gone")
        make(f"{top}/other", b"theirs")
        os.rename(f"{top}/other", f"{top}/replaced")
        make(f"{top}/removed", b"theirs")
        shutil.rmtree(f"{top}/d")
        done = refresh(m.mnt, words="left as they are")
        check("clean" not in os.listdir(f"{m.mnt}/d"), f"what is clean stays: {done}")
        for name in ours:
            equal(read(f"{m.mnt}/{name}"), b"ours", name)
        sync(m)
        refresh(m.mnt)
        equal(read(f"{top}/d/e/f"), b"ours", "made again")
        equal(read(f"{top}/d/e/new"), b"ours", "made")
        equal(os.listdir(f"{top}/d"), ["e"], "what was clean")
        check_same(m)
        equal(read(f"{top}/gone"), b"ours", "made again")
        for name in ("changed", "replaced", "made"):
            both = {read(f"{m.mnt}/{n}") for n in os.listdir(m.mnt) if n.startswith(name)}
            equal(both, {b"ours", b"theirs"}, f"contents of {name}")
        equal(read(f"{m.mnt}/removed"), b"theirs", "what they have changed and we have removed")
        check(status(m)["conflicts"] >= 2, f"conflicts: {status(m)}")


@case
def dirty_directories_are_made_again(t):
    with over(t, mode="writeback", errors=ERRORS) as m:
        top = m.backend
        os.makedirs(f"{top}/d/sub/deep")
        os.makedirs(f"{top}/to")
        make(f"{top}/d/f", b"f")
        make(f"{top}/d/sub/g", b"g")
        make(f"{top}/d/sub/deep/h", b"h")
        check_equal(m)
        os.rename(f"{m.mnt}/d/f", f"{m.mnt}/to/f")
        os.rename(f"{m.mnt}/d/sub", f"{m.mnt}/to/sub")
        os.rename(f"{m.mnt}/to/sub/g", f"{m.mnt}/d/g")
        shutil.rmtree(f"{top}/d")
        refresh(m.mnt)
        for _ in range(3):
            sync(m)
            refresh(m.mnt)
        equal(read(f"{m.mnt}/to/f"), b"f", "moved away")
        equal(read(f"{m.mnt}/d/g"), b"g", "moved back")
        check_same(m)


@case
def cwd_in_a_removed_directory(t):
    for m in each_mode(t):
        os.makedirs(f"{m.backend}/a/b")
        make(f"{m.backend}/a/b/f", b"data")
        check_equal(m)

        def inside():
            os.chdir(f"{m.mnt}/a/b")
            with open("f", "rb") as f:
                yield
                equal(f.read(), b"data", "open file")
            yield outcome(os.listdir, "."), outcome(os.stat, "f"), outcome(os.getcwd)

        steps = inside()
        here = os.getcwd()
        try:
            next(steps)
            shutil.rmtree(f"{m.backend}/a")
            run_checked(BINARY, "refresh", m.mnt)
            answers = next(steps)
        finally:
            os.chdir(here)
        steps.close()
        check(answers[0] in ([], "ENOENT") and answers[1] == "ENOENT", f"in a removed directory: {answers}")
        equal(os.listdir(m.mnt), [], "names")
        make(f"{m.backend}/a")
        refresh(m.mnt)
        check_equal(m)


@case
def errors_remove_nothing(t):
    need_root()
    for m in each_mode(t, errors=ERRORS):
        os.makedirs(f"{m.backend}/d/e")
        os.mkdir(f"{m.backend}/other")
        make(f"{m.backend}/d/f", b"data")
        make(f"{m.backend}/d/e/g", b"data")
        check_equal(m)
        before = tree(m.mnt)
        refresh("/", 66, "not in a cfs mount")
        # The backend is another directory now, as when a file server is not mounted any more.
        away = f"{m.backend}.away"
        os.rename(m.backend, away)
        refresh(m.mnt, 69, "cannot be looked at")
        os.mkdir(m.backend)
        refresh(m.mnt, 69, "another directory")
        refresh(f"{m.mnt}/d", 69, "another directory")
        equal(tree(m.mnt), before, "tree")
        os.rmdir(m.backend)
        os.rename(away, m.backend)
        shutil.rmtree(f"{m.backend}/d")
        refresh(m.mnt)
        equal(sorted(os.listdir(m.mnt)), ["other"], "names")
    with t.new_mount() as m:
        refresh(m.mnt, 69, "no backend")


@case
def unreadable_directories_are_named(t):
    need_root()
    for m in each_mode(t, errors=ERRORS):
        m.stop()
        os.chown(m.backend, NOBODY, NOBODY)
        m.start()
        for name in ("shut", "open"):
            os.mkdir(f"{m.backend}/{name}")
            make(f"{m.backend}/{name}/f", b"1")
        check_equal(m)
        before = tree(f"{m.mnt}/shut")
        # What root may not read, either: a FUSE file system of somebody else is mounted there.
        make(f"{m.backend}/open/g")
        with hidden(t, f"{m.backend}/shut"):
            refresh(m.mnt, 71, "shut")
            equal(tree(f"{m.mnt}/shut"), before, "a directory that cannot be looked at")
            check(os.path.exists(f"{m.mnt}/open/g"), "what can be looked at")
        refresh(m.mnt)
        check_equal(m)


@contextlib.contextmanager
def hidden(t, path):
    """A mount of cfs there whose daemon is dead: each look fails."""
    store = t.workspace.new_directory()
    run_checked(BINARY, "mount", path, "--store", store)
    with open(f"{store}/cfs.pid", encoding="ascii") as f:
        pid = int(f.read())
    os.kill(pid, harness.signal.SIGKILL)
    wait_until(lambda: outcome(os.stat, path) in ("ENOTCONN", "ECONNABORTED"), 10, "dead")
    try:
        yield
    finally:
        run_checked("umount", "-l", path)


@case
def a_backend_that_is_unmounted(t):
    """Lazily: what is held open is still there, and the path leads to an empty directory."""
    need_root()
    folder = t.workspace.new_directory()
    disk = f"{folder}/disk"
    harness.loop_file_system(f"{folder}/image", disk, "ext4", 64)
    try:
        os.mkdir(f"{disk}/backend")
        with over(t, f"{disk}/backend", mode="readonly", errors=ERRORS) as m:
            make(f"{m.backend}/f", b"data")
            check_equal(m)
            harness.run("umount", disk)  # It is in use: nothing happens.
            run_checked("umount", "-l", disk)
            refresh(m.mnt, 69, "cannot be looked at")
            equal(read(f"{m.mnt}/f"), b"data", "content")
            run_checked("mount", "-o", "loop", f"{folder}/image", disk)
    finally:
        harness.run("umount", "-l", disk)
        shutil.rmtree(folder, ignore_errors=True)


@case(timeout=120)
def a_backend_that_hangs(t):
    """That is a mount of cfs whose daemon is stopped."""
    need_root()
    with t.new_mount() as behind, over(t, behind.mnt, errors=ERRORS) as m:
        make(f"{m.backend}/f", b"data")
        make(f"{m.backend}/g", b"data")
        check_equal(m, contents=False)
        read(f"{m.mnt}/f")
        os.unlink(f"{m.backend}/g")
        os.kill(behind.pid, harness.signal.SIGSTOP)
        try:
            asked = Child(lambda: refresh(m.mnt, 75, "does not answer"))
            time.sleep(1)
            equal(read(f"{m.mnt}/f"), b"data", "content")
            equal(sorted(os.listdir(m.mnt)), ["f", "g"], "names")
            asked.result(60 * FACTOR)
        finally:
            os.kill(behind.pid, harness.signal.SIGCONT)
        wait_until(lambda: os.listdir(m.mnt) == ["f"], 10 * FACTOR, "it went on")
        refresh(m.mnt)
        check_equal(m)


@case(timeout=120)
def large_directories(t):
    count = 20_000
    for m in each_mode(t):
        os.mkdir(f"{m.backend}/d")
        for number in range(count):
            make(f"{m.backend}/d/{number}")
        equal(len(os.listdir(f"{m.mnt}/d")), count, "names")
        times = {}

        def timed(what):
            begin = time.monotonic()
            refresh(f"{m.mnt}/d")
            times[what] = time.monotonic() - begin

        timed("nothing")
        for number in range(0, count, 2):
            os.unlink(f"{m.backend}/d/{number}")
        for number in range(1, count, 4):
            make(f"{m.backend}/d/{number}", b"x")
        for number in range(count, count + 5000):
            make(f"{m.backend}/d/{number}")
        timed("10,000 gone, 5,000 changed, 5,000 new")
        check_equal(m, contents=False)
        print(f"  {m.mode}: " + ", ".join(f"{what}: {seconds:.2f} s" for what, seconds in times.items()))
        check(times["nothing"] < 5 * FACTOR, f"too slow: {times}")


def change(rng, root, names):
    """Something, at one place of a tree."""
    folders = [root] + [os.fsdecode(p) for _, p in walk(root) if os.path.isdir(p) and not os.path.islink(p)]
    some = [os.fsdecode(p) for _, p in walk(root)]
    path = os.path.join(rng.choice(folders), rng.choice(names))
    what = rng.randrange(10)
    with contextlib.suppress(OSError):
        if what < 3:
            make(path, rng.randbytes(rng.choice((0, 10, 5000))))
        elif what == 3:
            os.mkdir(path)
        elif what == 4 and some:
            os.rename(rng.choice(some), path)
        elif what == 5 and some:
            os.link(rng.choice(some), path)
        elif what == 6 and some:
            victim = rng.choice(some)
            if os.path.isdir(victim) and not os.path.islink(victim):
                shutil.rmtree(victim)
            else:
                os.unlink(victim)
        elif what == 7 and some:
            os.chmod(rng.choice(some), rng.choice((0o600, 0o644, 0o755)))
        elif what == 8:
            os.symlink(rng.choice(names), path)
        elif some:
            os.setxattr(rng.choice(some), "user.x", rng.randbytes(4), follow_symlinks=False)


@case(timeout=120)
def random_changes_on_the_backend(t):
    for m in each_mode(t):
        for seed in range(12):
            rng = random.Random(seed)
            names = [f"n{i}" for i in range(8)]
            for _ in range(6):
                for _ in range(rng.randrange(1, 30)):
                    change(rng, m.backend, names)
                if rng.random() < 0.5:
                    with contextlib.suppress(OSError):
                        tree(m.mnt)
                refresh(m.mnt)
                check_equal(m)


def settle(mount):
    """Until both sides are agreed: a change of the one may wait for one of the other."""
    for _ in range(6):
        done = cfs("sync", mount.mnt, timeout=60 * FACTOR)
        refresh(mount.mnt)
        if done.returncode == 0 and "left" not in refresh(mount.mnt).stdout:
            return
    raise harness.Failure(f"not agreed: {done}: {status(mount)}")


@case(timeout=180)
def random_changes_on_both_sides(t):
    """In parts of their own, and what is synced before the other begins."""
    with over(t, mode="writeback", errors=ERRORS) as m:
        for part in ("ours", "theirs", "turns"):
            os.mkdir(f"{m.backend}/{part}")
        os.listdir(m.mnt)
        names = [f"n{i}" for i in range(8)]
        for seed in range(25):
            rng = random.Random(seed)
            for _ in range(rng.randrange(1, 30)):
                if rng.random() < 0.5:
                    change(rng, f"{m.mnt}/ours", names)
                else:
                    change(rng, f"{m.backend}/theirs", names)
            sync(m)
            refresh(m.mnt)
            for _ in range(rng.randrange(10)):
                change(rng, rng.choice((m.mnt, m.backend)) + "/turns", names)
                sync(m)
                refresh(m.mnt)
            check_same(m)


@case(timeout=240)
def random_changes_of_the_same_names(t):
    """Both change the same names at once: no content of ours is lost, and both sides become one."""
    with over(t, mode="writeback", errors=ERRORS) as m:
        names = [f"n{i}" for i in range(6)]
        for seed in range(15):
            rng = random.Random(seed)
            for _ in range(rng.randrange(1, 12)):
                change(rng, m.backend, names)
            refresh(m.mnt)
            tree(m.mnt)
            mine = f"{m.mnt}/mine{seed}"
            make(mine, b"%d" % seed)
            for _ in range(rng.randrange(1, 12)):
                with contextlib.suppress(OSError):
                    make(f"{rng.choice((m.mnt, m.backend))}/{rng.choice(names)}", rng.randbytes(100))
            kept = {n: read(f"{m.mnt}/{n}") for n in os.listdir(m.mnt)
                    if os.path.isfile(f"{m.mnt}/{n}") and not os.path.islink(f"{m.mnt}/{n}")
                    and os.stat(f"{m.mnt}/{n}").st_nlink == 1 and n.startswith("mine")}
            settle(m)
            check_same(m)
            for name, content in kept.items():
                equal(read(f"{m.mnt}/{name}"), content, name)


@case(timeout=180)
def killed_at_any_moment(t):
    for m in each_mode(t, errors=ERRORS):
        rng = random.Random(3)
        names = [f"n{i}" for i in range(40)]
        for turn in range(12):
            for _ in range(150):
                change(rng, m.backend, names)
            asked = Child(lambda: cfs("refresh", m.mnt).returncode)
            time.sleep(rng.uniform(0, 0.06) * FACTOR)
            m.kill()
            asked.result(60 * FACTOR)
            m.start()
            refresh(m.mnt)
            check_equal(m)


@case(timeout=120)
def while_it_is_used(t):
    """Refreshes, readers, writers, evictions and the flusher at once."""
    with over(t, mode="writeback", errors=ERRORS) as m:
        for part in ("ours", "theirs"):
            os.mkdir(f"{m.backend}/{part}")
        os.listdir(m.mnt)
        names = [f"n{i}" for i in range(10)]
        end = time.monotonic() + 8

        def repeat(work):
            rng = random.Random(os.getpid())
            while time.monotonic() < end:
                work(rng)

        def look(_):
            for _, path in walk(m.mnt):
                outcome(read, path) if os.path.isfile(path) else outcome(os.stat, path)

        works = [lambda rng: change(rng, f"{m.mnt}/ours", names),
                 lambda rng: (change(rng, f"{m.backend}/theirs", names), time.sleep(0.005)),
                 look, look,
                 lambda _: check(cfs("refresh", m.mnt).returncode in (0, 71, 75), "refresh"),
                 lambda _: (outcome(cfs, "evict", m.mnt), time.sleep(0.3))]
        for child in [Child(lambda work=work: repeat(work)) for work in works]:
            child.result(60 * FACTOR)
        sync(m)
        wait_until(lambda: cfs("refresh", m.mnt).returncode == 0, 10 * FACTOR, "refresh")
        check_same(m)
        m.stop()
        run_checked(BINARY, "fsck", m.store)
        m.start()


TTL = 1.0


@contextlib.contextmanager
def over_with_ttl(t, mode, **kwargs):
    options = ["--backend-ttl", str(TTL)]
    with trees.over(t, mode=mode, options=options, **kwargs) as mount:
        yield mount


def soon(mount, check_it):
    """Not later than the ttl."""
    time.sleep(TTL * 1.1)
    check_it(mount)


@case(timeout=120)
def looks_again_by_itself(t):
    for mode in MODES:
        with over_with_ttl(t, mode) as m:
            top = m.backend
            os.makedirs(f"{top}/d/e")
            for name in ("f", "goes", "d/f", "d/goes", "d/e/f"):
                make(f"{top}/{name}", b"old")
            check_equal(m)
            expect(errno.ENOENT, os.stat, f"{m.mnt}/d/new")
            for name in ("goes", "d/goes"):
                os.unlink(f"{top}/{name}")
            for name in ("f", "d/f", "d/e/f"):
                make(f"{top}/{name}", b"newer")
            make(f"{top}/d/new", b"new")
            os.chmod(f"{top}/d/e", 0o711)
            time.sleep(TTL * 1.1)
            # Each way of asking, without another one before.
            equal(read(f"{m.mnt}/d/new"), b"new", "a name that was not there")
            equal(read(f"{m.mnt}/d/e/f"), b"newer", "content")
            expect(errno.ENOENT, os.stat, f"{m.mnt}/d/goes")
            equal(sorted(os.listdir(f"{m.mnt}/d")), ["e", "f", "new"], "names")
            equal(os.stat(f"{m.mnt}/f").st_size, 5, "size")
            soon(m, check_equal)
            shutil.rmtree(f"{top}/d")
            os.mkdir(f"{top}/d")
            make(f"{top}/d/other")
            soon(m, check_equal)
            equal(os.listdir(f"{m.mnt}/d"), ["other"], "names")
            equal(status(m)["look_failures"], 0, "failures")


@case(timeout=120)
def looks_are_few(t):
    """What was looked at in time is not looked at again, nor by each who asks."""
    with trees.over(t, options=["--backend-ttl", "600"]) as m:
        for number in range(300):
            make(f"{m.backend}/{number}")
        check_equal(m)
        make(f"{m.backend}/new")
        make(f"{m.backend}/1", b"changed")
        expect(errno.ENOENT, os.stat, f"{m.mnt}/new")
        equal(os.stat(f"{m.mnt}/1").st_size, 0, "size")
        refresh(m.mnt)
        check_equal(m)


@case(timeout=120)
def looks_that_fail_show_what_is_known(t):
    need_root()
    with over_with_ttl(t, "readonly", errors=ERRORS) as m:
        os.mkdir(f"{m.backend}/d")
        make(f"{m.backend}/d/f", b"data")
        check_equal(m)
        before = tree(m.mnt)
        os.rename(m.backend, f"{m.backend}.away")
        soon(m, lambda _: equal(tree(m.mnt), before, "tree"))
        check(status(m)["look_failures"] > 0, f"failures: {status(m)}")
        os.rename(f"{m.backend}.away", m.backend)
        make(f"{m.backend}/d/g")
        soon(m, check_equal)


@case
def a_look_from_a_directory_that_was_replaced(t):
    """A name is looked at in the directory that is there now, not in the one that was."""
    for mode in MODES:
        with over_with_ttl(t, mode, errors=ERRORS) as m:
            os.mkdir(f"{m.backend}/d")
            make(f"{m.backend}/d/f", b"old")
            check_equal(m)
            with opened(f"{m.mnt}/d", os.O_RDONLY | os.O_DIRECTORY) as d:
                os.stat("f", dir_fd=d)
                os.rename(f"{m.backend}/d", f"{m.backend}/x")
                os.unlink(f"{m.backend}/x/f")
                os.mkdir(f"{m.backend}/d")
                make(f"{m.backend}/d/f", b"newer")
                time.sleep(TTL * 1.1)
                check(os.stat("f", dir_fd=d).st_size in (3, 5), "size")
                soon(m, lambda _: equal(os.stat("f", dir_fd=d).st_size, 5, "size"))
            soon(m, check_equal)


@case(timeout=120)
def random_changes_with_a_ttl(t):
    for mode in MODES:
        with over_with_ttl(t, mode, errors=ERRORS) as m:
            rng = random.Random(11)
            names = [f"n{i}" for i in range(8)]
            for _ in range(3):
                for _ in range(rng.randrange(1, 40)):
                    change(rng, m.backend, names)
                time.sleep(TTL * 1.1)
                children = [Child(lambda: tree(m.mnt)) for _ in range(4)]
                for child in children:
                    outcome(child.result, 60 * FACTOR)
                soon(m, lambda m: tree(m.mnt))
                soon(m, lambda m: check_names(m))


def check_names(mount):
    """Link counts may be those of names that have not been looked at again."""
    there, here = tree(mount.backend), tree(mount.mnt)
    equal(sorted(here), sorted(there), "names")
    for name, wanted in there.items():
        for what in ("mode", "owner", "size", "data", "target", "mtime"):
            equal(here[name].get(what), wanted.get(what), f"{what} of {name}")


if __name__ == "__main__":
    sys.exit(harness.main(__doc__, shared_mount=False))
