"""mmap(2): coherence with read and write, life after close and unlink, SIGBUS, msync."""

import ctypes
import mmap
import os
import random
import signal
from errno import EACCES, EBADF, EINVAL, ENODEV, ENOMEM

from harness import (Child, case, check, equal, expect, in_child, make, opened, read,
                     same_as_native)
from syscalls import (KEEP_SIZE, PUNCH_HOLE, call, fallocate, map_pages, msync, peek, poke,
                      unmap)

PAGE = mmap.PAGESIZE
READ, WRITE, EXEC = mmap.PROT_READ, mmap.PROT_WRITE, mmap.PROT_EXEC
SHARED, PRIVATE = mmap.MAP_SHARED, mmap.MAP_PRIVATE
MS_ASYNC, MS_INVALIDATE, MS_SYNC = 1, 2, 4


class Mapping:
    """Pages of a file, unmapped at the end of the with block; holds no descriptor."""

    def __init__(self, fd, length, protection=READ | WRITE, flags=SHARED, offset=0):
        self.address = map_pages(fd, length, protection, flags, offset)
        self._length = length

    def __enter__(self):
        return self

    def __exit__(self, *_):
        unmap(self.address, self._length)

    def get(self, at, size):
        return peek(self.address + at, size)

    def put(self, at, data):
        poke(self.address + at, data)


def map_file(path, length=PAGE, protection=READ | WRITE, flags=SHARED, offset=0,
             how=os.O_RDWR):
    with opened(path, how) as fd:
        return Mapping(fd, length, protection, flags, offset)


@case
def shows_the_content(t):
    data = os.urandom(3 * PAGE + 100)
    make("f", data)
    with map_file("f", 4 * PAGE, READ, SHARED, 0, os.O_RDONLY) as pages:
        equal(pages.get(0, len(data)) == data, True, "content")
        equal(pages.get(len(data), PAGE - 100), bytes(PAGE - 100), "rest of the last page")


@case
def at_an_offset(t):
    data = os.urandom(5 * PAGE)
    make("f", data)
    with map_file("f", PAGE, READ, SHARED, 3 * PAGE) as pages:
        equal(pages.get(0, PAGE) == data[3 * PAGE:4 * PAGE], True, "content")


@case
def store_is_seen_by_read(t):
    make("f", b"a" * PAGE)
    with opened("f") as fd, Mapping(fd, PAGE) as pages:
        equal(os.pread(fd, 1, 5), b"a")
        pages.put(5, b"X")
        equal(os.pread(fd, 1, 5), b"X")
        equal(in_child(lambda: read("f")[5:6]), b"X", "read by another process")


@case
def write_is_seen_in_mapping(t):
    make("f", b"a" * PAGE)
    with opened("f") as fd, Mapping(fd, PAGE) as pages:
        equal(pages.get(5, 1), b"a")
        os.pwrite(fd, b"X", 5)
        equal(pages.get(5, 1), b"X")
        with opened("f") as other:
            os.pwrite(other, b"Y", 6)
        equal(pages.get(5, 2), b"XY")


@case
def two_mappings_are_one(t):
    make("f", b"a" * PAGE)
    with map_file("f") as a, map_file("f") as b:
        a.put(0, b"1")
        b.put(1, b"2")
        equal((a.get(0, 2), b.get(0, 2)), (b"12", b"12"))


@case
def shared_between_processes(t):
    make("f", b"a" * PAGE)
    with map_file("f") as pages:
        def store():
            with map_file("f") as own:
                own.put(7, b"Z")

        in_child(store)
        equal(pages.get(7, 1), b"Z")


@case
def stores_survive_unmapping(t):
    make("f", b"a" * PAGE)
    with map_file("f") as pages:
        pages.put(0, b"bcd")
    equal(read("f")[:4], b"bcda")


@case
def store_after_close(t):
    make("f", b"a" * PAGE)
    fd = os.open("f", os.O_RDWR)
    with Mapping(fd, PAGE) as pages:
        os.close(fd)
        pages.put(0, b"b")
        equal(read("f")[:1], b"b")
        pages.put(0, b"c")
        equal(read("f")[:1], b"c")


