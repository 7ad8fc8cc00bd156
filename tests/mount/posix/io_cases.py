"""read, write and their variants, lseek, SEEK_HOLE and SEEK_DATA, sendfile, splice."""

import mmap
import fcntl
import os
import resource
import signal
import socket
import subprocess
import threading
from errno import EBADF, EFAULT, EFBIG, EINVAL, EISDIR, ENOTTY, ENXIO, EOPNOTSUPP, ESPIPE

from harness import (as_user, case, check, equal, expect, in_child, make, opened, outcome, read,
                     same_as_native, NOBODY)
from syscalls import BAD_ADDRESS, call

CREATE = os.O_CREAT | os.O_RDWR
BLOCK = 4096


def pattern(size, seed=1):
    return bytes((i * 7 + (i >> 8) * 13 + seed) & 0xFF for i in range(size))


@case
def write_then_read(t):
    data = pattern(10000)
    with opened("f", CREATE) as fd:
        equal(os.write(fd, data), len(data))
        equal(os.lseek(fd, 0, os.SEEK_CUR), len(data), "offset")
        equal(os.read(fd, 10), b"", "read at the end")
        os.lseek(fd, 0, os.SEEK_SET)
        equal(os.read(fd, 20000), data)
    equal(read("f"), data)


@case
def write_of_sizes_round_page_and_request_limits(t):
    for size in (1, 4095, 4096, 4097, 131071, 131072, 131073, (1 << 20) - 1, 1 << 20,
                 (1 << 20) + 1):
        data = os.urandom(size)
        make("f", data)
        equal(read("f") == data, True, f"content of {size} bytes")


@case
def large_single_write(t):
    data = os.urandom(9 << 20)
    with opened("f", CREATE) as fd:
        equal(os.write(fd, data), len(data))
    equal(read("f") == data, True, "content")


@case
def overlapping_writes(t):
    model = bytearray(20000)
    with opened("f", CREATE) as fd:
        os.ftruncate(fd, len(model))
        for number in range(200):
            start, size = number * 7919 % 17000, number * 104729 % 2999 + 1
            data = bytes([number]) * size
            os.pwrite(fd, data, start)
            model[start:start + size] = data
    equal(read("f") == bytes(model), True, "content")


@case
def write_nothing(t):
    make("f", b"x")
    os.utime("f", ns=(10**9, 10**9))
    with opened("f") as fd:
        equal(os.write(fd, b""), 0)
    equal(os.stat("f").st_mtime_ns, 10**9, "mtime")


@case
def read_nothing(t):
    make("f", b"x")
    with opened("f") as fd:
        equal(os.read(fd, 0), b"")


@case
def pread_pwrite_leave_the_offset(t):
    make("f", b"abcdef")
    with opened("f") as fd:
        os.pwrite(fd, b"X", 3)
        equal(os.pread(fd, 2, 2), b"cX")
        equal(os.lseek(fd, 0, os.SEEK_CUR), 0, "offset")


@case
def pwrite_with_append_appends(t):
    """As Linux does, and pwrite(2) says under BUGS."""
    make("f", b"abc")
    with opened("f", os.O_RDWR | os.O_APPEND) as fd:
        os.pwrite(fd, b"X", 0)
    equal(read("f"), b"abcX")


@case
def pread_negative_offset(t):
    make("f", b"abc")
    with opened("f") as fd:
        expect(EINVAL, os.pread, fd, 1, -1)
        expect(EINVAL, os.pwrite, fd, b"x", -1)


@case
def readv_writev(t):
    with opened("f", CREATE) as fd:
        equal(os.writev(fd, [b"ab", b"", b"cdef", b"g"]), 7)
        os.lseek(fd, 1, os.SEEK_SET)
        parts = [bytearray(2), bytearray(3), bytearray(10)]
        equal(os.readv(fd, parts), 6)
        equal([bytes(p[:n]) for p, n in zip(parts, (2, 3, 1))], [b"bc", b"def", b"g"])


@case
def preadv_pwritev_with_flags(t):
    make("f", b"abcdef")
    with opened("f") as fd:
        equal(os.pwritev(fd, [b"XY", b"Z"], 2, os.RWF_DSYNC), 3)
        equal(os.pwritev(fd, [b"W"], 5, os.RWF_SYNC), 1)
        part = bytearray(6)
        equal(os.preadv(fd, [part], 0), 6)
        equal(bytes(part), b"abXYZW")


@case
def pwritev_append_flag(t):
    rwf_append = 0x10
    make("f", b"abc")
    with opened("f") as fd:
        equal(os.pwritev(fd, [b"de"], 0, rwf_append), 2)
    equal(read("f"), b"abcde")


