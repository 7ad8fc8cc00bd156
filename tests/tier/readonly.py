#!/usr/bin/env python3
"""A mount in front of a directory that it reads from: --backend DIR --backend-mode readonly.

    readonly.py [--mode MODE] [--filter REGEX]

Goal: the mount shows what is on the backend, keeps copies of what was opened, and never a wrong byte:
not while the backend changes, not after kill -9 or power loss. Method: real mounts over real
directories, compared name by name.
"""

import contextlib
import os
import random
import shutil
import stat
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "mount"), str(HERE.parent / "crash")]
import harness  # noqa: E402  (It is where the path above says.)
import stage  # noqa: E402
from harness import (NOBODY, Child, as_user, case, cfs, check, equal, expect, make,  # noqa: E402
                     need_root, outcome, read, run_checked, wait_until)
from trees import KEPT_BY_CFS, check_equal, fill, over, tree  # noqa: E402

FACTOR = harness.TIME_FACTOR


def status(mount):
    return mount.status()["backend"]


@case(timeout=120)
def all_is_as_on_the_backend(t):
    need_root()
    with over(t) as m:
        fill(m.backend)
        check_equal(m, contents=False)
        equal(status(m)["staged_files"], 0, "files staged in by looking at them")
        check_equal(m)
        check_equal(m)
        m.stop()
        m.start()
        check_equal(m)
        m.kill()
        m.start()
        check_equal(m)
        # Names of one file are of one inode, and it is here once.
        same = {os.stat(p).st_ino for p in Path(m.mnt).rglob("o*") if p.name in ("one", "other0", "other1")}
        equal(len(same), 1, "inodes of one file")
        check(not os.path.exists(f"{m.mnt}/{KEPT_BY_CFS}"), "what cfs keeps for itself is shown")


@case
def nothing_can_be_changed(t):
    with over(t) as m:
        make(f"{m.backend}/f", b"data")
        os.mkdir(f"{m.backend}/d")
        before = tree(m.backend)
        for call in ((os.open, f"{m.mnt}/f", os.O_RDWR), (os.open, f"{m.mnt}/f", os.O_TRUNC | os.O_WRONLY),
                     (os.open, f"{m.mnt}/new", os.O_CREAT | os.O_WRONLY), (os.unlink, f"{m.mnt}/f"),
                     (os.mkdir, f"{m.mnt}/e"), (os.rmdir, f"{m.mnt}/d"), (os.chmod, f"{m.mnt}/f", 0o600),
                     (os.rename, f"{m.mnt}/f", f"{m.mnt}/g"), (os.link, f"{m.mnt}/f", f"{m.mnt}/g"),
                     (os.symlink, "x", f"{m.mnt}/l"), (os.truncate, f"{m.mnt}/f", 1),
                     (os.setxattr, f"{m.mnt}/f", "user.x", b"y"), (os.utime, f"{m.mnt}/f", (1, 1))):
            expect(harness.errno.EROFS, *call)
        equal(tree(m.backend), before, "backend")


@case
def copies_are_read_without_the_backend(t):
    """Once looked up and opened, a file does not need the backend; nor does a name that is not there."""
    with over(t) as m:
        os.mkdir(f"{m.backend}/d")
        data = {f"d/f{n}": os.urandom(100_000) for n in range(20)}
        for name, content in data.items():
            make(f"{m.backend}/{name}", content)
        expect(harness.errno.ENOENT, os.stat, f"{m.mnt}/d/missing")
        for name, content in data.items():
            equal(read(f"{m.mnt}/{name}"), content, name)
        said = m.stat(f"{m.mnt}/d/f1")
        equal(said["layout"], "whole", "layout")
        equal(read(said["backing"]), data["d/f1"], "backing file")
        shutil.rmtree(f"{m.backend}/d")
        make(f"{m.backend}/new")
        for _ in range(2):
            for name, content in data.items():
                equal(read(f"{m.mnt}/{name}"), content, f"{name} without the backend")
            expect(harness.errno.ENOENT, os.stat, f"{m.mnt}/d/missing")
            m.stop()
            m.start()
        equal(status(m)["staged_files"], 0, "files staged in again")


@case
def what_many_want_is_read_once(t):
    with over(t) as m:
        data = os.urandom(30_000_000)
        make(f"{m.backend}/f", data)
        children = [Child(lambda: read(f"{m.mnt}/f") == data) for _ in range(8)]
        for child in children:
            check(child.result(60 * FACTOR), "content")
        found = status(m)
        equal((found["staged_files"], found["staged_bytes"]), (1, len(data)), "staged in")


