"""truncate, ftruncate and fallocate with all modes."""

import itertools
import os
import stat
from errno import (EACCES, EBADF, EFAULT, EFBIG, EINVAL, EISDIR, ELOOP, ENODEV, ENOENT, ENOTDIR,
                   EOPNOTSUPP, ESPIPE)

from harness import (NOBODY, as_user, case, check, equal, expect, make, opened, outcome, read,
                     same_as_native)
from syscalls import (BAD_ADDRESS, COLLAPSE_RANGE, INSERT_RANGE, KEEP_SIZE, PUNCH_HOLE,
                      ZERO_RANGE, call, fallocate)

CREATE = os.O_CREAT | os.O_RDWR
BLOCK = 4096


@case
def shrink(t):
    make("f", b"0123456789")
    os.truncate("f", 4)
    equal(read("f"), b"0123")


@case
def grow(t):
    make("f", b"0123")
    os.truncate("f", 10000)
    equal(read("f"), b"0123" + bytes(9996))


@case
def to_same_size(t):
    make("f", b"0123")
    os.truncate("f", 4)
    equal(read("f"), b"0123")


@case
def to_zero_and_refill(t):
    make("f", b"x" * 10000)
    for number in range(10):
        os.truncate("f", 0)
        with opened("f") as fd:
            os.pwrite(fd, b"%d" % number, 5000)
        equal(read("f"), bytes(5000) + b"%d" % number)


@case
def by_descriptor_while_reading(t):
    make("f", b"x" * 10000)
    with opened("f") as fd:
        equal(os.pread(fd, 1, 9999), b"x")
        os.ftruncate(fd, 5000)
        equal(os.pread(fd, 10, 4999), b"x")
        os.ftruncate(fd, 10000)
        equal(os.pread(fd, 5, 4998), b"xx" + bytes(3))


@case
def within_a_page(t):
    make("f", b"x" * 4096)
    with opened("f") as fd:
        os.pread(fd, 4096, 0)
        os.ftruncate(fd, 100)
        os.ftruncate(fd, 200)
        equal(os.pread(fd, 4096, 0), b"x" * 100 + bytes(100))


@case
def by_path_seen_by_descriptor(t):
    make("f", b"x" * 100)
    with opened("f") as fd:
        os.truncate("f", 10)
        equal((os.fstat(fd).st_size, os.pread(fd, 100, 0)), (10, b"x" * 10))
        os.write(fd, b"y" * 20)
        os.truncate("f", 15)
        equal(os.fstat(fd).st_size, 15)


@case
def unlinked_file(t):
    make("f", b"x" * 100)
    with opened("f") as fd:
        os.unlink("f")
        os.ftruncate(fd, 10)
        equal((os.fstat(fd).st_size, os.pread(fd, 100, 0)), (10, b"x" * 10))


@case
def follows_symlink(t):
    make("f", b"0123")
    os.symlink("f", "s")
    os.truncate("s", 1)
    equal(read("f"), b"0")


@case
def errors(t):
    make("f", b"0123", 0o644)
    os.mkdir("d")
    os.symlink("loop", "loop")
    expect(EINVAL, os.truncate, "f", -1)
    expect(EISDIR, os.truncate, "d", 0)
    expect(ENOENT, os.truncate, "missing", 0)
    expect(ENOTDIR, os.truncate, "f/x", 0)
    expect(ELOOP, os.truncate, "loop", 0)
    expect(EACCES, as_user, NOBODY, os.truncate, "f", 0)
    expect(EFAULT, call, "truncate", BAD_ADDRESS, 0)
    equal(read("f"), b"0123")


@case
def descriptor_errors(t):
    make("f", b"0123")
    with opened("f", os.O_RDONLY) as fd:
        expect((EINVAL, EBADF), os.ftruncate, fd, 0)
    with opened("f") as fd:
        expect(EINVAL, os.ftruncate, fd, -1)
    reader, writer = os.pipe()
    expect(EINVAL, os.ftruncate, writer, 0)
    os.close(reader)
    os.close(writer)
    equal(read("f"), b"0123")


