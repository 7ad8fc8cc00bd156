"""What has been made is the same after a remount; what does not fit is refused cleanly."""

import contextlib
import os
import stat
import time
from errno import ENOSPC

from harness import (NOBODY, Child, Skip, case, check, equal, loop_file_system, make, need_root,
                     opened, outcome, read, run, run_checked, wait_until)
from syscalls import name_to_handle, open_by_handle
import acl_cases


def build(root):
    os.mkdir(f"{root}/d")
    os.chown(f"{root}/d", NOBODY, 1234)
    os.chmod(f"{root}/d", 0o3751)
    make(f"{root}/d/file", os.urandom(100000), 0o6751)
    os.link(f"{root}/d/file", f"{root}/link")
    os.symlink("d/file", f"{root}/symlink")
    os.mkfifo(f"{root}/d/fifo")
    os.mknod(f"{root}/d/device", stat.S_IFCHR | 0o600, os.makedev(4095, 0xFFFFF))
    make(f"{root}/d/sparse")
    with opened(f"{root}/d/sparse") as fd:
        os.pwrite(fd, b"end", 1 << 30)
    os.setxattr(f"{root}/d/file", "user.a", bytes(range(256)))
    os.setxattr(f"{root}/d", "trusted.b", b"")
    os.setxattr(f"{root}/d", acl_cases.DEFAULT, acl_cases.encode(acl_cases.FULL))
    make(f"{root}/acl")
    os.setxattr(f"{root}/acl", acl_cases.ACCESS, acl_cases.encode(acl_cases.FULL))
    make(f"{root}/" + "\u6f22" * 85, b"name")
    for number in range(300):
        make(f"{root}/d/n{number}", b"%d" % number)
    for number in range(0, 300, 3):
        os.unlink(f"{root}/d/n{number}")
    os.rename(f"{root}/d/n1", f"{root}/moved")
    os.utime(f"{root}/d/file", ns=(123456789, 2 * 10**18 + 987654321))
    os.utime(f"{root}/symlink", ns=(5, 6), follow_symlinks=False)


def snapshot(root):
    """Everything that can be asked about a tree, atime left out."""
    found = {}
    for directory, names, files in os.walk(root):
        for name in [".", *names, *files]:
            path = os.path.join(directory, name)
            s = os.lstat(path)
            facts = [s.st_ino, s.st_mode, s.st_nlink, s.st_uid, s.st_gid, s.st_size, s.st_rdev,
                     s.st_mtime_ns, s.st_ctime_ns]
            if stat.S_ISREG(s.st_mode) and s.st_size < 1 << 20:
                facts.append(read(path))
            if stat.S_ISLNK(s.st_mode):
                facts.append(os.readlink(path))
            facts.append({n: os.getxattr(path, n, follow_symlinks=False)
                          for n in os.listxattr(path, follow_symlinks=False)})
            found[os.path.relpath(path, root)] = facts
    return found


def remounted(t, go_away, **options):
    if not t.on_cfs:
        raise Skip("no cfs")
    with t.new_mount(**options) as mount:
        build(mount.mnt)
        before = snapshot(mount.mnt)
        handle = name_to_handle(f"{mount.mnt}/d/file")
        check(len(before) > 200, "hardly anything to compare")
        go_away(mount)
        mount.start()
        after = snapshot(mount.mnt)
        for path, facts in before.items():
            equal(after.get(path), facts, path)
        equal(sorted(after), sorted(before), "names")
        with opened(f"{mount.mnt}/d/sparse", os.O_RDONLY) as fd:
            equal(os.pread(fd, 10, 1 << 30), b"end")
        with opened(mount.mnt, os.O_RDONLY) as root:
            fd = open_by_handle(root, handle)
            equal(os.fstat(fd).st_ino, before["d/file"][0], "ino by the old handle")
            os.close(fd)
        make(f"{mount.mnt}/new")
        numbers = {facts[0] for facts in before.values()}
        check(os.stat(f"{mount.mnt}/new").st_ino not in numbers, "inode number used twice")


@case(timeout=60)
def clean_remount(t):
    remounted(t, lambda mount: mount.stop(), foreground=False)


@case(timeout=60)
def remount_after_kill(t):
    remounted(t, lambda mount: mount.kill())


@case(timeout=60)
def orphans_are_collected_after_kill(t):
    """Files that were open without a name give their space back."""
    if not t.on_cfs:
        raise Skip("no cfs")
    with t.new_mount(store="loop-ext4") as mount:
        fds = []
        for number in range(20):
            fds.append(os.open(f"{mount.mnt}/f", os.O_CREAT | os.O_RDWR))
            os.write(fds[-1], bytes(5 << 20))
            os.unlink(f"{mount.mnt}/f")
        fds.append(os.open(mount.mnt, os.O_TMPFILE | os.O_RDWR))
        os.write(fds[-1], bytes(5 << 20))
        used = used_bytes(mount.native)
        mount.kill()
        for fd in fds:
            with contextlib.suppress(OSError):  # The flush that close sends meets nobody.
                os.close(fd)
        mount.start()
        equal(os.listdir(mount.mnt), [])
        wait_for_space(mount.native, used - (80 << 20))