@case
def bad_addresses(t):
    make("f", b"abc")
    with opened("f") as fd:
        expect(EFAULT, call, "read", fd, BAD_ADDRESS, 3)
        expect(EFAULT, call, "write", fd, BAD_ADDRESS, 3)
        expect(EFAULT, call, "pread", fd, BAD_ADDRESS, 3, 0)
    equal(read("f"), b"abc")


@case
def closed_descriptor(t):
    fd = os.open(make("f", b"abc"), os.O_RDWR)
    os.close(fd)
    expect(EBADF, os.read, fd, 1)
    expect(EBADF, os.write, fd, b"x")
    expect(EBADF, os.fsync, fd)
    expect(EBADF, os.lseek, fd, 0, os.SEEK_SET)


@case
def seen_at_once_by_other_descriptor_and_process(t):
    make("f", b"....")
    with opened("f") as writer, opened("f", os.O_RDONLY) as reader:
        for number in range(50):
            data = b"%04d" % number
            os.pwrite(writer, data, 0)
            equal(os.pread(reader, 4, 0), data)
        equal(in_child(read, "f"), b"0049")


@case
def size_grows_at_once_for_others(t):
    with opened("f", CREATE) as writer, opened("f", os.O_RDONLY) as reader:
        for number in range(1, 50):
            os.write(writer, b"x" * 100)
            equal(os.fstat(reader).st_size, number * 100, "size by fstat")
            equal(os.stat("f").st_size, number * 100, "size by stat")
            equal(os.lseek(reader, 0, os.SEEK_END), number * 100, "size by lseek")


@case
def grown_by_child_process(t):
    make("f", b"ab")
    with opened("f") as fd:
        equal(os.pread(fd, 10, 0), b"ab")

        def append():
            with opened("f", os.O_WRONLY | os.O_APPEND) as other:
                os.write(other, b"cd")

        in_child(append)
        equal(os.pread(fd, 10, 0), b"abcd")


