"""mkdir, rmdir, chdir; link counts and inheritance of directories."""

import os
import stat
from errno import (EACCES, EBUSY, EEXIST, EFAULT, EINVAL, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR,
                   ENOTEMPTY, EPERM)

from harness import (NOBODY, Child, as_user, case, check, equal, expect, in_child, make,
                     need_root, opened, read, run_checked)
from syscalls import BAD_ADDRESS, call


def mode_of(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


def nlink(path):
    return os.stat(path).st_nlink


@case
def mkdir_makes_an_empty_directory(t):
    os.mkdir("d", 0o750)
    found = os.stat("d")
    check(stat.S_ISDIR(found.st_mode), "no directory")
    equal((mode_of("d"), found.st_nlink, os.listdir("d")), (0o750, 2, []))
    equal((found.st_uid, found.st_gid), (os.geteuid(), os.getegid()), "owner")


@case
def mkdir_obeys_umask(t):
    os.umask(0o027)
    os.mkdir("d", 0o777)
    equal(mode_of("d"), 0o750, "mode")


@case
def mkdir_keeps_sticky_bit_only(t):
    """Linux: mode & umask & 01777."""
    os.umask(0)
    os.mkdir("d", 0o7777)
    equal(mode_of("d"), 0o1777, "mode")


@case
def mkdir_belongs_to_caller(t):
    os.mkdir("d")
    os.chmod("d", 0o777)
    as_user(NOBODY, os.mkdir, "d/e", gid=1234)
    equal((os.stat("d/e").st_uid, os.stat("d/e").st_gid), (NOBODY, 1234))


@case
def mkdir_trailing_slash(t):
    os.mkdir("d/")
    os.mkdir("d/e//")
    check(os.path.isdir("d/e"), "missing")


@case
def mkdir_existing(t):
    os.mkdir("d")
    make("f")
    os.symlink("nowhere", "s")
    os.symlink("d", "ds")
    os.mkfifo("p")
    for name in ("d", "f", "s", "ds", "p", ".", "..", "/"):
        expect(EEXIST, os.mkdir, name)
    equal(os.listdir("d"), [])


@case
def mkdir_errors(t):
    make("f")
    os.symlink("loop", "loop")
    expect(ENOENT, os.mkdir, "missing/d")
    expect(ENOENT, os.mkdir, "")
    expect(ENOTDIR, os.mkdir, "f/d")
    expect(ELOOP, os.mkdir, "loop/d")
    expect(ENAMETOOLONG, os.mkdir, "n" * 256)
    expect(EFAULT, call, "mkdir", BAD_ADDRESS, 0o755)
    expect(EACCES, as_user, NOBODY, os.mkdir, "d")


@case
def mkdir_without_search_permission(t):
    os.mkdir("d", 0o666)
    os.chown("d", NOBODY, NOBODY)
    expect(EACCES, as_user, NOBODY, os.mkdir, "d/e")


@case
def mkdir_has_one_winner(t):
    def attempt():
        wins = 0
        for number in range(100):
            try:
                os.mkdir(f"d{number}")
                wins += 1
            except FileExistsError:
                pass
        return wins

    equal(sum(child.result() for child in [Child(attempt) for _ in range(3)]), 100, "winners")
    equal(nlink("."), 102, "nlink")


@case
def nlink_counts_subdirectories(t):
    os.mkdir("d")
    for number in range(30):
        os.mkdir(f"d/{number}")
        equal(nlink("d"), 3 + number, "nlink")
    make("d/file")
    os.symlink("x", "d/link")
    equal(nlink("d"), 32, "nlink with files")
    for number in range(30):
        os.rmdir(f"d/{number}")
        equal(nlink("d"), 31 - number, "nlink")


@case
def nlink_of_replaced_and_moved_directories(t):
    os.makedirs("a/x")
    os.makedirs("b/x")
    os.rename("a/x", "b/x")
    equal((nlink("a"), nlink("b")), (2, 3))
    os.rename("b/x", "a/y")
    equal((nlink("a"), nlink("b")), (3, 2))


@case
def rmdir_removes(t):
    os.mkdir("d")
    os.rmdir("d")
    expect(ENOENT, os.stat, "d")
    equal(os.listdir("."), [])
    os.mkdir("d")
    equal(os.listdir("d"), [])


@case
def rmdir_not_empty(t):
    for index, fill in enumerate((make, os.mkdir, os.mkfifo, lambda p: os.symlink("x", p))):
        os.mkdir(f"d{index}")
        fill(f"d{index}/entry")
        expect((ENOTEMPTY, EEXIST), os.rmdir, f"d{index}")


@case
def rmdir_after_entries_are_gone(t):
    os.mkdir("d")
    make("d/f")
    os.mkdir("d/e")
    with opened("d/f") as fd:
        os.unlink("d/f")
        os.rmdir("d/e")
        os.rmdir("d")
        os.write(fd, b"x")
        equal(os.pread(fd, 1, 0), b"x")


@case
def rmdir_dots(t):
    os.makedirs("d/e")
    expect(EINVAL, os.rmdir, "d/e/.")
    expect((ENOTEMPTY, EEXIST), os.rmdir, "d/e/..")
    expect(EINVAL, os.rmdir, ".")
    expect((EBUSY, EINVAL), os.rmdir, "/")


@case
def rmdir_errors(t):
    make("f")
    os.mkdir("d")
    os.symlink("d", "s")
    os.symlink("loop", "loop")
    expect(ENOENT, os.rmdir, "missing")
    expect(ENOENT, os.rmdir, "")
    expect(ENOTDIR, os.rmdir, "f")
    expect(ENOTDIR, os.rmdir, "f/x")
    expect(ENOTDIR, os.rmdir, "s")
    expect(ELOOP, os.rmdir, "loop/x")
    expect(ENAMETOOLONG, os.rmdir, "n" * 256)
    expect(EACCES, as_user, NOBODY, os.rmdir, "d")


@case
def rmdir_sticky(t):
    os.mkdir("d")
    os.chmod("d", 0o1777)
    os.mkdir("d/root")
    as_user(1000, os.mkdir, "d/mine")
    expect(EPERM, as_user, NOBODY, os.rmdir, "d/root")
    expect(EPERM, as_user, NOBODY, os.rmdir, "d/mine")
    as_user(1000, os.rmdir, "d/mine")


@case
def rmdir_mount_point(t):
    need_root()
    os.makedirs("d/m")

    def run():
        call("unshare", 0x20000)  # CLONE_NEWNS: the bind mount ends with this process.
        run_checked("mount", "--make-rprivate", "/")
        run_checked("mount", "--bind", "d", "d/m")
        expect(EBUSY, os.rmdir, "d/m")

    in_child(run)


@case
def rmdir_against_create(t):
    """A name is never created in a directory that is gone, nor lost with it."""

    def remove():
        removed = 0
        while removed < 100:
            try:
                os.rmdir("d")
                removed += 1
            except FileNotFoundError:
                pass
            except OSError as error:
                check(error.errno == ENOTEMPTY, f"rmdir: {error}")

    def fill(name):
        while not os.path.exists("stop"):
            try:
                os.mkdir("d")
            except FileExistsError:
                pass
            try:
                make(f"d/{name}")
            except FileNotFoundError:
                continue
            os.unlink(f"d/{name}")  # Nobody else does, so it has to be there.

    remover = Child(remove)
    fillers = [Child(fill, name) for name in ("a", "b")]
    remover.result(25)
    make("stop")
    for filler in fillers:
        filler.result()


@case
def chdir_and_getcwd(t):
    here = os.getcwd()
    os.makedirs("a/b")
    os.chdir("a/b")
    equal(os.getcwd(), f"{here}/a/b")
    os.chdir("../..")
    equal(os.getcwd(), here)
    with opened("a", os.O_RDONLY) as fd:
        os.fchdir(fd)
        equal(os.getcwd(), f"{here}/a")
    os.chdir(here)


@case
def chdir_errors(t):
    make("f")
    os.mkdir("d", 0o600)
    expect(ENOTDIR, os.chdir, "f")
    expect(ENOENT, os.chdir, "missing")
    expect(EACCES, as_user, NOBODY, os.chdir, "d")


@case
def chroot_into(t):
    need_root()
    os.mkdir("d")
    make("d/f", b"x")

    def run():
        os.chroot("d")
        with open("/f", "rb") as f:
            return f.read()

    equal(in_child(run), b"x")


@case
def dot_dot_of_everything(t):
    here = os.stat(".").st_ino
    os.makedirs("a/b")
    equal((os.stat("a/..").st_ino, os.stat("a/b/../..").st_ino, os.stat("a/.").st_ino),
          (here, here, os.stat("a").st_ino))


@case
def setgid_is_inherited(t):
    need_root()
    os.mkdir("d")
    os.chown("d", 0, 1234)
    os.chmod("d", 0o2777)
    os.mkdir("d/e")
    make("d/f")
    os.symlink("x", "d/s")
    os.mkfifo("d/p")
    equal([os.lstat(f"d/{n}").st_gid for n in "efsp"], [1234] * 4, "groups")
    equal((mode_of("d/e"), mode_of("d/f")), (0o2755, 0o644), "modes")


@case
def setgid_is_inherited_by_unprivileged_creator(t):
    os.mkdir("d")
    os.chown("d", 0, 1234)
    os.chmod("d", 0o2777)
    as_user(NOBODY, os.mkdir, "d/e")
    as_user(NOBODY, make, "d/f")
    equal([os.stat(f"d/{n}").st_gid for n in "ef"], [1234] * 2, "groups")
    equal(mode_of("d/e"), 0o2755, "mode")


@case
def setgid_file_created_by_non_member_loses_sgid(t):
    """A group-executable setgid file of a group the creator is not in must not appear."""
    os.mkdir("d")
    os.chown("d", 0, 1234)
    os.chmod("d", 0o2777)

    def create(name):
        os.umask(0)
        os.close(os.open(name, os.O_CREAT | os.O_RDWR, 0o2775))

    as_user(NOBODY, create, "d/stranger")
    equal(mode_of("d/stranger"), 0o775, "mode")
    as_user(NOBODY, create, "d/member", groups=[1234])
    equal(mode_of("d/member"), 0o2775, "mode of a member's file")


@case
def size_and_blocks_are_sane(t):
    os.mkdir("d")
    found = os.stat("d")
    check(found.st_size >= 0 and found.st_blksize > 0, "odd numbers")


@case
def deep_tree(t):
    path = "/".join(str(n) for n in range(200))
    os.makedirs(path)
    make(f"{path}/f", b"deep")
    equal(read(f"{path}/f"), b"deep")
    equal(sum(1 for _ in os.walk(".")), 201, "directories")
