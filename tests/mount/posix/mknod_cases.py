"""mknod, FIFOs, sockets and devices on the file system."""

import os
import socket
import stat
from errno import EACCES, EADDRINUSE, EEXIST, EFAULT, EINVAL, ENAMETOOLONG, ENOENT, ENOTDIR, EPERM

from harness import (NOBODY, Child, Skip, as_user, case, check, equal, expect, make,
                     mount_options, need_root, opened, read)
from syscalls import BAD_ADDRESS, call


@case
def regular_file(t):
    os.mknod("f", stat.S_IFREG | 0o640)
    found = os.stat("f")
    equal((stat.filemode(found.st_mode), found.st_size, found.st_nlink), ("-rw-r-----", 0, 1))
    with opened("f") as fd:
        os.write(fd, b"x")
    equal(read("f"), b"x")


@case
def type_zero_is_regular(t):
    os.mknod("f", 0o600)
    check(stat.S_ISREG(os.stat("f").st_mode), "no regular file")


@case
def fifo(t):
    os.mkfifo("p", 0o640)
    equal(stat.filemode(os.stat("p").st_mode), "prw-r-----")


@case
def fifo_carries_data(t):
    os.mkfifo("p")
    child = Child(read, "p")
    child.wait_blocked()
    with open("p", "wb") as f:
        f.write(b"through")
    equal(child.result(), b"through")
    equal(os.stat("p").st_size, 0, "size")


@case
def fifo_survives_rename_while_open(t):
    os.mkfifo("p")
    with opened("p", os.O_RDWR) as fd:
        os.rename("p", "q")
        with opened("q", os.O_WRONLY | os.O_NONBLOCK) as writer:
            os.write(writer, b"x")
        equal(os.read(fd, 1), b"x")


@case
def umask_applies(t):
    os.umask(0o077)
    os.mkfifo("p", 0o666)
    os.mknod("f", stat.S_IFREG | 0o666)
    equal([stat.S_IMODE(os.stat(n).st_mode) for n in "pf"], [0o600] * 2, "modes")


@case
def belongs_to_caller(t):
    os.mkdir("d")
    os.chmod("d", 0o777)
    as_user(NOBODY, os.mkfifo, "d/p")
    equal(os.stat("d/p").st_uid, NOBODY, "owner")


@case
def devices(t):
    need_root()
    for name, kind, number in (("c", stat.S_IFCHR, os.makedev(1, 3)),
                               ("b", stat.S_IFBLK, os.makedev(7, 200)),
                               ("large", stat.S_IFCHR, os.makedev(4095, 0xFFFFF)),
                               ("zero", stat.S_IFCHR, 0)):
        os.mknod(name, kind | 0o600, number)
        found = os.lstat(name)
        equal((stat.S_IFMT(found.st_mode), found.st_rdev), (kind, number), name)


@case
def device_opens(t):
    need_root()
    if "nodev" in mount_options("."):
        raise Skip("mounted with nodev")
    os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with opened("null") as fd:
        equal((os.write(fd, b"gone"), os.read(fd, 1)), (4, b""))


@case
def devices_unprivileged(t):
    os.mkdir("d")
    os.chmod("d", 0o777)
    expect(EPERM, as_user, NOBODY, os.mknod, "d/c", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    expect(EPERM, as_user, NOBODY, os.mknod, "d/b", stat.S_IFBLK | 0o600, os.makedev(7, 0))
    equal(os.listdir("d"), [])


@case
def errors(t):
    make("f")
    os.mkdir("d")
    os.symlink("nowhere", "s")
    for name in ("f", "d", "s"):
        expect(EEXIST, os.mkfifo, name)
        expect(EEXIST, os.mknod, name, stat.S_IFREG | 0o600)
    expect(ENOENT, os.mkfifo, "missing/p")
    expect(ENOENT, os.mkfifo, "")
    expect(ENOTDIR, os.mkfifo, "f/p")
    expect(ENAMETOOLONG, os.mkfifo, "n" * 256)
    expect(EACCES, as_user, NOBODY, os.mkfifo, "p")
    expect(EPERM, os.mknod, "x", stat.S_IFDIR | 0o700)
    expect(EINVAL, os.mknod, "x", stat.S_IFLNK | 0o700)
    expect(EFAULT, call, "mknod", BAD_ADDRESS, stat.S_IFREG | 0o600, 0)


@case
def stream_socket(t):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        check(stat.S_ISSOCK(os.stat("s").st_mode), "no socket")
        server.listen()

        def client():
            with socket.socket(socket.AF_UNIX) as s:
                s.connect("s")
                s.sendall(b"hello")
                return s.recv(10)

        child = Child(client)
        connection, _ = server.accept()
        with connection:
            equal(connection.recv(10), b"hello")
            connection.sendall(b"bye")
        equal(child.result(), b"bye")


@case
def socket_name_is_taken(t):
    with socket.socket(socket.AF_UNIX) as a, socket.socket(socket.AF_UNIX) as b:
        a.bind("s")
        expect(EADDRINUSE, b.bind, "s")
        os.unlink("s")
        b.bind("s")


@case
def datagram_socket_after_rename(t):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server, \
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        server.bind("s")
        os.rename("s", "r")
        client.sendto(b"x", "r")
        equal(server.recv(10), b"x")


@case
def socket_by_mknod(t):
    os.mknod("s", stat.S_IFSOCK | 0o600)
    check(stat.S_ISSOCK(os.stat("s").st_mode), "no socket")


@case
def special_files_keep_attributes(t):
    os.mkfifo("p")
    os.chmod("p", 0o622)
    os.utime("p", ns=(10**9, 2 * 10**9))
    found = os.stat("p")
    equal((stat.S_IMODE(found.st_mode), found.st_mtime_ns), (0o622, 2 * 10**9))
