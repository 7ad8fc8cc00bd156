#!/usr/bin/env python3
"""Many files and many descriptors: what they cost the daemon, and that all stays right.

    limits.py [--long] [--ten-million] [--mode MODE] [--store KIND] [--filter REGEX]

  --long         a directory with 1,000,000 files instead of 20,000
  --ten-million  also 10,000,000 files in all, which takes most of an hour

Lines that begin with # are measurements.
"""

import argparse
import contextlib
import os
import random
import re
import resource
import sys
import time
from errno import ENOTEMPTY
from pathlib import Path

import harness
from harness import check, equal

DESCRIPTORS_MAX = 20_000  # What a process may have where the hard limit is low.
DAEMON_DESCRIPTORS_MAX = 2_000
RSS_MAX_MIB = 700
START_SECONDS_MAX = 5


def parse_options():
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--ten-million", action="store_true")
    return parser.parse_known_args()


OPTIONS, OTHERS = parse_options()
FILES = 1_000_000 if OPTIONS.long else 20_000
# A millisecond a call is slow, but a busy disk can be.
TIMEOUT = 60 + FILES / 1000


class Daemon:
    """What the daemon of a mount uses, and how long things take with it."""

    def __init__(self, mount):
        self._mount = mount

    def memory_mib(self):
        status = Path(f"/proc/{self._mount.pid}/status").read_text()
        resident, peak = (int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) // 1024
                          for name in ("VmRSS", "VmHWM"))
        return resident, peak

    def check_memory(self):
        """Sanitizers keep shadows and freed memory, which says nothing about cfs."""
        resident, _ = self.memory_mib()
        check(harness.sanitizers() or resident < RSS_MAX_MIB,
              f"the daemon uses {resident} MiB, {RSS_MAX_MIB} are allowed")

    def bytes_read(self):
        text = Path(f"/proc/{self._mount.pid}/io").read_text()
        return int(re.search(r"^rchar: (\d+)$", text, re.MULTILINE)[1])

    def descriptors(self):
        return len(os.listdir(f"/proc/{self._mount.pid}/fd"))

    @contextlib.contextmanager
    def measured(self, what, count):
        started = time.monotonic()
        yield
        seconds = time.monotonic() - started
        resident, peak = self.memory_mib()
        print(f"# {what}: {seconds:.2f} s, {count / seconds:.0f}/s; "
              f"daemon {resident} MiB (peak {peak}), {self.descriptors()} descriptors", flush=True)

    def check_restart(self, stop):
        """Ends the daemon by calling `stop`; it must be back soon, whatever it has to keep."""
        stop()
        started = time.monotonic()
        self._mount.start()
        seconds = time.monotonic() - started
        print(f"# start after {stop.__name__}: {seconds:.2f} s", flush=True)
        check(seconds < START_SECONDS_MAX * harness.TIME_FACTOR, f"starting took {seconds:.1f} s")


def create(path):
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640))


def make_files(directory, names):
    os.mkdir(directory)
    for name in names:
        create(f"{directory}/{name}")


def check_listing(directory, count):
    """All names are there, once, each a file with an inode of its own."""
    seen = bytearray(count)
    inodes = set()
    with os.scandir(directory) as entries:
        for entry in entries:
            number = int(entry.name.removeprefix("file"))
            check(not seen[number], f"{entry.name} is listed twice")
            seen[number] = 1
            check(entry.is_file(follow_symlinks=False), f"{entry.name} is listed as no file")
            inodes.add(entry.inode())
    equal(sum(seen), count, "number of names listed")
    equal(len(inodes), count, "number of inodes listed")


@harness.case(timeout=5 * TIMEOUT)
def directory_of_many_files(t):
    with t.new_mount() as mount:
        daemon = Daemon(mount)
        directory = f"{mount.mnt}/many"
        os.mkdir(directory)
        with daemon.measured("create", FILES):
            for i in range(FILES):
                create(f"{directory}/file{i}")
        with daemon.measured("list", FILES):
            check_listing(directory, FILES)
        order = list(range(FILES))
        random.Random(1).shuffle(order)
        with daemon.measured("stat", FILES):
            for i in order:
                st = os.lstat(f"{directory}/file{i}")
                check(st.st_mode == 0o100640 and st.st_nlink == 1 and st.st_size == 0,
                      f"file{i} has attributes {st}")
        equal(os.stat(directory).st_nlink, 2, "nlink of the directory")
        daemon.check_memory()
        daemon.check_restart(mount.stop)
        daemon.check_restart(mount.kill)
        with daemon.measured("list after restart", FILES):
            check_listing(directory, FILES)
        before = daemon.bytes_read()
        with daemon.measured("stat after restart", FILES):
            for i in order:
                os.lstat(f"{directory}/file{i}")
        each = (daemon.bytes_read() - before) // FILES
        # Index and filters of 1 MiB that found no place in the cache were once read for each.
        check(each < 32 << 10, f"the daemon reads {each} bytes for each stat")
        daemon.check_memory()
        harness.expect(ENOTEMPTY, os.rmdir, directory)
        with daemon.measured("unlink", FILES):
            for i in order:
                os.unlink(f"{directory}/file{i}")
        equal(os.listdir(directory), [], "the directory after unlinking all")
        os.rmdir(directory)
        daemon.check_memory()