@case
def evicted_files_come_again(t):
    with over(t) as m:
        os.makedirs(f"{m.backend}/d/e")
        os.mkdir(f"{m.backend}/never")
        names = ["f", "d/g", "d/e/h"]
        for name in names:
            make(f"{m.backend}/{name}", name.encode() * 1000)
        for name in names:
            read(f"{m.mnt}/{name}")
        backing = {name: m.stat(f"{m.mnt}/{name}")["backing"] for name in names}
        with harness.opened(f"{m.mnt}/f", os.O_RDONLY) as fd:
            done = cfs("evict", m.mnt)
            check(done.returncode == 75 and "f: it is open" in done.stderr, f"evict of an open file: {done}")
            check(done.stdout.startswith("2 files, "), f"evict says {done.stdout!r}")
            equal(os.pread(fd, 10, 0), b"f" * 10, "open file")
        wait_until(lambda: not any(os.path.exists(backing[n]) for n in names[1:]), 10, "space is free")
        check(os.path.exists(backing["f"]), "the open file's copy is gone")
        check("1 files" in run_checked(harness.BINARY, "evict", f"{m.mnt}/f"), "evict of one")
        equal(m.stat(f"{m.mnt}/f")["layout"], "backend", "layout")
        check(m.stat(f"{m.mnt}/never").get("not_imported"), "evict has looked into what nobody used")
        make(f"{m.backend}/d/g", b"another content")
        equal(read(f"{m.mnt}/d/g"), b"another content", "content after eviction")
        equal(os.stat(f"{m.mnt}/d/g").st_size, 15, "its size")
        check_equal(m)
        check("0 files" in run_checked(harness.BINARY, "evict", f"{m.mnt}/never"), "evict of none")


@case
def stagein_gets_files_ahead(t):
    with over(t) as m:
        fill(m.backend)
        data = f"{m.backend}/d0"
        run_checked(harness.BINARY, "stagein", "--recursive", f"{m.mnt}/d0")
        wanted = [p for p in Path(data).rglob("*") if p.is_file()]
        found = status(m)
        check(wanted and found["staged_files"] <= len(wanted), f"{found} of {len(wanted)}")
        for path in wanted:
            at = f"{m.mnt}/{path.relative_to(m.backend)}"
            equal(m.stat(at)["layout"], "whole", f"layout of {at}")
        done = cfs("stagein", m.mnt)
        check(done.returncode == 64 and "--recursive" in done.stderr, f"a directory: {done}")
        names = f"{t.workspace.new_directory()}/names"
        make(names, os.fsencode(f"{m.mnt}/missing\n{m.mnt}/ \n"))
        done = cfs("stagein", "--from-file", names)
        check(done.returncode != 0 and "missing" in done.stderr and "1 files" in done.stdout,
              f"a missing file: {done}")
        os.unlink(f"{m.backend}/sparse")
        done = cfs("stagein", f"{m.mnt}/sparse", f"{m.mnt}/long", f"{m.mnt}/null", f"{m.mnt}/ ")
        check(done.returncode != 0 and "1 files" in done.stdout and "sparse" in done.stderr,
              f"a file that has vanished: {done}")


