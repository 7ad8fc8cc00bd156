#!/usr/bin/env python3
"""A mount in front of a directory that it writes to: --backend DIR --backend-mode writeback.

    writeback.py [--mode MODE] [--filter REGEX]

Goal: what is done in the mount is done on the backend too, in the background and at the latest when
`cfs sync` returns; nothing is lost and nothing of others is overwritten: not by kill -9, not by errors
of the backend, not by changes that are made there meanwhile. Method: real mounts over real
directories, compared name by name; a plain directory in which the same calls are made says what the
mount has to show.
"""

import contextlib
import errno
import fcntl
import json
import mmap
import os
import random
import shutil
import stat
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / each) for each in ("mount", "mount/posix", "crash")]
import harness  # noqa: E402  (It is where the path above says.)
import stage  # noqa: E402
import syscalls  # noqa: E402
import trees  # noqa: E402
from harness import (BINARY, NOBODY, Child, case, cfs, check, equal, expect, make,  # noqa: E402
                     need_root, opened, outcome, read, run_checked, wait_until)
from trees import KEPT_BY_CFS, describe, fill, walk  # noqa: E402

FACTOR = harness.TIME_FACTOR
# What the log may say, and how loudly, when the backend refuses something.
FLUSH_ERRORS = r"(?i)flush|backend"
FLUSH_ERROR = "user.cfs.flush_error"
FIFREEZE = 0xC0045877
MS_SYNC = 4
# By so much may two file systems differ in where the data of a sparse file is.
SPARSE_SLACK = 1 << 20
# What a call says when the daemon has gone.
GONE = ("ENOTCONN", "ECONNABORTED", "EIO")


def over(t, backend=None, **kwargs):
    return trees.over(t, backend, mode="writeback", **kwargs)


@contextlib.contextmanager
def over_small_disk(t, size_mib=64):
    """A mount over a file system of its own, which can be full, refuse and hang; that is its `disk`."""
    need_root()
    folder = t.workspace.new_directory()
    disk = f"{folder}/disk"
    harness.loop_file_system(f"{folder}/image", disk, "ext4", size_mib)
    try:
        os.mkdir(f"{disk}/backend")
        with over(t, f"{disk}/backend", errors=FLUSH_ERRORS) as mount:
            mount.disk = disk
            yield mount
    finally:
        harness.thaw(disk)
        harness.run("umount", "-l", disk)
        shutil.rmtree(folder, ignore_errors=True)


def remount(disk, option):
    """A file that cfs is just writing can be in the way."""
    wait_until(lambda: harness.run("mount", "-o", f"remount,{option}", disk).returncode == 0,
               10 * FACTOR, f"remount {option}")


def status(mount):
    return mount.status()["backend"]


def dirty(mount):
    said = status(mount)
    return said["dirty_inodes"] + said["dirty_names"]


def flushed(mount):
    said = status(mount)
    return said["flushed_files"], said["flushed_bytes"]


def sync(mount):
    run_checked(BINARY, "sync", mount.mnt, timeout=60 * FACTOR)


def evict(mount, name=""):
    """A file that was just closed may still be kept for a moment."""
    wait_until(lambda: cfs("evict", f"{mount.mnt}/{name}").returncode == 0, 5 * FACTOR, f"evict {name}")


def check_sync_fails(mount, *words):
    done = cfs("sync", mount.mnt, timeout=60 * FACTOR)
    check(done.returncode != 0 and all(word in done.stderr for word in words), f"sync: {done}")


def end(mount, *options):
    """`cfs stop`; if it has unmounted, the daemon has to be gone too."""
    done = cfs("stop", *options, mount.mnt, timeout=60 * FACTOR)
    if not mount.mounted():
        check(mount.ended(), "the daemon still runs after cfs stop")
        equal(mount.died(), 0, "exit code of the daemon")
        mount.pid = None
    return done


def seen(root, contents, ignored):
    """As trees.tree(), with the directory itself; tells which names are of one file."""
    found = trees.tree(root, contents)
    found[b"."] = describe(root, contents)
    names = {}
    for name, path in walk(root):
        st = os.lstat(path)
        if not stat.S_ISDIR(st.st_mode):
            names.setdefault(st.st_ino, []).append(name)
    for group in names.values():
        for name in found.keys() & group:
            found[name]["names"] = sorted(group)
    for of in found.values():
        of["data bytes"] = sum(end - begin for begin, end in of.pop("holes", ()))
        for what in ("ctime", *ignored):
            of.pop(what, None)
        if "mtime of directories" in ignored and of["mode"].startswith("0o4"):
            of.pop("mtime", None)
    return found


def differences(one, other, contents=True, ignored=()):
    """What is not the same in two trees, in words."""
    left, right = seen(one, contents, ignored), seen(other, contents, ignored)
    found = [f"{name} is only in {one}" for name in sorted(left.keys() - right.keys())]
    found += [f"{name} is only in {other}" for name in sorted(right.keys() - left.keys())]
    for name in sorted(left.keys() & right.keys()):
        sizes = left[name].pop("data bytes"), right[name].pop("data bytes")
        if abs(sizes[0] - sizes[1]) > SPARSE_SLACK:
            found.append(f"data bytes of {name} are {sizes}")
        for what in sorted(left[name].keys() | right[name].keys()):
            values = [side[name].get(what) for side in (left, right)]
            if values[0] != values[1]:
                found.append(f"{what} of {name} is {harness.shorten(values[0])} in {one}, "
                             f"{harness.shorten(values[1])} in {other}")
    return found


def check_same(one, other, **kwargs):
    found = differences(one, other, **kwargs)
    check(not found, f"{len(found)} differences: {'; '.join(found[:4])}")


def check_model(mount, model):
    """The model was changed at other times."""
    check_same(mount.mnt, model, ignored=("mtime",))


def is_flushed(mount):
    with contextlib.suppress(OSError):  # It may change while it is looked at.
        return not differences(mount.mnt, mount.backend) and dirty(mount) == 0
    return False


def wait_flushed(mount):
    """The flusher does it by itself."""
    try:
        wait_until(lambda: is_flushed(mount), 20 * FACTOR, "flushed")
    except harness.Failure as failure:
        found = differences(mount.mnt, mount.backend)
        raise harness.Failure(f"{failure}: {'; '.join(found[:4])}: {status(mount)}") from None


def check_flushed(mount, conflicts=0, ignored=()):
    """After a sync all is there, nothing else, and nothing is left to do."""
    sync(mount)
    check_same(mount.mnt, mount.backend, ignored=ignored)
    kept = Path(mount.backend, KEPT_BY_CFS)  # A directory for each store.
    equal([str(path) for path in kept.glob("*/*")], [], f"what is in {KEPT_BY_CFS}")
    check(not os.path.exists(f"{mount.mnt}/{KEPT_BY_CFS}"), "what cfs keeps for itself is shown")
    said = status(mount)
    equal((said["dirty_inodes"], said["dirty_names"]), (0, 0), "what is dirty")
    if conflicts is not None:
        equal(said["conflicts"], conflicts, "conflicts")


def numbers(root):
    return {os.fsdecode(name): os.lstat(path).st_ino for name, path in walk(root)}


def objects(root):
    """What differs when somebody has touched anything."""
    found = {}
    for name, path in [*walk(root), (b".", root)]:
        st = os.lstat(path)
        found[name] = st.st_ino, st.st_ctime_ns
    return found


def layout(mount, name):
    return mount.stat(f"{mount.mnt}/{name}")["layout"]


def move(mount, *pairs):
    """Renames in the mount, each given as "source target"."""
    for pair in pairs:
        source, target = pair.split()
        os.rename(f"{mount.mnt}/{source}", f"{mount.mnt}/{target}")


def exchange(root, one, other):
    syscalls.rename2(f"{root}/{one}", f"{root}/{other}", syscalls.RENAME_EXCHANGE)


def made(root, *names):
    """Files with their own names as content, and the directories that they are in."""
    for name in names:
        os.makedirs(os.path.dirname(f"{root}/{name}"), exist_ok=True)
        make(f"{root}/{name}", content(name))


def content(name):
    return name.encode() * 1000


def check_content(mount, **wanted):
    """Names (with _ for /) and whose content they have now."""
    for name, source in wanted.items():
        name, source = name.replace("_", "/"), source.replace("_", "/")
        equal(read(f"{mount.mnt}/{name}"), content(source), name)


# All of a tree.


@case(timeout=90)
def what_is_made_here_is_there_after_a_sync(t):
    need_root()
    with trees.over(t, mode=None) as m:  # It is the default.
        fill(m.mnt, kept_by_cfs=False)
        os.setxattr(f"{m.mnt}/d0", "security.test", b"label")
        os.chmod(f"{m.mnt}/empty", 0o3751)
        check_flushed(m)
        said, before = flushed(m), objects(m.backend)
        equal(status(m)["mode"], "writeback", "mode")
        check(said[0] >= 60 and said[1] > 1_000_000, f"flushed: {said}")
        sync(m)
        equal(flushed(m), said, "what was flushed after a second sync")
        equal(objects(m.backend), before, "backend after a second sync")
        for restart in (m.stop, m.kill):
            restart()
            m.start()
            check_flushed(m)
            equal(objects(m.backend), before, "backend after a restart")
        evict(m)
        equal(layout(m, "sparse"), "backend", "layout of an evicted file")
        check_flushed(m)
        check(status(m)["staged_files"] > 50, f"empty pass: {status(m)}")
        equal(objects(m.backend), before, "backend after eviction")


