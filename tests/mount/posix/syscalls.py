"""System calls that Python's os module lacks or hides; errors are raised as OSError."""

import ctypes
import fcntl
import os
import platform
import struct
from collections import namedtuple

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_SYMLINK_FOLLOW = 0x400
AT_EMPTY_PATH = 0x1000
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE = 0x1, 0x2, 0x8, 0x10, 0x20
STATX_BASIC_STATS, STATX_BTIME = 0x7FF, 0x800
OFD_GETLK, OFD_SETLK, OFD_SETLKW = 36, 37, 38

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int,
                       ctypes.c_int, ctypes.c_long]


def call(name, *args):
    """A libc function that returns -1 and sets errno."""
    return _checked(name, getattr(_libc, name)(*map(_argument, args)))


def _argument(value):
    if isinstance(value, str):
        return ctypes.c_char_p(os.fsencode(value))
    if isinstance(value, int):
        return ctypes.c_long(value)
    return value


def _checked(name, result):
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return result


def rename2(source, target, flags):
    call("renameat2", AT_FDCWD, source, AT_FDCWD, target, flags)


def linkat(directory_fd, source, target, flags):
    call("linkat", directory_fd, source, AT_FDCWD, target, flags)


def fallocate(fd, mode, offset, length):
    call("fallocate", fd, mode, offset, length)


def syncfs(fd):
    call("syncfs", fd)


def utimensat(path, atime, mtime, flags=0, directory_fd=AT_FDCWD):
    """atime, mtime: (seconds, nanoseconds). path None: directory_fd itself."""
    times = struct.pack("qqqq", *atime, *mtime)
    if path is None:
        call("futimens", directory_fd, times)
    else:
        call("utimensat", directory_fd, path, times, flags)


Statx = namedtuple("Statx", "mask blksize nlink uid gid mode ino size blocks atime btime ctime "
                            "mtime dev mnt_id")


def statx(path, flags=0, mask=STATX_BASIC_STATS | STATX_BTIME, directory_fd=AT_FDCWD):
    """Times are in nanoseconds."""
    buffer = ctypes.create_string_buffer(256)
    call("statx", directory_fd, path, flags, mask, buffer)
    head = struct.unpack_from("=IIQIIIHxxQQQQ", buffer, 0)
    got_mask, blksize, _, nlink, uid, gid, mode, ino, size, blocks, _ = head
    times = [seconds * 10**9 + nanoseconds for seconds, nanoseconds in
             (struct.unpack_from("=qI", buffer, 64 + 16 * i) for i in range(4))]
    major, minor, mount = struct.unpack_from("=IIQ", buffer, 136)
    return Statx(got_mask, blksize, nlink, uid, gid, mode, ino, size, blocks, *times,
                 os.makedev(major, minor), mount)


def name_to_handle(path, flags=0):
    """(type, bytes, mount id) of a file's handle."""
    buffer = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0), 8 + 128)
    mount = ctypes.c_int()
    call("name_to_handle_at", AT_FDCWD, path, buffer, ctypes.byref(mount), flags)
    length, kind = struct.unpack_from("=Ii", buffer)
    return kind, buffer.raw[8:8 + length], mount.value


def open_by_handle(mount_fd, handle, flags=os.O_RDONLY):
    kind, data, _ = handle
    buffer = ctypes.create_string_buffer(struct.pack("=Ii", len(data), kind) + data)
    return call("open_by_handle_at", mount_fd, buffer, flags)


Entry = namedtuple("Entry", "ino cookie kind name")
DT_UNKNOWN, DT_FIFO, DT_CHR, DT_DIR, DT_BLK, DT_REG, DT_LNK, DT_SOCK = 0, 1, 2, 4, 6, 8, 10, 12
_SYS_GETDENTS64 = {"x86_64": 217, "aarch64": 61}[platform.machine()]


def getdents(fd, size=32768):
    """The next entries of a directory; [] at its end. cookie: where lseek goes on after it."""
    buffer = ctypes.create_string_buffer(size)
    length = call("syscall", _SYS_GETDENTS64, fd, buffer, size)
    entries, at = [], 0
    while at < length:
        ino, cookie, entry_size, kind = struct.unpack_from("=QqHB", buffer, at)
        name = buffer.raw[at + 19:at + entry_size].split(b"\0", 1)[0]
        entries.append(Entry(ino, cookie, kind, os.fsdecode(name)))
        at += entry_size
    return entries


def read_directory(fd, size=32768):
    """All entries from the descriptor's position on."""
    entries = []
    while block := getdents(fd, size):
        entries += block
    return entries


def xattr_size(function, *args):
    """getxattr/listxattr with a buffer of their last argument's size."""
    *head, size = args
    buffer = ctypes.create_string_buffer(max(size, 1))
    return call(function, *head, buffer, size)


Lock = namedtuple("Lock", "type whence start length pid")


def lock(fd, command, kind, start=0, length=0, whence=os.SEEK_SET):
    """fcntl(2) record locks, process-owned or OFD: returns the kernel's answer as a Lock."""
    request = struct.pack("hhqqi4x", kind, whence, start, length, 0)
    kind, whence, start, length, pid = struct.unpack("hhqqi4x", fcntl.fcntl(fd, command, request))
    return Lock(kind, whence, start, length, pid)


def map_pages(fd, length, protection, flags, offset=0):
    """mmap(2) as an address: unlike Python's mmap object it holds no descriptor."""
    address = _libc.mmap(None, length, protection, flags, fd, offset)
    return _checked("mmap", -1 if address == ctypes.c_void_p(-1).value else address)


def unmap(address, length):
    call("munmap", ctypes.c_void_p(address), length)


def msync(address, length, flags):
    call("msync", ctypes.c_void_p(address), length, flags)


def peek(address, length):
    return ctypes.string_at(address, length)


def poke(address, data):
    ctypes.memmove(address, data, len(data))


BAD_ADDRESS = ctypes.c_void_p(1)
