"""stat, statx, statfs and statvfs."""

import os
import stat
from errno import EACCES, EBADF, EFAULT, EINVAL, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR

from harness import (NOBODY, as_user, case, check, equal, expect, in_child, make, opened)
from syscalls import (AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW, BAD_ADDRESS, STATX_BASIC_STATS, call,
                      statx)


@case
def fields_of_a_file(t):
    make("f", b"x" * 5000)
    found = os.stat("f")
    equal((found.st_size, found.st_nlink, found.st_rdev), (5000, 1, 0))
    check(found.st_blksize > 0, "blksize")
    check(found.st_ino > 0, "ino")
    equal(found.st_dev, os.stat(".").st_dev, "device")


@case
def blocks_follow_content(t):
    make("f", b"x" * 100000)
    with opened("f") as fd:
        os.fsync(fd)
    check(90000 <= os.stat("f").st_blocks * 512 <= 300000, "blocks of a full file")
    make("empty")
    equal(os.stat("empty").st_blocks, 0, "blocks of an empty file")


@case
def inode_numbers_are_distinct_and_stable(t):
    for number in range(200):
        make(f"f{number}")
    numbers = [os.stat(f"f{n}").st_ino for n in range(200)]
    equal(len(set(numbers)), 200, "inode numbers")
    equal([os.stat(f"f{n}").st_ino for n in range(200)], numbers)
    equal(in_child(lambda: [os.stat(f"f{n}").st_ino for n in range(200)]), numbers)


@case
def stat_by_all_ways_agrees(t):
    make("f", b"abc")
    with opened("f") as fd, opened(".", os.O_RDONLY) as here, opened("f", os.O_PATH) as path:
        wanted = os.stat("f")
        for other in (os.fstat(fd), os.lstat("f"), os.stat("f", dir_fd=here), os.fstat(path),
                      os.stat(f"/proc/self/fd/{fd}")):
            equal(other, wanted)


@case
def stat_errors(t):
    make("f")
    os.symlink("loop", "loop")
    os.mkdir("closed", 0o600)
    for function in (os.stat, os.lstat):
        expect(ENOENT, function, "missing")
        expect(ENOENT, function, "")
        expect(ENOTDIR, function, "f/x")
        expect(ENAMETOOLONG, function, "n" * 256)
        expect(EACCES, as_user, NOBODY, function, "closed/f")
    expect(ELOOP, os.stat, "loop")
    expect(ENOTDIR, os.stat, "f/")
    expect(EBADF, os.fstat, 999)


@case
def statx_agrees_with_stat(t):
    make("f", b"abc", 0o640)
    found, wanted = statx("f"), os.stat("f")
    equal(found.mask & STATX_BASIC_STATS, STATX_BASIC_STATS, "mask")
    equal((found.ino, found.size, found.mode, found.nlink, found.uid, found.gid, found.blocks,
           found.dev, found.atime, found.mtime, found.ctime),
          (wanted.st_ino, wanted.st_size, wanted.st_mode, wanted.st_nlink, wanted.st_uid,
           wanted.st_gid, wanted.st_blocks, wanted.st_dev, wanted.st_atime_ns,
           wanted.st_mtime_ns, wanted.st_ctime_ns))


@case
def statx_flags(t):
    make("f", b"abc")
    os.symlink("f", "s")
    check(stat.S_ISLNK(statx("s", AT_SYMLINK_NOFOLLOW).mode), "no symlink")
    with opened("f") as fd:
        equal(statx("", AT_EMPTY_PATH, directory_fd=fd).size, 3)
        os.unlink("f")
        equal(statx("", AT_EMPTY_PATH, directory_fd=fd).nlink, 0)
    make("f", b"abcd")
    for sync in (0x2000, 0x4000):  # AT_STATX_FORCE_SYNC, AT_STATX_DONT_SYNC
        equal(statx("f", sync).size, 4)


@case
def statx_partial_mask(t):
    make("f", b"abc")
    for bit in range(12):
        found = statx("f", mask=1 << bit)
        check(found.mask & 1 << bit, f"bit {bit} not answered")
    equal(statx("f", mask=0x200).size, 3, "size")


@case
def statx_of_growing_file(t):
    """Forced and relaxed answers both see this node's own writes."""
    with opened("f", os.O_CREAT | os.O_RDWR) as fd:
        for number in range(1, 20):
            os.write(fd, b"x")
            equal([statx("f", sync).size for sync in (0, 0x2000)], [number] * 2)


@case
def statx_errors(t):
    make("f")
    expect(ENOENT, statx, "missing")
    expect(ENOENT, statx, "")
    expect(EINVAL, statx, "f", 0x80000000)
    expect(EINVAL, statx, "f", 0, 0x80000000)
    expect(EINVAL, statx, "f", 0x6000)
    expect(EBADF, statx, "f", 0, 0xFFF, 999)
    expect(EFAULT, call, "statx", -100, "f", 0, 0xFFF, BAD_ADDRESS)


@case
def statvfs_is_sane(t):
    os.mkdir("d")
    make("d/f")
    for where in (".", "d", "d/f"):
        found = os.statvfs(where)
        equal((found.f_namemax, found.f_bsize > 0, found.f_frsize > 0), (255, True, True))
        check(0 < found.f_bfree <= found.f_blocks, "blocks")
        check(found.f_bavail <= found.f_bfree, "available blocks")
        check(found.f_ffree <= found.f_files, "inodes")
        check(found.f_files > 0, "no inodes")


@case
def statvfs_counts_space_of_the_store(t):
    """Same size as the store's file system, give or take what is held back; of all nodes together."""
    stores = {"cluster": 3, "client": 2}.get(t.mode, 1)
    here, native = os.statvfs("."), os.statvfs(t.native)
    size, native_size = here.f_blocks * here.f_frsize, stores * native.f_blocks * native.f_frsize
    check(native_size * 0.5 <= size <= native_size * 1.01, f"{size} bytes of {native_size}")


@case
def statvfs_by_descriptor(t):
    make("f")
    with opened("f") as fd:
        equal(os.fstatvfs(fd).f_blocks, os.statvfs("f").f_blocks, "blocks")
        os.unlink("f")
        os.fstatvfs(fd)


@case
def statvfs_errors(t):
    make("f")
    os.symlink("loop", "loop")
    expect(ENOENT, os.statvfs, "missing")
    expect(ENOTDIR, os.statvfs, "f/x")
    expect(ELOOP, os.statvfs, "loop")
    expect(ENAMETOOLONG, os.statvfs, "n" * 256)
    expect(EBADF, os.fstatvfs, 999)
    expect(EFAULT, call, "statfs", "f", BAD_ADDRESS)


@case
def root_directory(t):
    if t.on_cfs:
        found = os.stat(t.mount.mnt)
        equal((found.st_ino, stat.S_ISDIR(found.st_mode)), (1, True))
        equal(os.stat(f"{t.mount.mnt}/.").st_ino, 1)
    found = os.stat("..")
    check(found.st_nlink >= 3, "nlink of the root")
    check(os.path.basename(os.getcwd()) in os.listdir(".."), "own directory is not in it")