@case(timeout=90)
def the_flusher_works_by_itself(t):
    need_root()
    with over(t) as m:
        fill(m.mnt, kept_by_cfs=False)
        wait_flushed(m)
        os.rename(f"{m.mnt}/d0", f"{m.mnt}/moved")
        os.unlink(f"{m.mnt}/fifo")
        os.chmod(f"{m.mnt}/sparse", 0o600)
        with open(f"{m.mnt}/ ", "ab") as f:
            f.write(b"more")
        wait_flushed(m)
        check_flushed(m)


@case(timeout=60)
def what_is_dirty_outlives_the_mount(t):
    need_root()
    with over(t) as m:
        for number, leave in enumerate((m.stop, m.kill, m.stop)):
            os.mkdir(f"{m.mnt}/{number}")
            fill(f"{m.mnt}/{number}", seed=number, kept_by_cfs=False)
            leave()
            m.start()
        wait_flushed(m)
        check_flushed(m)


@case
def status_counts(t):
    with over(t) as m:
        made(m.backend, "f")
        equal((dirty(m), flushed(m)), (0, (0, 0)), "at first")
        with opened(f"{m.mnt}/new", os.O_CREAT | os.O_WRONLY) as fd:
            os.write(fd, b"x" * 12_345)
            check(status(m)["dirty_inodes"] >= 1 and status(m)["dirty_names"] >= 1, "a new file is clean")
        # The kernel says a little later that it was closed; until then it would be copied twice.
        wait_until(lambda: m.status()["meta"]["open_inodes"] == 0, 5 * FACTOR, "the close")
        sync(m)
        equal((dirty(m), flushed(m)), (0, (1, 12_345)), "after a file")
        os.chmod(f"{m.mnt}/f", 0o600)
        os.rename(f"{m.mnt}/f", f"{m.mnt}/g")
        os.mkdir(f"{m.mnt}/d")
        sync(m)
        equal((dirty(m), flushed(m)), (0, (1, 12_345)), "after changes that copy no data")
        said = status(m)
        equal((said["conflicts"], said["flush_failures"]), (0, 0), "conflicts and failures")
        check_flushed(m)


# Changes of files.


@case
def changes_of_files_of_the_backend_go_there(t):
    need_root()
    with over(t) as m:
        data = ("rewritten", "appended", "shorter", "longer", "emptied", "sparse", "beginning")
        attributes = ("moded", "owned", "timed", "labelled", "unlabelled", "secure", "listed", "unlisted")
        made(m.backend, *data, *attributes, "d/f", "e/f")
        os.setxattr(f"{m.backend}/unlabelled", "user.old", b"1")
        run_checked("setfacl", "-m", "u:1234:rw", f"{m.backend}/unlisted")
        before = numbers(m.backend)
        make(f"{m.mnt}/rewritten", b"new content")
        with open(f"{m.mnt}/appended", "ab") as f:
            f.write(b"more")
        os.truncate(f"{m.mnt}/shorter", 1234)
        os.truncate(f"{m.mnt}/longer", 5_000_000)
        with opened(f"{m.mnt}/emptied", os.O_WRONLY | os.O_TRUNC):
            pass
        for name, offset in (("sparse", 30_000_000), ("beginning", 0)):
            with opened(f"{m.mnt}/{name}") as fd:
                os.pwrite(fd, b"written", offset)
        os.chmod(f"{m.mnt}/moded", 0o4710)
        os.chown(f"{m.mnt}/owned", NOBODY, 1234)
        os.utime(f"{m.mnt}/timed", ns=(1, 1_234_567_890_123_456_789))
        os.setxattr(f"{m.mnt}/labelled", "user.note", b"\0binary\xff" * 100)
        os.removexattr(f"{m.mnt}/unlabelled", "user.old")
        os.setxattr(f"{m.mnt}/secure", "security.test", b"label")
        run_checked("setfacl", "-m", "u:1234:rw,g:77:r", f"{m.mnt}/listed")
        run_checked("setfacl", "-b", f"{m.mnt}/unlisted")
        os.chmod(f"{m.mnt}/d", 0o2750)
        os.chown(f"{m.mnt}/d", NOBODY, 1234)
        os.setxattr(f"{m.mnt}/d", "user.note", b"of a directory")
        run_checked("setfacl", "-d", "-m", "u:1234:rwx", f"{m.mnt}/d")
        os.utime(f"{m.mnt}/e", ns=(5, 999_999_999))
        os.utime(m.mnt, ns=(5, 1_111_111_111_111_111_111))
        for name in attributes:
            equal(layout(m, name), "backend", f"layout of {name}, which nobody has opened")
        sync(m)
        for name in attributes:
            equal(layout(m, name), "backend", f"layout of {name} after the sync")
        check_flushed(m)
        after = numbers(m.backend)
        for name in (*attributes, "d", "d/f", "e"):
            equal(after[name], before[name], f"inode number of {name}")
        check(os.stat(f"{m.backend}/sparse").st_blocks < 4096, "the hole is written")
        equal(read(f"{m.backend}/beginning"), b"written" + content("beginning")[7:], "beginning")
        # Once more, with what is clean now.
        for name in (*data, *attributes):
            with open(f"{m.mnt}/{name}", "ab") as f:
                f.write(b"again")
        os.chmod(f"{m.mnt}/rewritten", 0o600)
        wait_flushed(m)
        check_flushed(m)


@case(timeout=60)
def many_small_changes_of_one_file(t):
    with over(t) as m:
        made(m.backend, "f")
        wanted, ending = content("f"), time.monotonic() + 4
        while time.monotonic() < ending:
            with open(f"{m.mnt}/f", "ab") as f:
                f.write(b"line\n")
            wanted += b"line\n"
            time.sleep(0.003)
        check_flushed(m)
        equal(read(f"{m.backend}/f"), wanted, "content")


@case
def a_mapping_that_outlives_its_descriptor(t):
    with over(t) as m:
        make(f"{m.backend}/f", b"a" * 8192)
        with opened(f"{m.mnt}/f") as fd:
            address = syscalls.map_pages(fd, 8192, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED)
        syscalls.poke(address, b"first")
        syscalls.msync(address, 8192, MS_SYNC)
        sync(m)
        equal(read(f"{m.backend}/f"), b"first" + b"a" * 8187, "content while it is mapped")
        # In a page that was written before, and in another.
        syscalls.poke(address, b"again")
        syscalls.poke(address + 4096, b"second")
        syscalls.unmap(address, 8192)
        check_flushed(m)
        equal(read(f"{m.backend}/f"), b"again" + b"a" * 4091 + b"second" + b"a" * 4090, "content")


@case(timeout=60)
def a_sync_does_not_wait_for_writers(t):
    with over(t) as m:
        made(m.backend, "old", "unlinked")
        wanted = {}
        with contextlib.ExitStack() as stack:
            files = {name: stack.enter_context(opened(f"{m.mnt}/{name}", os.O_CREAT | os.O_RDWR))
                     for name in ("new", "old", "unlinked")}
            os.unlink(f"{m.mnt}/unlinked")
            for number in range(3):
                for name, fd in files.items():
                    os.pwrite(fd, f"{name} {number}".encode() * 10_000, number * 1000)
                    wanted[name] = os.pread(fd, 1_000_000, 0)
                sync(m)
                check(not os.path.exists(f"{m.backend}/unlinked"), "an unlinked file is there")
                for name in ("new", "old"):
                    equal(read(f"{m.backend}/{name}"), wanted[name], f"{name} after sync {number}")
            for name, fd in files.items():
                os.pwrite(fd, b"last", 7)
                wanted[name] = os.pread(fd, 1_000_000, 0)
        wait_flushed(m)
        for name in ("new", "old"):
            equal(read(f"{m.backend}/{name}"), wanted[name], f"{name} in the end")
        check_flushed(m)


def all_renamed(m, source, target, count):
    for number in range(count):
        os.rename(f"{m.mnt}/{source}{number}", f"{m.mnt}/{target}{number}")


@case(timeout=90)
def names_come_back_while_they_are_flushed(t):
    with over(t) as m:
        rng = random.Random(7)
        made(m.mnt, *(f"a{number}" for number in range(30)), *(f"0.{number}" for number in range(1000)))
        sync(m)
        for turn in range(8):
            all_renamed(m, f"{turn}.", f"{turn + 1}.", 1000)  # A flush takes its time for these.
            all_renamed(m, "a", "b", 30)
            all_renamed(m, "b", "a", 30)
            syncer = Child(cfs, "sync", m.mnt)
            for source, target in (("a", "b"), ("b", "a")):
                time.sleep(rng.uniform(0.005, 0.12) * FACTOR)
                all_renamed(m, source, target, 30)
            syncer.result(60 * FACTOR)
            sync(m)
            equal({n for n in os.listdir(m.backend) if n[0] in "ab"}, {f"a{n}" for n in range(30)},
                  f"names there in turn {turn}")
        check_flushed(m)


def rewrite(path, shared):
    """Again and again, each time from nothing; each version begins with its number."""
    version = 0
    while shared[8] == 0:
        version += 1
        with opened(path, os.O_WRONLY | os.O_TRUNC) as fd:
            os.write(fd, version.to_bytes(8, "big"))
            shared[:8] = version.to_bytes(8, "big")
            for _ in range(20):
                os.write(fd, b"x" * 1_000_000)
    return version