@case
def threads_write_disjoint_blocks(t):
    make("f")
    with opened("f") as fd:
        def fill(index):
            for number in range(index, 200, 4):
                os.pwrite(fd, bytes([number]) * 1000, number * 1000)

        threads = [threading.Thread(target=fill, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    equal(read("f") == b"".join(bytes([n]) * 1000 for n in range(200)), True, "content")


# Sparse files


@case
def hole_reads_as_zeros(t):
    with opened("f", CREATE) as fd:
        os.pwrite(fd, b"x", 1 << 20)
        equal(os.pread(fd, 4096, 500000), bytes(4096))
        equal(os.fstat(fd).st_size, (1 << 20) + 1, "size")
        check(os.fstat(fd).st_blocks * 512 < 1 << 19, "the hole takes space")


@case
def write_beyond_end_zeroes_the_gap(t):
    make("f", b"abc")
    with opened("f") as fd:
        os.pwrite(fd, b"x", 10)
    equal(read("f"), b"abc" + bytes(7) + b"x")


@case
def shrink_and_grow_zeroes_the_tail(t):
    make("f", b"abcdef")
    os.truncate("f", 3)
    os.truncate("f", 6)
    equal(read("f"), b"abc" + bytes(3))


@case
def far_offset(t):
    with opened("f", CREATE) as fd:
        os.pwrite(fd, b"end", 5 << 40)
        equal(os.pread(fd, 10, 5 << 40), b"end")
        equal(os.fstat(fd).st_size, (5 << 40) + 3, "size")


@case
def largest_offset(t):
    def run(directory):
        with opened(f"{directory}/f", CREATE) as fd:
            return [outcome(os.pwrite, fd, b"x", offset)
                    for offset in ((1 << 63) - 2, (1 << 63) - 1, 1 << 50)]

    same_as_native(t, run)


@case
def file_size_limit(t):
    def run():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with opened("f", CREATE) as fd:
            equal(os.write(fd, bytes(2000)), 1000, "short write up to the limit")
            expect(EFBIG, os.write, fd, b"x")
            expect(EFBIG, os.ftruncate, fd, 1001)
            expect(EFBIG, os.posix_fallocate, fd, 0, 1001)

    in_child(run)
    equal(os.stat("f").st_size, 1000, "size")


@case
def file_size_limit_signals(t):
    def run():
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        caught = []
        signal.signal(signal.SIGXFSZ, lambda *_: caught.append(1))
        with opened("f", CREATE) as fd:
            expect(EFBIG, os.write, fd, b"x")
        return len(caught)

    equal(in_child(run), 1, "signals")


# lseek


@case
def lseek_whence(t):
    make("f", b"0123456789")
    with opened("f") as fd:
        equal(os.lseek(fd, 4, os.SEEK_SET), 4)
        equal(os.lseek(fd, 3, os.SEEK_CUR), 7)
        equal(os.lseek(fd, -2, os.SEEK_END), 8)
        equal(os.lseek(fd, 100, os.SEEK_END), 110, "beyond the end")
        equal(os.read(fd, 1), b"")


@case
def lseek_errors(t):
    make("f", b"0123456789")
    with opened("f") as fd:
        expect(EINVAL, os.lseek, fd, -1, os.SEEK_SET)
        expect(EINVAL, os.lseek, fd, -11, os.SEEK_END)
        expect(EINVAL, os.lseek, fd, 0, 99)
        equal(os.lseek(fd, 0, os.SEEK_CUR), 0, "offset after errors")
    os.mkfifo("p")
    with opened("p") as fd:
        expect(ESPIPE, os.lseek, fd, 0, os.SEEK_CUR)
        expect(ESPIPE, os.pread, fd, 1, 0)


def extents(fd):
    """[(data start, hole start), ...]"""
    found, offset = [], 0
    while isinstance(offset, int):
        start = outcome(os.lseek, fd, offset, os.SEEK_DATA)
        if not isinstance(start, int):
            return found + [start]
        offset = os.lseek(fd, start, os.SEEK_HOLE)
        found.append((start, offset))
    return found


@case
def seek_data_hole(t):
    def run(directory):
        with opened(f"{directory}/f", CREATE) as fd:
            os.ftruncate(fd, 64 * BLOCK)
            for block in (3, 4, 20, 63):
                os.pwrite(fd, b"x" * BLOCK, block * BLOCK)
            os.fsync(fd)
            return extents(fd)

    same_as_native(t, run)


@case
def seek_data_hole_unsynced(t):
    """Data in the page cache only is data too."""
    with opened("f", CREATE) as fd:
        os.pwrite(fd, b"x" * BLOCK, 16 * BLOCK)
        equal(os.lseek(fd, 0, os.SEEK_DATA), 16 * BLOCK, "data")
        equal(os.lseek(fd, 16 * BLOCK, os.SEEK_HOLE), 17 * BLOCK, "hole")


@case
def seek_data_errors(t):
    make("f", b"x" * 100)
    make("empty")
    with opened("f") as fd:
        equal(os.lseek(fd, 0, os.SEEK_HOLE), 100, "hole at the end")
        equal(os.lseek(fd, 99, os.SEEK_DATA), 99)
        expect(ENXIO, os.lseek, fd, 100, os.SEEK_DATA)
        expect(ENXIO, os.lseek, fd, 100, os.SEEK_HOLE)
        expect(ENXIO, os.lseek, fd, -1, os.SEEK_DATA)
    with opened("empty") as fd:
        expect(ENXIO, os.lseek, fd, 0, os.SEEK_DATA)


@case
def seek_data_moves_the_offset(t):
    with opened("f", CREATE) as fd:
        os.pwrite(fd, b"x" * BLOCK, 16 * BLOCK)
        os.lseek(fd, 0, os.SEEK_DATA)
        equal(os.read(fd, 1), b"x")


@case
def seek_data_in_all_hole(t):
    with opened("f", CREATE) as fd:
        os.ftruncate(fd, 16 * BLOCK)
        expect(ENXIO, os.lseek, fd, 0, os.SEEK_DATA)
        equal(os.lseek(fd, 5, os.SEEK_HOLE), 5)


# Copies between descriptors


@case
def copy_file_range_whole(t):
    data = pattern(300000)
    make("a", data)
    with opened("a", os.O_RDONLY) as a, opened("b", CREATE) as b:
        left = len(data)
        while left:
            count = os.copy_file_range(a, b, left)
            check(count > 0, "copied nothing")
            left -= count
        equal(os.copy_file_range(a, b, 10), 0, "count at the end")
    equal(read("b") == data, True, "content")


@case
def copy_file_range_offsets(t):
    make("a", b"0123456789")
    make("b", b"abcdefghij")
    with opened("a", os.O_RDONLY) as a, opened("b") as b:
        equal(os.copy_file_range(a, b, 3, 4, 1), 3)
        equal((os.lseek(a, 0, os.SEEK_CUR), os.lseek(b, 0, os.SEEK_CUR)), (0, 0), "offsets")
    equal(read("b"), b"a456efghij")


@case
def copy_file_range_extends(t):
    make("a", b"0123456789")
    make("b")
    with opened("a", os.O_RDONLY) as a, opened("b") as b:
        equal(os.copy_file_range(a, b, 100, 5, 8), 5, "short count at the end")
        equal(os.fstat(b).st_size, 13, "size")
    equal(read("b"), bytes(8) + b"56789")


@case
def copy_file_range_within_a_file(t):
    make("f", b"0123456789")
    with opened("f") as fd:
        equal(os.copy_file_range(fd, fd, 3, 0, 5), 3)
        expect(EINVAL, os.copy_file_range, fd, fd, 3, 0, 2)
    equal(read("f"), b"0123401289")


@case
def copy_file_range_sees_unsynced_data(t):
    with opened("a", CREATE) as a, opened("b", CREATE) as b:
        os.write(a, b"fresh")
        equal(os.copy_file_range(a, b, 5, 0, 0), 5)
        equal(os.pread(b, 5, 0), b"fresh")


@case
def copy_file_range_errors(t):
    make("a", b"0123456789")
    os.mkdir("d")
    with opened("a", os.O_RDONLY) as a, opened("b", CREATE) as b, opened("d", os.O_RDONLY) as d:
        expect(EBADF, os.copy_file_range, b, a, 1)
        with opened("b", os.O_WRONLY) as w:
            expect(EBADF, os.copy_file_range, w, b, 1)
        with opened("b", os.O_WRONLY | os.O_APPEND) as end:
            expect(EBADF, os.copy_file_range, a, end, 1)
        expect(EISDIR, os.copy_file_range, d, b, 1)
        reader, writer = os.pipe()
        expect(EINVAL, os.copy_file_range, a, writer, 1)
        os.close(reader)
        os.close(writer)


@case
def copy_file_range_changes_mtime_and_drops_suid(t):
    make("a", b"0123456789")
    make("b", b"", 0o6777)
    os.utime("b", ns=(10**9, 10**9))

    def copy():
        with opened("a", os.O_RDONLY) as a, opened("b") as b:
            os.copy_file_range(a, b, 10)

    as_user(NOBODY, copy)
    equal(os.stat("b").st_mode & 0o7777, 0o777, "mode")
    check(os.stat("b").st_mtime_ns > 10**9, "mtime is old")


@case
def sendfile_to_socket_and_file(t):
    data = pattern(200000)
    make("a", data)
    with opened("a", os.O_RDONLY) as a, opened("b", CREATE) as b:
        sent = 0
        while sent < len(data):
            sent += os.sendfile(b, a, sent, len(data) - sent)
        equal(os.sendfile(b, a, len(data), 10), 0)
        left, right = socket.socketpair()
        with left, right:
            equal(os.sendfile(left.fileno(), a, 100, 50), 50)
            equal(right.recv(100), data[100:150])
    equal(read("b") == data, True, "content")


@case
def splice_both_ways(t):
    data = pattern(50000)
    make("a", data)
    reader, writer = os.pipe()
    with opened("a", os.O_RDONLY) as a, opened("b", CREATE) as b:
        moved = 0
        while count := os.splice(a, writer, 30000, offset_src=moved):
            left = count
            while left:
                left -= os.splice(reader, b, left)
            moved += count
    equal(read("b") == data, True, "content")
    os.close(reader)
    os.close(writer)


@case
def splice_to_append_descriptor(t):
    make("f", b"ab")
    reader, writer = os.pipe()
    os.write(writer, b"cd")
    with opened("f", os.O_WRONLY | os.O_APPEND) as fd:
        expect(EINVAL, os.splice, reader, fd, 2)
    os.close(reader)
    os.close(writer)


@case
def readahead_and_fadvise(t):
    make("f", pattern(300000))
    with opened("f") as fd:
        for advice in (os.POSIX_FADV_SEQUENTIAL, os.POSIX_FADV_WILLNEED,
                       os.POSIX_FADV_DONTNEED, os.POSIX_FADV_RANDOM, os.POSIX_FADV_NORMAL):
            os.posix_fadvise(fd, 0, 0, advice)
        expect(EINVAL, os.posix_fadvise, fd, 0, 0, 99)
    equal(read("f") == pattern(300000), True, "content")


@case
def content_survives_dropped_caches(t):
    data = os.urandom(200000)
    with opened("f", CREATE) as fd:
        os.write(fd, data)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        equal(os.pread(fd, len(data), 0) == data, True, "content")


@case
def shell_tools_round_trip(t):
    make("a", os.urandom(3 << 20))
    subprocess.run("cp a b && dd if=b of=c bs=64k status=none && cat c >d && cmp a d",
                   shell=True, check=True)


@case
def direct_io_unaligned(t):
    def run(directory):
        with opened(f"{directory}/f", CREATE | os.O_DIRECT) as fd:
            memory = mmap.mmap(-1, 8192)
            return [outcome(os.pwritev, fd, [memoryview(memory)[:100]], 0),
                    outcome(os.pwritev, fd, [memoryview(memory)[:4096]], 100)]

    # A file system may take what another refuses; it must not answer anything else.
    os.mkdir("d")
    for result, whole in zip(run("d"), (100, 4096)):
        check(result in ("EINVAL", whole), f"answer {result}")


@case
def ioctl_unknown(t):
    make("f", b"x")
    with opened("f") as fd:
        expect((ENOTTY, EOPNOTSUPP), fcntl.ioctl, fd, 0x12345678, 0)
