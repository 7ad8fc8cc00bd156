"""link, unlink, and files that live on without a name."""

import os
import stat
import time
from errno import (EACCES, EBUSY, EEXIST, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, EPERM,
                   EXDEV)

from harness import (NOBODY, as_user, case, check, equal, expect, in_child, make, need_root,
                     opened, outcome, read, run_checked, same_as_native)
from syscalls import AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_FOLLOW, call, linkat


@case
def link_shares_everything(t):
    make("a", b"x")
    os.link("a", "b")
    a, b = os.stat("a"), os.stat("b")
    equal((a.st_ino, a.st_nlink), (b.st_ino, 2))
    make("b", b"changed", 0o600)
    equal((read("a"), stat.S_IMODE(os.stat("a").st_mode)), (b"changed", 0o600))
    check(os.path.samefile("a", "b"), "not the same file")


@case
def link_into_other_directory(t):
    make("a", b"x")
    os.makedirs("d/e")
    os.link("a", "d/e/b")
    os.unlink("a")
    equal((read("d/e/b"), os.stat("d/e/b").st_nlink), (b"x", 1))


@case
def link_count_follows(t):
    make("f0")
    with opened("f0") as fd:
        for number in range(1, 20):
            os.link("f0", f"f{number}")
            equal(os.fstat(fd).st_nlink, number + 1, "nlink")
        for number in range(20):
            os.unlink(f"f{number}")
            equal(os.fstat(fd).st_nlink, 19 - number, "nlink")


@case
def link_many(t):
    make("f")
    for number in range(1000):
        os.link("f", f"l{number}")
    equal(os.stat("f").st_nlink, 1001, "nlink")


@case
def link_to_existing(t):
    make("a", b"a")
    make("b", b"b")
    os.mkdir("d")
    os.symlink("nowhere", "s")
    for target in ("b", "d", "s", "a"):
        expect(EEXIST, os.link, "a", target)
    equal((read("b"), os.stat("a").st_nlink), (b"b", 1))


@case
def link_to_directory(t):
    os.mkdir("d")
    expect(EPERM, os.link, "d", "e")


@case
def link_to_symlink_itself(t):
    make("f")
    os.symlink("f", "s")
    os.link("s", "hard", follow_symlinks=False)
    equal(os.readlink("hard"), "f")
    equal((os.lstat("s").st_nlink, os.stat("f").st_nlink), (2, 1), "nlink")


@case
def link_following_symlink(t):
    make("f")
    os.symlink("f", "s")
    linkat(AT_FDCWD, "s", "hard", AT_SYMLINK_FOLLOW)
    equal((os.lstat("hard").st_ino, os.stat("f").st_nlink), (os.stat("f").st_ino, 2))


@case
def link_special_files(t):
    os.mkfifo("p")
    os.link("p", "q")
    check(stat.S_ISFIFO(os.stat("q").st_mode), "no fifo")
    equal(os.stat("p").st_nlink, 2, "nlink")


@case
def link_open_descriptor(t):
    need_root()
    make("f", b"x")
    with opened("f") as fd:
        linkat(fd, "", "g", AT_EMPTY_PATH)
    equal(os.stat("f").st_nlink, 2, "nlink")


@case
def link_unlinked_file(t):
    make("f", b"x")
    with opened("f") as fd:
        os.unlink("f")
        expect(ENOENT, linkat, AT_FDCWD, f"/proc/self/fd/{fd}", "g", AT_SYMLINK_FOLLOW)


@case
def link_errors(t):
    make("f", b"", 0o666)  # fs.protected_hardlinks asks for write permission.
    os.mkdir("closed", 0o700)
    make("closed/f", b"", 0o666)
    os.symlink("loop", "loop")
    expect(ENOENT, os.link, "missing", "g")
    expect(ENOENT, os.link, "f", "missing/g")
    expect(ENOENT, os.link, "", "g")
    expect(ENOTDIR, os.link, "f/x", "g")
    expect(ENOTDIR, os.link, "f", "f/x")
    expect(ENAMETOOLONG, os.link, "f", "n" * 256)
    expect(ELOOP, os.link, "loop/x", "g")
    expect(EACCES, as_user, NOBODY, os.link, "f", "g")
    expect(EACCES, as_user, NOBODY, os.link, "closed/f", "g")