@case
def fifo(t):
    os.mkfifo("p")
    expect(EINVAL, os.truncate, "p", 0)


@case
def descriptor_outlives_permission(t):
    make("f", b"0123", 0o666)

    def run():
        with opened("f", os.O_WRONLY) as fd:
            os.chmod("f", 0)
            expect(EACCES, os.truncate, "f", 1)
            os.ftruncate(fd, 2)

    os.chown("f", NOBODY, NOBODY)
    as_user(NOBODY, run)
    equal(os.stat("f").st_size, 2, "size")


@case
def drops_suid_and_sgid_of_unprivileged(t):
    make("f", b"0123", 0o6777)
    as_user(NOBODY, os.truncate, "f", 2)
    equal(stat.S_IMODE(os.stat("f").st_mode), 0o777, "mode")


@case
def huge_size(t):
    def run(directory):
        make(f"{directory}/f")
        return [outcome(os.truncate, f"{directory}/f", size)
                for size in ((1 << 63) - 1, 1 << 44, 1 << 40)]

    same_as_native(t, run)


# fallocate: every mode does what it does on the store's file system, or is refused.


def content_after(directory, operations):
    """Content, size and errors after fallocate calls (mode, offset, length) on a full file."""
    path = f"{directory}/f"
    with open(path, "wb") as f:
        for number in range(16):
            f.write(bytes([65 + number]) * BLOCK)
    answers = []
    with opened(path) as fd:
        os.pread(fd, 16 * BLOCK, 0)  # Cached pages must not outlive the change.
        for operation in operations:
            answers.append(outcome(fallocate, fd, *operation))
        answers += [os.fstat(fd).st_size, os.pread(fd, 40 * BLOCK, 0)]
    return answers


@case
def allocate(t):
    same_as_native(t, lambda d: content_after(d, [(0, 0, 4 * BLOCK), (0, 15 * BLOCK, 5 * BLOCK)]))


@case
def allocate_beyond_end_grows(t):
    with opened("f", CREATE) as fd:
        fallocate(fd, 0, 10000, 100)
        equal(os.fstat(fd).st_size, 10100, "size")
        equal(os.pread(fd, 20000, 0), bytes(10100))


@case
def allocate_reserves_blocks(t):
    with opened("f", CREATE) as fd:
        fallocate(fd, 0, 0, 1 << 20)
        check(os.fstat(fd).st_blocks * 512 >= 1 << 20, "no blocks")


@case
def keep_size(t):
    with opened("f", CREATE) as fd:
        os.write(fd, b"abc")
        fallocate(fd, KEEP_SIZE, 0, 1 << 20)
        found = os.fstat(fd)
        equal(found.st_size, 3, "size")
        check(found.st_blocks * 512 >= 1 << 20, "no blocks")
        equal(os.pread(fd, 100, 0), b"abc")


@case
def punch_hole(t):
    punch = PUNCH_HOLE | KEEP_SIZE
    for operations in ([(punch, BLOCK, 2 * BLOCK)], [(punch, 100, 50)],
                       [(punch, BLOCK - 10, BLOCK + 20)], [(punch, 10 * BLOCK, 100 * BLOCK)],
                       [(punch, 100 * BLOCK, BLOCK)]):
        for entry in os.listdir("."):
            os.unlink(f"{entry}/f")
            os.rmdir(entry)
        same_as_native(t, lambda d, operations=operations: content_after(d, operations))


@case
def punch_frees_blocks(t):
    make("f", b"x" * (1 << 20))
    with opened("f") as fd:
        os.fsync(fd)
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, 1 << 20)
        equal(os.fstat(fd).st_size, 1 << 20, "size")
        check(os.fstat(fd).st_blocks * 512 < 1 << 19, "blocks are still there")
        equal(os.pread(fd, 10, 5000), bytes(10))


