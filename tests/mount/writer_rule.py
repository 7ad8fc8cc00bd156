#!/usr/bin/env python3
"""The "has a writer" rule: who may still write a file unseen, and what is cached of it.

Goal: the daemon knows of every writer, also of mappings that outlive their descriptor
and of ghosts (processes that go on writing after kill -9 of the daemon), and the kernel
asks for attributes of such files only. Method: `cfs stat` tells what the daemon knows,
the request counters of `cfs status` what the kernel asked.
"""

import contextlib
import mmap
import os
import sys
import time
from errno import ENOENT, ENOTCONN
from pathlib import Path

import harness
from harness import (MODES, Child, Skip, case, check, equal, expect, make, mounts, opened, outcome,
                     read, wait_until)

sys.path.insert(0, str(Path(__file__).resolve().parent / "posix"))
import syscalls  # noqa: E402  (It is where the path above says.)

PAGE = mmap.PAGESIZE
MS_SYNC = 4
REPEATS = 200
SLACK = 3  # Requests that a cached answer may still cost, in all: the first one has to ask.


def need_passthrough(t):
    if "--passthrough=off" in MODES[t.mode]:
        raise Skip("without passthrough nobody writes unseen")


class Writer:
    """A process that holds a file open for writing, or mapped only, and writes on order."""

    def __init__(self, path, mapped=False):
        self._orders, self._order = os.pipe()
        self._answers, self._answer = os.pipe()
        self._child = Child(self._serve, path, mapped)
        self._await()

    def write(self, data):
        """Overwrites the beginning of the file."""
        os.write(self._order, data)
        self._await()

    def end(self):
        self._child.kill()
        self._child.ended_by()

    def _await(self):
        answer = os.read(self._answers, 100)
        check(answer == b"ok", f"writer: {answer.decode()}")

    def _serve(self, path, mapped):
        fd = os.open(path, os.O_RDWR)
        if mapped:
            address = syscalls.map_pages(fd, PAGE, mmap.PROT_READ | mmap.PROT_WRITE,
                                         mmap.MAP_SHARED)
            os.close(fd)
        os.write(self._answer, b"ok")
        while data := os.read(self._orders, PAGE):
            answer = b"ok"
            if mapped:
                syscalls.poke(address, data)
            else:
                try:
                    os.pwrite(fd, data, 0)
                except OSError as error:
                    answer = str(error).encode()
            os.write(self._answer, answer)


@contextlib.contextmanager
def mapping(path, flags=os.O_RDWR):
    """Address of a shared mapping whose descriptor is closed."""
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if flags == os.O_RDWR else 0)
    with opened(path, flags) as fd:
        address = syscalls.map_pages(fd, PAGE, protection, mmap.MAP_SHARED)
    try:
        yield address
    finally:
        syscalls.unmap(address, PAGE)


def has_writer(mount, path):
    return mount.stat(path)["has_writer"]


def wait_no_writer(mount, path):
    """RELEASE and the end of a mapping reach the daemon a little later than their cause."""
    wait_until(lambda: not has_writer(mount, path), 10 * harness.TIME_FACTOR,
               "has_writer becomes false")


def cost(mount, kind, action, repeats=REPEATS):
    """How many requests of a kind it takes to do something many times."""
    before = mount.status()["fuse"]["requests"][kind]
    for _ in range(repeats):
        action()
    return mount.status()["fuse"]["requests"][kind] - before


# Who is a writer


@case
def open_for_write_is_a_writer(t):
    with t.new_mount() as mount:
        path = make(f"{mount.mnt}/f", bytes(PAGE))
        wait_no_writer(mount, path)
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND):
            with opened(path, flags):
                equal(has_writer(mount, path), True)
            wait_no_writer(mount, path)


@case
def open_for_read_is_none(t):
    with t.new_mount() as mount:
        path = make(f"{mount.mnt}/f", bytes(PAGE))
        wait_no_writer(mount, path)
        with opened(path, os.O_RDONLY), mapping(path, os.O_RDONLY):
            equal(has_writer(mount, path), False)


