"""Reading directories, also while they change."""

import os
import stat
import time
from errno import EBADF, EFAULT, EINVAL, ENOENT, ENOTDIR

from harness import Child, case, check, equal, expect, in_child, make, need_root, opened
from syscalls import (BAD_ADDRESS, DT_BLK, DT_CHR, DT_DIR, DT_FIFO, DT_LNK, DT_REG, DT_SOCK,
                      DT_UNKNOWN, call, getdents, read_directory)


def entries(path=".", size=32768):
    with opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        return read_directory(fd, size)


def names(found):
    return [e.name for e in found if e.name not in (".", "..")]


def fill(path, count, prefix="f"):
    os.makedirs(path, exist_ok=True)
    for number in range(count):
        os.close(os.open(f"{path}/{prefix}{number}", os.O_CREAT | os.O_WRONLY))
    return {f"{prefix}{number}" for number in range(count)}


def each_once(found, wanted, what="entries"):
    equal(len(found), len(set(found)), f"{what} without doubles")
    equal(set(found) ^ set(wanted), set(), f"missing or foreign {what}")


@case
def empty_directory_has_dots(t):
    os.mkdir("d")
    found = {e.name: e for e in entries("d")}
    equal(sorted(found), [".", ".."])
    equal((found["."].ino, found[".."].ino), (os.stat("d").st_ino, os.stat(".").st_ino))
    equal({e.kind for e in found.values()}, {DT_DIR})


@case
def dot_dot_of_a_moved_directory(t):
    os.makedirs("a/d")
    os.mkdir("b")
    entries("a/d")
    os.rename("a/d", "b/d")
    equal({e.name: e.ino for e in entries("b/d")}[".."], os.stat("b").st_ino)