def used_bytes(path):
    found = os.statvfs(path)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def wait_for_space(path, wanted):
    wait_until(lambda: used_bytes(path) < wanted, 20, "space of orphans")


@case(timeout=120)
def full_store(t):
    """ENOSPC and nothing else; room again after deleting; the rest stays readable."""
    if t.on_cfs:
        with t.new_mount(store="loop-ext4") as mount:
            fill_and_free(mount.mnt)
    else:
        work = t.workspace.new_directory()
        loop_file_system(f"{work}/image", f"{work}/fs", "ext4")
        try:
            fill_and_free(f"{work}/fs")
        finally:
            run("umount", "-l", f"{work}/fs")


def fill_and_free(root):
    make(f"{root}/before", b"kept" * 1000)
    block = bytes(1 << 20)
    written = 0
    with opened(f"{root}/big", os.O_CREAT | os.O_RDWR) as fd:
        answer = outcome(os.posix_fallocate, fd, 0, 1 << 40)
        equal(answer, "ENOSPC", "allocation of a TiB")
        os.ftruncate(fd, 0)
        while written < 4 << 30:
            try:
                written += os.write(fd, block)
            except OSError as error:
                equal(error.errno, ENOSPC, "errno of the write")
                break
        equal(os.fstat(fd).st_size, written, "size")
    check(written > 100 << 20, f"full after {written} bytes")
    check(written < 4 << 30, "never full")
    equal(read(f"{root}/before"), b"kept" * 1000)
    for number in range(50):
        answer = outcome(make, f"{root}/small{number}", bytes(100000))
        check(answer in ("ENOSPC", f"{root}/small{number}"), f"answer {answer}")
    os.unlink(f"{root}/big")
    # A file goes when its record's end is durable, which may take a moment.
    wait_until(lambda: outcome(make, f"{root}/after", bytes(50 << 20)) != "ENOSPC", 10,
               "room after deleting")
    equal(len(read(f"{root}/after")), 50 << 20, "size")


@case(timeout=120)
def metadata_and_syncs_on_a_full_store(t):
    """Operations that change metadata get ENOSPC or succeed; syncs need no space."""
    if not t.on_cfs:
        raise Skip("no cfs")
    with t.new_mount(store="loop-ext4") as mount:
        for number in range(400):
            make(f"{mount.mnt}/f{number}", b"%d" % number)
        with opened(f"{mount.mnt}/big", os.O_CREAT | os.O_RDWR) as fd, \
                contextlib.suppress(OSError):
            while True:
                os.write(fd, bytes(1 << 20))
        children = [Child(change_and_sync, mount.mnt, which, 4) for which in range(3)]
        for child in children:
            changes, syncs = child.result()
            check(changes <= {"ok", "ENOSPC"}, f"changes {changes}")
            equal(syncs, {"ok"}, "syncs")
        os.unlink(f"{mount.mnt}/big")
        make(f"{mount.mnt}/after", bytes(20 << 20))
        equal(sync_one(f"{mount.mnt}/after"), "ok", "sync of a new file")
        names = sorted(os.listdir(mount.mnt))
        mount.kill()
        mount.start()
        equal(sorted(os.listdir(mount.mnt)), names)
        for number in range(400):
            equal(read(f"{mount.mnt}/f{number}"), b"%d" % number)


def sync_one(path):
    with opened(path, os.O_RDONLY) as fd:
        return outcome(os.fsync, fd) or "ok"


def change_and_sync(root, which, seconds):
    changes, syncs = set(), set()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for number in range(which, 400, 3):
            path = f"{root}/f{number}"
            for change in ((os.chmod, path, 0o600 + number % 64),
                           (os.setxattr, path, "user.a", bytes(3000)),
                           (os.rename, path, f"{path}.moved"),
                           (os.rename, f"{path}.moved", path)):
                changes.add(outcome(*change) or "ok")
            if os.path.exists(f"{path}.moved"):
                changes.add(f"{path}.moved was left")
            syncs.add(sync_one(path))
    return changes, syncs


@case(timeout=120)
def store_without_inodes(t):
    """They run out like space: ENOSPC for what is new, and the rest goes on."""
    if not t.on_cfs:
        raise Skip("no cfs")
    need_root()
    small = t.workspace.new_directory()
    run_checked("mount", "-t", "tmpfs", "-o", "nr_inodes=3000,size=64m", "tmpfs", small)
    try:
        with t.new_mount(store=small) as mount:
            made = 0
            while outcome(make, f"{mount.mnt}/f{made}", b"x") != "ENOSPC":
                made += 1
                check(made < 3000, "never full")
            check(made > 1500, f"full after {made} files")
            # Enough for RocksDB to begin another log, and tables.
            for number in range(30_000):
                os.chmod(f"{mount.mnt}/f{number % made}", 0o600 + number % 64)
            equal(sync_one(f"{mount.mnt}/f0"), "ok", "sync")
            for number in range(made):
                os.unlink(f"{mount.mnt}/f{number}")
            wait_until(lambda: outcome(make, f"{mount.mnt}/after") != "ENOSPC", 10,
                       "room after deleting")
    finally:
        run("umount", "-l", small)