@case
def one_of_several_writers_is_enough(t):
    with t.new_mount() as mount:
        path = make(f"{mount.mnt}/f", bytes(PAGE))
        first = os.open(path, os.O_RDWR)
        with opened(path, os.O_RDWR), opened(path, os.O_RDONLY):
            pass
        equal(has_writer(mount, path), True)
        os.close(first)
        wait_no_writer(mount, path)


@case
def mapping_after_close_is_a_writer(t):
    with t.new_mount() as mount:
        path = make(f"{mount.mnt}/f", bytes(PAGE))
        wait_no_writer(mount, path)
        with mapping(path) as address:
            for number in range(5):
                time.sleep(0.05)  # Time for RELEASE to come, which must not end it.
                equal(has_writer(mount, path), True)
                syscalls.poke(address, b"%d" % number)
                equal(read(path)[:1], b"%d" % number)
        wait_no_writer(mount, path)


@case
def mapping_of_another_process_is_a_writer(t):
    with t.new_mount() as mount:
        path = make(f"{mount.mnt}/f", bytes(PAGE))
        writer = Writer(path, mapped=True)
        equal(has_writer(mount, path), True)
        writer.end()
        wait_no_writer(mount, path)


@case
def mapped_file_is_read_coherently_by_fresh_opens(t):
    """An open while only a mapping writes has to see each store at once."""
    with t.new_mount() as mount:
        path = make(f"{mount.mnt}/f", bytes(2 * PAGE))
        with mapping(path) as address:
            for number in range(50):
                data = b"%03d" % number
                syscalls.poke(address + 100, data)
                with opened(path, os.O_RDONLY) as fd:
                    equal(os.pread(fd, 3, 100), data)
                with mapping(path, os.O_RDONLY) as view:
                    equal(syscalls.peek(view + 100, 3), data)


# Times


@case
def mtime_of_a_store_is_seen_after_msync(t):
    with t.new_mount() as mount:
        path = make(f"{mount.mnt}/f", bytes(PAGE))
        with mapping(path) as address:
            last = os.stat(path).st_mtime_ns
            for _ in range(5):
                time.sleep(0.02)
                syscalls.poke(address, b"x")
                syscalls.msync(address, PAGE, MS_SYNC)
                now = os.stat(path).st_mtime_ns
                check(now > last, "mtime is old")
                last = now
        wait_no_writer(mount, path)
        equal(os.stat(path).st_mtime_ns, last, "mtime after the mapping has gone")


@case
def mtime_of_a_store_is_seen_by_the_next_stat(t):
    """As on the store's own file system: the fault of the first store sets it."""
    need_passthrough(t)
    with t.new_mount() as mount:
        path = make(f"{mount.mnt}/f", bytes(PAGE))
        for _ in range(5):
            with mapping(path) as address:
                syscalls.msync(address, PAGE, MS_SYNC)
                last = os.stat(path).st_mtime_ns
                time.sleep(0.02)
                syscalls.poke(address, b"x")
                check(os.stat(path).st_mtime_ns > last, "mtime is old")


@case
def last_stores_before_unmapping_are_seen(t):
    """What was cached when the mapping went has to be what it left."""
    with t.new_mount() as mount:
        path = make(f"{mount.mnt}/f", bytes(PAGE))
        os.utime(path, ns=(10**9, 10**9))
        with mapping(path) as address:
            os.stat(path)
            syscalls.poke(address, b"x")
            syscalls.msync(address, PAGE, MS_SYNC)
        wait_no_writer(mount, path)
        check(os.stat(path).st_mtime_ns > 10**9, "mtime is old")


# What the kernel has to ask


@case
def attributes_of_a_closed_file_are_cached(t):
    with t.new_mount() as mount:
        path = make(f"{mount.mnt}/f", bytes(PAGE))
        wait_no_writer(mount, path)
        asked = cost(mount, "getattr", lambda: os.stat(path))
        check(asked <= SLACK, f"{REPEATS} stats cost {asked} GETATTR")
        asked = cost(mount, "lookup", lambda: os.stat(path))
        check(asked <= SLACK, f"{REPEATS} stats cost {asked} LOOKUP")