@case
def types_and_inode_numbers(t):
    make("file")
    os.mkdir("dir")
    os.symlink("x", "link")
    os.mkfifo("fifo")
    os.mknod("sock", stat.S_IFSOCK | 0o600)
    wanted = {"file": DT_REG, "dir": DT_DIR, "link": DT_LNK, "fifo": DT_FIFO, "sock": DT_SOCK}
    if os.geteuid() == 0:
        os.mknod("chr", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        os.mknod("blk", stat.S_IFBLK | 0o600, os.makedev(7, 0))
        wanted |= {"chr": DT_CHR, "blk": DT_BLK}
    found = {e.name: e for e in entries() if e.name in wanted}
    each_once([e.name for e in found.values()], wanted)
    for name, kind in wanted.items():
        check(found[name].kind != DT_UNKNOWN, f"{name}: unknown type")
        equal((found[name].kind, found[name].ino), (kind, os.lstat(name).st_ino), name)


@case
def sees_changes_at_once(t):
    for number in range(30):
        make(f"f{number}")
        equal(len(os.listdir(".")), number + 1, "entries after create")
    for number in range(30):
        os.unlink(f"f{number}")
        equal(len(os.listdir(".")), 29 - number, "entries after unlink")


@case
def sees_changes_of_other_processes(t):
    equal(os.listdir("."), [])
    in_child(fill, ".", 5)
    each_once(os.listdir("."), {f"f{n}" for n in range(5)})
    in_child(os.rename, "f0", "g")
    check("g" in os.listdir(".") and "f0" not in os.listdir("."), "stale list")


@case
def one_thousand(t):
    wanted = fill("d", 1000)
    each_once(names(entries("d")), wanted)
    each_once(names(entries("d", 1 << 20)), wanted, "entries with a large buffer")
    for entry in list(os.scandir("d"))[::100]:
        equal(entry.inode(), entry.stat().st_ino)


@case
def small_buffers(t):
    wanted = fill("d", 300)
    each_once(names(entries("d", 64)), wanted)


@case
def buffer_too_small_for_a_name(t):
    make("n" * 255)
    with opened(".", os.O_RDONLY) as fd:
        expect(EINVAL, read_directory, fd, 100)
        check("n" * 255 in names(read_directory(fd, 400)), "name is lost")


@case
def position_after_each_entry(t):
    """lseek to any cookie goes on right after that entry."""
    fill("d", 100)
    with opened("d", os.O_RDONLY) as fd:
        whole = read_directory(fd)
        for index, entry in enumerate(whole[:-1]):
            os.lseek(fd, entry.cookie, os.SEEK_SET)
            equal(getdents(fd, 64 + len(entry.name))[0].name, whole[index + 1].name)
        equal(len({e.cookie for e in whole}), len(whole), "cookies")


@case
def position_works_on_another_descriptor(t):
    fill("d", 50)
    first = entries("d")
    with opened("d", os.O_RDONLY) as fd:
        os.lseek(fd, first[20].cookie, os.SEEK_SET)
        equal(names(read_directory(fd)), names(first[21:]))


@case
def position_survives_deletion_of_its_entry(t):
    fill("d", 100)
    with opened("d", os.O_RDONLY) as fd:
        whole = read_directory(fd)
        middle = next(i for i, e in enumerate(whole) if i >= 50 and e.name.startswith("f"))
        after = whole[middle + 1:]
        os.unlink(f"d/{whole[middle].name}")
        os.lseek(fd, whole[middle].cookie, os.SEEK_SET)
        each_once([e.name for e in read_directory(fd)], [e.name for e in after])


@case
def rewind_shows_changes(t):
    fill("d", 20)
    with opened("d", os.O_RDONLY) as fd:
        equal(len(names(read_directory(fd))), 20)
        make("d/late")
        os.unlink("d/f0")
        equal(getdents(fd), [], "at the end")
        os.lseek(fd, 0, os.SEEK_SET)
        found = names(read_directory(fd))
        check("late" in found and "f0" not in found, "stale list after rewind")


@case
def deleting_while_reading(t):
    """As rm -r does: everything is met once."""
    wanted = fill("d", 1000)
    met = []
    with opened("d", os.O_RDONLY) as fd:
        while block := getdents(fd, 1024):
            for name in names(block):
                met.append(name)
                os.unlink(f"d/{name}")
    each_once(met, wanted)
    os.rmdir("d")


@case
def renaming_while_reading(t):
    """Names that stay are met once; a renamed file under one of its names or both."""
    wanted = fill("d", 500)
    met = []
    with opened("d", os.O_RDONLY) as fd:
        while block := getdents(fd, 1024):
            for name in names(block):
                met.append(name)
                if name in wanted and int(name[1:]) % 10 == 0:
                    os.rename(f"d/{name}", f"d/renamed{name}")
    stable = [name for name in met if not name.startswith("renamed") and int(name[1:]) % 10]
    each_once(stable, {name for name in wanted if int(name[1:]) % 10})


@case(timeout=120)
def stable_entries_under_concurrent_change(t):
    """Ten thousand stay while others come and go: each is met exactly once, every time."""
    wanted = fill("d", 10000, "stable")

    def churn():
        number = 0
        while not os.path.exists("stop"):
            make(f"d/transient{os.getpid()}-{number % 50}")
            os.unlink(f"d/transient{os.getpid()}-{number % 50}")
            number += 1
        return number

    children = [Child(churn) for _ in range(2)]
    ends = time.monotonic() + 1
    rounds = 0
    while rounds < 5 or time.monotonic() < ends:
        each_once([n for n in names(entries("d", 4096)) if n.startswith("stable")], wanted)
        rounds += 1
    make("stop")
    check(sum(child.result() for child in children) > 50, "hardly any change happened")
    each_once(os.listdir("d"), wanted)


@case
def reader_who_stopped_early_spoils_no_later_listing(t):
    """The beginning that the kernel may have kept for him must not serve others."""
    fill("d", 100)
    with opened("d", os.O_RDONLY) as early:
        getdents(early, 1024)
        for number in range(100):
            make(f"d/later{number}")
    with opened("d", os.O_RDONLY) as slow:
        met = names(getdents(slow, 300))
        wanted = os.listdir("d")
        met += names(read_directory(slow, 300))
    equal(len(wanted), 200)
    each_once(met, wanted)


@case
def growing_while_reading_ends(t):
    fill("d", 10)
    count = 0
    with opened("d", os.O_RDONLY) as fd:
        while block := getdents(fd, 256):
            count += len(block)
            for _ in block:
                make(f"d/new{count}")
                count += 1
            check(count < 20000, "no end")


@case
def removed_while_open(t):
    fill("d", 5)
    with opened("d", os.O_RDONLY) as fd:
        for name in os.listdir("d"):
            os.unlink(f"d/{name}")
        os.rmdir("d")
        equal(names(read_directory_or_nothing(fd)), [])


def read_directory_or_nothing(fd):
    """A removed directory may answer ENOENT."""
    try:
        return read_directory(fd)
    except FileNotFoundError:
        return []


@case
def two_descriptors_have_positions_of_their_own(t):
    fill("d", 200)
    with opened("d", os.O_RDONLY) as a, opened("d", os.O_RDONLY) as b:
        first = getdents(a, 500)
        equal(len(read_directory(b)), 202)
        equal(len(first) + len(read_directory(a)), 202)


@case
def attributes_after_listing_are_current(t):
    """Attributes that come with the entries (readdirplus) must not go stale."""
    for number in range(50):
        make(f"f{number}", b"x")
    list(os.scandir("."))
    for number in range(50):
        with opened(f"f{number}", os.O_WRONLY | os.O_APPEND) as fd:
            os.write(fd, b"y" * number)
            list(os.scandir("."))
            equal(os.stat(f"f{number}").st_size, number + 1, "size while open")
    for entry in os.scandir("."):
        equal(entry.stat().st_size, int(entry.name[1:]) + 1, entry.name)


@case
def listing_does_not_bring_back_removed_names(t):
    fill("d", 200)
    for number in range(200):
        if number % 20 == 0:
            list(os.scandir("d"))
        os.unlink(f"d/f{number}")
        expect(ENOENT, os.stat, f"d/f{number}")
    equal(os.listdir("d"), [])


@case
def errors(t):
    make("f")
    with opened("f", os.O_RDONLY) as fd:
        expect(ENOTDIR, getdents, fd)
    os.mkdir("d")
    with opened("d", os.O_PATH) as fd:
        expect(EBADF, getdents, fd)
    with opened("d", os.O_RDONLY) as fd:
        expect(EFAULT, call, "syscall", 217, fd, BAD_ADDRESS, 4096)
        expect(EINVAL, os.lseek, fd, -1, os.SEEK_SET)
    expect(ENOTDIR, os.listdir, "f")
    expect(ENOENT, os.listdir, "missing")


@case
def walk_after_dropped_caches(t):
    need_root()
    for name in ("a/b", "a/c", "d"):
        fill(name, 20)
    with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as f:
        f.write("2")
    equal(sum(len(files) for _, _, files in os.walk(".")), 60, "files")