@case(timeout=60)
def a_file_is_rewritten_all_the_time(t):
    with over(t) as m, mmap.mmap(-1, 9) as shared:
        make(f"{m.mnt}/f", bytes(8))
        sync(m)
        child = Child(rewrite, f"{m.mnt}/f", shared)
        for number in range(15):
            time.sleep(0.03 * number)
            before = int.from_bytes(shared[:8], "big")
            done = cfs("sync", m.mnt, timeout=60 * FACTOR)
            check(done.returncode == 0 or "change all the time" in done.stderr, f"sync: {done}")
            found = read(f"{m.backend}/f")[:8]
            # Of nothing, as between two versions, nobody knows how old it is.
            check(done.returncode != 0 or not found or int.from_bytes(found, "big") >= before,
                  f"sync {number} has left {found}, older than version {before}")
        shared[8] = 1
        version = child.result()
        check(version > 15, f"empty pass: {version} versions")
        check_flushed(m)
        equal(read(f"{m.backend}/f"), version.to_bytes(8, "big") + b"x" * 20_000_000, "the last version")


@case(timeout=60)
def times_are_flushed_of_what_is_removed_then(t):
    with over(t) as m:
        rng = random.Random(3)
        made(m.backend, *(f"d{number}/{name}" for number in range(4) for name in range(300)))
        for number in range(4):
            folder = f"{m.mnt}/d{number}"
            names = os.listdir(folder)
            for name in names:
                os.utime(f"{folder}/{name}", (1_000_000_000 + number, 1_000_000_000))
            syncer = Child(sync, m)
            time.sleep(rng.uniform(0, 0.05) * FACTOR)
            for name in names:
                os.unlink(f"{folder}/{name}")
            syncer.result(60 * FACTOR)
            check_flushed(m)
            equal((os.listdir(folder), os.listdir(f"{m.backend}/d{number}")), ([], []), "names")


# Renames.


@case
def renames_one_after_the_other(t):
    with over(t) as m:
        made(m.backend, "a", "b", "c", "x", "y/z")
        before = numbers(m.backend)
        move(m, "c d", "b c", "a b")
        move(m, "x x1", "x1 y/x2", "y/x2 x3", "y/z x", "x y/x")
        check_content(m, b="a", c="b", x3="x")
        check_flushed(m)
        check_content(m, b="a", c="b", d="c", x3="x", y_x="y_z")
        after = numbers(m.backend)
        for name, was in (("b", "a"), ("c", "b"), ("d", "c"), ("x3", "x"), ("y/x", "y/z")):
            equal(after[name], before[was], f"inode number of {name}")
        # Backwards, of what was flushed, and without copies.
        evict(m)
        move(m, "b a", "c b", "d c", "x3 x")
        check_content(m, a="a", b="b", c="c", x="x")
        check_flushed(m)
        equal(flushed(m), (0, 0), "files copied")


def swap(m, one, other, at_once):
    if at_once:
        exchange(m.mnt, one, other)
    else:
        move(m, f"{one} swapped", f"{other} {one}", f"swapped {other}")


def files_are_swapped(t, at_once):
    with over(t) as m:
        names = ("p", "q", "d/r", "s", "t", "d/u")
        made(m.backend, *names)
        run_checked(BINARY, "stagein", *[f"{m.mnt}/{name}" for name in names])
        evict(m)
        before = numbers(m.backend)
        for one, other in (("p", "q"), ("d/r", "s"), ("t", "d/u")):
            swap(m, one, other, at_once)
        check_content(m, p="q", q="p", d_r="s", s="d_r")
        equal(layout(m, "t"), "backend", "layout of a file that was not read")
        check_flushed(m)
        check_content(m, t="d_u", d_u="t")
        after = numbers(m.backend)
        for one, other in (("p", "q"), ("d/r", "s"), ("t", "d/u")):
            equal((after[one], after[other]), (before[other], before[one]), f"numbers of {one}, {other}")
        # There and back again is nothing.
        swap(m, "p", "q", at_once)
        swap(m, "p", "q", at_once)
        check_flushed(m)
        check_content(m, p="q", q="p")
        # What is of another kind, and what is only here.
        made(m.mnt, "new")
        swap(m, "new", "s", at_once)
        swap(m, "d", "t", at_once)
        check_flushed(m)
        check_content(m, new="d_r", s="new", t_u="t", d="d_u")


@case
def files_are_swapped_by_three_renames(t):
    files_are_swapped(t, at_once=False)


@case
def files_are_exchanged(t):
    files_are_swapped(t, at_once=True)


def directories_are_swapped(t, at_once):
    with over(t) as m:
        made(m.backend, "d/one/f", "d/g", "e/two/f", "e/h", "e/two/three/i")
        before = numbers(m.backend)
        swap(m, "d", "e", at_once)
        check_content(m, d_two_f="e_two_f", e_g="d_g")
        swap(m, "d/two", "e/one", at_once)
        check_content(m, e_one_f="e_two_f", d_two_f="d_one_f")
        check_flushed(m)
        check_content(m, e_one_three_i="e_two_three_i", d_h="e_h")
        after = numbers(m.backend)
        for name, was in (("d", "e"), ("e", "d"), ("e/one", "e/two"), ("d/two", "d/one"),
                          ("e/one/three/i", "e/two/three/i"), ("e/g", "d/g")):
            equal(after[name], before[was], f"inode number of {name}")


@case
def directories_are_swapped_by_three_renames(t):
    directories_are_swapped(t, at_once=False)


@case
def directories_are_exchanged(t):
    directories_are_swapped(t, at_once=True)


@case
def a_directory_goes_below_its_own_child(t):
    with over(t) as m:
        made(m.backend, "a/outer", "a/b/inner", "a/b/c/innermost")
        before = numbers(m.backend)
        move(m, "a/b b", "a b/a")
        check_content(m, b_inner="a_b_inner", b_a_outer="a_outer")
        check_flushed(m)
        check_content(m, b_c_innermost="a_b_c_innermost")
        after = numbers(m.backend)
        for name, was in (("b", "a/b"), ("b/a", "a"), ("b/a/outer", "a/outer")):
            equal(after[name], before[was], f"inode number of {name}")
        # All three the other way round, and then as they were at first.
        move(m, "b/c c", "b/a c/a", "b c/a/b")
        check_flushed(m)
        check_content(m, c_a_b_inner="a_b_inner", c_innermost="a_b_c_innermost", c_a_outer="a_outer")
        evict(m)
        move(m, "c/a a", "c a/b/c")
        check_content(m, a_b_c_innermost="a_b_c_innermost")
        check_flushed(m)
        equal(numbers(m.backend), before, "inode numbers in the end")
        equal(flushed(m), (0, 0), "files copied")


@case(timeout=60)
def a_large_tree_is_renamed_and_not_copied(t):
    with over(t) as m:
        names = [f"{folder}/{number}" for folder in ("large", "large/d", "large/d/e", "large/f")
                 for number in range(100)]
        made(m.mnt, *names)
        os.mkdir(f"{m.mnt}/elsewhere")
        check_flushed(m)
        said, before = flushed(m), numbers(m.backend)
        evict(m, "large/d")
        source = "large"
        for target in ("renamed", "elsewhere/large", "elsewhere/again"):
            move(m, f"{source} {target}")
            source = target
            equal(read(f"{m.mnt}/{target}/d/e/7"), content("large/d/e/7"), f"in {target}, before the sync")
            check_flushed(m)
            after = numbers(m.backend)
            for name in names:
                equal(after[name.replace("large", target, 1)], before[name], f"inode number of {name}")
        equal(flushed(m), said, "what was flushed")
        for name in names:
            equal(read(m.mnt + "/" + name.replace("large", "elsewhere/again", 1)), content(name), name)


@case
def renames_over_what_is_there(t):
    with over(t) as m:
        made(m.backend, "f", "g", "h", "i", "full/j", "d/k", "l")
        os.mkdir(f"{m.backend}/bare")
        made(m.mnt, "new", "young")
        os.mkdir(f"{m.mnt}/fresh")
        move(m, "f g", "new h", "i young", "full bare", "d/k l", "d fresh")
        check_content(m, g="f", h="new", young="i", bare_j="full_j", l="d_k")
        check_flushed(m)
        check_content(m, g="f", h="new", young="i", bare_j="full_j", l="d_k")
        equal(sorted(set(os.listdir(m.backend)) - {KEPT_BY_CFS}), ["bare", "fresh", "g", "h", "l", "young"],
              "names there")
        # What editors do, with a copy of the old one kept.
        for number in range(5):
            make(f"{m.mnt}/temporary", f"version {number}".encode())
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{m.mnt}/g~")
            os.link(f"{m.mnt}/g", f"{m.mnt}/g~")
            move(m, "temporary g")
            time.sleep(0.5 * (number == 2))
        check_flushed(m)
        equal((read(f"{m.backend}/g"), read(f"{m.backend}/g~")), (b"version 4", b"version 3"), "versions")


