"""open(2), creat(2): every flag and errno; O_TMPFILE, O_PATH, exec and ETXTBSY."""

import fcntl
import mmap
import os
import shutil
import socket
import stat
import subprocess
from errno import (EACCES, EBADF, EEXIST, EFAULT, EINVAL, EISDIR, ELOOP, ENOENT, ENOTDIR, ENXIO,
                   EPERM, ETXTBSY)

from harness import (NOBODY, Child, as_user, case, check, equal, expect, make, need_root, opened,
                     read, same_as_native, wait_until)
from syscalls import AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_FOLLOW, BAD_ADDRESS, call, linkat

CREATE = os.O_CREAT | os.O_RDWR


def touch(path, flags=CREATE, mode=0o644):
    os.close(os.open(path, flags, mode))


@case
def creates_empty_regular_file(t):
    touch("f", mode=0o640)
    found = os.stat("f")
    equal(stat.filemode(found.st_mode), "-rw-r-----", "mode")
    equal((found.st_size, found.st_nlink, found.st_uid), (0, 1, os.geteuid()))


@case
def create_belongs_to_caller(t):
    os.mkdir("d")
    os.chmod("d", 0o777)
    as_user(NOBODY, touch, "d/f", gid=1234)
    found = os.stat("d/f")
    equal((found.st_uid, found.st_gid), (NOBODY, 1234), "owner")


@case
def umask_applies(t):
    os.umask(0o137)
    touch("f", mode=0o777)
    equal(stat.S_IMODE(os.stat("f").st_mode), 0o640, "mode")


@case
def create_keeps_sticky_and_suid_bits(t):
    touch("f", mode=0o6711)
    equal(stat.S_IMODE(os.stat("f").st_mode), 0o6711, "mode")


@case
def create_read_only_mode_gives_writable_descriptor(t):
    with opened("f", CREATE, 0o400) as fd:
        os.write(fd, b"x")
    equal(read("f"), b"x")


@case
def create_mode_zero_unprivileged(t):
    os.mkdir("d")
    os.chmod("d", 0o777)

    def write():
        with opened("d/f", os.O_CREAT | os.O_WRONLY, 0) as fd:
            os.write(fd, b"x")
        expect(EACCES, os.open, "d/f", os.O_RDONLY)

    as_user(NOBODY, write)


@case
def creat_truncates(t):
    make("f", b"data")
    os.close(call("creat", "f", 0o644))
    equal(os.stat("f").st_size, 0, "size")


@case
def existing_with_creat_keeps_content_and_mode(t):
    make("f", b"data", 0o600)
    touch("f", mode=0o777)
    equal((read("f"), stat.S_IMODE(os.stat("f").st_mode)), (b"data", 0o600))


@case
def excl_refuses_existing_file(t):
    make("f")
    expect(EEXIST, os.open, "f", CREATE | os.O_EXCL)


@case
def excl_refuses_directory(t):
    os.mkdir("d")
    expect(EEXIST, os.open, "d", CREATE | os.O_EXCL)


@case
def excl_refuses_symlink_even_dangling(t):
    os.symlink("nowhere", "s")
    expect(EEXIST, os.open, "s", CREATE | os.O_EXCL)
    check(not os.path.exists("nowhere"), "target was created")


@case
def excl_creates_after_unlink(t):
    make("f")
    os.unlink("f")
    touch("f", CREATE | os.O_EXCL)


@case
def excl_has_one_winner(t):
    def attempt(index):
        wins = 0
        for number in range(100):
            try:
                touch(f"f{number}", CREATE | os.O_EXCL)
                wins += 1
            except FileExistsError:
                pass
        return wins

    children = [Child(attempt, i) for i in range(3)]
    equal(sum(child.result() for child in children), 100, "winners")


@case
def creat_follows_dangling_symlink(t):
    os.symlink("target", "s")
    touch("s")
    check(stat.S_ISREG(os.lstat("target").st_mode), "target not created")


@case
def trunc_empties(t):
    make("f", b"data" * 3000)
    with opened("f", os.O_RDWR | os.O_TRUNC) as fd:
        equal(os.fstat(fd).st_size, 0, "size")
        os.write(fd, b"x")
    equal(read("f"), b"x")