@case
def attributes_of_a_written_file_are_asked_for(t):
    with t.new_mount() as mount:
        path = make(f"{mount.mnt}/f", bytes(PAGE))
        with opened(path, os.O_RDWR):
            asked = cost(mount, "getattr", lambda: os.stat(path))
            check(asked >= REPEATS * 0.9, f"{REPEATS} stats cost {asked} GETATTR only")
        with mapping(path):
            asked = cost(mount, "getattr", lambda: os.stat(path))
            check(asked >= REPEATS * 0.9, f"{REPEATS} stats cost {asked} GETATTR only")


@case
def attributes_of_a_read_file_are_cached(t):
    with t.new_mount() as mount:
        path = make(f"{mount.mnt}/f", bytes(PAGE))
        wait_no_writer(mount, path)
        with opened(path, os.O_RDONLY) as fd:
            asked = cost(mount, "getattr", lambda: (os.stat(path), os.fstat(fd)))
        check(asked <= SLACK, f"{REPEATS} stats cost {asked} GETATTR")


@case
def attributes_of_directories_are_cached(t):
    with t.new_mount() as mount:
        os.makedirs(f"{mount.mnt}/a/b/c")
        for kind in ("getattr", "lookup"):
            asked = cost(mount, kind, lambda: os.stat(f"{mount.mnt}/a/b/c"))
            check(asked <= SLACK + 3, f"{REPEATS} stats cost {asked} {kind}")


@case
def missing_names_are_cached(t):
    with t.new_mount() as mount:
        asked = cost(mount, "lookup", lambda: expect(ENOENT, os.stat, f"{mount.mnt}/missing"))
        check(asked <= SLACK, f"{REPEATS} stats of a missing name cost {asked} LOOKUP")
        make(f"{mount.mnt}/missing", b"x")
        equal(read(f"{mount.mnt}/missing"), b"x")
        os.unlink(f"{mount.mnt}/missing")
        asked = cost(mount, "lookup", lambda: expect(ENOENT, os.stat, f"{mount.mnt}/missing"))
        check(asked <= SLACK, f"{REPEATS} stats of a removed name cost {asked} LOOKUP")


@case
def changes_are_seen_although_attributes_are_cached(t):
    with t.new_mount() as mount:
        path = make(f"{mount.mnt}/f")
        for number in range(1, 30):
            os.stat(path)
            with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
                os.write(fd, b"x")
            equal(os.stat(path).st_size, number, "size")
            os.chmod(path, 0o600 + number % 8)
            equal(os.stat(path).st_mode & 0o7777, 0o600 + number % 8, "mode")


# After kill -9


@case
def dead_mount_point_is_recovered(t):
    with t.new_mount() as mount:
        make(f"{mount.mnt}/f", b"kept")
        os.makedirs(f"{mount.mnt}/d/e")
        mount.kill()
        # The connection is torn down a little after the process has ended.
        wait_until(lambda: outcome(os.mkdir, f"{mount.mnt}/x") == "ENOTCONN", 10,
                   "ENOTCONN from the dead mount")
        mount.start()
        equal(read(f"{mount.mnt}/f"), b"kept")
        equal(sorted(os.listdir(mount.mnt)), ["d", "f"])
        equal(sum(m.path == mount.mnt for m in mounts()), 1, "mounts at the mount point")
        make(f"{mount.mnt}/d/e/g", b"new")


@case
def dead_mount_point_in_use_is_recovered(t):
    """With a working directory and descriptors of the dead mount still around."""
    with t.new_mount() as mount:
        os.mkdir(f"{mount.mnt}/d")
        make(f"{mount.mnt}/d/f", b"kept")
        here = os.getcwd()
        os.chdir(f"{mount.mnt}/d")
        fd = os.open("f", os.O_RDONLY)
        mount.kill()
        mount.start()
        equal(read(f"{mount.mnt}/d/f"), b"kept")
        os.chdir(here)
        with contextlib.suppress(OSError):
            os.close(fd)