@case
def what_has_moved_is_found_before_it_is_moved_there(t):
    with over(t) as m:
        made(m.backend, "d/f", "d/g", "d/e/h", "d/e/i/j", "other/k")
        before = numbers(m.backend)
        move(m, "d/f other/f", "d/e other/e", "other/e/i i")
        check_content(m, other_f="d_f", other_e_h="d_e_h", i_j="d_e_i_j")
        os.mkdir(f"{m.mnt}/new")
        move(m, "d/g new/g", "other/e new/e", "i new/e/i", "new newer", "newer d/newest")
        check_content(m, d_newest_g="d_g")
        check(cfs("evict", f"{m.mnt}/d/newest/e").returncode in (0, 75), "evict of what has moved")
        check_content(m, d_newest_e_h="d_e_h", d_newest_e_i_j="d_e_i_j")
        check_flushed(m)
        after = numbers(m.backend)
        for name, was in (("d/newest/g", "d/g"), ("d/newest/e", "d/e"), ("d/newest/e/i/j", "d/e/i/j")):
            equal(after[name], before[was], f"inode number of {name}")
        equal(flushed(m), (0, 0), "files copied")


@case
def copies_of_what_has_moved_can_be_dropped(t):
    """They come again from where they still are, and after the flush from where they are then."""
    with over(t) as m:
        made(m.mnt, "d/f", "d/e/g")
        sync(m)
        move(m, "d/f f", "d/e e", "d dd")
        check(cfs("evict", m.mnt).returncode in (0, 75), "evict")
        check_content(m, f="d_f", e_g="d_e_g")
        check_flushed(m)
        evict(m)
        equal((layout(m, "f"), layout(m, "e/g")), ("backend", "backend"), "layouts")
        check_content(m, f="d_f", e_g="d_e_g")


# Removals.


@case(timeout=60)
def names_are_used_again(t):
    with over(t) as m:
        made(m.backend, "full/a", "full/b/c", "turns", "folder/f", "swapped/a/b", "link")
        os.mkdir(f"{m.backend}/bare")
        for pause in (0, 0.7, 1.5):
            for name in ("bare", "full", "folder", "swapped"):
                shutil.rmtree(f"{m.mnt}/{name}")
            for name in ("turns", "link"):
                os.unlink(f"{m.mnt}/{name}")
            time.sleep(pause * FACTOR)
            os.mkdir(f"{m.mnt}/bare", 0o700)
            made(m.mnt, "bare/new", "full/a", "full/b")
            make(f"{m.mnt}/folder", b"a file now")
            made(m.mnt, "turns/f")
            os.symlink("somewhere", f"{m.mnt}/link")
            os.mkfifo(f"{m.mnt}/swapped")
            check_flushed(m)
            # And as it was at first.
            shutil.rmtree(f"{m.mnt}/turns")
            shutil.rmtree(f"{m.mnt}/full")
            for name in ("folder", "swapped", "link"):
                os.unlink(f"{m.mnt}/{name}")
            made(m.mnt, "full/a", "full/b/c", "turns", "folder/f", "swapped/a/b", "link")
            wait_flushed(m)


@case(timeout=60)
def an_imported_tree_is_removed_and_made_again(t):
    need_root()
    with over(t) as m:
        os.mkdir(f"{m.backend}/tree")
        fill(f"{m.backend}/tree", kept_by_cfs=False)
        trees.tree(f"{m.mnt}/tree/d0")  # A part of it has been looked at.
        for seed in (2, 3):
            shutil.rmtree(f"{m.mnt}/tree")
            os.mkdir(f"{m.mnt}/tree")
            fill(f"{m.mnt}/tree", seed=seed, kept_by_cfs=False)
        check_flushed(m)
        shutil.rmtree(f"{m.mnt}/tree")
        check_flushed(m)
        equal([n for n in os.listdir(m.backend) if n != KEPT_BY_CFS], [], "names there")


@case
def a_file_outlives_its_directory(t):
    with over(t) as m:
        made(m.backend, "gone/f", "gone/g", "gone/deep/h", "gone/deep/i", "gone/other")
        before = numbers(m.backend)
        move(m, "gone/f f", "gone/g g", "gone/deep/h h", "gone/deep deep")
        shutil.rmtree(f"{m.mnt}/gone")
        check_content(m, f="gone_f", h="gone_deep_h")
        check_flushed(m)
        check_content(m, g="gone_g", deep_i="gone_deep_i")
        after = numbers(m.backend)
        for name, was in (("f", "gone/f"), ("g", "gone/g"), ("h", "gone/deep/h"), ("deep", "gone/deep")):
            equal(after[name], before[was], f"inode number of {name}")


# Several names of one file.


@case
def hard_links_are_the_same_there(t):
    with over(t) as m:
        made(m.backend, "one", "pair/a", "never/x", "triple", "d/single", "swapped")
        for name, other in (("pair/a", "elsewhere/b"), ("never/x", "unseen/y"), ("triple", "triple2"),
                            ("triple", "triple3"), ("swapped", "d/swapped2")):
            os.makedirs(os.path.dirname(f"{m.backend}/{other}"), exist_ok=True)
            os.link(f"{m.backend}/{name}", f"{m.backend}/{other}")
        outside = f"{t.workspace.new_directory()}/outside"
        os.link(f"{m.backend}/one", outside)
        before = numbers(m.backend)
        made(m.mnt, "new")
        for name, other in (("new", "new2"), ("new", "d/new3"), ("d/single", "single2")):
            os.link(f"{m.mnt}/{name}", f"{m.mnt}/{other}")
        os.symlink("new", f"{m.mnt}/link")
        os.link(f"{m.mnt}/link", f"{m.mnt}/d/link2", follow_symlinks=False)
        os.unlink(f"{m.mnt}/triple2")
        os.unlink(f"{m.mnt}/never/x")  # Nobody has looked at its other name.
        make(f"{m.mnt}/pair/a", b"rewritten")
        with open(f"{m.mnt}/elsewhere/b", "ab") as f:
            f.write(b" by both names")
        make(f"{m.mnt}/one", b"in place")
        move(m, "swapped d/s1", "d/swapped2 s2")
        check_flushed(m)
        equal(read(f"{m.backend}/pair/a"), b"rewritten by both names", "content of a pair")
        equal(read(outside), b"in place", "content by a name outside")
        equal(os.stat(f"{m.backend}/unseen/y").st_nlink, 1, "links of what lost a name")
        after = numbers(m.backend)
        for name, was in (("pair/a", "pair/a"), ("elsewhere/b", "pair/a"), ("one", "one"),
                          ("single2", "d/single"), ("s2", "swapped")):
            equal(after[name], before[was], f"inode number of {name}")
        # One that is clean gets a name more, one loses its last but one, and all are moved.
        os.link(f"{m.mnt}/d/new3", f"{m.mnt}/d/new4")
        os.unlink(f"{m.mnt}/single2")
        os.rename(f"{m.mnt}/d", f"{m.mnt}/moved")
        run_checked(BINARY, "stagein", "--recursive", m.mnt)
        with open(f"{m.mnt}/new2", "ab") as f:
            f.write(b"more")
        check_flushed(m)
        equal(os.stat(f"{m.backend}/new").st_nlink, 4, "links")


@case
def a_file_gets_names_before_all_of_it_are_known(t):
    with over(t) as m:
        made(m.backend, "d1/a", "d2/unlinked")
        os.link(f"{m.backend}/d1/a", f"{m.backend}/d2/b")
        os.listdir(f"{m.mnt}/d1")
        os.link(f"{m.mnt}/d1/a", f"{m.mnt}/d1/c")
        sync(m)
        os.listdir(f"{m.mnt}/d2")
        of = [os.stat(f"{m.mnt}/{name}") for name in ("d1/a", "d1/c", "d2/b")]
        equal(len({st.st_ino for st in of}), 1, "files")
        equal([st.st_nlink for st in of], [3, 3, 3], "links")
        check_flushed(m)
        os.unlink(f"{m.mnt}/d1/a")
        check_flushed(m)
        evict(m)
        check_content(m, d1_c="d1_a", d2_b="d1_a")
        m.stop()
        m.start()
        evict(m)
        check_content(m, d1_c="d1_a", d2_b="d1_a")
        check_flushed(m)


@case
def an_open_file_has_only_a_name_that_nobody_knows(t):
    with over(t) as m:
        made(m.backend, "d1/a", "d2/unlinked")
        os.link(f"{m.backend}/d1/a", f"{m.backend}/d2/b")
        with opened(f"{m.mnt}/d1/a", os.O_RDONLY) as fd:
            os.unlink(f"{m.mnt}/d1/a")
            sync(m)
            check(not os.path.exists(f"{m.backend}/d1/a"), "an unlinked file is there")
            os.fchmod(fd, 0o600)
            sync(m)
        sync(m)
        check_content(m, d2_b="d1_a")
        sync(m)


# What others do on the backend meanwhile.


def both_are_kept(m, name, theirs, ours, number=1):
    for root in (m.mnt, m.backend):
        equal(outcome(read, f"{root}/{name}"), theirs, f"theirs, {root}/{name}")
        parked = f"{root}/{name}.cfs-conflict-{number}"
        equal(outcome(read, parked), ours, f"ours, {parked}")


def check_conflicts(m, conflicts):
    """Nobody has told the mount of all times of the directories there."""
    check_flushed(m, conflicts, ignored=("mtime of directories",))


