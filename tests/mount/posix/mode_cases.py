"""chmod, chown, and when the setuid and setgid bits go."""

import mmap
import os
import shutil
import stat
import subprocess
import time
from errno import EACCES, EBADF, EFAULT, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, EOPNOTSUPP, EPERM

from harness import (NOBODY, Skip, as_user, case, check, equal, expect, make, mount_options,
                     need_root, opened)
from syscalls import BAD_ADDRESS, call

SUID_SGID = 0o6777


def mode_of(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


def owner(path):
    found = os.lstat(path)
    return found.st_uid, found.st_gid


@case
def chmod_every_mode(t):
    make("f")
    for mode in range(0, 0o10000, 7):
        os.chmod("f", mode)
        equal(mode_of("f"), mode, "mode")


@case
def chmod_every_type(t):
    os.mkdir("d")
    os.mkfifo("p")
    for name in ("d", "p"):
        os.chmod(name, 0o1705)
        equal(mode_of(name), 0o1705, name)
    check(stat.S_ISDIR(os.stat("d").st_mode) and stat.S_ISFIFO(os.stat("p").st_mode), "type")


@case
def fchmod(t):
    make("f")
    with opened("f", os.O_RDONLY) as fd:
        os.fchmod(fd, 0o400)
        equal(stat.S_IMODE(os.fstat(fd).st_mode), 0o400, "mode")
        os.unlink("f")
        os.fchmod(fd, 0o440)
        equal(stat.S_IMODE(os.fstat(fd).st_mode), 0o440, "mode of the unlinked")
    expect(EBADF, os.fchmod, 999, 0o400)


@case
def chmod_follows_symlink(t):
    make("f")
    os.symlink("f", "s")
    os.chmod("s", 0o600)
    equal((mode_of("f"), mode_of("s")), (0o600, 0o777))


@case
def chmod_of_symlink_itself(t):
    """The kernel refuses (6.6 and later), or glibc does."""
    make("f")
    os.symlink("f", "s")
    expect(EOPNOTSUPP, call, "fchmodat", -100, "s", 0o600, 0x100)
    equal(mode_of("f"), 0o644, "mode of the target")


@case
def chmod_errors(t):
    make("f")
    os.symlink("loop", "loop")
    os.mkdir("closed", 0o700)
    make("closed/f")
    expect(ENOENT, os.chmod, "missing", 0o600)
    expect(ENOTDIR, os.chmod, "f/x", 0o600)
    expect(ELOOP, os.chmod, "loop", 0o600)
    expect(ENAMETOOLONG, os.chmod, "n" * 256, 0o600)
    expect(EFAULT, call, "chmod", BAD_ADDRESS, 0o600)
    expect(EPERM, as_user, NOBODY, os.chmod, "f", 0o777)
    expect(EACCES, as_user, NOBODY, os.chmod, "closed/f", 0o777)


@case
def chmod_by_owner(t):
    make("f")
    os.chown("f", NOBODY, NOBODY)
    as_user(NOBODY, os.chmod, "f", 0o4711)
    equal(mode_of("f"), 0o4711, "mode")


@case
def chmod_sgid_needs_membership(t):
    make("f")
    os.chown("f", NOBODY, 1234)
    as_user(NOBODY, os.chmod, "f", 0o2755)
    equal(mode_of("f"), 0o755, "mode set by a stranger to the group")
    as_user(NOBODY, os.chmod, "f", 0o2755, groups=[1234])
    equal(mode_of("f"), 0o2755, "mode set by a member")


@case
def chmod_updates_ctime_only(t):
    make("f")
    os.utime("f", ns=(10**9, 10**9))
    before = os.stat("f").st_ctime_ns
    time.sleep(0.02)
    os.chmod("f", 0o600)
    found = os.stat("f")
    check(found.st_ctime_ns > before, "ctime is old")
    equal((found.st_atime_ns, found.st_mtime_ns), (10**9, 10**9))


@case
def failed_chmod_changes_nothing(t):
    make("f")
    before = os.stat("f")
    time.sleep(0.02)
    expect(EPERM, as_user, NOBODY, os.chmod, "f", 0o777)
    equal((os.stat("f").st_ctime_ns, mode_of("f")), (before.st_ctime_ns, 0o644))


# chown


@case
def chown_by_root(t):
    need_root()
    make("f")
    os.chown("f", 12, 34)
    equal(owner("f"), (12, 34))
    os.chown("f", -1, 56)
    equal(owner("f"), (12, 56))
    os.chown("f", 78, -1)
    equal(owner("f"), (78, 56))
    os.chown("f", 2**32 - 2, 2**31)
    equal(owner("f"), (2**32 - 2, 2**31))


@case
def chown_symlink_or_target(t):
    need_root()
    make("f")
    os.symlink("f", "s")
    os.chown("s", 12, 34)
    equal((owner("f"), owner("s")), ((12, 34), (0, 0)))
    os.lchown("s", 56, 78)
    equal((owner("f"), owner("s")), ((12, 34), (56, 78)))


@case
def fchown(t):
    need_root()
    make("f")
    with opened("f", os.O_RDONLY) as fd:
        os.fchown(fd, 12, 34)
        equal((os.fstat(fd).st_uid, os.fstat(fd).st_gid), (12, 34))


@case
def chown_unprivileged(t):
    make("f")
    make("mine")
    os.chown("mine", NOBODY, NOBODY)
    expect(EPERM, as_user, NOBODY, os.chown, "f", NOBODY, NOBODY)
    expect(EPERM, as_user, NOBODY, os.chown, "mine", 1000, -1)
    expect(EPERM, as_user, NOBODY, os.chown, "mine", -1, 1234)
    as_user(NOBODY, os.chown, "mine", -1, 1234, groups=[1234])
    equal(owner("mine"), (NOBODY, 1234))
    as_user(NOBODY, os.chown, "mine", NOBODY, 1234)


@case
def chown_errors(t):
    make("f")
    os.symlink("loop", "loop")
    os.mkdir("closed", 0o700)
    make("closed/f")
    expect(ENOENT, os.chown, "missing", 1, 1)
    expect(ENOTDIR, os.chown, "f/x", 1, 1)
    expect(ELOOP, os.chown, "loop", 1, 1)
    expect(ENAMETOOLONG, os.chown, "n" * 256, 1, 1)
    expect(EFAULT, call, "chown", BAD_ADDRESS, 1, 1)
    expect(EACCES, as_user, NOBODY, os.chown, "closed/f", NOBODY, NOBODY)
    expect(EBADF, os.fchown, 999, 1, 1)


@case
def chown_updates_ctime(t):
    need_root()
    make("f")
    before = os.stat("f").st_ctime_ns
    time.sleep(0.02)
    os.chown("f", 1, 1)
    check(os.stat("f").st_ctime_ns > before, "ctime is old")


@case
def chown_drops_suid_and_sgid(t):
    """Also when root does it; sgid without group execution (mandatory locking) stays."""
    need_root()
    for before, after in ((0o6777, 0o777), (0o4755, 0o755), (0o2755, 0o755), (0o2745, 0o2745),
                          (0o1755, 0o1755)):
        make("f")
        os.chmod("f", before)
        os.chown("f", 1, 1)
        equal(mode_of("f"), after, f"mode {before:o}")
        os.unlink("f")


@case
def chown_by_owner_drops_suid_and_sgid(t):
    make("f")
    os.chown("f", NOBODY, NOBODY)
    os.chmod("f", SUID_SGID)
    as_user(NOBODY, os.chown, "f", -1, 1234, groups=[1234])
    equal(mode_of("f"), 0o777, "mode")


@case
def chown_keeps_bits_of_directory(t):
    need_root()
    os.mkdir("d")
    os.chmod("d", 0o7777)
    os.chown("d", 1, 1)
    equal(mode_of("d"), 0o7777, "mode")


# Writing to a setuid file


def write_as(uid, path, data=b"x", flags=os.O_WRONLY):
    def run():
        with opened(path, flags) as fd:
            os.write(fd, data)

    as_user(uid, run)


@case
def write_by_unprivileged_drops_suid_and_sgid(t):
    for before, after in ((0o6777, 0o777), (0o4777, 0o777), (0o2777, 0o777)):
        make("f", b"abc", before)
        write_as(NOBODY, "f")
        equal(mode_of("f"), after, f"mode {before:o}")
        os.unlink("f")


@case
def write_by_root_keeps_suid(t):
    need_root()
    make("f", b"abc", SUID_SGID)
    with opened("f", os.O_WRONLY) as fd:
        os.write(fd, b"x")
    equal(mode_of("f"), SUID_SGID, "mode")


@case
def open_trunc_by_unprivileged_drops_suid(t):
    make("f", b"abc", SUID_SGID)
    as_user(NOBODY, lambda: os.close(os.open("f", os.O_WRONLY | os.O_TRUNC)))
    equal(mode_of("f"), 0o777, "mode")


@case
def second_write_after_bits_are_set_again(t):
    make("f", b"abc", 0o777)

    def run():
        with opened("f", os.O_WRONLY) as fd:
            os.write(fd, b"1")
            os.chmod("f", SUID_SGID)
            os.write(fd, b"2")

    os.chown("f", NOBODY, NOBODY)
    as_user(NOBODY, run)
    equal(mode_of("f"), 0o777, "mode")


@case
def read_keeps_suid(t):
    make("f", b"abc", SUID_SGID)
    as_user(NOBODY, lambda: os.close(os.open("f", os.O_RDONLY)))
    equal(mode_of("f"), SUID_SGID, "mode")


@case
def direct_write_by_unprivileged_drops_suid(t):
    make("f", b"abc", SUID_SGID)

    def run():
        with opened("f", os.O_WRONLY | os.O_DIRECT) as fd:
            os.pwritev(fd, [mmap.mmap(-1, 4096)], 0)

    as_user(NOBODY, run)
    equal(mode_of("f"), 0o777, "mode")


@case
def file_capability_goes_with_a_write(t):
    need_root()
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    make("f", b"abc")
    os.setxattr("f", "security.capability", capability)
    equal(os.getxattr("f", "security.capability"), capability)
    with opened("f", os.O_WRONLY) as fd:
        os.write(fd, b"x")
    check("security.capability" not in os.listxattr("f"), "capability is still there")
    os.setxattr("f", "security.capability", capability)
    os.chown("f", 1, 1)
    check("security.capability" not in os.listxattr("f"), "capability survived chown")


@case
def empty_file_capability_stays(t):
    need_root()
    make("f", b"abc")
    os.setxattr("f", "security.capability", b"")
    with opened("f", os.O_WRONLY) as fd:
        os.write(fd, b"x")
        os.ftruncate(fd, 1)
    os.chown("f", 1, 1)
    check("security.capability" in os.listxattr("f"), "it was dropped")


@case
def setuid_program_runs_as_owner(t):
    need_root()
    if "nosuid" in mount_options("."):
        raise Skip("mounted with nosuid")
    shutil.copy("/usr/bin/id", "id")
    os.chown("id", 1234, 1234)
    os.chmod("id", 0o4755)
    done = as_user(NOBODY, lambda: subprocess.run(["./id", "-u"], capture_output=True,
                                                  check=True).stdout)
    equal(done, b"1234\n")
