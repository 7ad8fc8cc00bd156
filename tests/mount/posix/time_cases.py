"""Which operation changes which times, and utimensat(2)."""

import os
import time
from errno import EACCES, EBADF, EFAULT, EINVAL, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, EPERM

from harness import (NOBODY, Skip, as_user, case, check, equal, expect, make, opened, outcome, read,
                     same_as_native)
from syscalls import (AT_SYMLINK_NOFOLLOW, BAD_ADDRESS, KEEP_SIZE, PUNCH_HOLE, UTIME_NOW,
                      UTIME_OMIT, ZERO_RANGE, call, fallocate, rename2, statx, utimensat)

CREATE = os.O_CREAT | os.O_RDWR
OMIT, NOW = (0, UTIME_OMIT), (0, UTIME_NOW)
OLD = 10**18  # Some day in 2001.


def with_descriptor(path, action, flags=os.O_RDWR):
    with opened(path, flags) as fd:
        return action(fd)


# Operation -> the times (m, c) that change: of the directory "d", and of the file "d/f".
CHANGES = {
    "open for reading": (lambda: read("d/f"), "", ""),
    "open for writing": (lambda: with_descriptor("d/f", lambda fd: None), "", ""),
    "open with O_CREAT of existing": (
        lambda: with_descriptor("d/f", lambda fd: None, CREATE), "", ""),
    "open with O_TRUNC": (
        lambda: with_descriptor("d/f", lambda fd: None, os.O_RDWR | os.O_TRUNC), "", "mc"),
    "write": (lambda: with_descriptor("d/f", lambda fd: os.write(fd, b"x")), "", "mc"),
    "write at the end": (
        lambda: with_descriptor("d/f", lambda fd: os.write(fd, b"x"), os.O_RDWR | os.O_APPEND),
        "", "mc"),
    "pwrite beyond the end": (
        lambda: with_descriptor("d/f", lambda fd: os.pwrite(fd, b"x", 9999)), "", "mc"),
    "truncate": (lambda: os.truncate("d/f", 2), "", "mc"),
    "truncate to larger size": (lambda: os.truncate("d/f", 200), "", "mc"),
    "ftruncate": (lambda: with_descriptor("d/f", lambda fd: os.ftruncate(fd, 2)), "", "mc"),
    "fallocate": (
        lambda: with_descriptor("d/f", lambda fd: fallocate(fd, 0, 0, 9999)), "", "mc"),
    "fallocate, punch": (
        lambda: with_descriptor("d/f", lambda fd: fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, 2)),
        "", "mc"),
    "fallocate, zero": (
        lambda: with_descriptor("d/f", lambda fd: fallocate(fd, ZERO_RANGE, 0, 2)), "", "mc"),
    "chmod": (lambda: os.chmod("d/f", 0o600), "", "c"),
    "chown": (lambda: os.chown("d/f", os.getuid(), os.getgid()), "", "c"),
    "setxattr": (lambda: os.setxattr("d/f", "user.a", b"1"), "", "c"),
    "removexattr": (lambda: os.removexattr("d/f", "user.old"), "", "c"),
    "getxattr": (lambda: os.getxattr("d/f", "user.old"), "", ""),
    "link": (lambda: os.link("d/f", "d/new"), "mc", "c"),
    "link elsewhere": (lambda: os.link("d/f", "new"), "", "c"),
    "unlink one of two": (lambda: os.unlink("d/f2"), "mc", "c"),
    "unlink of another": (lambda: os.unlink("d/other"), "mc", ""),
    "create": (lambda: make("d/new"), "mc", ""),
    "mkdir": (lambda: os.mkdir("d/new"), "mc", ""),
    "rmdir": (lambda: os.rmdir("d/empty"), "mc", ""),
    "symlink": (lambda: os.symlink("x", "d/new"), "mc", ""),
    "mkfifo": (lambda: os.mkfifo("d/new"), "mc", ""),
    "rename": (lambda: os.rename("d/f", "d/f3") or os.rename("d/f3", "d/f"), "mc", "c"),
    "rename over": (lambda: os.rename("d/other", "d/f2"), "mc", "c"),
    "exchange": (lambda: rename2("d/other", "d/f2", 2), "mc", "c"),
    "readdir": (lambda: os.listdir("d"), "", ""),
    "stat": (lambda: os.stat("d/f"), "", ""),
    "access": (lambda: os.access("d/f", os.R_OK), "", ""),
    "fsync": (lambda: with_descriptor("d/f", os.fsync), "", ""),
    "chmod of the directory": (lambda: os.chmod("d", 0o700), "c", ""),
    "setxattr of the directory": (lambda: os.setxattr("d", "user.a", b"1"), "c", ""),
    "failed create": (lambda: outcome(os.open, "d/f", CREATE | os.O_EXCL), "", ""),
    "failed unlink": (lambda: outcome(os.unlink, "d/missing"), "", ""),
    "failed rmdir": (lambda: outcome(os.rmdir, "d/full"), "", ""),
    "lookup of a missing name": (lambda: outcome(os.stat, "d/missing"), "", ""),
}


