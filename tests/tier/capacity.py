#!/usr/bin/env python3
"""A store that is smaller than what is worked with: --store-size, eviction, pins, and user.cfs.flush.

    capacity.py [--mode MODE] [--filter REGEX]

Goal: a full store is no end of the work as long as the backend takes it; what is not there yet, is
pinned or open stays here; nothing is lost or wrong on the way. Method: real mounts with stores on
small file systems of their own, or with a --store-size, compared with the backend and with what was
written.
"""

import contextlib
import errno
import hashlib
import mmap
import os
import random
import shutil
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "mount"), str(HERE.parent / "mount" / "posix")]
import harness  # noqa: E402  (It is where the path above says.)
import trees  # noqa: E402
from harness import (BINARY, Child, case, cfs, check, equal, expect, make, need_root,  # noqa: E402
                     read, run_checked, wait_until)

FACTOR = harness.TIME_FACTOR
MIB = 1 << 20
# What the daemon may say, and how loudly, when the store or the backend is full.
FULL_ERRORS = r"(?i)flush|backend|full|space"


def over(t, backend=None, mode="writeback", **kwargs):
    return trees.over(t, backend, mode=mode, **kwargs)


@contextlib.contextmanager
def over_small_store(t, size_mib=256, kind="ext4", **kwargs):
    """A mount whose store is on a file system of its own."""
    need_root()
    folder = t.workspace.new_directory()
    disk = f"{folder}/disk"
    harness.loop_file_system(f"{folder}/image", disk, kind, size_mib)
    try:
        with over(t, store=disk, errors=FULL_ERRORS, **kwargs) as mount:
            yield mount
    finally:
        harness.run("umount", "-l", disk)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def over_small_backend(t, size_mib=64, **kwargs):
    """A mount whose backend can be full and refuse; that is its `disk`."""
    need_root()
    folder = t.workspace.new_directory()
    disk = f"{folder}/disk"
    harness.loop_file_system(f"{folder}/image", disk, "ext4", size_mib)
    try:
        os.mkdir(f"{disk}/backend")
        with over(t, f"{disk}/backend", errors=FULL_ERRORS, **kwargs) as mount:
            mount.disk = disk
            yield mount
    finally:
        harness.run("umount", "-l", disk)
        shutil.rmtree(folder, ignore_errors=True)


def status(mount):
    return mount.status()["backend"]


def sync(mount):
    return run_checked(BINARY, "sync", mount.mnt, timeout=120 * FACTOR)


def content(name, size):
    """The same for the same name; no two pages of it are alike."""
    return random.Random(name).randbytes(size)