@case
def trunc_seen_by_other_descriptor(t):
    make("f", b"data")
    with opened("f", os.O_RDONLY) as fd:
        equal(os.read(fd, 2), b"da")
        touch("f", os.O_WRONLY | os.O_TRUNC)
        equal(os.read(fd, 2), b"")
        equal(os.fstat(fd).st_size, 0, "size")


@case
def trunc_without_write_permission(t):
    make("f", b"data", 0o444)
    expect(EACCES, as_user, NOBODY, os.open, "f", os.O_WRONLY | os.O_TRUNC)
    expect(EACCES, as_user, NOBODY, os.open, "f", os.O_RDONLY | os.O_TRUNC)
    equal(read("f"), b"data")


@case
def trunc_leaves_fifo_alone(t):
    os.mkfifo("p")
    with opened("p", os.O_RDWR) as fd:
        os.write(fd, b"x")
        touch("p", os.O_RDWR | os.O_TRUNC)
        equal(os.read(fd, 1), b"x")


@case
def append_writes_at_end(t):
    make("f", b"ab")
    with opened("f", os.O_RDWR | os.O_APPEND) as fd:
        os.lseek(fd, 0, os.SEEK_SET)
        equal(os.write(fd, b"cd"), 2)
        equal(os.lseek(fd, 0, os.SEEK_CUR), 4, "offset")
    equal(read("f"), b"abcd")


@case
def append_two_descriptors_alternate(t):
    with opened("f", CREATE | os.O_APPEND) as a, opened("f", os.O_WRONLY | os.O_APPEND) as b:
        for number in range(20):
            os.write((a, b)[number % 2], b"%02d" % number)
    equal(read("f"), b"".join(b"%02d" % n for n in range(20)))


@case
def append_is_atomic_between_processes(t):
    make("f")

    def append(letter):
        with opened("f", os.O_WRONLY | os.O_APPEND) as fd:
            for _ in range(300):
                os.write(fd, letter * 97 + b"\n")

    for child in [Child(append, letter) for letter in (b"a", b"b", b"c")]:
        child.result()
    lines = read("f").split(b"\n")[:-1]
    equal(len(lines), 900, "records")
    check(all(len(set(line)) == 1 and len(line) == 97 for line in lines), "torn record")


@case
def append_set_and_cleared_by_fcntl(t):
    make("f", b"abcd")
    with opened("f") as fd:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_APPEND)
        os.write(fd, b"e")
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, b"A")
    equal(read("f"), b"Abcde")


@case
def directory_flag_on_file(t):
    make("f")
    expect(ENOTDIR, os.open, "f", os.O_RDONLY | os.O_DIRECTORY)
    os.symlink("f", "s")
    expect(ENOTDIR, os.open, "s", os.O_RDONLY | os.O_DIRECTORY)


@case
def directory_flag_on_directory(t):
    os.mkdir("d")
    with opened("d", os.O_RDONLY | os.O_DIRECTORY) as fd:
        check(stat.S_ISDIR(os.fstat(fd).st_mode), "no directory")


@case
def directory_flag_with_creat(t):
    expect(EINVAL, os.open, "d", CREATE | os.O_DIRECTORY)
    check(not os.path.exists("d"), "something was created")


@case
def directory_for_writing(t):
    os.mkdir("d")
    expect(EISDIR, os.open, "d", os.O_WRONLY)
    expect(EISDIR, os.open, "d", os.O_RDWR)
    expect(EISDIR, os.open, "d", os.O_RDONLY | os.O_CREAT)
    expect(EISDIR, os.open, "d", os.O_RDONLY | os.O_TRUNC)


@case
def directory_is_not_readable_as_file(t):
    os.mkdir("d")
    with opened("d", os.O_RDONLY) as fd:
        expect(EISDIR, os.read, fd, 1)


@case
def nofollow_refuses_symlink(t):
    make("f")
    os.symlink("f", "s")
    expect(ELOOP, os.open, "s", os.O_RDONLY | os.O_NOFOLLOW)
    expect(ELOOP, os.open, "s", CREATE | os.O_NOFOLLOW)


@case
def nofollow_follows_in_the_middle(t):
    os.mkdir("d")
    make("d/f", b"x")
    os.symlink("d", "s")
    with opened("s/f", os.O_RDONLY | os.O_NOFOLLOW) as fd:
        equal(os.read(fd, 1), b"x")