def make_one_case(name, action, directory_wanted, file_wanted):
    def run(t):
        os.mkdir("d")
        make("d/f", b"0123456789")
        os.setxattr("d/f", "user.old", b"1")
        os.link("d/f", "d/f2")
        make("d/other")
        os.makedirs("d/full/x")
        os.mkdir("d/empty")
        for path in ("d/f", "d"):
            os.utime(path, ns=(OLD, OLD))
        before = {path: os.stat(path) for path in ("d", "d/f")}
        time.sleep(0.02)
        if outcome(action) == "EOPNOTSUPP":
            raise Skip("not on this file system")
        for path, wanted in (("d", directory_wanted), ("d/f", file_wanted)):
            old, new = before[path], os.stat(path)
            changed = ("m" if new.st_mtime_ns != old.st_mtime_ns else "") + (
                "c" if new.st_ctime_ns != old.st_ctime_ns else "")
            equal(changed, wanted, f"changed times of {path}")
            for letter in wanted:
                check(abs(getattr(new, f"st_{letter}time") - time.time()) < 60,
                      f"{letter}time of {path} is not now")

    run.__name__ = "of_" + "".join(c if c.isalpha() else "_" for c in name).replace("__", "_")
    case(run)


for operation, (call_it, of_directory, of_file) in CHANGES.items():
    make_one_case(operation, call_it, of_directory, of_file)


@case
def new_objects_have_the_time_of_now(t):
    before = time.time() - 0.1
    make("f")
    os.mkdir("d")
    os.symlink("x", "s")
    os.mkfifo("p")
    for name in "fdsp":
        found = os.lstat(name)
        for value in (found.st_atime, found.st_mtime, found.st_ctime):
            check(before <= value <= time.time() + 0.1, f"time of {name}")


@case
def mtime_of_later_writes_never_goes_back(t):
    make("f")
    last = 0
    with opened("f") as fd:
        for _ in range(50):
            os.write(fd, b"x")
            for found in (os.fstat(fd).st_mtime_ns, os.stat("f").st_mtime_ns):
                check(found >= last, "mtime went back")
                last = found
    check(os.stat("f").st_mtime_ns >= last, "mtime went back at close")


@case
def writes_are_seen_in_mtime_while_open_and_after(t):
    with opened("f", CREATE) as fd:
        first = os.stat("f").st_mtime_ns
        time.sleep(0.02)
        os.write(fd, b"x")
        second = os.stat("f").st_mtime_ns
        check(second > first, "mtime while open")
    equal(os.stat("f").st_mtime_ns, second, "mtime after close")


@case
def utimens_while_open_for_writing(t):
    """Explicit times hold until the next write, through close."""
    with opened("f", CREATE) as fd:
        os.write(fd, b"x")
        os.utime("f", ns=(OLD, OLD + 1))
        equal(os.fstat(fd).st_mtime_ns, OLD + 1, "mtime while open")
    equal((os.stat("f").st_atime_ns, os.stat("f").st_mtime_ns), (OLD, OLD + 1), "after close")
    with opened("f") as fd:
        os.write(fd, b"y")
        check(os.stat("f").st_mtime_ns > OLD + 1, "mtime after a write")


