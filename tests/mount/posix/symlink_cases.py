"""symlink, readlink and how links are followed."""

import ctypes
import os
import stat
from errno import EACCES, EEXIST, EFAULT, EINVAL, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR

from harness import NOBODY, as_user, case, check, equal, expect, make, opened, outcome, read
from syscalls import BAD_ADDRESS, call


@case
def holds_its_target(t):
    os.symlink("some/target", "s")
    found = os.lstat("s")
    check(stat.S_ISLNK(found.st_mode), "no symlink")
    equal((os.readlink("s"), found.st_size, found.st_nlink), ("some/target", 11, 1))


@case
def mode_is_777(t):
    os.umask(0o077)
    os.symlink("x", "s")
    equal(stat.S_IMODE(os.lstat("s").st_mode), 0o777, "mode")


@case
def belongs_to_caller(t):
    os.mkdir("d")
    os.chmod("d", 0o777)
    as_user(NOBODY, os.symlink, "x", "d/s")
    equal(os.lstat("d/s").st_uid, NOBODY, "owner")


@case
def targets_of_all_lengths(t):
    for length in (1, 59, 60, 61, 255, 256, 1000, 4094, 4095):
        if outcome(os.symlink, "x" * length, f"s{length}") == "ENAMETOOLONG" and not t.on_cfs:
            check(length >= 4095, "too short for the reference's limit")
            continue
        equal(os.readlink(f"s{length}"), "x" * length)
        equal(os.lstat(f"s{length}").st_size, length, "size")


@case
def target_too_long(t):
    expect(ENAMETOOLONG, os.symlink, "x" * 4096, "s")
    expect(ENOENT, os.lstat, "s")


@case
def target_of_odd_bytes(t):
    target = bytes(range(1, 256)).replace(b"/", b"")
    os.symlink(target, b"s")
    equal(os.readlink(b"s"), target)


@case
def readlink_into_short_buffer(t):
    os.symlink("0123456789", "s")
    buffer = ctypes.create_string_buffer(16)
    equal(call("readlink", "s", buffer, 4), 4)
    equal(buffer.raw[:5], b"0123\0")


@case
def readlink_errors(t):
    make("f")
    os.mkdir("d")
    os.mkfifo("p")
    for name in ("f", "d", "p"):
        expect(EINVAL, os.readlink, name)
    expect(ENOENT, os.readlink, "missing")
    expect(ENOTDIR, os.readlink, "f/x")
    expect(EINVAL, call, "readlink", "f", BAD_ADDRESS, 0)
    os.symlink("x", "s")
    expect(EFAULT, call, "readlink", "s", BAD_ADDRESS, 10)
    os.mkdir("closed", 0o600)
    expect(EACCES, as_user, NOBODY, os.readlink, "closed/s")


@case
def symlink_errors(t):
    make("f")
    os.mkdir("d")
    os.symlink("nowhere", "dangling")
    os.symlink("loop", "loop")
    for name in ("f", "d", "dangling", "."):
        expect(EEXIST, os.symlink, "x", name)
    expect(ENOENT, os.symlink, "", "s")
    expect(ENOENT, os.symlink, "x", "missing/s")
    expect(ENOENT, os.symlink, "x", "")
    expect(ENOTDIR, os.symlink, "x", "f/s")
    expect(ELOOP, os.symlink, "x", "loop/s")
    expect(ENAMETOOLONG, os.symlink, "x", "n" * 256)
    expect(EACCES, as_user, NOBODY, os.symlink, "x", "s")


@case
def follows_absolute_and_relative(t):
    os.mkdir("d")
    make("d/f", b"x")
    os.symlink("d/f", "relative")
    os.symlink(os.path.abspath("d/f"), "absolute")
    os.symlink("../d/f", "d/up")
    equal([read(n) for n in ("relative", "absolute", "d/up")], [b"x"] * 3)


@case
def follows_in_the_middle(t):
    os.makedirs("a/b")
    make("a/b/f", b"x")
    os.symlink("a", "s")
    os.symlink("../s/b", "a/t")
    equal(read("s/t/f"), b"x")
    equal(os.path.realpath("s/t/f"), os.path.abspath("a/b/f"))


@case
def trailing_slash_follows(t):
    os.mkdir("d")
    os.symlink("d", "s")
    check(stat.S_ISDIR(os.lstat("s/").st_mode), "not followed")


@case
def loops(t):
    os.symlink("a", "b")
    os.symlink("b", "a")
    os.symlink("self", "self")
    for name in ("a", "b", "self"):
        expect(ELOOP, os.stat, name)
        expect(ELOOP, os.open, name, os.O_RDONLY)
        expect(ELOOP, os.open, name, os.O_CREAT | os.O_RDWR)
        os.lstat(name)


@case
def chain_of_forty_and_more(t):
    make("s0", b"x")
    for number in range(1, 42):
        os.symlink(f"s{number - 1}", f"s{number}")
    equal(read("s40"), b"x")
    expect(ELOOP, os.stat, "s41")


@case
def dangling(t):
    os.symlink("nowhere", "s")
    expect(ENOENT, os.stat, "s")
    expect(ENOENT, os.open, "s", os.O_RDONLY)
    equal(os.listdir("."), ["s"])
    make("nowhere", b"x")
    equal(read("s"), b"x")


@case
def retargeted(t):
    """The kernel may cache a link's target, but not beyond its life."""
    make("a", b"a")
    make("b", b"b")
    for number in range(20):
        target = "ab"[number % 2]
        os.symlink(target, "new")
        os.rename("new", "s")
        equal((os.readlink("s"), read("s")), (target, target.encode()))


@case
def lchown_and_times_on_the_link(t):
    make("f")
    os.symlink("f", "s")
    before = os.stat("f")
    os.utime("s", ns=(10**9, 2 * 10**9), follow_symlinks=False)
    equal((os.lstat("s").st_atime_ns, os.lstat("s").st_mtime_ns), (10**9, 2 * 10**9))
    if os.geteuid() == 0:
        os.lchown("s", NOBODY, NOBODY)
        equal(os.lstat("s").st_uid, NOBODY, "owner")
    after = os.stat("f")
    equal((after.st_uid, after.st_mtime_ns), (before.st_uid, before.st_mtime_ns), "the target")


@case
def through_magic_link(t):
    make("f", b"x")
    with opened("f") as fd:
        equal(os.readlink(f"/proc/self/fd/{fd}"), os.path.abspath("f"))
        equal(read(f"/proc/self/fd/{fd}"), b"x")