@case
def nofollow_directory_flag_on_symlink(t):
    os.mkdir("d")
    os.symlink("d", "s")
    expect((ENOTDIR, ELOOP), os.open, "s", os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)


@case
def missing_file(t):
    expect(ENOENT, os.open, "f", os.O_RDWR)
    expect(ENOENT, os.open, "", os.O_RDWR)
    expect(ENOENT, os.open, "d/f", CREATE)


@case
def missing_then_created_is_found(t):
    """The negative lookup must not outlive the creation."""
    for number in range(20):
        expect(ENOENT, os.stat, f"f{number}")
        touch(f"f{number}")
        os.stat(f"f{number}")


@case
def file_in_path(t):
    make("f")
    expect(ENOTDIR, os.open, "f/g", os.O_RDONLY)
    expect(ENOTDIR, os.open, "f/g", CREATE)
    expect(ENOTDIR, os.open, "f/", os.O_RDONLY)


@case
def trailing_slash_with_creat(t):
    expect(EISDIR, os.open, "f/", CREATE)


@case
def null_byte_free_bad_pointer(t):
    expect(EFAULT, call, "open", BAD_ADDRESS, os.O_RDONLY)
    expect(EFAULT, call, "open", BAD_ADDRESS, CREATE, 0o644)


@case
def access_mode_is_enforced_on_descriptor(t):
    make("f", b"x")
    with opened("f", os.O_RDONLY) as fd:
        expect(EBADF, os.write, fd, b"y")
    with opened("f", os.O_WRONLY) as fd:
        expect(EBADF, os.read, fd, 1)


@case
def access_mode_three(t):
    make("f", b"x")
    with opened("f", 3) as fd:
        expect(EBADF, os.read, fd, 1)
        expect(EBADF, os.write, fd, b"y")


@case
def permission_denied(t):
    make("f", b"x", 0o600)
    expect(EACCES, as_user, NOBODY, os.open, "f", os.O_RDONLY)
    expect(EACCES, as_user, NOBODY, os.open, "f", os.O_WRONLY)
    expect(EACCES, as_user, NOBODY, os.open, "new", CREATE)


@case
def noatime_flag_is_for_the_owner(t):
    make("f", b"x", 0o644)
    expect(EPERM, as_user, NOBODY, os.open, "f", os.O_RDONLY | os.O_NOATIME)
    with opened("f", os.O_RDONLY | os.O_NOATIME) as fd:
        os.utime("f", ns=(10**9, 2 * 10**9))
        os.read(fd, 1)
        equal(os.stat("f").st_atime_ns, 10**9, "atime")


@case
def path_descriptor_does_no_io(t):
    make("f", b"x", 0o000)
    with opened("f", os.O_PATH) as fd:
        expect(EBADF, os.read, fd, 1)
        expect(EBADF, os.ftruncate, fd, 0)
        expect(EBADF, os.fchmod, fd, 0o600)
        equal(os.fstat(fd).st_size, 1, "size")


@case
def path_descriptor_of_symlink(t):
    os.symlink("target", "s")
    with opened("s", os.O_PATH | os.O_NOFOLLOW) as fd:
        check(stat.S_ISLNK(os.fstat(fd).st_mode), "not the link itself")
        equal(os.readlink("", dir_fd=fd), "target")


@case
def path_descriptor_reopened_through_proc(t):
    make("f", b"x")
    with opened("f", os.O_PATH) as path_fd:
        os.rename("f", "g")
        with opened(f"/proc/self/fd/{path_fd}", os.O_RDWR) as fd:
            os.write(fd, b"y")
    equal(read("g"), b"y")


@case
def path_descriptor_as_directory(t):
    os.mkdir("d")
    make("d/f", b"x")
    with opened("d", os.O_PATH | os.O_DIRECTORY) as d, opened("f", os.O_RDONLY, dir_fd=d) as fd:
        equal(os.read(fd, 1), b"x")


@case
def at_relative_to_file(t):
    make("f")
    with opened("f") as fd:
        expect(ENOTDIR, os.open, "g", CREATE, dir_fd=fd)