@case
def store_after_close_with_readers_coming_and_going(t):
    """Opens for reading must not get stale pages while only a mapping writes."""
    make("f", b"0" * PAGE)
    with map_file("f") as pages:
        for number in range(30):
            pages.put(10, b"%02d" % number)
            equal(read("f")[10:12], b"%02d" % number)
            with map_file("f", PAGE, READ, SHARED, 0, os.O_RDONLY) as view:
                equal(view.get(10, 2), b"%02d" % number)


@case
def store_after_unlink(t):
    make("f", b"a" * PAGE)
    with opened("f") as fd, map_file("f") as pages:
        os.unlink("f")
        pages.put(0, b"b")
        equal(os.pread(fd, 1, 0), b"b")


@case
def mapping_alone_keeps_unlinked_file(t):
    data = os.urandom(4 * PAGE)
    make("f", data)
    with map_file("f", 4 * PAGE) as pages:
        os.unlink("f")
        equal(pages.get(0, 4 * PAGE) == data, True, "content")
        pages.put(PAGE, b"still here")
        equal(pages.get(PAGE, 10), b"still here")


@case
def store_after_rename_over(t):
    make("f", b"a" * PAGE)
    make("g", b"g")
    with map_file("f") as pages:
        os.rename("g", "f")
        pages.put(0, b"b")
        equal((pages.get(0, 2), read("f")), (b"ba", b"g"))


@case
def private_does_not_reach_the_file(t):
    make("f", b"a" * PAGE)
    with map_file("f", PAGE, READ | WRITE, PRIVATE, 0, os.O_RDONLY) as pages:
        pages.put(0, b"b")
        equal((pages.get(0, 1), read("f")[:1]), (b"b", b"a"))


@case
def private_sees_later_writes_on_untouched_pages(t):
    def run(directory):
        path = make(f"{directory}/f", b"a" * 2 * PAGE)
        with map_file(path, 2 * PAGE, READ | WRITE, PRIVATE) as pages:
            pages.put(0, b"b")
            with opened(path) as fd:
                os.pwrite(fd, b"X" * 2 * PAGE, 0)
            return pages.get(0, 2), pages.get(PAGE, 2)

    same_as_native(t, run)


@case
def hole_is_filled_by_a_store(t):
    make("f")
    os.truncate("f", 10 * PAGE)
    with map_file("f", 10 * PAGE) as pages:
        equal(pages.get(5 * PAGE, 10), bytes(10))
        pages.put(5 * PAGE, b"x")
    data = read("f")
    equal((len(data), data[5 * PAGE:5 * PAGE + 1], data.count(b"x")), (10 * PAGE, b"x", 1))


@case
def beyond_the_end_of_file(t):
    """Inside the last page: zeros; behind it: SIGBUS."""
    make("f", b"abc")
    with map_file("f", 2 * PAGE) as pages:
        equal(pages.get(3, 10), bytes(10))
        child = Child(pages.get, PAGE, 1)
        equal(child.ended_by(), signal.SIGBUS)
        pages.put(10, b"lost")
    equal(read("f"), b"abc")


@case
def stores_beyond_the_end_after_growth(t):
    def run(directory):
        path = make(f"{directory}/f", b"abc")
        with map_file(path) as pages:
            pages.put(10, b"lost")
        os.truncate(path, 20)
        return read(path)

    same_as_native(t, run)


@case
def grown_file_is_reachable(t):
    make("f", b"a" * PAGE)
    with map_file("f", 3 * PAGE) as pages:
        os.truncate("f", 3 * PAGE)
        equal(pages.get(2 * PAGE, 1), b"\0")
        pages.put(2 * PAGE, b"x")
    equal(read("f")[2 * PAGE:2 * PAGE + 1], b"x")