def write(mount, name, size):
    """As make(), in pieces as programs write."""
    data = content(name, size)
    with harness.opened(f"{mount.mnt}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as fd:
        for at in range(0, size, MIB):
            piece = data[at:at + MIB]
            equal(os.write(fd, piece), len(piece), f"write to {name}")


def check_files(root, files):
    for name, size in files.items():
        wanted = hashlib.sha256(content(name, size)).hexdigest()
        equal(hashlib.sha256(read(f"{root}/{name}")).hexdigest(), wanted, f"{root}/{name}")


def is_here(mount, name):
    return mount.stat(f"{mount.mnt}/{name}")["layout"] == "whole"


def taken(mount):
    """Bytes that backing files have on the device."""
    total = 0
    for folder, _, names in os.walk(f"{mount.store}/data"):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # It goes meanwhile.
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return total


def settle(mount, limit):
    wait_until(lambda: taken(mount) <= limit, 30 * FACTOR, f"the store to have at most {limit} bytes")


# ------------------------------------------------------------------- eviction


def more_than_fits(t, kind):
    """Written, read back, over a restart: three times what the store can have."""
    with over_small_store(t, kind=kind, size_mib=320) as m:
        files = {f"f{number}": 4 * MIB + number for number in range(240)}
        for name, size in files.items():
            write(m, name, size)
        said = status(m)
        check(said["evicted_files"] > 100 and said["evicted_bytes"] > 400 * MIB, f"empty pass: {said}")
        check_files(m.mnt, dict(random.Random(1).sample(sorted(files.items()), 60)))
        sync(m)
        check_files(m.backend, files)
        m.stop()
        m.start()
        check_files(m.mnt, files)


@case(timeout=120)
def more_is_written_than_fits_ext4(t):
    more_than_fits(t, "ext4")


@case(timeout=120)
def more_is_written_than_fits_xfs(t):
    more_than_fits(t, "xfs")


@case(timeout=60)
def more_is_read_than_fits(t):
    """From a backend that is only read."""
    backend = t.workspace.new_directory()
    files = {f"f{number}": 3 * MIB for number in range(60)}
    for name, size in files.items():
        make(f"{backend}/{name}", content(name, size))
    with over(t, backend, mode="readonly", options=["--store-size", "64M"]) as m:
        for seed in range(3):
            names = sorted(files)
            random.Random(seed).shuffle(names)
            check_files(m.mnt, {name: files[name] for name in names})
        check(status(m)["evicted_files"] > 60, f"empty pass: {status(m)}")
        settle(m, 58 * MIB)
        equal(status(m)["store_bytes"], 64 * MIB, "store_bytes")
        trees.check_equal(m)


@case(timeout=60)
def the_size_is_kept(t):
    """Also by what is written, and in the next process."""
    with over(t, options=["--store-size", "64M"], errors=FULL_ERRORS) as m:
        files = {f"f{number}": 2 * MIB for number in range(80)}
        for name, size in files.items():
            write(m, name, size)
        sync(m)
        settle(m, 58 * MIB)
        check_files(m.mnt, files)
        m.stop()
        check(taken(m) < 110 * MIB, f"{taken(m)} bytes in the store")
        m.start()
        check_files(m.backend, files)
        check_files(m.mnt, files)
        settle(m, 58 * MIB)


@case(timeout=60)
def what_was_not_used_goes_first(t):
    with over(t, options=["--store-size", "100M"]) as m:
        for number in range(10):
            make(f"{m.backend}/f{number}", content(f"f{number}", 8 * MIB))
        make(f"{m.backend}/new", content("new", 16 * MIB))
        for number in range(10):
            read(f"{m.mnt}/f{number}")
            time.sleep(0.1)
        check(is_here(m, "f0") and is_here(m, "f9"), "empty pass: something is gone already")
        time.sleep(2.5)
        for number in range(0, 5):  # Used again, through passthrough.
            read(f"{m.mnt}/f{number}")
        read(f"{m.mnt}/new")
        wait_until(lambda: status(m)["evicted_files"] > 0, 30 * FACTOR, "an eviction")
        settle(m, 90 * MIB)
        kept = [number for number in range(10) if is_here(m, f"f{number}")]
        check(all(number in kept for number in range(5)), f"of those used last, {kept} are here")
        check(len(kept) < 10, f"empty pass: {kept}")
        check(is_here(m, "new"), "what was just read is gone")


@case(timeout=60)
def the_large_go_before_the_small(t):
    with over(t, options=["--store-size", "64M"]) as m:
        for number in range(400):
            make(f"{m.backend}/small{number}", content(f"small{number}", 4096))
        make(f"{m.backend}/large", content("large", 40 * MIB))
        make(f"{m.backend}/more", content("more", 30 * MIB))
        for number in range(400):
            read(f"{m.mnt}/small{number}")
        read(f"{m.mnt}/large")
        time.sleep(1.5)
        read(f"{m.mnt}/more")
        wait_until(lambda: not is_here(m, "large"), 30 * FACTOR, "the large one to go")
        equal(sum(is_here(m, f"small{number}") for number in range(400)), 400, "small files here")


@case(timeout=60)
def what_is_open_stays(t):
    """Also if it was removed, or is only mapped."""
    with over(t, options=["--store-size", "64M"], errors=FULL_ERRORS) as m:
        write(m, "open", 8 * MIB)
        write(m, "removed", 8 * MIB)
        sync(m)
        with harness.opened(f"{m.mnt}/open", os.O_RDONLY) as one, \
                harness.opened(f"{m.mnt}/removed", os.O_RDONLY) as other:
            os.unlink(f"{m.mnt}/removed")
            for number in range(40):
                write(m, f"f{number}", 4 * MIB)
            check(status(m)["evicted_files"] > 10, f"empty pass: {status(m)}")
            check(is_here(m, "open"), "the open file is gone")
            for fd, name in ((one, "open"), (other, "removed")):
                equal(os.pread(fd, 8 * MIB, 0), content(name, 8 * MIB), name)
        sync(m)
        settle(m, 58 * MIB)


@case(timeout=60)
def what_is_open_hides_nothing(t):
    """The best one to drop cannot go; others do."""
    with over(t, options=["--store-size", "64M"]) as m:
        make(f"{m.backend}/large", content("large", 40 * MIB))
        for number in range(30):
            make(f"{m.backend}/f{number}", content(f"f{number}", 2 * MIB))
        with open(f"{m.mnt}/large", "rb") as f:
            f.read()
            time.sleep(1.5)
            for number in range(30):
                read(f"{m.mnt}/f{number}")
            settle(m, 60 * MIB)
            check(is_here(m, "large"), "the open file is gone")


@case(timeout=60)
def what_is_mapped_stays(t):
    """A mapping outlives close(2), and must see what is written later."""
    with over(t, options=["--store-size", "64M"]) as m:
        for name in ("mapped", *(f"f{number}" for number in range(20))):
            make(f"{m.backend}/{name}", content(name, 5 * MIB))
        with harness.opened(f"{m.mnt}/mapped", os.O_RDONLY) as fd:
            mapping = mmap.mmap(fd, 5 * MIB, prot=mmap.PROT_READ)
        for number in range(20):
            read(f"{m.mnt}/f{number}")
        settle(m, 60 * MIB)
        done = cfs("evict", f"{m.mnt}/mapped")
        check(done.returncode != 0 and "mapped" in done.stderr, f"evict: {done}")
        check(is_here(m, "mapped"), "the mapped file is gone")
        with harness.opened(f"{m.mnt}/mapped", os.O_RDWR) as fd:
            os.pwrite(fd, b"new bytes", MIB)
        equal(mapping[MIB:MIB + 9], b"new bytes", "what the mapping shows")
        mapping.close()
        sync(m)
        wait_until(lambda: cfs("evict", f"{m.mnt}/mapped").returncode == 0, 5 * FACTOR, "evict mapped")


# ----------------------------------------------------------------------- pins


def pin(mount, name, value=b"1"):
    os.setxattr(f"{mount.mnt}/{name}", "user.cfs.pin", value)


@case(timeout=60)
def pins_keep_files_here(t):
    """One file, all below a directory, and what is excepted there; over renames and a restart."""
    with over(t, options=["--store-size", "64M"], errors=FULL_ERRORS) as m:
        os.makedirs(f"{m.mnt}/dir/below/not")
        for name in ("file", "dir/a", "dir/below/b", "dir/below/not/c", "other"):
            write(m, name, 4 * MIB)
        pin(m, "file")
        pin(m, "dir")
        pin(m, "dir/below/not", b"0")
        sync(m)
        wait_until(lambda: cfs("evict", f"{m.mnt}/other").returncode == 0, 5 * FACTOR, "evict other")
        for name in ("file", "dir/a", "dir/below/b"):
            done = cfs("evict", f"{m.mnt}/{name}")
            check(done.returncode != 0 and "pinned" in done.stderr, f"evict {name}: {done}")
        m.stop()
        m.start()
        for number in range(40):
            write(m, f"f{number}", 4 * MIB)
        sync(m)
        settle(m, 58 * MIB)
        for name in ("file", "dir/a", "dir/below/b"):
            check(is_here(m, name), f"{name} is pinned, and gone")
        check(not is_here(m, "dir/below/not/c"), "what is excepted stays")
        os.removexattr(f"{m.mnt}/file", "user.cfs.pin")
        os.rename(f"{m.mnt}/dir/a", f"{m.mnt}/a")
        sync(m)
        for name in ("file", "a"):
            wait_until(lambda n=name: cfs("evict", f"{m.mnt}/{n}").returncode == 0, 5 * FACTOR, f"evict {name}")
        equal(os.getxattr(f"{m.backend}/dir", "user.cfs.pin"), b"1", "pin on the backend")


@case
def values_that_mean_nothing_are_refused(t):
    with over(t) as m:
        make(f"{m.mnt}/f")
        for name, values in (("pin", (b"", b"2", b"yes", b"1 ")),
                             ("flush", (b"", b"always", b"30", b"-1s", b" 3s", b"s", b"3.5s", b"99999999999s"))):
            for value in values:
                expect(errno.EINVAL, os.setxattr, f"{m.mnt}/f", f"user.cfs.{name}", value)
                expect(errno.EINVAL, os.setxattr, m.mnt, f"user.cfs.{name}", value)
        for name, value in (("pin", b"0"), ("pin", b"1"), ("flush", b"never"), ("flush", b"close"),
                            ("flush", b"0s"), ("flush", b"604800s")):
            os.setxattr(f"{m.mnt}/f", f"user.cfs.{name}", value)
        m.stop()
        for size in ("", "0", "-1", "1.5G", "G", "10X", "10MB", "1M", "99999999P"):
            done = cfs("mount", m.mnt, "--store", m.store, "--backend", m.backend, "--store-size", size)
            check(done.returncode != 0 and "store-size" in done.stderr, f"--store-size {size!r}: {done}")
        done = cfs("mount", m.mnt, "--store", f"{m.store}2", "--store-size", "1G")
        check(done.returncode != 0 and "--backend" in done.stderr, f"without a backend: {done}")
        m.start()


# ----------------------------------------------------------------------- full


@case(timeout=120)
def writers_wait_for_the_backend(t):
    """Four at once, without a pause: the store is full of what nobody else has, and no call fails."""
    with over_small_store(t, size_mib=192) as m:
        def work(number):
            for turn in range(25):
                write(m, f"w{number}-{turn}", 5 * MIB)

        children = [Child(work, number) for number in range(4)]
        for child in children:
            child.result(100 * FACTOR)
        sync(m)
        files = {f"w{number}-{turn}": 5 * MIB for number in range(4) for turn in range(25)}
        check_files(m.backend, files)
        check_files(m.mnt, files)


@case(timeout=90)
def a_full_store_refuses_when_the_backend_does(t):
    """Nothing that was written is lost; when the backend is back, all goes on."""
    need_root()
    folder = t.workspace.new_directory()
    store = f"{folder}/store-disk"
    harness.loop_file_system(f"{folder}/image", store, "ext4", 128)
    try:
        with over_small_backend(t, size_mib=512, store=store) as m:
            write(m, "before", MIB)
            sync(m)
            run_checked("mount", "-o", "remount,ro", m.disk)
            files = {}
            refused = None
            for number in range(60):
                name = f"f{number}"
                try:
                    write(m, name, 4 * MIB)
                except OSError as error:
                    refused = error.errno
                    break
                files[name] = 4 * MIB
            equal(refused, errno.ENOSPC, "error of the write that does not fit")
            check(len(files) > 5, f"only {len(files)} files fit")
            check_files(m.mnt, files)
            remove_cut(m, f"f{len(files)}")
            run_checked("mount", "-o", "remount,rw", m.disk)
            files.update({f"g{number}": 4 * MIB for number in range(40)})
            for number in range(40):
                write(m, f"g{number}", 4 * MIB)
            sync(m)
            check_files(m.backend, files)
            check_files(m.mnt, files)
    finally:
        harness.run("umount", "-l", store)
        shutil.rmtree(folder, ignore_errors=True)


@case(timeout=90)
def both_full(t):
    """ENOSPC, and all that was acknowledged is there; room on the backend is room here."""
    with over_small_backend(t, size_mib=96, options=["--store-size", "64M"]) as m:
        files, refused = {}, None
        for number in range(100):
            name = f"f{number}"
            try:
                write(m, name, 2 * MIB)
            except OSError as error:
                refused = error.errno
                break
            files[name] = 2 * MIB
        equal(refused, errno.ENOSPC, "error of the write that does not fit")
        check(len(files) * 2 > 96, f"only {len(files)} files fit")
        check_files(m.mnt, files)
        remove_cut(m, f"f{len(files)}")
        for name in list(files)[25:]:
            os.unlink(f"{m.mnt}/{name}")
            del files[name]
        files["again"] = 4 * MIB
        wait_until(lambda: attempt(m, "again", 4 * MIB), 30 * FACTOR, "room")
        sync(m)
        check_files(m.backend, files)
        check_files(m.mnt, files)


def remove_cut(mount, name):
    """What did not fit; it may not even have got its name."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{mount.mnt}/{name}")


def attempt(mount, name, size):
    try:
        write(mount, name, size)
    except OSError as error:
        equal(error.errno, errno.ENOSPC, "error")
        return False
    return True


@case(timeout=60)
def a_file_larger_than_the_store(t):
    """It does not fit, and that is all that happens."""
    with over_small_store(t, size_mib=128) as m:
        write(m, "small", 2 * MIB)
        with harness.opened(f"{m.mnt}/huge", os.O_WRONLY | os.O_CREAT) as fd:
            piece = os.urandom(MIB)
            for _ in range(50):  # Flushed each time that room is wanted, and yet not clean.
                os.write(fd, piece)
            expect(errno.ENOSPC, os.posix_fallocate, fd, 0, 400 * MIB)

            def endless():
                while True:
                    os.write(fd, piece)
            expect(errno.ENOSPC, endless)
        os.unlink(f"{m.mnt}/huge")
        files = {"small": 2 * MIB, "after": 4 * MIB}
        wait_until(lambda: attempt(m, "after", 4 * MIB), 15 * FACTOR, "room")
        sync(m)
        check_files(m.mnt, files)
        check_files(m.backend, files)


@case(timeout=60)
def stage_in_makes_room(t):
    """`cfs stagein` of more than fits is no error, and a file larger than the store is one."""
    with over_small_store(t, size_mib=128) as m:
        files = {f"d/f{number}": 4 * MIB for number in range(60)}
        os.mkdir(f"{m.backend}/d")
        for name, size in files.items():
            make(f"{m.backend}/{name}", content(name, size))
        with open(f"{m.backend}/huge", "wb") as f:
            for _ in range(200):
                f.write(os.urandom(MIB))
        run_checked(BINARY, "stagein", "--recursive", f"{m.mnt}/d", timeout=50 * FACTOR)
        check(status(m)["evicted_files"] > 10, f"empty pass: {status(m)}")
        expect(errno.EFBIG, read, f"{m.mnt}/huge")
        check_files(m.mnt, files)


# --------------------------------------------------------------- flush policy


def policy(mount, name, value):
    os.setxattr(f"{mount.mnt}/{name}", "user.cfs.flush", value)


def there(mount, name):
    return os.path.exists(f"{mount.backend}/{name}")


@case(timeout=60)
def what_is_never_flushed_stays_here(t):
    with over(t, options=["--store-size", "64M"], errors=FULL_ERRORS) as m:
        os.makedirs(f"{m.mnt}/scratch/below/kept")
        write(m, "moves-in", MIB)
        write(m, "moves-out", MIB)
        sync(m)
        policy(m, "scratch", b"never")
        policy(m, "scratch/below/kept", b"0s")
        write(m, "scratch/below/a", MIB)
        write(m, "scratch/b", MIB)
        write(m, "scratch/below/kept/c", MIB)
        os.rename(f"{m.mnt}/moves-in", f"{m.mnt}/scratch/moved")
        write(m, "f", MIB)
        policy(m, "f", b"never")
        write(m, "f", 2 * MIB)
        said = sync(m)
        check("never" in said, f"sync says {said!r}")
        equal(status(m)["never_flushed"], 3, "never_flushed")
        for name in ("scratch/below/a", "scratch/b"):
            check(not there(m, name), f"{name} is on the backend")
        check_files(m.backend, {"scratch/below/kept/c": MIB})
        equal(read(f"{m.backend}/scratch/moved"), content("moves-in", MIB), "what was moved")
        check(not there(m, "moves-in"), "its old name is still there")
        # It is only here: neither pressure nor a restart takes it.
        for number in range(30):
            write(m, f"p{number}", 4 * MIB)
        sync(m)
        m.stop()
        m.start()
        check_files(m.mnt, {"scratch/below/a": MIB, "scratch/b": MIB, "f": 2 * MIB})
        # Out of there it is as any other; and so is all when the policy goes.
        os.rename(f"{m.mnt}/scratch/b", f"{m.mnt}/out")
        sync(m)
        equal(read(f"{m.backend}/out"), content("scratch/b", MIB), "what was moved out")
        os.removexattr(f"{m.mnt}/scratch", "user.cfs.flush")
        os.removexattr(f"{m.mnt}/f", "user.cfs.flush")
        sync(m)
        check_files(m.backend, {"scratch/below/a": MIB, "f": 2 * MIB})
        equal(status(m)["never_flushed"], 0, "never_flushed")


@case(timeout=60)
def stop_leaves_what_is_never_flushed(t):
    with over(t) as m:
        os.mkdir(f"{m.mnt}/scratch")
        policy(m, "scratch", b"never")
        write(m, "scratch/a", MIB)
        write(m, "b", MIB)
        done = cfs("stop", m.mnt, timeout=30 * FACTOR)
        equal(done.returncode, 0, f"exit code of stop: {done}")
        check("never" in done.stdout, f"stop says {done.stdout!r}")
        check(m.ended(), "the daemon still runs after cfs stop")
        check(not there(m, "scratch/a") and there(m, "b"), "the backend has the wrong files")
        m.pid = None
        m.start()
        check_files(m.mnt, {"scratch/a": MIB, "b": MIB})


@case(timeout=60)
def when_files_are_flushed(t):
    """At once after the close, or when that many seconds have gone; `cfs sync` waits for neither."""
    with over(t) as m:
        for name in ("close", "late", "usual"):
            os.mkdir(f"{m.mnt}/{name}")
        policy(m, "close", b"close")
        policy(m, "late", b"8s")
        sync(m)
        begin = time.monotonic()
        for name in ("close", "late", "usual"):
            write(m, f"{name}/f", MIB)
        wait_until(lambda: there(m, "usual/f"), 10 * FACTOR, "usual/f")
        check(there(m, "close/f"), "close/f comes after what is usual")
        if time.monotonic() - begin < 5:
            check(not there(m, "late/f"), "late/f is there too early")
        wait_until(lambda: there(m, "late/f"), 15 * FACTOR, "late/f")
        check(time.monotonic() - begin > 7, "late/f was there too early")
        write(m, "late/g", MIB)
        sync(m)
        check_files(m.backend, {"late/g": MIB, "late/f": MIB, "close/f": MIB})


# ---------------------------------------------------------------------- crash


@case(timeout=120)
def killed_under_pressure(t):
    """Evictions, flushes and stage-ins are cut off anywhere."""
    rng = random.Random(7)
    with over_small_store(t, size_mib=160) as m:
        files = {}
        log = f"{m.store}.log"
        for turn in range(6):

            def work(turn=turn):
                with open(log, "ab", buffering=0) as f:
                    for number in range(10_000):
                        write(m, f"t{turn}-{number}", 3 * MIB)
                        f.write(f"t{turn}-{number}\n".encode())
                        read(f"{m.mnt}/t{turn}-{rng.randrange(number + 1)}")
            child = Child(work)
            time.sleep(rng.uniform(1, 3) * min(FACTOR, 2))
            m.kill()
            with contextlib.suppress(Exception):
                child.result(30 * FACTOR)
            harness.run("umount", "-l", m.mnt)
            harness.check_stores(m.store)
            m.start()
            # What was acknowledged; the last one of each turn may have been cut off.
            files = dict.fromkeys(Path(log).read_text().split(), 3 * MIB)
            check_files(m.mnt, {name: size for name, size in files.items() if name.startswith(f"t{turn}-")})
        check(len(files) * 3 > 2 * 160, f"empty pass: {len(files)} files")
        sync(m)
        check_files(m.backend, files)
        check_files(m.mnt, files)


if __name__ == "__main__":
    sys.exit(harness.main(__doc__, shared_mount=False))