@case
def sync_flags(t):
    for name, flag in (("sync", os.O_SYNC), ("dsync", os.O_DSYNC)):
        with opened(name, CREATE | flag) as fd:
            os.write(fd, b"abc")
            os.pwrite(fd, b"X", 1)
        equal(read(name), b"aXc")


@case
def direct_io(t):

    def run(directory):
        buffer = mmap.mmap(-1, 8192)
        buffer[:] = bytes(range(256)) * 32
        with opened(f"{directory}/f", CREATE | os.O_DIRECT) as fd:
            written = os.pwritev(fd, [buffer], 4096)
            buffer[:] = bytes(8192)
            got = os.preadv(fd, [buffer], 4096)
        return written, got, bytes(buffer) == bytes(range(256)) * 32, os.stat(
            f"{directory}/f").st_size

    same_as_native(t, run)


@case
def direct_io_coherent_with_buffered(t):
    buffer = mmap.mmap(-1, 4096)
    make("f", b"a" * 4096)
    with opened("f") as plain, opened("f", os.O_RDWR | os.O_DIRECT) as direct:
        os.pwrite(plain, b"b" * 4096, 0)
        os.preadv(direct, [buffer], 0)
        equal(buffer[:1], b"b", "direct read after a buffered write")
        buffer[:] = b"c" * 4096
        os.pwritev(direct, [buffer], 0)
        equal(os.pread(plain, 1, 0), b"c", "buffered read after a direct write")


@case
def nonblock_on_regular_file(t):
    make("f", b"x")
    with opened("f", os.O_RDONLY | os.O_NONBLOCK) as fd:
        equal(os.read(fd, 2), b"x")


@case
def fifo_without_reader(t):
    os.mkfifo("p")
    expect(ENXIO, os.open, "p", os.O_WRONLY | os.O_NONBLOCK)
    with opened("p", os.O_RDONLY | os.O_NONBLOCK):
        touch("p", os.O_WRONLY | os.O_NONBLOCK)


@case
def unix_socket(t):
    with socket.socket(socket.AF_UNIX) as s:
        s.bind("s")
        expect(ENXIO, os.open, "s", os.O_RDWR)


@case
def missing_device(t):
    need_root()
    os.mknod("c", stat.S_IFCHR | 0o600, os.makedev(240, 77))
    expect((ENXIO, EACCES), os.open, "c", os.O_RDWR)  # EACCES: mounted with nodev.


@case
def many_descriptors_of_one_file(t):
    make("f", b"x" * 100)
    fds = [os.open("f", os.O_RDWR if n % 2 else os.O_RDONLY) for n in range(200)]
    for number, fd in enumerate(fds):
        equal(os.pread(fd, 1, number % 100), b"x")
        os.close(fd)


@case
def many_open_files(t):
    fds = [os.open(f"f{n}", CREATE) for n in range(500)]
    for number, fd in enumerate(fds):
        os.write(fd, b"%d" % number)
    for number, fd in enumerate(fds):
        equal(os.pread(fd, 10, 0), b"%d" % number)
        os.close(fd)


@case
def descriptor_follows_rename(t):
    make("f", b"a")
    with opened("f") as fd:
        os.rename("f", "g")
        os.pwrite(fd, b"b", 0)
        make("f", b"c")
        equal((os.pread(fd, 1, 0), read("g"), read("f")), (b"b", b"b", b"c"))


@case
def descriptors_share_offset_after_dup_and_fork(t):
    make("f", b"abcd")
    with opened("f") as fd:
        copy = os.dup(fd)
        os.read(copy, 1)
        child = Child(os.read, fd, 1)
        equal(child.result(), b"b")
        equal(os.read(fd, 1), b"c")
        os.close(copy)


@case
def open_modes_one_after_the_other(t):
    """Closed files change their I/O mode; contents have to follow."""
    make("f", b"0" * 5000)
    for number in range(1, 10):
        flags = (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_SYNC)[number % 3]
        with opened("f", flags) as fd:
            os.pwrite(fd, b"%d" % number, 4500)
        equal(read("f")[4500:4501], b"%d" % number)


# O_TMPFILE


