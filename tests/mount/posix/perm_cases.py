"""Who may do what: owner, group and other classes, search permission, access(2), root."""

import os
import stat
from errno import EACCES, EFAULT, EINVAL, ENOENT, ENOTDIR, EPERM, EROFS

from harness import (NOBODY, as_user, case, check, equal, expect, in_child, make, need_root,
                     opened, outcome, read, run_checked)
from syscalls import BAD_ADDRESS, call, rename2

OWNER, MEMBER, STRANGER = 1000, 1001, 1002
GROUP = 1234
USERS = ((OWNER, (), 6), (MEMBER, (GROUP,), 3), (STRANGER, (), 0))  # uid, groups, mode shift


def try_open(path, flags):
    def attempt():
        os.close(os.open(path, flags))
        return True

    answer = outcome(attempt)
    check(answer in (True, "EACCES"), f"answer {answer}")
    return answer is True


@case
def class_decides_for_every_mode(t):
    """The first class that fits decides, also when a later one would allow more."""
    make("f")
    os.chown("f", OWNER, GROUP)

    def attempt():
        return tuple(try_open("f", flags) for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR))

    for mode in (0o000, 0o400, 0o200, 0o600, 0o040, 0o020, 0o060, 0o004, 0o002, 0o006, 0o077,
                 0o707, 0o170, 0o466):
        os.chmod("f", mode)
        for uid, groups, shift in USERS:
            bits = mode >> shift
            wanted = bool(bits & 4), bool(bits & 2), bits & 6 == 6
            equal(as_user(uid, attempt, groups=groups), wanted, f"mode {mode:o} uid {uid}")


@case
def directory_class_decides(t):
    os.mkdir("d")
    make("d/f")
    os.chown("d", OWNER, GROUP)

    def attempt():
        return [outcome(action) != "EACCES" for action in (
            lambda: os.listdir("d"), lambda: os.stat("d/f").st_size,
            lambda: os.close(os.open("d/new", os.O_CREAT | os.O_EXCL)) or os.unlink("d/new"))]

    for mode in (0o000, 0o700, 0o500, 0o300, 0o400, 0o100, 0o070, 0o010, 0o005, 0o003, 0o001,
                 0o077, 0o707):
        os.chmod("d", mode)
        for uid, groups, shift in USERS:
            bits = mode >> shift
            wanted = [bool(bits & 4), bool(bits & 1), bits & 3 == 3]
            equal(as_user(uid, attempt, groups=groups), wanted, f"mode {mode:o} uid {uid}")


@case
def search_permission_on_the_way(t):
    os.makedirs("a/b/c")
    make("a/b/c/f", b"x", 0o666)
    os.chmod("a/b", 0o600)
    for action in (lambda: os.open("a/b/c/f", os.O_RDONLY), lambda: os.stat("a/b/c/f"),
                   lambda: os.listdir("a/b/c"), lambda: os.mkdir("a/b/c/d"),
                   lambda: os.chdir("a/b/c"), lambda: os.getxattr("a/b/c/f", "user.x"),
                   lambda: os.truncate("a/b/c/f", 0), lambda: os.statvfs("a/b/c/f"),
                   lambda: os.readlink("a/b/c/f"), lambda: os.utime("a/b/c/f")):
        expect(EACCES, as_user, NOBODY, action)


@case
def descriptor_keeps_working_without_path_permission(t):
    os.mkdir("d")
    os.chown("d", NOBODY, NOBODY)

    def run():
        with opened("d/f", os.O_CREAT | os.O_RDWR, 0o600) as fd:
            os.chmod("d", 0)
            expect(EACCES, os.stat, "d/f")
            os.write(fd, b"abc")
            equal(os.pread(fd, 3, 0), b"abc")
            os.fchmod(fd, 0)
            os.pwrite(fd, b"X", 0)
            equal(os.fstat(fd).st_size, 3, "size")

    as_user(NOBODY, run)


@case
def revoked_permission_counts_at_the_next_open(t):
    make("f", b"x", 0o644)
    as_user(NOBODY, read, "f")
    os.chmod("f", 0o600)
    expect(EACCES, as_user, NOBODY, read, "f")
    os.chown("f", NOBODY, NOBODY)
    as_user(NOBODY, read, "f")


@case
def revoked_search_permission_counts_at_once(t):
    os.mkdir("d")
    make("d/f")
    as_user(NOBODY, os.stat, "d/f")
    os.chmod("d", 0o700)
    expect(EACCES, as_user, NOBODY, os.stat, "d/f")
    os.chmod("d", 0o755)
    as_user(NOBODY, os.stat, "d/f")


@case
def execute_permission(t):
    make("script", b"#!/bin/sh\nexit 3\n", 0o644)

    def run():
        pid = os.fork()
        if pid == 0:
            try:
                os.execv("./script", ["script"])
            except OSError as error:
                os._exit(error.errno)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    equal((as_user(NOBODY, run), run()), (EACCES, EACCES), "without x")
    os.chmod("script", 0o744)
    equal(as_user(NOBODY, run), EACCES, "x for the owner only")
    equal(run(), 3, "root needs one x")
    os.chmod("script", 0o755)
    equal(as_user(NOBODY, run), 3, "x for all")