@case
def atime_follows_relatime(t):
    def run(directory):
        path = make(f"{directory}/f", b"x")
        os.utime(path, ns=(OLD, OLD + 10**9))
        read(path)
        first = os.stat(path).st_atime_ns > OLD
        os.utime(path, ns=(time.time_ns() + 10**10, OLD))
        before = os.stat(path).st_atime_ns
        read(path)
        return first, os.stat(path).st_atime_ns == before

    same_as_native(t, run)


@case
def atime_alone_does_not_touch_mtime(t):
    make("f", b"x")
    os.utime("f", ns=(OLD, OLD + 10**9))
    ctime = os.stat("f").st_ctime_ns
    read("f")
    found = os.stat("f")
    equal((found.st_mtime_ns, found.st_ctime_ns), (OLD + 10**9, ctime))


# utimensat


@case
def set_explicit(t):
    make("f")
    os.mkdir("d")
    os.symlink("x", "s")
    os.mkfifo("p")
    for name in "fdp":
        utimensat(name, (1000, 123456789), (2000, 987654321))
        found = os.stat(name)
        equal((found.st_atime_ns, found.st_mtime_ns), (1000123456789, 2000987654321), name)
    utimensat("s", (1, 2), (3, 4), AT_SYMLINK_NOFOLLOW)
    equal((os.lstat("s").st_atime_ns, os.lstat("s").st_mtime_ns), (10**9 + 2, 3 * 10**9 + 4))


@case
def set_of_many_ages(t):
    def run(directory):
        path = make(f"{directory}/f")
        answers = []
        for seconds in (0, 1, 2**31 - 1, 2**31, 2**32, 4102444800, -1, -86400, -2**30):
            answer = outcome(utimensat, path, (seconds, 1), (seconds, 999999999))
            found = os.stat(path)
            answers.append((answer, found.st_atime_ns, found.st_mtime_ns))
        return answers

    same_as_native(t, run)


@case
def set_now(t):
    make("f")
    os.utime("f", ns=(OLD, OLD))
    utimensat("f", NOW, NOW)
    found = os.stat("f")
    check(abs(found.st_atime - time.time()) < 5 and abs(found.st_mtime - time.time()) < 5,
          "not now")
    os.utime("f", ns=(OLD, OLD))
    os.utime("f")
    check(abs(os.stat("f").st_mtime - time.time()) < 5, "not now")


@case
def set_one_omit_other(t):
    make("f")
    os.utime("f", ns=(OLD, OLD))
    utimensat("f", OMIT, (5, 6))
    equal((os.stat("f").st_atime_ns, os.stat("f").st_mtime_ns), (OLD, 5 * 10**9 + 6))
    utimensat("f", (7, 8), OMIT)
    equal((os.stat("f").st_atime_ns, os.stat("f").st_mtime_ns), (7 * 10**9 + 8, 5 * 10**9 + 6))
    utimensat("f", NOW, (1, 0))
    check(abs(os.stat("f").st_atime - time.time()) < 5, "atime is not now")
    equal(os.stat("f").st_mtime_ns, 10**9, "mtime")


@case
def omit_both_does_nothing(t):
    make("f")
    before = os.stat("f")
    time.sleep(0.02)
    utimensat("f", OMIT, OMIT)
    after = os.stat("f")
    equal((after.st_atime_ns, after.st_mtime_ns, after.st_ctime_ns),
          (before.st_atime_ns, before.st_mtime_ns, before.st_ctime_ns))


@case
def set_changes_ctime(t):
    make("f")
    before = os.stat("f").st_ctime_ns
    time.sleep(0.02)
    os.utime("f", ns=(OLD, OLD))
    check(os.stat("f").st_ctime_ns > before, "ctime is old")