@case
def link_across_file_systems(t):
    make("f")
    expect(EXDEV, os.link, "f", "/dev/cfs-test-never-made")
    expect(EXDEV, os.link, "/proc/version", "g")


@case
def link_changes_ctime_not_mtime(t):
    make("f")
    os.utime("f", ns=(10**9, 10**9))
    before = os.stat("f")
    time.sleep(0.02)
    os.link("f", "g")
    after = os.stat("f")
    check(after.st_ctime_ns > before.st_ctime_ns, "ctime is old")
    equal(after.st_mtime_ns, 10**9, "mtime")


@case
def unlink_removes_the_name(t):
    make("f")
    os.unlink("f")
    expect(ENOENT, os.stat, "f")
    equal(os.listdir("."), [])


@case
def unlink_one_of_two(t):
    make("a", b"x")
    os.link("a", "b")
    before = os.stat("a")
    time.sleep(0.02)
    os.unlink("b")
    after = os.stat("a")
    equal((read("a"), after.st_nlink), (b"x", 1))
    check(after.st_ctime_ns > before.st_ctime_ns, "ctime is old")


@case
def unlink_errors(t):
    make("f")
    os.mkdir("d")
    os.mkdir("closed", 0o755)
    make("closed/f", b"", 0o666)
    os.symlink("loop", "loop")
    expect(ENOENT, os.unlink, "missing")
    expect(ENOENT, os.unlink, "")
    expect(ENOENT, os.unlink, "missing/f")
    expect(EISDIR, os.unlink, "d")
    expect(ENOTDIR, os.unlink, "f/x")
    expect(ENOTDIR, os.unlink, "f/")
    expect(ELOOP, os.unlink, "loop/x")
    expect(ENAMETOOLONG, os.unlink, "n" * 256)
    expect(EACCES, as_user, NOBODY, os.unlink, "closed/f")


@case
def unlink_symlink_only(t):
    make("f", b"x")
    os.symlink("f", "s")
    os.unlink("s")
    equal(read("f"), b"x")


@case
def unlink_read_only_file(t):
    os.mkdir("d")
    os.chmod("d", 0o777)
    make("d/f", b"", 0)
    as_user(NOBODY, os.unlink, "d/f")
    equal(os.listdir("d"), [])


@case
def unlink_and_create_again(t):
    numbers = set()
    for _ in range(50):
        make("f", b"x")
        numbers.add(os.stat("f").st_ino)
        os.unlink("f")
        expect(ENOENT, os.stat, "f")
    if t.on_cfs:
        equal(len(numbers), 50, "different inode numbers")  # They are never used again.


@case
def unlinked_file_reads_and_writes(t):
    make("f", b"abc")
    with opened("f") as fd:
        os.unlink("f")
        equal(os.fstat(fd).st_nlink, 0, "nlink")
        os.pwrite(fd, b"x" * 10000, 1)
        equal(os.pread(fd, 3, 0), b"axx")
        equal(os.fstat(fd).st_size, 10001, "size")
        os.fsync(fd)


@case
def unlinked_file_changes_attributes(t):
    make("f", b"abc")
    with opened("f") as fd:
        os.unlink("f")
        os.fchmod(fd, 0o600)
        os.utime(fd, ns=(10**9, 2 * 10**9))
        os.setxattr(fd, "user.a", b"1")
        found = os.fstat(fd)
        equal((stat.S_IMODE(found.st_mode), found.st_mtime_ns), (0o600, 2 * 10**9))
        equal(os.getxattr(fd, "user.a"), b"1")
        if os.geteuid() == 0:
            os.fchown(fd, NOBODY, NOBODY)
            equal(os.fstat(fd).st_uid, NOBODY, "owner")