@case(timeout=60)
def what_has_changed_on_the_backend_is_never_mixed(t):
    """Copied at any moment while it is written, a file has what it once had, or cannot be had."""
    size, rounds = 200_000_000, 30
    with over(t) as m:
        path = f"{m.backend}/f"
        with open(path, "wb") as f:
            for _ in range(size // 1_000_000):
                f.write(b"\0" * 1_000_000)
        os.stat(f"{m.mnt}/f")

        def write():
            rng = random.Random(5)
            for version in range(1, rounds):
                with harness.opened(path, os.O_WRONLY) as fd:
                    # The end first: who reads on meets the old beginning, and this.
                    os.pwrite(fd, bytes([version]), size - 1)
                    os.pwrite(fd, bytes([version]), 0)
                time.sleep((1.5 if version % 6 == 0 else rng.uniform(0.06, 0.3)) * min(FACTOR, 2))

        def ends():
            with harness.opened(f"{m.mnt}/f", os.O_RDONLY) as fd:
                return os.pread(fd, 1, 0), os.pread(fd, 1, size - 1), os.fstat(fd).st_size

        writer = Child(write)
        seen, refused = set(), 0
        while writer.running():
            answer = outcome(ends)
            if isinstance(answer, str):
                equal(answer, "EBUSY", "answer")
                refused += 1
                continue
            equal(answer, (answer[0], answer[0], size), "beginning, end and size")
            seen.add(answer[0])
            outcome(cfs, "evict", f"{m.mnt}/f")
        writer.result(60 * FACTOR)
        check(len(seen) > 1, f"empty pass: versions {seen}, refused {refused}")


@case
def what_is_gone_from_the_backend_says_so(t):
    with over(t) as m:
        for name in ("gone", "replaced", "folder", "link"):
            make(f"{m.backend}/{name}", b"old")
        os.mkdir(f"{m.backend}/d")
        os.mkdir(f"{m.backend}/e")
        make(f"{m.backend}/e/f", b"old")
        os.listdir(m.mnt)
        os.listdir(f"{m.mnt}/e")
        for name in ("gone", "folder", "link"):
            os.unlink(f"{m.backend}/{name}")
        os.rmdir(f"{m.backend}/d")
        os.mkdir(f"{m.backend}/folder")
        os.symlink("gone", f"{m.backend}/link")
        make(f"{m.backend}/new", b"newer")
        os.rename(f"{m.backend}/new", f"{m.backend}/replaced")
        shutil.rmtree(f"{m.backend}/e")
        os.mkdir(f"{m.backend}/e")
        make(f"{m.backend}/e/f", b"another")
        for name in ("gone", "folder", "link"):
            answer = outcome(read, f"{m.mnt}/{name}")
            check(answer in ("ENOENT", "ESTALE", "ELOOP", "EISDIR"), f"{name} is {answer}")
        equal(read(f"{m.mnt}/replaced"), b"newer", "a file that was replaced")
        equal(read(f"{m.mnt}/e/f"), b"another", "a file of a directory that was replaced")
        equal(outcome(os.listdir, f"{m.mnt}/d"), "ESTALE", "a directory that is gone")
        check(status(m)["failures"] >= 3, f"status: {status(m)}")
        make(f"{m.backend}/gone", b"back")
        equal(read(f"{m.mnt}/gone"), b"back", "a file that came back")


@case
def users_see_what_they_may(t):
    need_root()
    with over(t, store="disk") as m:
        os.chmod(m.backend, 0o755)
        make(f"{m.backend}/secret", b"s", 0o600)
        make(f"{m.backend}/open", b"o", 0o644)
        equal(as_user(NOBODY, outcome, read, f"{m.mnt}/secret"), "EACCES", "a file of root's")
        equal(as_user(NOBODY, read, f"{m.mnt}/open"), b"o", "a file of all")
        equal(status(m)["staged_files"], 1, "files staged in")


@case
def new_content_is_not_shown_to_who_could_read_the_old(t):
    need_root()
    with over(t, store="disk") as m:
        os.chmod(m.backend, 0o755)
        for name in ("mode", "acl", "given"):
            make(f"{m.backend}/{name}", b"public")
        make(f"{m.backend}/given", b"private", 0o600)
        run_checked("setfacl", "-m", f"u:{NOBODY}:r", f"{m.backend}/acl")
        os.setxattr(f"{m.backend}/mode", "user.old", b"1")
        for name in ("mode", "acl", "given"):
            os.stat(f"{m.mnt}/{name}")
            outcome(os.getxattr, f"{m.mnt}/{name}", "system.posix_acl_access")
        for name in ("mode", "acl"):
            run_checked("setfacl", "-b", f"{m.backend}/{name}")
            make(f"{m.backend}/{name}", b"secret", 0o600)
        make(f"{m.backend}/given", b"for all", 0o644)
        os.removexattr(f"{m.backend}/mode", "user.old")
        os.setxattr(f"{m.backend}/mode", "user.new", b"2")
        for name in ("mode", "acl"):
            equal(as_user(NOBODY, outcome, read, f"{m.mnt}/{name}"), "EACCES", f"{name} for others")
            equal(read(f"{m.mnt}/{name}"), b"secret", f"{name} for root")
        read(f"{m.mnt}/given")
        equal(as_user(NOBODY, read, f"{m.mnt}/given"), b"for all", "a file that others may read now")
        check_equal(m)


@case
def the_backend_s_mount_options_hold(t):
    need_root()
    backend = t.workspace.new_directory()
    run_checked("mount", "-t", "tmpfs", "-o", "nosuid,nodev,noexec", "none", backend)
    try:
        make(f"{backend}/program", b"#!/bin/sh\n", 0o4755)
        with over(t, backend) as m:
            options = harness.mount_options(f"{m.mnt}/program")
            check({"ro", "nosuid", "nodev", "noexec"} <= set(options), f"options: {options}")
            check_equal(m)
    finally:
        harness.run("umount", "-l", backend)


@case(timeout=90)
def a_large_directory_holds_nobody_up(t):
    count = 30_000
    with over(t) as m:
        os.mkdir(f"{m.backend}/large")
        for number in range(count):
            os.mknod(f"{m.backend}/large/{number}", stat.S_IFREG | 0o644)
        make(f"{m.backend}/f", b"data")
        os.stat(f"{m.mnt}/f")
        lister = Child(lambda: len(os.listdir(f"{m.mnt}/large")))
        slowest = 0
        while lister.running():
            begin = time.monotonic()
            os.stat(f"{m.mnt}/f")
            read(f"{m.mnt}/f")
            slowest = max(slowest, time.monotonic() - begin)
        equal(lister.result(60 * FACTOR), count, "entries")
        check(slowest < 1 * FACTOR, f"another file took {slowest:.2f} s meanwhile")
        equal(status(m)["imported_directories"], 2, "directories imported")


@case(timeout=90)
def killed_at_any_moment(t):
    """A copy, or a listing, that was not finished is not there."""
    need_root()
    with over(t) as m:
        fill(m.backend)
        os.mkdir(f"{m.backend}/many")
        for number in range(3000):
            make(f"{m.backend}/many/{number}", str(number).encode())
        rng = random.Random(3)

        def use():
            with contextlib.suppress(OSError):
                tree(m.mnt)

        for _ in range(6):
            child = Child(use)
            time.sleep(rng.uniform(0.05, 0.6) * FACTOR)
            m.kill()
            child.kill()
            harness.run("umount", "-l", m.mnt)
            m.start()
        check_equal(m)


def power_loss(t, kind, wait):
    need_root()
    folder = Path(t.workspace.new_directory())
    with contextlib.ExitStack() as stack:
        disk = stage.Disk(folder, kind)
        stack.callback(disk.close)
        with over(t, store=str(disk.path)) as m:
            fill(m.backend, files=200)
            for _ in range(3):
                check_equal(m)
                with harness.opened(m.mnt, os.O_RDONLY) as fd:
                    os.fsync(fd)  # All metadata is on the device, whatever the data.
                time.sleep(wait)
                equal(m.problems(), [], "problems")
                disk.cut_power()
                m.kill()
                stage.unmount(m.mnt)
                disk.reboot()
                m.problems()  # What it said of its disk was to be expected.
                m.start()
                check_equal(m)


@case(timeout=90)
def power_is_lost_at_once_ext4(t):
    power_loss(t, "ext4", 0)


@case(timeout=90)
def power_is_lost_at_once_xfs(t):
    power_loss(t, "xfs", 0)


@case(timeout=90)
def power_is_lost_later_ext4(t):
    power_loss(t, "ext4", 1.7)


@case(timeout=90)
def power_is_lost_later_xfs(t):
    power_loss(t, "xfs", 1.7)


@case
def what_cannot_be_is_refused(t):
    backend, other = t.workspace.new_directory(), t.workspace.new_directory()
    make(f"{backend}/f")
    readonly = ["--backend-mode", "readonly"]

    def refused(code, words, *options):
        done = cfs("mount", m.mnt, "--store", m.store, *options)
        check(done.returncode == code and words in done.stderr, f"{options}: {done}")
        check(not m.mounted(), f"{options}: mounted")

    with over(t, backend) as m:
        read(f"{m.mnt}/f")
        m.stop()
        refused(78, "in front of a backend")
        refused(78, "in front of a backend", "--listen", "127.0.0.1")
        refused(64, "cluster", "--listen", "127.0.0.1", "--backend", backend, *readonly)
        refused(78, "another backend", "--backend", other, *readonly)
        refused(64, "No such file", "--backend", f"{other}/missing", *readonly)
        refused(64, "not a directory", "--backend", f"{backend}/f", *readonly)
        refused(64, "below the other", "--backend", os.path.dirname(m.mnt), *readonly)
        refused(64, "below the other", "--backend", f"{m.store}/data", *readonly)
        refused(64, "writethrough", "--backend", backend, "--backend-mode", "writethrough")
        refused(64, "--backend-mode", "--backend", backend, "--backend-mode", "sometimes")
        refused(64, "of a --backend", *readonly)
        moved = f"{other}/moved"
        os.rename(backend, moved)
        run_checked(harness.BINARY, "mount", m.mnt, "--store", m.store, "--backend", moved, *readonly)
        equal(read(f"{m.mnt}/f"), b"", "content")
        run_checked(harness.BINARY, "umount", m.mnt)
        os.rename(moved, backend)
        m.start()
    with t.new_mount() as m:
        make(f"{m.mnt}/ours")
        m.stop()
        refused(78, "not the backend's", "--backend", backend, *readonly)
        m.start()  # As before: nothing is left of it.
        check(os.path.exists(f"{m.mnt}/ours"), "our file is gone")


if __name__ == "__main__":
    sys.exit(harness.main(__doc__, shared_mount=False))