@case
def execute_only_file_is_not_readable(t):
    make("f", b"x", 0o711)
    expect(EACCES, as_user, NOBODY, read, "f")


@case
def root_overrides(t):
    need_root()
    os.mkdir("d", 0)
    make("d/f", b"x", 0)
    os.chown("d", OWNER, OWNER)
    os.chown("d/f", OWNER, OWNER)
    with opened("d/f") as fd:
        os.write(fd, b"y")
    equal((os.listdir("d"), os.access("d/f", os.X_OK)), (["f"], False))


@case
def access_answers(t):
    make("f", b"", 0o640)
    os.chown("f", OWNER, GROUP)

    def answers():
        return [os.access("f", mode) for mode in (os.F_OK, os.R_OK, os.W_OK, os.X_OK,
                                                  os.R_OK | os.W_OK)]

    equal(as_user(OWNER, answers), [True, True, True, False, True])
    equal(as_user(MEMBER, answers, groups=[GROUP]), [True, True, False, False, False])
    equal(as_user(STRANGER, answers), [True, False, False, False, False])


@case
def access_uses_the_real_user(t):
    need_root()
    make("f", b"", 0o600)

    def run():
        os.setresuid(NOBODY, 0, 0)
        return os.access("f", os.R_OK), os.access("f", os.R_OK, effective_ids=True)

    equal(in_child(run), (False, True))


@case
def access_errors(t):
    make("f")
    expect(ENOENT, call, "access", "missing", os.R_OK)
    expect(ENOTDIR, call, "access", "f/x", os.R_OK)
    expect(EINVAL, call, "access", "f", 0o10)
    expect(EFAULT, call, "access", BAD_ADDRESS, os.R_OK)
    expect(EACCES, as_user, NOBODY, call, "access", "f", os.W_OK)


@case
def supplementary_groups(t):
    make("f", b"x", 0o060)
    os.chown("f", 0, GROUP)
    as_user(NOBODY, read, "f", groups=[1, 2, GROUP, 3])
    as_user(NOBODY, read, "f", groups=list(range(5000, 5100)) + [GROUP])
    expect(EACCES, as_user, NOBODY, read, "f", groups=[1, 2, 3])


@case
def effective_group(t):
    make("f", b"x", 0o060)
    os.chown("f", 0, GROUP)
    as_user(NOBODY, read, "f", gid=GROUP)


@case
def attributes_are_readable_without_read_permission(t):
    make("f", b"xyz", 0)
    equal(as_user(NOBODY, lambda: os.stat("f").st_size), 3, "size")


@case
def write_only_directory_hides_names(t):
    os.mkdir("d")
    os.chmod("d", 0o733)
    as_user(NOBODY, make, "d/f")
    expect(EACCES, as_user, NOBODY, os.listdir, "d")
    as_user(NOBODY, os.stat, "d/f")


@case
def other_users_see_each_others_changes(t):
    os.mkdir("d")
    os.chmod("d", 0o1777)
    as_user(1000, make, "d/f", b"one", 0o666)

    def append():
        with opened("d/f", os.O_WRONLY | os.O_APPEND) as fd:
            os.write(fd, b"two")

    as_user(1001, append)
    equal(as_user(1002, read, "d/f"), b"onetwo")
    expect(EPERM, as_user, 1001, os.unlink, "d/f")


@case
def read_only_bind_mount(t):
    need_root()
    os.mkdir("d")
    make("d/f", b"x")
    os.symlink("x", "d/s")
    os.mkdir("d/e")

    def run():
        call("unshare", 0x20000)  # CLONE_NEWNS: the bind mount ends with this process.
        run_checked("mount", "--make-rprivate", "/")
        run_checked("mount", "--bind", "d", "d")
        run_checked("mount", "-o", "remount,bind,ro", "d")
        equal(read("d/f"), b"x")
        for action in (lambda: os.open("d/f", os.O_RDWR), lambda: os.open("d/new", os.O_CREAT),
                       lambda: os.open("d/f", os.O_RDONLY | os.O_TRUNC),
                       lambda: os.open("d", os.O_TMPFILE | os.O_RDWR),
                       lambda: os.mkdir("d/new"), lambda: os.rmdir("d/e"),
                       lambda: os.unlink("d/f"), lambda: os.rename("d/f", "d/g"),
                       lambda: os.link("d/f", "d/g"), lambda: os.symlink("x", "d/g"),
                       lambda: os.mkfifo("d/g"), lambda: os.chmod("d/f", 0o600),
                       lambda: os.chown("d/f", 1, 1), lambda: os.truncate("d/f", 0),
                       lambda: os.utime("d/f"), lambda: os.setxattr("d/f", "user.a", b"1"),
                       lambda: os.removexattr("d/f", "user.a"),
                       lambda: call("access", "d/f", os.W_OK),
                       lambda: rename2("d/f", "d/s", 2)):
            expect(EROFS, action)

    in_child(run)
    check(stat.S_IMODE(os.stat("d/f").st_mode) == 0o644, "something changed")