@case
def truncated_file_gives_sigbus(t):
    make("f", b"a" * 3 * PAGE)
    with map_file("f", 3 * PAGE) as pages:
        equal(pages.get(2 * PAGE, 1), b"a")
        os.truncate("f", PAGE)
        equal(Child(pages.get, PAGE, 1).ended_by(), signal.SIGBUS)
        equal(Child(pages.put, 2 * PAGE, b"x").ended_by(), signal.SIGBUS)
        equal(pages.get(0, 1), b"a")


@case
def truncation_zeroes_the_rest_of_the_page(t):
    make("f", b"a" * PAGE)
    with map_file("f") as pages:
        pages.get(0, PAGE)
        os.truncate("f", 100)
        equal(pages.get(98, 4), b"aa\0\0")
        os.truncate("f", PAGE)
        equal(pages.get(98, 4), b"aa\0\0")


@case
def punched_hole_is_seen(t):
    make("f", b"a" * 4 * PAGE)
    with opened("f") as fd, Mapping(fd, 4 * PAGE) as pages:
        equal(pages.get(PAGE, 1), b"a")
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, PAGE, PAGE)
        equal((pages.get(PAGE - 1, 2), pages.get(2 * PAGE - 1, 2)), (b"a\0", b"\0a"))


@case
def file_ends_after_truncate_to_zero_and_regrowth(t):
    make("f", b"a" * 2 * PAGE)
    with map_file("f", 2 * PAGE) as pages:
        pages.put(PAGE, b"b")
        os.truncate("f", 0)
        os.truncate("f", 2 * PAGE)
        equal(pages.get(0, 2 * PAGE), bytes(2 * PAGE))


@case
def msync_flags(t):
    make("f", b"a" * 2 * PAGE)
    with map_file("f", 2 * PAGE) as pages:
        pages.put(0, b"b")
        msync(pages.address, 2 * PAGE, MS_SYNC)
        pages.put(1, b"c")
        msync(pages.address, PAGE, MS_ASYNC)
        msync(pages.address, PAGE, MS_SYNC | MS_INVALIDATE)
        expect(EINVAL, msync, pages.address + 1, PAGE, MS_SYNC)
        expect(EINVAL, msync, pages.address, PAGE, MS_SYNC | MS_ASYNC)
        expect(ENOMEM, msync, pages.address, 1 << 44, MS_SYNC)
    equal(read("f")[:3], b"bca")


@case
def msync_after_close_and_unlink(t):
    make("f", b"a" * PAGE)
    with map_file("f") as pages:
        pages.put(0, b"b")
        msync(pages.address, PAGE, MS_SYNC)
        os.unlink("f")
        pages.put(0, b"c")
        msync(pages.address, PAGE, MS_SYNC)
        equal(pages.get(0, 1), b"c")


@case
def mtime_of_stores_is_seen(t):
    """After msync, as POSIX asks; also when the descriptor is long closed."""
    make("f", b"a" * 2 * PAGE)
    os.utime("f", ns=(10**9, 10**9))
    with map_file("f", 2 * PAGE) as pages:
        for page in (0, PAGE):  # tmpfs tells of the first store into a page only.
            pages.put(page, b"b")
            msync(pages.address, 2 * PAGE, MS_SYNC)
            check(os.stat("f").st_mtime_ns > 10**9, "mtime is old")
            os.utime("f", ns=(10**9, 10**9))
            equal(os.stat("f").st_mtime_ns, 10**9, "mtime set back")


@case
def protection_follows_the_descriptor(t):
    make("f", b"a" * PAGE)
    with opened("f", os.O_RDONLY) as fd:
        expect(EACCES, Mapping, fd, PAGE, READ | WRITE, SHARED)
        with Mapping(fd, PAGE, READ, SHARED) as pages:
            equal(Child(pages.put, 0, b"x").ended_by(), signal.SIGSEGV)
    with opened("f", os.O_WRONLY) as fd:
        expect(EACCES, Mapping, fd, PAGE, WRITE, SHARED)
        expect(EACCES, Mapping, fd, PAGE, READ, PRIVATE)