@case
def a_file_changed_on_both_sides_is_kept_twice(t):
    with over(t) as m:
        made(m.backend, "before", "while", "d/deep", "replaced", "not_touched")
        for name in ("before", "while", "d/deep", "replaced", "not_touched"):
            read(f"{m.mnt}/{name}")
        for name in ("before", "d/deep"):
            make(f"{m.backend}/{name}", b"theirs, longer than it was" * 1000)
            make(f"{m.mnt}/{name}", b"ours")
        with opened(f"{m.mnt}/while") as fd:
            os.pwrite(fd, b"OURS", 0)
            with open(f"{m.backend}/while", "ab") as f:
                f.write(b"theirs")
        make(f"{m.backend}/temporary", b"another file")
        os.rename(f"{m.backend}/temporary", f"{m.backend}/replaced")
        with open(f"{m.mnt}/replaced", "ab") as f:
            f.write(b"ours")
        sync(m)
        for name in ("before", "d/deep"):
            both_are_kept(m, name, b"theirs, longer than it was" * 1000, b"ours")
        both_are_kept(m, "while", content("while") + b"theirs", b"OURS" + content("while")[4:])
        both_are_kept(m, "replaced", b"another file", content("replaced") + b"ours")
        check_conflicts(m, 4)
        # Once more: the name is taken.
        make(f"{m.backend}/before", b"theirs again")
        make(f"{m.mnt}/before", b"ours again")
        sync(m)
        both_are_kept(m, "before", b"theirs again", b"ours again", number=2)
        equal(read(f"{m.backend}/before.cfs-conflict-1"), b"ours", "the first one")
        check_conflicts(m, 5)
        evict(m)
        both_are_kept(m, "before", b"theirs again", b"ours again", number=2)
        m.stop()
        m.start()
        check_conflicts(m, None)


@case
def a_name_made_on_both_sides_is_kept_twice(t):
    with over(t) as m:
        made(m.backend, "d/imported", "source")
        for folder in ("", "d"):
            os.listdir(f"{m.mnt}/{folder}")
        for name in ("new", "d/new"):
            make(f"{m.backend}/{name}", b"theirs")
            make(f"{m.mnt}/{name}", b"ours")
        make(f"{m.backend}/target", b"theirs")
        move(m, "source target")
        # A directory there and a file here; and the other way round.
        made(m.backend, "folder/f")
        make(f"{m.mnt}/folder", b"a file")
        make(f"{m.backend}/file", b"theirs")
        made(m.mnt, "file/g")
        sync(m)
        for name in ("new", "d/new"):
            both_are_kept(m, name, b"theirs", b"ours")
        both_are_kept(m, "target", b"theirs", content("source"))
        for root in (m.mnt, m.backend):
            equal(outcome(read, f"{root}/folder/f"), content("folder/f"), f"their directory in {root}")
            equal(outcome(read, f"{root}/folder.cfs-conflict-1"), b"a file", f"our file in {root}")
            equal(outcome(read, f"{root}/file"), b"theirs", f"their file in {root}")
            equal(outcome(read, f"{root}/file.cfs-conflict-1/g"), content("file/g"), f"ours in {root}")
        check_conflicts(m, 5)


@case
def directories_made_on_both_sides_become_one(t):
    with over(t) as m:
        os.listdir(m.mnt)
        made(m.backend, "d/theirs", "d/e/theirs", "d/f/theirs")
        make(f"{m.backend}/d/both", b"theirs")
        made(m.mnt, "d/ours", "d/e/ours", "d/g/ours")
        make(f"{m.mnt}/d/both", b"ours")
        sync(m)
        for root in (m.mnt, m.backend):
            for name in ("d/theirs", "d/ours", "d/e/theirs", "d/e/ours", "d/f/theirs", "d/g/ours"):
                equal(outcome(read, f"{root}/{name}"), content(name), f"{root}/{name}")
        both_are_kept(m, "d/both", b"theirs", b"ours")
        check_conflicts(m, None)


@case
def what_was_changed_there_is_not_removed(t):
    with over(t) as m:
        made(m.backend, "changed", "replaced", "removed", "d/f", "both")
        trees.tree(m.mnt)
        make(f"{m.backend}/changed", b"theirs")
        make(f"{m.backend}/temporary", b"another")
        os.rename(f"{m.backend}/temporary", f"{m.backend}/replaced")
        make(f"{m.backend}/d/new", b"in a directory")
        os.unlink(f"{m.backend}/both")
        for name in ("changed", "replaced", "removed", "d/f", "both"):
            os.unlink(f"{m.mnt}/{name}")
        os.rmdir(f"{m.mnt}/d")
        sync(m)
        wanted = {"changed": b"theirs", "replaced": b"another", "d/new": b"in a directory",
                  "removed": "ENOENT", "both": "ENOENT", "d/f": "ENOENT"}
        for root in (m.mnt, m.backend):
            for name, data in wanted.items():
                equal(outcome(read, f"{root}/{name}"), data, f"{root}/{name}")
        check_conflicts(m, None)


@case
def a_symlink_replaced_there_is_not_removed(t):
    with over(t) as m:
        targets = {"longer": "theirs, longer", "same": "new", "shorter": "x"}
        for name in targets:
            os.symlink("old", f"{m.backend}/{name}")
        trees.tree(m.mnt)
        for name, target in targets.items():  # Perhaps with the same inode number.
            os.unlink(f"{m.backend}/{name}")
            os.symlink(target, f"{m.backend}/{name}")
            os.unlink(f"{m.mnt}/{name}")
        sync(m)
        for name, target in targets.items():
            for root in (m.mnt, m.backend):
                equal(outcome(os.readlink, f"{root}/{name}"), target, f"{root}/{name}")
        check(status(m)["conflicts"] >= 1, "no conflict")
        check_conflicts(m, None)


def one_of_two_names_is_replaced_there(t, side, replaced, written):
    with over(t) as m:
        root = getattr(m, side)
        made(root, "a")
        os.link(f"{root}/a", f"{root}/b")
        equal(os.stat(f"{m.mnt}/b").st_ino, os.stat(f"{m.mnt}/a").st_ino, "inode number")
        sync(m)
        make(f"{m.backend}/temporary", b"theirs")
        os.rename(f"{m.backend}/temporary", f"{m.backend}/{replaced}")
        make(f"{m.mnt}/{written}", b"ours")
        sync(m)
        found = {os.fsdecode(name): read(path)[:9] for name, path in walk(m.backend)}
        # The name that was not written here shows what it was, until somebody looks there again.
        check({b"theirs", b"ours"} <= set(found.values()), f"there is only {found}")
        sync(m)


@case
def one_of_two_names_is_replaced_there_a(t):
    for side in ("mnt", "backend"):
        one_of_two_names_is_replaced_there(t, side, "a", "b")


@case
def one_of_two_names_is_replaced_there_b(t):
    for side in ("mnt", "backend"):
        one_of_two_names_is_replaced_there(t, side, "b", "a")


@case
def what_cfs_keeps_is_removed_by_others(t):
    with over(t) as m:
        made(m.backend, "old", "p", "q", "d/f")
        for number in range(3):
            made(m.mnt, f"new{number}", f"d/new{number}")
            make(f"{m.mnt}/old", f"version {number}".encode())
            make(f"{m.mnt}/d/f", f"in a directory {number}".encode())
            if number == 2:
                exchange(m.mnt, "p", "q")  # One of them is parked.
            check_flushed(m, ignored=("mtime of directories",))
            equal(read(f"{m.backend}/old"), f"version {number}".encode(), "content")
            shutil.rmtree(f"{m.backend}/{KEPT_BY_CFS}")


# Several stores over one directory.


@case
def two_stores_one_after_the_other(t):
    with over(t) as one:
        made(one.backend, "first/x", "second/x")
        made(one.mnt, "first/f")
        sync(one)
        one.stop()
        kept = Path(one.backend, KEPT_BY_CFS)
        left = [folder / name for folder in kept.iterdir() for name in ("77", "78.new")]
        check(left, "nothing is kept")
        for path in left:
            make(path, b"on its way")
        with over(t, one.backend) as other:
            made(other.mnt, "second/f", "second/g")
            exchange(other.mnt, "second/f", "second/x")
            sync(other)
            equal(read(f"{other.mnt}/first/f"), content("first/f"), "what the first has made")
            check_same(other.mnt, other.backend)
        for path in left:
            equal(outcome(read, path), b"on its way", f"{path} of the first")
        one.start()
        made(one.mnt, "first/g")
        check_conflicts(one, 0)
        check_content(one, first_g="first_g", second_f="second_x", second_x="second_f")


@case(timeout=60)
def two_stores_at_once(t):
    with over(t) as one, over(t, one.backend) as other:
        sides = {one: [f"one{number}" for number in range(150)],
                 other: [f"other{number}" for number in range(150)]}

        def sync_both():
            for syncer in [Child(sync, m) for m in sides]:
                syncer.result(60 * FACTOR)

        for m, names in sides.items():
            made(m.mnt, *names)
        sync_both()
        for number in range(3):
            for m, names in sides.items():
                for first, second in zip(names[::2], names[1::2]):
                    exchange(m.mnt, first, second)
                made(m.mnt, *(f"{name}.{number}" for name in names[:30]))
            sync_both()
        for m, names in sides.items():
            sync(m)
            evict(m)
            for name, source in zip(names, (names[at ^ 1] for at in range(150))):
                for root in (m.mnt, m.backend):
                    equal(outcome(read, f"{root}/{name}"), content(source), f"{root}/{name}")
            for name in (f"{name}.{number}" for name in names[:30] for number in range(3)):
                equal(outcome(read, f"{m.backend}/{name}"), content(name), name)
            said = status(m)
            equal((said["conflicts"], said["flush_failures"]), (0, 0), "conflicts and failures")
        equal([str(path) for path in Path(one.backend, KEPT_BY_CFS).glob("*/*")], [], "what is kept")