@case
def dead_mount_point_is_recovered_again_and_again(t):
    with t.new_mount() as mount:
        for number in range(5):
            make(f"{mount.mnt}/f{number}", b"%d" % number)
            mount.kill()
            mount.start()
            equal(len(os.listdir(mount.mnt)), number + 1, "files")


@case
def dead_mount_point_is_unmounted(t):
    with t.new_mount() as mount:
        make(f"{mount.mnt}/f", b"kept")
        mount.kill()
        done = harness.cfs("umount", mount.mnt)
        equal(done.returncode, 0, f"exit status ({done.stderr.strip()})")
        check(not mount.mounted(), "still mounted")
        mount.start()
        equal(read(f"{mount.mnt}/f"), b"kept")


def ghost(t, mapped):
    """A writer that outlives the daemon goes on in place, seen by everybody."""
    need_passthrough(t)
    with t.new_mount() as mount:
        path = make(f"{mount.mnt}/f", b"-" * PAGE)
        make(f"{mount.mnt}/idle", b"idle")
        writer = Writer(path, mapped)
        writer.write(b"before")
        mount.kill()
        writer.write(b"ghost1")
        mount.start()
        equal(read(path)[:6], b"ghost1", "what it wrote before the remount")
        equal(has_writer(mount, path), True)
        wait_no_writer(mount, f"{mount.mnt}/idle")
        for number in range(2, 10):
            writer.write(b"ghost%d" % number)
            equal(read(path)[:6], b"ghost%d" % number, "what it wrote after the remount")
        with opened(path, os.O_RDWR) as fd:
            os.pwrite(fd, b"other", 10)
            writer.write(b"ghostX")
            equal(os.pread(fd, 16, 0), b"ghostX----other-")
        time.sleep(0.1)
        equal(has_writer(mount, path), True)
        writer.end()
        wait_no_writer(mount, path)
        equal(read(path)[:16], b"ghostX----other-")
        asked = cost(mount, "getattr", lambda: os.stat(path))
        check(asked <= SLACK, f"{REPEATS} stats cost {asked} GETATTR after its end")


@case
def ghost_with_a_descriptor(t):
    ghost(t, mapped=False)


@case
def ghost_with_a_mapping(t):
    ghost(t, mapped=True)


@case
def ghost_that_extends(t):
    """Size and mtime of the remounted file follow what the ghost does."""
    need_passthrough(t)
    with t.new_mount() as mount:
        path = make(f"{mount.mnt}/f")
        writer = Writer(path)
        mount.kill()
        mount.start()
        last = os.stat(path).st_mtime_ns
        for size in range(100, 1000, 100):
            time.sleep(0.02)
            writer.write(b"x" * size)
            found = os.stat(path)
            equal(found.st_size, size, "size")
            check(found.st_mtime_ns > last, "mtime is old")
            last = found.st_mtime_ns
        writer.end()
        wait_no_writer(mount, path)
        equal((os.stat(path).st_size, os.stat(path).st_mtime_ns), (900, last))


@case
def ghost_over_two_kills(t):
    need_passthrough(t)
    with t.new_mount() as mount:
        path = make(f"{mount.mnt}/f", b"-" * PAGE)
        writer = Writer(path)
        for number in range(3):
            mount.kill()
            writer.write(b"ghost%d" % number)
            mount.start()
            equal((read(path)[:6], has_writer(mount, path)), (b"ghost%d" % number, True))
        writer.end()
        wait_no_writer(mount, path)


@case
def writers_without_passthrough_end_with_the_daemon(t):
    if "--passthrough=off" not in MODES[t.mode]:
        raise Skip("with passthrough they go on")
    with t.new_mount() as mount:
        path = make(f"{mount.mnt}/f", b"kept")
        with contextlib.suppress(OSError), opened(path) as fd:
            mount.kill()
            expect(ENOTCONN, os.pwrite, fd, b"lost", 0)
        mount.start()
        equal((read(path), has_writer(mount, path)), (b"kept", False))


if __name__ == "__main__":
    sys.exit(harness.main(__doc__, shared_mount=False))