@harness.case(timeout=TIMEOUT)
def directory_of_many_directories(t):
    """More than the 64,998 that ext4 can count, when there is time for it."""
    count = 70_000 if OPTIONS.long else 2_000
    with t.new_mount() as mount:
        for i in range(count):
            os.mkdir(f"{mount.mnt}/{i}")
        equal(os.stat(mount.mnt).st_nlink, 2 + count, "nlink")
        mount.stop()
        mount.start()
        equal(len(set(os.listdir(mount.mnt))), count, "directories after remount")
        for i in range(count):
            os.rmdir(f"{mount.mnt}/{i}")
        equal(os.stat(mount.mnt).st_nlink, 2, "nlink after removing them")


@harness.case(timeout=TIMEOUT)
def listing_while_names_change(t):
    """A name that is there all the time is listed exactly once, whatever others do."""
    count = 5_000
    with t.new_mount() as mount:
        directory = f"{mount.mnt}/d"
        stay = {f"stay{i}" for i in range(count)}
        make_files(directory, stay)

        def churn():
            for i in range(1 << 30):
                create(f"{directory}/come{i}")
                if i >= 500:
                    os.rename(f"{directory}/come{i - 250}", f"{directory}/go{i}")
                    os.unlink(f"{directory}/go{i - 250}" if i >= 750
                              else f"{directory}/come{i - 500}")

        child = harness.Child(churn)
        listings = 0
        seen = set()
        deadline = time.monotonic() + (30 if OPTIONS.long else 3) * harness.TIME_FACTOR
        while time.monotonic() < deadline:
            names = os.listdir(directory)
            there = [name for name in names if name.startswith("stay")]
            equal(len(there), count, "number of names listed")
            check(set(there) == stay, "another name is listed in place of one that stays")
            seen.update(names)
            listings += 1
        check(child.running(), "the process that changes names has ended")
        child.kill()
        changed = len(seen) - count
        print(f"# {listings} listings while {changed} other names came and went", flush=True)
        check(changed > 100, "hardly anything changed meanwhile")


@harness.case(timeout=TIMEOUT)
def listing_while_others_list(t):
    """Who lists a part may not leave it to others as it was before a name was added."""
    count = 5_000  # Five blocks of what a program reads of a directory at once.
    with t.new_mount() as mount:
        directory = f"{mount.mnt}/d"
        names = {f"file{i}" for i in range(count)}
        make_files(directory, names)
        for i in range(40):
            with os.scandir(directory) as part, os.scandir(directory) as late:
                for _ in range(count * 4 // 5):
                    next(part)
                names.add(f"new{i}")
                create(f"{directory}/new{i}")
                seen = {next(late).name}
                check(set(os.listdir(directory)) == names, "a listing at once is incomplete")
                seen.update(entry.name for entry in late)
            check(seen == names, f"a listing misses {sorted(names - seen)}")


@harness.case(timeout=120)
def descriptors_of_clients_cost_the_daemon_none(t):
    """15,000 files open at once; the daemon never needs more than 2,000 descriptors."""
    count = 15_000
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS_MAX, DESCRIPTORS_MAX))
    except (OSError, ValueError):
        raise harness.Skip(f"may not have {DESCRIPTORS_MAX} descriptors") from None
    with t.new_mount() as mount:
        daemon = Daemon(mount)
        limits = Path(f"/proc/{mount.pid}/limits").read_text()
        equal(re.search(r"Max open files\s+(\d+)\s+(\d+)", limits).groups(),
              (str(DESCRIPTORS_MAX),) * 2, "the daemon's limit of descriptors")
        most = 0

        def each(what, function):
            nonlocal most
            with daemon.measured(what, count):
                for i in range(count):
                    function(i)
                    if i % 250 == 0:
                        most = max(most, daemon.descriptors())
            most = max(most, daemon.descriptors())

        fds = {}

        def path(i):
            return f"{mount.mnt}/file{i}"

        def open_(i):
            fds[i] = os.open(path(i), os.O_CREAT | os.O_EXCL | os.O_RDWR)

        def write(i):
            equal(os.pwrite(fds[i], b"%d" % i, i % 8192), len(str(i)), "bytes written")

        def read(i):
            equal(os.pread(fds[i], 100, i % 8192), b"%d" % i, f"content of file{i}")

        each("open", open_)
        each("write", write)
        each("read", read)
        each("unlink while open", lambda i: os.unlink(path(i)))
        each("read of unlinked", read)
        each("close", lambda i: os.close(fds[i]))
        check(most < DAEMON_DESCRIPTORS_MAX,
              f"the daemon had {most} descriptors open, {DAEMON_DESCRIPTORS_MAX} are allowed")


def ten_million_files(t):
    directories, files = 100, 100_000
    with t.new_mount() as mount:
        daemon = Daemon(mount)

        def fill(numbers):
            for number in numbers:
                os.mkdir(f"{mount.mnt}/{number}")
                for i in range(files):
                    create(f"{mount.mnt}/{number}/file{i}")

        with daemon.measured("create", directories * files):
            children = [harness.Child(fill, range(i, directories, 2)) for i in range(2)]
            for child in children:
                child.result(timeout=7200)
        print(f"# df: {os.statvfs(mount.store).f_favail} inodes left on the store", flush=True)
        daemon.check_memory()
        daemon.check_restart(mount.stop)
        daemon.check_restart(mount.kill)
        with daemon.measured("list", directories * files):
            for number in range(directories):
                check_listing(f"{mount.mnt}/{number}", files)
        daemon.check_memory()


if OPTIONS.ten_million:
    harness.case(timeout=14_400)(ten_million_files)

if __name__ == "__main__":
    sys.exit(harness.main(__doc__, shared_mount=False, argv=OTHERS))