# Errors of the backend.


def check_still_usable(m, name):
    made(m.mnt, f"{name}/new")
    equal(read(f"{m.mnt}/{name}/new"), content(f"{name}/new"), "a file made meanwhile")
    os.rename(f"{m.mnt}/{name}/new", f"{m.mnt}/{name}/renamed")
    equal(os.listdir(f"{m.mnt}/{name}"), ["renamed"], "a directory made meanwhile")


@case(timeout=90)
def a_full_backend_loses_nothing(t):
    with over_small_disk(t) as m:
        made(m.backend, "old")
        read(f"{m.mnt}/old")
        st = os.statvfs(m.disk)
        with opened(f"{m.disk}/ballast", os.O_CREAT | os.O_WRONLY) as fd:
            os.posix_fallocate(fd, 0, st.f_bfree * st.f_frsize - (4 << 20))
        data = os.urandom(20_000_000)
        make(f"{m.mnt}/large", data)
        make(f"{m.mnt}/old", data[::-1])
        check_sync_fails(m, "large", "old", os.strerror(errno.ENOSPC))
        for name in ("large", "old"):
            said = os.getxattr(f"{m.mnt}/{name}", FLUSH_ERROR).decode()
            check(os.strerror(errno.ENOSPC) in said, f"error of {name}: {said}")
            check(FLUSH_ERROR not in os.listxattr(f"{m.mnt}/{name}"), "the error is listed")
            expect(errno.EPERM, os.setxattr, f"{m.mnt}/{name}", FLUSH_ERROR, b"none")
        equal(read(f"{m.backend}/old"), content("old"), "the old content there")
        check_still_usable(m, "meanwhile")
        said = status(m)
        check(said["dirty_inodes"] >= 2 and said["flush_failures"] >= 1, f"status: {said}")
        failed = {each["path"]: each["error"] for each in said["failed"]}
        check(all(os.strerror(errno.ENOSPC) in failed.get(name, "") for name in ("large", "old")),
              f"failed: {failed}")
        check(os.strerror(errno.ENOSPC) in json.dumps(said["last_flush_failure"]), f"status: {said}")
        check(cfs("evict", f"{m.mnt}/large").returncode != 0, "evict of a dirty file")
        m.stop()
        m.start()
        equal(read(f"{m.mnt}/large"), data, "content after a restart")
        check_sync_fails(m, "large", os.strerror(errno.ENOSPC))
        os.unlink(f"{m.disk}/ballast")
        check_flushed(m)
        equal(read(f"{m.backend}/old"), data[::-1], "the new content there")
        equal(status(m)["flush_failures"], 0, "failures that are left")
        expect(errno.ENODATA, os.getxattr, f"{m.mnt}/large", FLUSH_ERROR)


@case(timeout=90)
def a_backend_that_is_read_only_loses_nothing(t):
    with over_small_disk(t) as m:
        made(m.backend, "d/f", "g", "h", "i")
        trees.tree(m.mnt)
        sync(m)
        before = trees.tree(m.backend)
        remount(m.disk, "ro")
        make(f"{m.mnt}/g", b"rewritten")
        made(m.mnt, "new")
        os.unlink(f"{m.mnt}/h")
        os.chmod(f"{m.mnt}/i", 0o600)
        move(m, "d e")
        check_sync_fails(m, "new", os.strerror(errno.EROFS))
        equal(trees.tree(m.backend), before, "backend")
        check_still_usable(m, "meanwhile")
        done = cfs("evict", f"{m.mnt}/new", f"{m.mnt}/g")
        check(done.returncode != 0 and "kept" in done.stderr, f"evict of dirty files: {done}")
        check_content(m, new="new", e_f="d_f")
        m.kill()
        remount(m.disk, "rw")
        m.start()
        wait_flushed(m)
        check_content(m, new="new", e_f="d_f")
        check_flushed(m)


@case(timeout=60)
def what_is_refused_does_not_hold_up_the_rest(t):
    with over_small_disk(t) as m:
        made(m.backend, "fixed/f", "g")
        trees.tree(m.mnt)
        run_checked("chattr", "+i", f"{m.backend}/fixed")
        try:
            made(m.mnt, "fixed/new", "other", "d/e")
            make(f"{m.mnt}/g", b"rewritten")
            check_sync_fails(m, "fixed", os.strerror(errno.EPERM))
            equal(read(f"{m.backend}/g"), b"rewritten", "another file")
            equal(read(f"{m.backend}/d/e"), content("d/e"), "a new file in another directory")
            check(status(m)["dirty_inodes"] >= 1, "what could not be flushed is clean")
        finally:
            run_checked("chattr", "-i", f"{m.backend}/fixed")
        check_flushed(m)


@case(timeout=60)
def a_backend_that_hangs_holds_up_a_sync_only(t):
    with over_small_disk(t) as m:
        made(m.backend, "f")
        read(f"{m.mnt}/f")
        sync(m)
        with opened(m.disk, os.O_RDONLY) as fd:
            fcntl.ioctl(fd, FIFREEZE, 0)
        try:
            made(m.mnt, "new")
            make(f"{m.mnt}/f", b"rewritten")
            begin = time.monotonic()
            done = cfs("sync", "--deadline", "2", m.mnt, timeout=60 * FACTOR)
            taken = time.monotonic() - begin
            check(done.returncode != 0 and done.stderr, f"sync: {done}")
            check(1.5 < taken < 2 + 8 * FACTOR, f"a sync of at most 2 s took {taken:.1f} s")
            check_still_usable(m, "meanwhile")
            equal(read(f"{m.mnt}/f"), b"rewritten", "content")
        finally:
            harness.thaw(m.disk)
        check_flushed(m)


# kill -9, and random calls. Each of these is one step that is done or not done.


