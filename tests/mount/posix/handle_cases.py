"""File handles: name_to_handle_at(2), open_by_handle_at(2)."""

import ctypes
import os
import stat
import struct
from errno import EBADF, EFAULT, EINVAL, ELOOP, ENOENT, ENOTDIR, EOVERFLOW, EPERM, ESTALE

from harness import (NOBODY, as_user, case, check, equal, expect, make, need_root, opened, outcome,
                     read)
from syscalls import (AT_FDCWD, AT_SYMLINK_FOLLOW, BAD_ADDRESS, call, name_to_handle,
                      open_by_handle)


def drop_caches():
    """Dentries and inodes only: what a handle has to do without."""
    need_root()
    with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as f:
        f.write("2")


def reopen(handle, flags=os.O_RDONLY):
    need_root()
    with opened(".", os.O_RDONLY) as mount:
        return open_by_handle(mount, handle, flags)


@case
def of_a_file(t):
    make("f", b"abc")
    fd = reopen(name_to_handle("f"), os.O_RDWR)
    equal((os.read(fd, 3), os.fstat(fd).st_ino), (b"abc", os.stat("f").st_ino))
    os.pwrite(fd, b"X", 0)
    equal(read("f"), b"Xbc")


@case
def of_a_directory(t):
    os.mkdir("d")
    make("d/f", b"abc")
    fd = reopen(name_to_handle("d"), os.O_RDONLY | os.O_DIRECTORY)
    equal(os.listdir(fd), ["f"])
    with opened("f", os.O_RDONLY, dir_fd=fd) as f:
        equal(os.read(f, 3), b"abc")


@case
def of_the_root(t):
    fd = reopen(name_to_handle(".."), os.O_RDONLY)
    equal(os.fstat(fd).st_ino, os.stat("..").st_ino)


@case
def of_a_symlink(t):
    make("f", b"abc")
    os.symlink("f", "s")
    handle = name_to_handle("s")
    expect(ELOOP, reopen, handle)
    equal(os.readlink("", dir_fd=reopen(handle, os.O_PATH)), "f")
    equal(os.read(reopen(name_to_handle("s", AT_SYMLINK_FOLLOW)), 3), b"abc")


@case
def of_a_fifo(t):
    os.mkfifo("p")
    check(stat.S_ISFIFO(os.fstat(reopen(name_to_handle("p"), os.O_RDWR)).st_mode), "no fifo")


@case
def same_for_links_different_for_files(t):
    make("a")
    os.link("a", "b")
    make("c")
    equal(name_to_handle("a"), name_to_handle("b"))
    check(name_to_handle("a") != name_to_handle("c"), "same handle")


@case
def after_rename(t):
    make("f", b"abc")
    handle = name_to_handle("f")
    os.mkdir("d")
    os.rename("f", "d/g")
    equal(os.read(reopen(handle), 3), b"abc")


@case
def after_dropped_caches(t):
    os.makedirs("a/b/c")
    make("a/b/c/f", b"abc")
    handles = [name_to_handle(path) for path in ("a/b/c/f", "a/b/c")]
    drop_caches()
    fd = reopen(handles[0])
    equal(os.read(fd, 3), b"abc")
    equal(os.listdir(reopen(handles[1])), ["f"])


@case
def directory_path_after_dropped_caches(t):
    """The kernel finds the way up to the root through '..'."""
    os.makedirs("a/b/c")
    handle = name_to_handle("a/b/c")
    wanted = os.path.abspath("a/b/c")
    drop_caches()
    fd = reopen(handle, os.O_RDONLY | os.O_DIRECTORY)
    equal(os.readlink(f"/proc/self/fd/{fd}"), wanted)
    equal(os.stat("..", dir_fd=fd).st_ino, os.stat("a/b").st_ino)


def check_gone(handle, content):
    """The kernel tells of a file's last close later: until then it is there, as for others."""
    found = outcome(reopen, handle)
    if found != "ESTALE":
        equal(os.read(found, 100), content, "content")
        os.close(found)


@case
def of_deleted(t):
    make("f", b"abc")
    os.mkdir("d")
    handles = [name_to_handle("f"), name_to_handle("d")]
    os.unlink("f")
    os.rmdir("d")
    check_gone(handles[0], b"abc")
    expect(ESTALE, reopen, handles[1])
    drop_caches()
    for handle in handles:
        expect(ESTALE, reopen, handle)


@case
def of_deleted_after_new_files(t):
    """A new file never answers to an old one's handle."""
    for _ in range(20):
        make("f", b"old")
        handle = name_to_handle("f")
        os.unlink("f")
        make("f", b"new")
        check_gone(handle, b"old")


@case
def made_up(t):
    kind, data, mount = name_to_handle(make("f"))
    expect(ESTALE, reopen, (kind, b"\xfe" * len(data), mount))
    expect((ESTALE, EINVAL), reopen, (kind, data[:4], mount))


@case
def after_unlink_of_one_link(t):
    make("f", b"abc")
    os.link("f", "g")
    handle = name_to_handle("f")
    os.unlink("f")
    equal(os.read(reopen(handle), 3), b"abc")


@case
def needs_privilege(t):
    make("f", b"abc")
    handle = name_to_handle("f")
    expect(EPERM, as_user, NOBODY, lambda: open_by_handle(os.open(".", os.O_RDONLY), handle))


@case
def errors(t):
    make("f")
    handle = name_to_handle("f")
    expect(ENOENT, name_to_handle, "missing")
    expect(ENOENT, name_to_handle, "")
    expect(ENOTDIR, name_to_handle, "f/x")
    expect(EINVAL, name_to_handle, "f", 0x40)
    need_root()
    expect(EBADF, open_by_handle, 999, handle)
    expect(EFAULT, call, "name_to_handle_at", AT_FDCWD, "f", BAD_ADDRESS, BAD_ADDRESS, 0)


@case
def size_is_told(t):
    make("f")
    mount = ctypes.c_int()
    buffer = ctypes.create_string_buffer(struct.pack("=Ii", 0, 0), 64)
    expect(EOVERFLOW, call, "name_to_handle_at", AT_FDCWD, "f", buffer, ctypes.byref(mount), 0)
    equal(struct.unpack_from("=I", buffer)[0], len(name_to_handle("f")[1]), "size")


@case
def truncating_open(t):
    make("f", b"abc")
    os.close(reopen(name_to_handle("f"), os.O_RDWR | os.O_TRUNC))
    equal(read("f"), b"")