@case
def set_by_descriptor(t):
    make("f")
    with opened("f", os.O_RDONLY) as fd:
        utimensat(None, (1, 2), (3, 4), directory_fd=fd)
        equal(os.fstat(fd).st_mtime_ns, 3 * 10**9 + 4, "mtime")
    os.mkdir("d")
    with opened("d", os.O_RDONLY) as fd:
        utimensat(None, (1, 2), (3, 4), directory_fd=fd)
        equal(os.stat("d").st_mtime_ns, 3 * 10**9 + 4, "mtime of the directory")


@case
def set_permissions(t):
    """Explicit times: the owner. Now: the owner or who may write."""
    make("f", b"", 0o644)
    make("writable", b"", 0o666)
    expect(EPERM, as_user, NOBODY, utimensat, "f", (1, 0), (1, 0))
    expect(EPERM, as_user, NOBODY, utimensat, "writable", (1, 0), (1, 0))
    expect(EACCES, as_user, NOBODY, utimensat, "f", NOW, NOW)
    expect(EACCES, as_user, NOBODY, os.utime, "f")
    as_user(NOBODY, utimensat, "writable", NOW, NOW)
    as_user(NOBODY, os.utime, "writable")
    expect(EPERM, as_user, NOBODY, utimensat, "writable", NOW, OMIT)
    expect(EPERM, as_user, NOBODY, utimensat, "writable", OMIT, NOW)
    expect(EPERM, as_user, NOBODY, utimensat, "f", OMIT, (1, 0))
    as_user(NOBODY, utimensat, "f", OMIT, OMIT)
    os.chown("f", NOBODY, NOBODY)
    os.chmod("f", 0o400)
    as_user(NOBODY, utimensat, "f", (1, 0), (1, 0))
    as_user(NOBODY, utimensat, "f", NOW, NOW)


@case
def set_errors(t):
    make("f")
    os.symlink("loop", "loop")
    os.mkdir("closed", 0o700)
    expect(EINVAL, utimensat, "f", (1, 10**9), (1, 0))
    expect(EINVAL, utimensat, "f", (1, 0), (1, -1))
    expect(EINVAL, utimensat, "f", (1, 0), (1, 0), 0x40000)
    expect(ENOENT, utimensat, "missing", NOW, NOW)
    expect(ENOENT, utimensat, "", NOW, NOW)
    expect(ENOTDIR, utimensat, "f/x", NOW, NOW)
    expect(ELOOP, utimensat, "loop", NOW, NOW)
    expect(ENAMETOOLONG, utimensat, "n" * 256, NOW, NOW)
    expect(EBADF, utimensat, None, NOW, NOW, 0, 999)
    expect(EFAULT, call, "utimensat", -100, "f", BAD_ADDRESS, 0)
    expect(EACCES, as_user, NOBODY, utimensat, "closed/f", NOW, NOW)


@case
def truncate_to_same_size(t):
    """ftruncate changes both times; truncate both or, as POSIX allows, none."""
    make("f", b"0123")

    def changed(action):
        os.utime("f", ns=(OLD, OLD))
        before = os.stat("f")
        time.sleep(0.02)
        action()
        after = os.stat("f")
        return (after.st_mtime_ns != before.st_mtime_ns, after.st_ctime_ns != before.st_ctime_ns)

    check(changed(lambda: os.truncate("f", 4)) in ((True, True), (False, False)), "one time only")
    with opened("f") as fd:
        equal(changed(lambda: os.ftruncate(fd, 4)), (True, True), "changed times")


@case
def birth_time_stays(t):
    before = time.time_ns() - 10**8
    make("f", b"x")
    os.mkdir("d")
    births = {}
    for name in "fd":
        found = statx(name)
        check(found.mask & 0x800, f"no birth time for {name}")
        check(before <= found.btime <= time.time_ns() + 10**8, f"birth time of {name}")
        births[name] = found.btime
    time.sleep(0.02)
    make("f", b"more")
    os.utime("f", ns=(OLD, OLD))
    os.chmod("f", 0o600)
    os.rename("f", "d/g")
    equal((statx("d/g").btime, statx("d").btime), (births["f"], births["d"]))