@case
def errors(t):
    make("f", b"a" * PAGE)
    os.mkdir("d")
    with opened("f") as fd:
        expect(EINVAL, Mapping, fd, PAGE, READ, SHARED, 100)
        expect(EINVAL, Mapping, fd, 0, READ, SHARED)
        expect(EINVAL, Mapping, fd, PAGE, READ, 0)
    with opened("d", os.O_RDONLY) as fd:
        expect(ENODEV, Mapping, fd, PAGE, READ, SHARED)
    with opened("f", os.O_PATH) as fd:
        expect(EBADF, Mapping, fd, PAGE, READ, SHARED)


@case
def fork_shares_the_mapping(t):
    make("f", b"a" * PAGE)
    with map_file("f") as pages:
        in_child(pages.put, 0, b"b")
        equal((pages.get(0, 1), read("f")[:1]), (b"b", b"b"))


@case
def executable_mapping(t):
    make("f", b"\x90" * PAGE)
    with map_file("f", PAGE, READ | EXEC, PRIVATE, 0, os.O_RDONLY) as pages:
        equal(pages.get(0, 1), b"\x90")


@case
def remap_pages_advice(t):
    make("f", os.urandom(16 * PAGE))
    with map_file("f", 16 * PAGE) as pages:
        for advice in (1, 2, 3, 4, 0):  # random, sequential, willneed, dontneed, normal
            pages.put(PAGE, b"x")
            call("madvise", ctypes.c_void_p(pages.address), 16 * PAGE, advice)
            equal(pages.get(PAGE, 1), b"x")


@case
def write_from_own_mapping(t):
    """The buffer of a write is the file's own mapping: must not hang."""
    make("f", b"a" * 4 * PAGE)
    with opened("f") as fd, mmap.mmap(fd, 4 * PAGE) as pages:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        equal(os.pwrite(fd, memoryview(pages)[:PAGE].tobytes(), 2 * PAGE), PAGE)
        view = memoryview(pages)
        equal(os.pwritev(fd, [view[PAGE:2 * PAGE]], 2 * PAGE), PAGE)
        equal(os.preadv(fd, [view[3 * PAGE:]], 0), PAGE)
        view.release()
    equal(read("f") == b"a" * 4 * PAGE, True, "content")


@case
def random_operations_against_a_model(t):
    """Reads, writes, stores, truncations mixed: as a bytearray would do."""
    chance = random.Random(7)
    size = 6 * PAGE
    model = bytearray(size)
    make("f", bytes(size))
    with opened("f") as fd, Mapping(fd, size) as pages:
        for step in range(1500):
            at = chance.randrange(size - 300)
            data = bytes([step & 0xFF]) * chance.randrange(1, 300)
            action = chance.randrange(5)
            if action == 0:
                os.pwrite(fd, data, at)
                model[at:at + len(data)] = data
            elif action == 1:
                pages.put(at, data)
                model[at:at + len(data)] = data
            elif action == 2:
                equal(os.pread(fd, 300, at) == model[at:at + 300], True, f"read, step {step}")
            elif action == 3:
                equal(pages.get(at, 300) == model[at:at + 300], True, f"load, step {step}")
            elif step % 50 == 0:
                os.ftruncate(fd, at)
                os.ftruncate(fd, size)
                model[at:] = bytes(size - at)
    equal(read("f") == model, True, "content at the end")


@case
def direct_io_and_mapping(t):
    make("f", b"a" * PAGE)
    buffer = mmap.mmap(-1, PAGE)
    with opened("f", os.O_RDWR | os.O_DIRECT) as fd, map_file("f") as pages:
        pages.put(0, b"b")
        os.preadv(fd, [buffer], 0)
        equal(buffer[:2], b"ba", "direct read after a store")
        buffer[:] = b"c" * PAGE
        os.pwritev(fd, [buffer], 0)
        equal(pages.get(0, 2), b"cc", "load after a direct write")