def create(root, name, mode):
    os.close(os.open(f"{root}/{name}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))


def write(root, name, offset, data):
    with opened(f"{root}/{name}", os.O_WRONLY | os.O_NONBLOCK) as fd:
        return os.pwrite(fd, data, offset)


def truncate(root, name, size):
    os.truncate(f"{root}/{name}", size)


def rename(root, source, target):
    os.rename(f"{root}/{source}", f"{root}/{target}")


def link(root, source, target):
    os.link(f"{root}/{source}", f"{root}/{target}", follow_symlinks=False)


def unlink(root, name):
    os.unlink(f"{root}/{name}")


def mkdir(root, name, mode):
    os.mkdir(f"{root}/{name}", mode)


def rmdir(root, name):
    os.rmdir(f"{root}/{name}")


def chmod(root, name, mode):
    os.chmod(f"{root}/{name}", mode)


def utime(root, name, when):
    os.utime(f"{root}/{name}", ns=(when, when), follow_symlinks=False)


def setxattr(root, name, key, value):
    os.setxattr(f"{root}/{name}", key, value, follow_symlinks=False)


def removexattr(root, name, key):
    os.removexattr(f"{root}/{name}", key, follow_symlinks=False)


def symlink(root, name, target):
    os.symlink(target, f"{root}/{name}")


class Script:
    """Random calls, each made in the mount and in a plain directory, with the same answer."""

    WEIGHTS = {create: 12, write: 16, truncate: 5, rename: 14, exchange: 5, link: 6, unlink: 9, mkdir: 7,
               rmdir: 5, chmod: 4, utime: 4, setxattr: 4, removexattr: 2, symlink: 3}
    REMOVALS = (unlink, rmdir)
    NAMES_MAX = 80

    def __init__(self, mnt, model, seed):
        self.rng = random.Random(seed)
        self.mnt, self.model = mnt, model
        self.done = 0
        self.doubt = None  # The call that the daemon's end came in between of.

    def existing(self):
        names = sorted(os.fsdecode(name) for name, _ in walk(self.model))
        folders = ["", *(n for n in names if stat.S_ISDIR(os.lstat(f"{self.model}/{n}").st_mode))]
        return names, folders

    def draw(self):
        rng = self.rng
        names, folders = self.existing()

        def old():
            return rng.choice(names) if names and rng.random() < 0.95 else new()

        def new():
            return os.path.join(rng.choice(folders), rng.choice("abcdefgh"))

        def either():
            return old() if rng.random() < 0.4 else new()

        function = rng.choices(list(self.WEIGHTS), self.WEIGHTS.values())[0]
        if len(names) > self.NAMES_MAX and rng.random() < 0.5:
            function = rng.choice(self.REMOVALS)
        size = rng.choice((1, 10, 4096, 100_000, 600_000))
        mode = rng.choice((0o644, 0o600, 0o755, 0o777, 0o700))
        key = f"user.{rng.choice('xyz')}"
        arguments = {
            create: lambda: (either(), mode),
            write: lambda: (old(), rng.choice((0, 7, 5000, 100_000)), rng.randbytes(size)),
            truncate: lambda: (old(), rng.choice((0, 1, 5000, 300_000))),
            rename: lambda: (old(), either()),
            exchange: lambda: (old(), old()),
            link: lambda: (old(), either()),
            unlink: lambda: (old(),),
            mkdir: lambda: (either(), mode),
            rmdir: lambda: (old(),),
            chmod: lambda: (old(), mode),
            utime: lambda: (old(), rng.randrange(10**18)),
            setxattr: lambda: (old(), key, rng.randbytes(rng.randrange(1, 60))),
            removexattr: lambda: (old(), key),
            symlink: lambda: (either(), rng.choice(("nowhere/at/all", "x/y" * 100))),
        }[function]()
        return function, arguments

    def step(self):
        """False if the daemon has gone."""
        function, arguments = self.doubt = self.draw()
        here = outcome(function, self.mnt, *arguments)
        if here in GONE:
            return False
        there = outcome(function, self.model, *arguments)
        equal(here, there, f"call {self.done}: answer to {self.in_words(function, arguments)}")
        self.done, self.doubt = self.done + 1, None
        return True

    @staticmethod
    def in_words(function, arguments):
        return f"{function.__name__}({', '.join(harness.shorten(a) for a in arguments)})"

    def run(self, seconds):
        """Goes on until the daemon has gone; returns itself, for it runs in a child."""
        ending = time.monotonic() + seconds
        while self.step():
            check(time.monotonic() < ending, "nobody has killed the daemon")
            time.sleep(0.002)
        return self

    def settle(self):
        """The model does the call that was in doubt, if the mount has done it."""
        if self.doubt is None:
            return
        function, arguments = self.doubt
        if function is write:
            self.settle_write(*arguments)
        elif differences(self.mnt, self.model, ignored=("mtime",)):
            outcome(function, self.model, *arguments)
        self.doubt = None

    def settle_write(self, name, offset, data):
        path = f"{self.model}/{name}"
        if not os.path.isfile(path) or os.path.islink(path):
            return
        was, now = read(path), read(f"{self.mnt}/{name}")
        before = was.ljust(offset + len(data), b"\0")
        after = before[:offset] + data + before[offset + len(data):]
        check(len(was) <= len(now) <= len(after), f"{name} is of {len(now)} bytes")
        check(all(byte in pair for byte, *pair in zip(now, before, after)),
              f"{name} has what it never had")
        with open(path, "r+b") as f:
            f.write(now)


def script_over(t, stack, seed, backend=None, **kwargs):
    """A mount over a small tree, and a script whose model is the same tree."""
    backend, model = backend or t.workspace.new_directory(), t.workspace.new_directory()
    rng = random.Random(seed)
    made(backend, "a/a", "a/b/c", "a/b/d/e", "b/a", "b/c/d", "c", "d")
    for name, _ in list(walk(backend)):
        if rng.random() < 0.3:
            os.setxattr(os.path.join(os.fsencode(backend), name), "user.x", b"old")
    os.link(f"{backend}/c", f"{backend}/b/b")
    os.symlink("nowhere/at/all", f"{backend}/e")
    run_checked("cp", "-a", f"{backend}/.", model)
    m = stack.enter_context(over(t, backend, **kwargs))
    return m, Script(m.mnt, model, seed)


def killed_at_any_moment(t, seed, rounds):
    need_root()
    with contextlib.ExitStack() as stack:
        m, script = script_over(t, stack, seed)
        rng = random.Random(seed)
        for number in range(rounds):
            child = Child(script.run, 60 * FACTOR)
            if number % 2 == 0:
                time.sleep(rng.uniform(0.8, 2.5) * min(FACTOR, 2))
            else:  # Amidst a sync.
                time.sleep(rng.uniform(0.3, 1))
                syncer = Child(cfs, "sync", m.mnt)
                time.sleep(rng.uniform(0, 0.2) * FACTOR)
                stack.callback(syncer.kill)
            if not child.running():
                child.result()
                raise harness.Failure("the script ended before the daemon")
            m.kill()
            script = child.result(60 * FACTOR)
            harness.run("umount", "-l", m.mnt)
            harness.check_stores(m.store)
            m.start()
            script.settle()
            check_model(m, script.model)
            if rng.random() < 0.5:
                check_flushed(m)
                check_model(m, script.model)
        check(script.done > 100, f"empty pass: {script.done} calls")
        check_flushed(m)
        check_model(m, script.model)
        evict(m)
        check_model(m, script.model)


@case(timeout=120)
def killed_at_any_moment_a(t):
    killed_at_any_moment(t, seed=1, rounds=6)


@case(timeout=120)
def killed_at_any_moment_b(t):
    killed_at_any_moment(t, seed=2, rounds=6)


@case(timeout=60)
def killed_while_much_is_flushed(t):
    """Each of many files, and each part of a large one, is there once and whole in the end."""
    need_root()
    with over(t) as m:
        made(m.backend, *(f"old/{number}" for number in range(200)))
        rng = random.Random(4)
        fill(m.mnt, kept_by_cfs=False)
        for number in range(4):
            make(f"{m.mnt}/large", rng.randbytes(30_000_000))
            made(m.mnt, *(f"new{number}/{file}" for file in range(100)))
            for file in range(number, 200, 4):
                make(f"{m.mnt}/old/{file}", f"{number} and {file}".encode())
            os.rename(f"{m.mnt}/new{number}", f"{m.mnt}/renamed{number}")
            syncer = Child(cfs, "sync", m.mnt)
            time.sleep(rng.uniform(0.02, 0.5) * FACTOR)
            m.kill()
            syncer.kill()
            harness.run("umount", "-l", m.mnt)
            m.start()
        check_flushed(m)
        for file in range(200):
            equal(read(f"{m.backend}/old/{file}"), f"{file % 4} and {file}".encode(), f"old/{file}")


def power_loss(t, kind, wait):
    """What a sync has brought to the backend stays, and is here again, whatever the store has lost."""
    need_root()
    with contextlib.ExitStack() as stack:
        disk = stage.Disk(Path(t.workspace.new_directory()), kind)
        stack.callback(disk.close)
        # Whatever a device says that has gone.
        m = stack.enter_context(over(t, store=str(disk.path), errors=r"."))
        model = t.workspace.new_directory()
        rng = random.Random(5)
        taken_back = 0
        for number in range(3):
            large, some = rng.randbytes(20_000_000), rng.randbytes(100_000)
            for root in (m.mnt, model):
                made(root, *(f"new{number}/{file}" for file in range(40)))
                make(f"{root}/large", large)
                for file in range(number, 40, 3):
                    make(f"{root}/new0/{file}", f"{number} and {file}".encode() * 100)
                make(f"{root}/written", some)
            with opened(f"{m.mnt}/written", os.O_WRONLY | os.O_APPEND) as fd:
                os.write(fd, some)
                sync(m)
                time.sleep(wait)
                disk.cut_power()
                m.kill()
            make(f"{model}/written", some + some)
            stage.unmount(m.mnt)
            disk.reboot()
            m.start()
            taken_back += layout(m, "large") == "backend"
            check_model(m, model)
            equal(differences(m.backend, model, ignored=("mtime",)), [], "what is on the backend")
            check_flushed(m)
            check_model(m, model)
        check(wait > 0 or taken_back > 0, "empty pass: all was on the device")


@case(timeout=90)
def power_is_lost_after_a_sync_ext4(t):
    power_loss(t, "ext4", 0)


@case(timeout=90)
def power_is_lost_after_a_sync_xfs(t):
    power_loss(t, "xfs", 0)


@case(timeout=90)
def power_is_lost_some_time_after_a_sync_ext4(t):
    power_loss(t, "ext4", 1.7)


POINTS = ("flush-copied", "flush-born", "flush-moved", "flush-parked", "flush-removed", "flush-linked",
          "flush-metadata", "flush-rewritten", "flush-in-place", "flush-before-sync", "flush-synced",
          "flush-soft")
ONCE = ("flush-copied", "flush-in-place", "flush-linked", "flush-before-sync", "flush-synced", "flush-soft")


def tree_of_points(root):
    made(root, "a", "b", "gone", "d1/x", "d1/y", "d2/z", "emptied/one", "emptied/two", "unseen/link1",
         "many/one", "moved/from", "opened", "rewritten", "other/deep/er", "exchanged1", "exchanged2")
    os.link(f"{root}/many/one", f"{root}/many/two")
    os.link(f"{root}/unseen/link1", f"{root}/link2")


def change_for_points(root):
    """Comes by all of POINTS."""
    made(root, "new", "fresh/new1", "fresh/new2", "fresh/below/new")
    os.symlink("anything", f"{root}/fresh/symlink")
    exchange(root, "a", "b")
    exchange(root, "d1", "d2")
    os.unlink(f"{root}/gone")
    shutil.rmtree(f"{root}/emptied")
    made(root, "emptied/one")
    os.link(f"{root}/a", f"{root}/linked")
    os.unlink(f"{root}/link2")
    make(f"{root}/many/one", b"changed through one of its names")
    make(f"{root}/rewritten", b"rewritten")
    os.chmod(f"{root}/other/deep/er", 0o600)
    os.rename(f"{root}/moved", f"{root}/fresh/moved")
    os.rename(f"{root}/other", f"{root}/d1/other")


def change_again(root):
    """The same names, before anybody has found out how far the flush had come."""
    exchange(root, "a", "b")
    exchange(root, "exchanged1", "new")
    os.unlink(f"{root}/linked")
    os.rename(f"{root}/fresh/new1", f"{root}/fresh/new2")
    os.rename(f"{root}/fresh/moved", f"{root}/moved")
    exchange(root, "d1", "fresh")
    make(f"{root}/rewritten", b"rewritten twice")
    shutil.rmtree(f"{root}/emptied")
    os.unlink(f"{root}/many/two")


@case(timeout=300)
def killed_at_each_point_of_a_flush(t):
    harness.need_fault_points()
    need_root()
    for point in POINTS:
        for again in (False, True):
            model = t.workspace.new_directory()
            tree_of_points(model)
            with over(t) as m:
                tree_of_points(m.backend)
                for number, name in enumerate(("a", "many/one", "rewritten", "d1/y")):
                    equal(read(f"{m.mnt}/{name}"), content(name), f"{number}: {name}")
                m.stop()
                # The second time, something has been done already.
                with harness.dying_at(f"{point}:2" if again and point not in ONCE else point):
                    m.start()
                change_for_points(m.mnt)
                change_for_points(model)
                cfs("sync", m.mnt)
                wait_until(lambda m=m: m.died() is not None, 20 * FACTOR, f"the daemon comes by {point}")
                m.kill()
                harness.run("umount", "-l", m.mnt)
                harness.check_stores(m.store)
                m.start()
                if again:
                    change_again(m.mnt)
                    change_again(model)
                check_model(m, model)
                check_flushed(m)
                check_model(m, model)
                evict(m)
                check_model(m, model)


@case(timeout=60)
def killed_while_a_fresh_copy_is_written_in_place(t):
    """The copy here is the good one, though it was not on the device a moment before."""
    harness.need_fault_points()
    with over(t) as m:
        make(f"{m.backend}/a", content("a") * 100)
        os.link(f"{m.backend}/a", f"{m.backend}/b")
        m.stop()
        with harness.dying_at("flush-in-place"):
            m.start()
        equal(read(f"{m.mnt}/a"), content("a") * 100, "content")
        os.utime(f"{m.mnt}/a", (1_000_000_000, 1_000_000_000))
        cfs("sync", m.mnt)
        wait_until(lambda: m.died() is not None, 20 * FACTOR, "the daemon comes by flush-in-place")
        m.kill()
        harness.run("umount", "-l", m.mnt)
        equal(os.path.getsize(f"{m.backend}/b"), 0, "empty pass: size there")
        m.start()
        equal(read(f"{m.mnt}/a"), content("a") * 100, "content")
        check_flushed(m)
        equal(read(f"{m.backend}/b"), content("a") * 100, "content there")


def random_calls(t, seed, count=400):
    need_root()
    with contextlib.ExitStack() as stack:
        m, script = script_over(t, stack, seed)
        rng = random.Random(seed + 1000)
        for number in range(count):
            check(script.step(), "the daemon has gone")
            chance = rng.random()
            if chance < 0.05:
                names, _ = script.existing()
                path = f"{m.mnt}/{rng.choice(names)}" if names else m.mnt
                if os.path.isfile(path) or os.path.isdir(path):
                    done = cfs("evict", path)
                    check(done.returncode in (0, 75), f"evict: {done}")
            elif chance < 0.07:
                check_flushed(m)
            elif chance < 0.076:
                time.sleep(1.3)  # The flusher comes by itself.
            if number == count // 2:
                m.stop()
                m.start()
        check_model(m, script.model)
        check_flushed(m)
        check_model(m, script.model)
        evict(m)
        check_model(m, script.model)
        m.stop()
        m.start()
        check_model(m, script.model)
        check_flushed(m)


@case(timeout=90)
def random_calls_a(t):
    random_calls(t, seed=11)


@case(timeout=90)
def random_calls_b(t):
    random_calls(t, seed=12)


@case(timeout=90)
def random_calls_c(t):
    random_calls(t, seed=13)


# Commands and options.


@case
def stop_leaves_nothing_behind(t):
    need_root()
    with over(t) as m:
        fill(m.mnt, kept_by_cfs=False)
        wanted = seen(m.mnt, True, ())
        done = end(m)
        check(done.returncode == 0 and not m.mounted(), f"stop: {done}")
        found = seen(m.backend, True, ())
        for side in (wanted, found):
            for of in side.values():
                of.pop("data bytes")
        equal(found, wanted, "backend")
        m.start()
        check_flushed(m)
        equal(flushed(m), (0, 0), "what was flushed after the next start")


def make_until_it_fails(root):
    """The names of what was made."""
    names = []
    with contextlib.suppress(OSError):
        while True:
            name = f"n{len(names)}"
            make(f"{root}/{name}", name.encode())
            names.append(name)
            time.sleep(0.001)
    return names


@case(timeout=60)
def stop_while_files_are_made(t):
    with over(t) as m:
        for number in range(5):
            # What is made after the unmount is not made below the mount point.
            os.mkdir(f"{m.mnt}/d{number}")
            child = Child(make_until_it_fails, f"{m.mnt}/d{number}")
            time.sleep(0.5)
            ending = time.monotonic() + 30 * FACTOR
            while m.mounted():  # It can be busy.
                check(time.monotonic() < ending, "cannot be stopped")
                done = end(m)
            names = child.result(30 * FACTOR)
            check(len(names) > 10, f"empty pass: {len(names)} files")
            if done.returncode == 0:
                missing = [n for n in names if outcome(read, f"{m.backend}/d{number}/{n}") != n.encode()]
                check(not missing, f"{len(missing)} of {len(names)} files are not there: {missing[:5]}")
            else:
                check("is not on the backend" in done.stderr, f"stop: {done}")
            m.start()
            check_flushed(m)
            equal(sorted(set(names) - set(os.listdir(f"{m.backend}/d{number}"))), [], "lost files")


@case(timeout=60)
def stop_refuses_to_leave_anything_behind(t):
    with over_small_disk(t) as m:
        made(m.backend, "f")
        read(f"{m.mnt}/f")
        sync(m)
        remount(m.disk, "ro")
        made(m.mnt, "d/new")
        done = end(m)
        check(done.returncode != 0 and "new" in done.stderr and os.strerror(errno.EROFS) in done.stderr,
              f"stop: {done}")
        check(m.mounted(), "unmounted all the same")
        check_content(m, d_new="d_new")
        done = end(m, "--force")
        check("new" in done.stderr, f"stop --force: {done}")
        check(not m.mounted(), f"stop --force: still mounted: {done}")
        remount(m.disk, "rw")
        check(not os.path.exists(f"{m.backend}/d"), "it is there")
        m.start()
        wait_flushed(m)
        check_content(m, d_new="d_new")
        check_flushed(m)
        done = end(m, "--force")
        check(done.returncode == 0 and not done.stderr, f"stop --force with nothing dirty: {done}")
        m.start()


@case
def what_cfs_keeps_for_itself_cannot_be_made(t):
    with over(t) as m:
        made(m.backend, "f", "d/g")
        kept = f"{m.mnt}/{KEPT_BY_CFS}"
        for call in ((os.mkdir, kept), (os.open, kept, os.O_CREAT | os.O_WRONLY), (os.mkfifo, kept),
                     (os.symlink, "x", kept), (os.link, f"{m.mnt}/f", kept),
                     (os.rename, f"{m.mnt}/f", kept), (os.rename, f"{m.mnt}/d", kept)):
            expect(errno.EPERM, *call)
        expect(errno.ENOENT, os.stat, kept)
        made(m.mnt, f"d/{KEPT_BY_CFS}/h")  # Elsewhere it is a name as any other.
        check_flushed(m)


@case(timeout=60)
def a_read_only_mount_flushes_nothing(t):
    """Of what an earlier mount has left."""
    with over(t) as m:
        made(m.backend, "f")
        for attempt in range(10):  # The flusher may come first.
            name = f"new{attempt}"
            made(m.mnt, name)
            m.stop()
            if not os.path.exists(f"{m.backend}/{name}"):
                break
            m.start()
        else:
            raise harness.Failure("empty pass: umount flushes")
        before = objects(m.backend)
        run_checked(BINARY, "mount", m.mnt, "--store", m.store, "--backend", m.backend,
                    "--backend-mode", "readonly")
        equal(status(m)["mode"], "readonly", "mode")
        equal(read(f"{m.mnt}/{name}"), content(name), "a new file")
        expect(errno.EROFS, os.unlink, f"{m.mnt}/{name}")
        time.sleep(3 * FACTOR)
        run_checked(BINARY, "umount", m.mnt)
        equal(objects(m.backend), before, "backend")
        m.start()
        wait_flushed(m)
        check_flushed(m)


@case
def what_cannot_be_is_refused(t):
    backend = t.workspace.new_directory()
    with over(t, backend) as m:
        made(m.mnt, "f")
        m.stop()
        done = cfs("mount", m.mnt, "--store", m.store, "--backend", backend, "--backend-mode", "writethrough")
        check(done.returncode != 0 and "writethrough" in done.stderr, f"writethrough: {done}")
        check(not m.mounted(), "mounted")
        m.start()
        check_flushed(m)
        for arguments in (("sync", f"{m.backend}/f"), ("sync", "--deadline", "soon", m.mnt),
                          ("stop", m.backend)):
            check(cfs(*arguments).returncode != 0, f"{arguments} is accepted")
        check(m.mounted(), "unmounted")
    with t.new_mount() as m:  # Without a backend there is nothing to bring there.
        made(m.mnt, "f")
        done = end(m)
        check(done.returncode == 0, f"stop without a backend: {done}")
        m.start()
        check_content(m, f="f")


if __name__ == "__main__":
    sys.exit(harness.main(__doc__, shared_mount=False))