@case
def tmpfile_has_no_name(t):
    with opened(".", os.O_TMPFILE | os.O_RDWR, 0o640) as fd:
        os.write(fd, b"abc")
        equal(os.pread(fd, 3, 0), b"abc")
        found = os.fstat(fd)
        equal((stat.S_IMODE(found.st_mode), found.st_size), (0o640, 3))
        equal(os.listdir("."), [])


@case
def tmpfile_has_no_links(t):
    with opened(".", os.O_TMPFILE | os.O_RDWR) as fd:
        equal(os.fstat(fd).st_nlink, 0, "nlink")


@case
def tmpfile_linked_through_proc(t):
    with opened(".", os.O_TMPFILE | os.O_RDWR, 0o600) as fd:
        os.write(fd, b"abc")
        linkat(AT_FDCWD, f"/proc/self/fd/{fd}", "f", AT_SYMLINK_FOLLOW)
        equal(os.fstat(fd).st_nlink, 1, "nlink")
        equal(os.stat("f").st_ino, os.fstat(fd).st_ino, "ino")
        os.write(fd, b"d")
    equal(read("f"), b"abcd")
    equal(os.listdir("."), ["f"])


@case
def tmpfile_linked_by_descriptor(t):
    need_root()
    with opened(".", os.O_TMPFILE | os.O_WRONLY) as fd:
        os.write(fd, b"abc")
        linkat(fd, "", "f", AT_EMPTY_PATH)
        expect(EEXIST, linkat, fd, "", "f", AT_EMPTY_PATH)
    equal(read("f"), b"abc")


@case
def tmpfile_excl_can_not_be_linked(t):
    with opened(".", os.O_TMPFILE | os.O_RDWR | os.O_EXCL) as fd:
        expect(ENOENT, linkat, AT_FDCWD, f"/proc/self/fd/{fd}", "f", AT_SYMLINK_FOLLOW)


@case
def tmpfile_needs_write_access(t):
    expect((EINVAL,), os.open, ".", os.O_TMPFILE | os.O_RDONLY)


@case
def tmpfile_needs_writable_directory(t):
    expect(EACCES, as_user, NOBODY, os.open, ".", os.O_TMPFILE | os.O_RDWR)


@case
def tmpfile_in_missing_directory(t):
    expect(ENOENT, os.open, "d", os.O_TMPFILE | os.O_RDWR)
    make("f")
    expect(ENOTDIR, os.open, "f", os.O_TMPFILE | os.O_RDWR)


@case
def tmpfile_belongs_to_caller(t):
    os.mkdir("d")
    os.chmod("d", 0o777)

    def create():
        with opened("d", os.O_TMPFILE | os.O_RDWR, 0o600) as fd:
            linkat(AT_FDCWD, f"/proc/self/fd/{fd}", "d/f", AT_SYMLINK_FOLLOW)

    as_user(NOBODY, create)
    found = os.stat("d/f")
    equal((found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)), (NOBODY, NOBODY, 0o600))


# exec and ETXTBSY


def copy_of_true():
    shutil.copy("/bin/true", "program")
    os.chmod("program", 0o755)


@case
def exec_binary(t):
    copy_of_true()
    equal(subprocess.run(["./program"], check=False).returncode, 0, "exit")


@case
def exec_script(t):
    make("script", b"#!/bin/sh\necho $0\n", 0o755)
    equal(subprocess.run(["./script"], capture_output=True, check=False).stdout, b"./script\n")


@case
def exec_without_permission(t):
    make("script", b"#!/bin/sh\n", 0o644)
    expect(EACCES, os.execv, "./script", ["script"])


@case
def exec_while_open_for_writing(t):
    copy_of_true()
    with opened("program", os.O_WRONLY):
        expect(ETXTBSY, os.execv, "./program", ["program"])
    equal(subprocess.run(["./program"], check=False).returncode, 0, "exit")


@case
def write_to_running_program(t):
    def run(directory):
        program = f"{directory}/program"
        shutil.copy("/bin/sleep", program)
        sleeper = subprocess.Popen([program, "20"])
        try:
            # Until it runs the copy, it is a fork of this process.
            wait_until(lambda: os.readlink(f"/proc/{sleeper.pid}/exe") == program, 10, "exec")
            os.close(os.open(program, os.O_WRONLY))
        finally:
            sleeper.kill()
            sleeper.wait()

    same_as_native(t, run)