@case
def punch_needs_keep_size(t):
    make("f", b"x" * BLOCK)
    with opened("f") as fd:
        expect(EOPNOTSUPP, fallocate, fd, PUNCH_HOLE, 0, BLOCK)
    equal(read("f"), b"x" * BLOCK)


@case
def zero_range(t):
    same_as_native(t, lambda d: content_after(d, [(ZERO_RANGE, BLOCK - 10, BLOCK + 20)]))


@case
def zero_range_grows(t):
    same_as_native(t, lambda d: content_after(d, [(ZERO_RANGE, 15 * BLOCK, 3 * BLOCK)]))


@case
def zero_range_keep_size(t):
    same_as_native(
        t, lambda d: content_after(d, [(ZERO_RANGE | KEEP_SIZE, 15 * BLOCK, 3 * BLOCK)]))


def shifted(t, mode):
    """COLLAPSE and INSERT never get past the FUSE kernel: refused there, whole elsewhere."""
    operations = [(mode, 2 * BLOCK, 3 * BLOCK)]
    if not t.on_cfs:
        return same_as_native(t, lambda d: content_after(d, operations))
    refused, size, content = content_after(".", operations)
    equal((refused, size), ("EOPNOTSUPP", 16 * BLOCK))
    equal(content == b"".join(bytes([65 + n]) * BLOCK for n in range(16)), True, "content")


@case
def collapse_range(t):
    shifted(t, COLLAPSE_RANGE)


@case
def insert_range(t):
    shifted(t, INSERT_RANGE)


@case
def mode_combinations(t):
    """No combination of bits is accepted here and refused there; shifting ones are above."""
    bits = (KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE)
    modes = [sum(chosen) for count in range(len(bits) + 1)
             for chosen in itertools.combinations(bits, count)]
    same_as_native(t, lambda d: [content_after(d, [(mode, BLOCK, BLOCK)]) for mode in modes])


@case
def allocate_errors(t):
    make("f", b"x")
    with opened("f") as fd:
        expect(EINVAL, fallocate, fd, 0, -1, 10)
        expect(EINVAL, fallocate, fd, 0, 0, 0)
        expect(EINVAL, fallocate, fd, 0, 0, -1)
        expect(EFBIG, fallocate, fd, 0, (1 << 63) - 1, 10)
        expect(EOPNOTSUPP, fallocate, fd, 0x4000, 0, 10)
    with opened("f", os.O_RDONLY) as fd:
        expect(EBADF, fallocate, fd, 0, 0, 10)
    os.mkdir("d")
    with opened("d", os.O_RDONLY) as fd:
        expect((EBADF, EISDIR, ENODEV), fallocate, fd, 0, 0, 10)
    os.mkfifo("p")
    with opened("p") as fd:
        expect(ESPIPE, fallocate, fd, 0, 0, 10)
    equal(os.stat("f").st_size, 1, "size")


@case
def posix_fallocate(t):
    with opened("f", CREATE) as fd:
        os.posix_fallocate(fd, 100, 100)
        equal(os.fstat(fd).st_size, 200, "size")


@case
def allocate_drops_suid_and_sgid_of_unprivileged(t):
    make("f", b"0123", 0o6777)

    def run():
        with opened("f", os.O_WRONLY) as fd:
            fallocate(fd, 0, 0, 100)

    as_user(NOBODY, run)
    equal(stat.S_IMODE(os.stat("f").st_mode), 0o777, "mode")


@case
def punch_drops_suid_and_sgid_of_unprivileged(t):
    make("f", b"0" * 10000, 0o6777)

    def run():
        with opened("f", os.O_WRONLY) as fd:
            fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, 4096)

    as_user(NOBODY, run)
    equal(stat.S_IMODE(os.stat("f").st_mode), 0o777, "mode")
