"""fsync, fdatasync, sync_file_range, syncfs, sync."""

import os
from errno import EBADF, EINVAL, ESPIPE

from harness import Child, case, equal, expect, make, opened, read
from syscalls import call, syncfs

CREATE = os.O_CREAT | os.O_RDWR


@case
def fsync_and_fdatasync(t):
    with opened("f", CREATE) as fd:
        for sync in (os.fsync, os.fdatasync):
            os.write(fd, b"x")
            sync(fd)
            sync(fd)
    equal(read("f"), b"xx")


@case
def fsync_on_read_only_descriptor(t):
    make("f", b"x")
    with opened("f", os.O_RDONLY) as fd:
        os.fsync(fd)
        os.fdatasync(fd)


@case
def fsync_of_directory(t):
    os.mkdir("d")
    make("d/f")
    with opened("d", os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.fsync(fd)
        os.fdatasync(fd)
        os.unlink("d/f")
        os.rmdir("d")
        os.fsync(fd)


@case
def fsync_of_unlinked_file(t):
    with opened("f", CREATE) as fd:
        os.write(fd, b"x")
        os.unlink("f")
        os.fsync(fd)
        equal(os.pread(fd, 1, 0), b"x")


@case
def fsync_of_renamed_and_truncated_file(t):
    with opened("f", CREATE) as fd:
        os.write(fd, b"x" * 10000)
        os.rename("f", "g")
        os.ftruncate(fd, 10)
        os.fsync(fd)
    equal(read("g"), b"x" * 10)


@case
def fsync_errors(t):
    expect(EBADF, os.fsync, 999)
    expect(EBADF, os.fdatasync, 999)
    make("f")
    with opened("f", os.O_PATH) as fd:
        expect(EBADF, os.fsync, fd)
    os.mkfifo("p")
    with opened("p") as fd:
        expect(EINVAL, os.fsync, fd)


@case
def syncfs_and_sync(t):
    make("f", b"x")
    with opened("f", os.O_RDONLY) as fd:
        syncfs(fd)
    with opened(".", os.O_RDONLY) as fd:
        syncfs(fd)
    expect(EBADF, syncfs, 999)
    equal(read("f"), b"x")


@case
def sync_file_range(t):
    with opened("f", CREATE) as fd:
        os.write(fd, b"x" * 10000)
        call("sync_file_range", fd, 0, 5000, 7)
        expect(EINVAL, call, "sync_file_range", fd, 0, 5000, 99)
        expect(EINVAL, call, "sync_file_range", fd, -1, 5000, 7)
    reader, writer = os.pipe()
    expect(ESPIPE, call, "sync_file_range", writer, 0, 1, 7)
    os.close(reader)
    os.close(writer)


@case
def many_processes_sync_at_once(t):
    def work(index):
        with opened(f"f{index}", CREATE) as fd:
            for _ in range(10):
                os.write(fd, b"x")
                os.fsync(fd)

    for child in [Child(work, i) for i in range(8)]:
        child.result()
    equal([read(f"f{i}") for i in range(8)], [b"x" * 10] * 8)


@case
def rename_after_fsync(t):
    """The pattern of everybody who replaces a file safely."""
    make("config", b"old")
    with opened("config.new", CREATE) as fd:
        os.write(fd, b"new")
        os.fsync(fd)
    os.rename("config.new", "config")
    with opened(".", os.O_RDONLY) as fd:
        os.fsync(fd)
    equal(read("config"), b"new")