@case
def unlinked_file_reopened_through_proc(t):
    make("f", b"abc")
    with opened("f") as fd:
        os.unlink("f")
        with opened(f"/proc/self/fd/{fd}", os.O_RDWR) as again:
            os.write(again, b"X")
        equal(os.pread(fd, 3, 0), b"Xbc")


@case
def unlinked_file_name_reused(t):
    make("f", b"old")
    with opened("f") as fd:
        os.unlink("f")
        make("f", b"new file")
        equal((os.pread(fd, 10, 0), read("f")), (b"old", b"new file"))
        check(os.fstat(fd).st_ino != os.stat("f").st_ino, "same inode number")


@case
def unlinked_file_many_descriptors(t):
    make("f", b"abc")
    with opened("f") as a, opened("f", os.O_RDONLY) as b:
        os.unlink("f")
        with opened(f"/proc/self/fd/{b}", os.O_RDONLY) as c:
            os.pwrite(a, b"Z", 0)
            equal(os.pread(c, 3, 0), b"Zbc")


@case
def unlinked_file_on_path_descriptor(t):
    make("f", b"abc")
    with opened("f", os.O_PATH) as fd:
        os.unlink("f")
        found = os.fstat(fd)
        equal((found.st_nlink, found.st_size), (0, 3))


@case
def unlinked_file_inherited_by_child(t):
    make("f", b"abc")
    with opened("f") as fd:
        os.unlink("f")
        in_child(os.pwrite, fd, b"X", 0)
        equal(os.pread(fd, 3, 0), b"Xbc")


@case
def unlinked_symlink_on_path_descriptor(t):
    os.symlink("target", "s")
    with opened("s", os.O_PATH | os.O_NOFOLLOW) as fd:
        os.unlink("s")
        equal((os.readlink("", dir_fd=fd), os.fstat(fd).st_nlink), ("target", 0))


@case
def removed_directory_as_working_directory(t):
    def run(directory):
        os.mkdir(f"{directory}/d")
        os.chdir(f"{directory}/d")
        os.rmdir(f"{directory}/d")
        answers = [outcome(os.getcwd), outcome(os.listdir, "."), outcome(os.mkdir, "x"),
                   outcome(os.open, "f", os.O_CREAT | os.O_WRONLY), outcome(os.symlink, "a", "b"),
                   outcome(os.stat, "x"), outcome(os.link, f"{directory}/f", "g"),
                   outcome(lambda: os.stat(".").st_nlink), outcome(os.chdir, ".."),
                   os.getcwd() == directory]
        return answers

    make("f")
    here = os.getcwd()
    same_as_native(t, lambda d: in_child(run, d))
    os.chdir(here)


@case
def removed_directory_on_descriptor(t):
    os.mkdir("d")
    with opened("d", os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.rmdir("d")
        equal(os.fstat(fd).st_nlink, 0, "nlink")
        expect(ENOENT, os.open, "f", os.O_CREAT | os.O_RDWR, dir_fd=fd)
        expect(ENOENT, os.mkdir, "e", dir_fd=fd)
        equal(os.listdir(fd), [])


@case
def unlink_mount_point(t):
    need_root()
    make("f")
    make("other", b"other")

    def run():
        call("unshare", 0x20000)  # CLONE_NEWNS: the bind mount ends with this process.
        run_checked("mount", "--make-rprivate", "/")
        run_checked("mount", "--bind", "other", "f")
        equal(read("f"), b"other")
        expect(EBUSY, os.unlink, "f")

    in_child(run)


@case
def sticky_directory(t):
    os.mkdir("d")
    os.chmod("d", 0o1777)
    make("d/root")
    as_user(1000, make, "d/mine")
    expect(EPERM, as_user, NOBODY, os.unlink, "d/root")
    expect(EPERM, as_user, NOBODY, os.unlink, "d/mine")
    as_user(1000, os.unlink, "d/mine")
    os.chown("d", NOBODY, NOBODY)
    as_user(NOBODY, os.unlink, "d/root")  # The owner of the directory may.
