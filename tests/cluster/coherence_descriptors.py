"""Nodes that have the same file open at once, or race for the same name."""

import ctypes
import errno
import mmap
import os
import random
import stat
import struct
import time

from arrangement import CONTENT, OLD, arranged, syscalls
from harness import Child, check, equal, expect, make, opened, outcome, read

ROUNDS = 40
RECORDS = 150
RACES = 40
HEAD_START = 0.002  # Seconds: more than a call to another node takes.


# Files that lose or change their name while open


@arranged
def unlinked_while_open(home, actor, observer):
    make(home.path(), CONTENT)
    fd = observer.held("f", os.O_RDWR)
    os.unlink(actor.path())
    equal(os.fstat(fd).st_nlink, 0, "links")
    equal(os.pread(fd, 1 << 20, 0), CONTENT, "content")
    os.pwrite(fd, b"still", 3)
    os.ftruncate(fd, 100)
    equal(os.pread(fd, 1 << 20, 0), CONTENT[:3] + b"still" + CONTENT[8:100], "content")
    os.fchmod(fd, 0o600)
    equal(stat.S_IMODE(os.fstat(fd).st_mode), 0o600, "mode")
    for place in (home, actor, observer):
        equal(os.listdir(place.directory), [], f"names in {place.root}")


@arranged
def replaced_by_rename_while_open(home, actor, observer):
    make(home.path(), b"old")
    make(home.path("g"), b"new")
    fd = observer.held("f", os.O_RDWR)
    os.rename(actor.path("g"), actor.path())
    equal(os.pread(fd, 10, 0), b"old", "what the descriptor reads")
    equal(os.fstat(fd).st_nlink, 0, "links")
    os.pwrite(fd, b"OLD", 0)
    equal(read(observer.path()), b"new", "what the name reads")


@arranged
def recreated_while_open(home, actor, observer):
    make(home.path(), b"old")
    fd = observer.held("f", os.O_RDWR)
    os.unlink(actor.path())
    make(actor.path(), b"another")
    os.pwrite(fd, b"OLDER", 0)
    equal(read(observer.path()), b"another", "the new file")
    equal(os.pread(fd, 10, 0), b"OLDER", "the old file")


@arranged
def renamed_while_open(home, actor, observer):
    make(home.path(), CONTENT)
    fd = observer.held("f", os.O_RDWR)
    os.mkdir(actor.path("d"))
    os.rename(actor.path(), actor.path("d/g"))
    os.pwrite(fd, b"through", 0)
    equal(read(actor.path("d/g"))[:7], b"through")
    os.truncate(actor.path("d/g"), 7)
    equal(os.fstat(fd).st_size, 7)


@arranged
def directory_removed_while_open(home, actor, observer):
    os.mkdir(home.path("d"))
    fd = observer.held("d")
    os.rmdir(actor.path("d"))
    answer = outcome(os.listdir, fd)
    check(answer in ([], "ENOENT"), f"the listing is {answer}")
    expect(errno.ENOENT, os.open, "f", os.O_CREAT | os.O_WRONLY, dir_fd=fd)


@arranged
def directory_renamed_while_open(home, actor, observer):
    os.mkdir(home.path("d"))
    fd = observer.held("d")
    os.rename(actor.path("d"), actor.path("e"))
    os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    equal(os.listdir(actor.path("e")), ["f"])


@arranged
def tmpfile_has_no_name_elsewhere(home, actor, observer):
    with opened(actor.directory, os.O_TMPFILE | os.O_RDWR) as fd:
        os.write(fd, b"secret")
        equal(os.listdir(observer.directory), [])
        equal(os.fstat(fd).st_nlink, 0)


# Both have it open


@arranged
def overwrites_seen_back_and_forth(home, actor, observer):
    make(home.path(), CONTENT)
    fds = [place.held("f", os.O_RDWR) for place in (actor, observer)]
    for number in range(ROUNDS):
        mine, other = fds[number % 2], fds[1 - number % 2]
        data = struct.pack("Q", number) * 100
        os.pwrite(mine, data, number * 16)
        equal(os.pread(other, 800, number * 16), data, f"round {number}")


@arranged
def growth_seen_back_and_forth(home, actor, observer):
    make(home.path())
    fds = [place.held("f", os.O_RDWR) for place in (actor, observer)]
    size = 0
    for number in range(ROUNDS):
        mine, other = fds[number % 2], fds[1 - number % 2]
        step = 1 + number * 37 % 5000
        os.pwrite(mine, bytes([number]) * step, size)
        size += step
        equal(os.fstat(other).st_size, size, f"size, round {number}")
        equal(os.pread(other, 1 << 20, size - step), bytes([number]) * step, f"round {number}")
    os.ftruncate(fds[0], 10)
    equal((os.fstat(fds[1]).st_size, os.pread(fds[1], 100, 5)), (10, b"\1" * 5), "truncated")
    os.ftruncate(fds[1], 100)
    equal(os.pread(fds[0], 200, 5), b"\1" * 5 + bytes(90), "truncated up again")


@arranged
def times_seen_back_and_forth(home, actor, observer):
    make(home.path(), CONTENT)
    fds = [place.held("f", os.O_RDWR) for place in (actor, observer)]
    for number in range(10):
        mine, other = fds[number % 2], fds[1 - number % 2]
        os.utime(mine, (OLD, OLD + number))
        equal(os.fstat(other).st_mtime, OLD + number, "mtime that was set")
        os.pwrite(mine, b"x", number)
        check(os.fstat(other).st_mtime > OLD + 1000, "a write leaves mtime old")


@arranged(when=lambda where: where.actor == where.home)
def mapping_on_the_home(home, actor, observer):
    """What goes through the page cache of the home needs no system call there."""
    make(home.path(), bytes(2 * mmap.PAGESIZE))
    with opened(home.path()) as fd:
        mapping = mmap.mmap(fd, 2 * mmap.PAGESIZE)
    fd = observer.held("f", os.O_RDWR)
    for number in range(ROUNDS):
        data = struct.pack("Q", number)
        mapping[number * 100:number * 100 + 8] = data
        equal(os.pread(fd, 8, number * 100), data, "stored on the home, read elsewhere")
        equal(read(observer.path())[number * 100:number * 100 + 8], data, "the same by a new open")
        os.pwrite(fd, data, number * 100 + 50)
        equal(mapping[number * 100 + 50:number * 100 + 58], data,
              "written elsewhere, read from the mapping on the home")
    mapping.close()


@arranged
def mapping_elsewhere_at_the_next_open(home, actor, observer):
    make(home.path(), CONTENT)
    for number in range(5):
        with opened(actor.path()) as fd, mmap.mmap(fd, len(CONTENT)) as mapping:
            mapping[number] = 255 - number
            mapping.flush()
        with opened(observer.path()) as fd, mmap.mmap(fd, len(CONTENT)) as mapping:
            equal(mapping[number], 255 - number)


@arranged
def large_and_small_pieces(home, actor, observer):
    """Sizes round those at which a request is handled in another way, also at the file's end."""
    rng = random.Random(1)
    make(home.path())
    for size in (1, 4095, 4096, 4097, (512 << 10) - 1, 512 << 10, (512 << 10) + 1, 1 << 20):
        for offset in (0, 1, 4095, 4096):
            # A mapping is aligned: FUSE takes 1 MiB at a time only then.
            with mmap.mmap(-1, 1 << 20) as memory, memoryview(memory)[:size] as view:
                data = rng.randbytes(size)
                view[:] = data
                with opened(actor.path(), os.O_WRONLY | os.O_TRUNC) as fd:
                    equal(os.pwritev(fd, [view], offset), size, "written")
                    data = data[::-1]
                    view[:] = data
                    # Where there are blocks already, XFS need not wait.
                    equal(os.pwritev(fd, [view], offset), size, "written over it")
                whole = bytes(offset) + data
                for place in (observer, home):
                    with opened(place.path()) as fd:
                        view[:] = bytes(size)
                        equal(os.preadv(fd, [view], offset), size, "read")
                        check(bytes(view) == data, f"content of {size} bytes at {offset}")
                        equal(os.preadv(fd, [memory], 0), min(len(whole), 1 << 20), "to the end")
                        check(memory[:len(whole)] == whole[:1 << 20], f"{size} and what is before")


# Both write at once


def in_two_processes(first, second):
    """Runs both functions, and returns what they return."""
    return [child.result(60) for child in [Child(function) for function in (first, second)]]


@arranged
def appends_from_both(home, actor, observer):
    """No record is torn, lost, doubled, or out of its writer's order."""
    make(home.path())

    def append(place, writer):
        rng = random.Random(writer)
        with opened(place.path(), os.O_WRONLY | os.O_APPEND) as fd:
            for number in range(RECORDS):
                body = bytes([writer * 100 + number % 50]) * rng.randrange(1, 3000)
                record = struct.pack("<HHI", writer, number, len(body)) + body
                equal(os.write(fd, record), len(record), "written")

    in_two_processes(lambda: append(actor, 1), lambda: append(observer, 2))
    for place in (home, actor, observer):
        found, data = {1: 0, 2: 0}, read(place.path())
        while data:
            writer, number, length = struct.unpack_from("<HHI", data)
            check(writer in found, f"torn record: writer {writer}")
            equal(number, found[writer], f"number of a record of writer {writer}")
            equal(data[8:8 + length], bytes([writer * 100 + number % 50]) * length, "a record")
            found[writer] += 1
            data = data[8 + length:]
        equal(found, {1: RECORDS, 2: RECORDS}, f"records in {place.root}")


@arranged
def neighbouring_writes_from_both(home, actor, observer):
    """Pieces that share pages, written from both sides: none undoes its neighbour."""
    make(home.path(), bytes(200 * 100))

    def write(place, first):
        with opened(place.path(), os.O_WRONLY) as fd:
            for number in range(first, 200, 2):
                os.pwrite(fd, bytes([number]) * 100, number * 100)

    in_two_processes(lambda: write(actor, 0), lambda: write(observer, 1))
    for place in (home, actor, observer):
        equal(read(place.path()), b"".join(bytes([n]) * 100 for n in range(200)), "content")


@arranged
def writes_while_another_waits_for_a_page(_, actor, observer):
    """A write keeps others from the file while it fetches from elsewhere what it writes."""
    size, until = mmap.PAGESIZE, time.monotonic() + 1
    make(actor.path(), bytes(size))
    make(observer.path("g"), b"g" * size)

    def write_what_is_mapped():
        count = 0
        with opened(actor.path()) as fd, opened(actor.path("g")) as source:
            while time.monotonic() < until:
                with mmap.mmap(source, size, access=mmap.ACCESS_READ) as mapping:
                    equal(os.pwritev(fd, [mapping], 0), size, "written")
                os.posix_fadvise(source, 0, 0, os.POSIX_FADV_DONTNEED)
                count += 1
        return count

    def write():
        count = 0
        with opened(observer.path()) as fd:
            while time.monotonic() < until:
                equal(os.pwrite(fd, b"w" * size, 0), size, "written")
                count += 1
        return count

    for count in in_two_processes(write_what_is_mapped, write):
        check(count > 20, f"only {count} writes in a second")
    for place in (actor, observer):
        check(read(place.path()) in (b"g" * size, b"w" * size), "a write is torn")


@arranged
def creates_from_both_in_one_directory(home, actor, observer):
    def create(place, writer):
        for number in range(100):
            make(place.path(f"{writer}-{number}"), f"{writer} {number}".encode())
            check(f"{writer}-{number}" in os.listdir(place.directory), "just created, not listed")

    in_two_processes(lambda: create(actor, 1), lambda: create(observer, 2))
    wanted = sorted(f"{writer}-{number}" for writer in (1, 2) for number in range(100))
    for place in (home, actor, observer):
        equal(sorted(os.listdir(place.directory)), wanted, f"names in {place.root}")
    for name in wanted:
        equal(read(home.path(name)).decode(), name.replace("-", " "), name)
    numbers = {os.stat(observer.path(name)).st_ino for name in wanted}
    equal(len(numbers), len(wanted), "different inode numbers")


# Races


class Rendezvous:
    """Two processes meet at each round."""

    def __init__(self):
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._arrived = (ctypes.c_long * 2).from_buffer(self._memory)

    def meet(self, side, number):
        self._arrived[side] = number + 1
        deadline = time.monotonic() + 30
        while self._arrived[1 - side] < number + 1:
            check(time.monotonic() < deadline, "the other racer does not come")
            os.sched_yield()


def race(actor, observer, attempt):
    """attempt(place, round, side) succeeds for exactly one side in each round.

    They have a small head start in turn, or the nearer one would always win.
    """
    rendezvous = Rendezvous()

    def racer(place, side):
        answers = []
        for number in range(RACES):
            rendezvous.meet(side, number)
            if number % 2 != side:
                # Longer ones too, for a build that is slow on one side only.
                time.sleep(HEAD_START * (number % 3) / 2 * (1 if number % 8 < 6 else 20))
            answers.append(outcome(attempt, place, number, side))
        return answers

    answers = in_two_processes(lambda: racer(actor, 0), lambda: racer(observer, 1))
    wins = [0, 0]
    for number, pair in enumerate(zip(*answers)):
        winners = [side for side in (0, 1) if not isinstance(pair[side], str)]
        equal(len(winners), 1, f"winners of round {number} ({pair})")
        wins[winners[0]] += 1
    check(all(wins), f"empty pass: the wins were {wins}")
    return answers


def race_case(function):
    """function(place, round, side) is the attempt; without a name there is one before."""

    def body(home, actor, observer):
        for number in range(RACES):
            make(home.path(f"source-{number}"))
            os.mkdir(home.path(f"directory-{number}"))
        race(actor, observer, function)

    body.__name__ = f"race_of_{function.__name__}"
    arranged(body)
    return function


@race_case
def open_excl(place, number, side):
    with opened(place.path(f"{number}"), os.O_CREAT | os.O_EXCL | os.O_WRONLY) as fd:
        os.write(fd, bytes([side]))


@race_case
def mkdir(place, number, _):
    os.mkdir(place.path(f"{number}"))


@race_case
def symlink(place, number, side):
    os.symlink(f"{side}", place.path(f"{number}"))


@race_case
def link(place, number, _):
    os.link(place.path("source-0"), place.path(f"{number}"))


@race_case
def unlink(place, number, _):
    os.unlink(place.path(f"source-{number}"))


@race_case
def rmdir(place, number, _):
    os.rmdir(place.path(f"directory-{number}"))


@race_case
def rename(place, number, side):
    os.rename(place.path(f"source-{number}"), place.path(f"{side}-{number}"))


@race_case
def rename_noreplace(place, number, side):
    name = place.path(f"mine-{side}-{number}")
    make(name)
    syscalls.rename2(name, place.path(f"{number}"), syscalls.RENAME_NOREPLACE)


@race_case
def setxattr_create(place, number, side):
    os.setxattr(place.path(f"source-{number}"), "user.winner", bytes([side]), os.XATTR_CREATE)


@arranged
def opened_when_its_name_has_just_gone(home, actor, observer):
    """As by an open whose lookup came before what took the name away."""
    for replaced in (True, False):
        for _ in range(5):
            make(home.path(), CONTENT)
            make(actor.path("new"), b"new")
            with opened(observer.path(), os.O_PATH) as found:
                start = time.monotonic()
                if replaced:
                    os.rename(actor.path("new"), actor.path())
                else:
                    os.unlink(actor.path())
                time.sleep(1.1)  # Whatever looks each second for what is to be freed has done so.
                content = outcome(read, f"/proc/self/fd/{found}")
                if time.monotonic() - start < 2:
                    break
        equal(content, CONTENT, "what it was")


# Many


@arranged
def tree_seen_whole(home, actor, observer):
    def walk(place):
        return sorted((os.path.relpath(path, place.directory), sorted(directories), sorted(names))
                      for path, directories, names in os.walk(place.directory))

    for top in range(4):
        for below in range(4):
            os.makedirs(home.path(f"t{top}/b{below}"))
            for number in range(4):
                make(home.path(f"t{top}/b{below}/{number}"), bytes(number))
    equal(len(walk(observer)), 21, "directories")
    os.rename(actor.path("t0"), actor.path("t1/moved"))
    os.rename(actor.path("t2/b2"), actor.path("t3/b2/b2"))
    os.unlink(actor.path("t3/b2/b2/3"))
    wanted = walk(actor)
    equal(walk(observer), wanted, "the tree")
    equal(walk(home), wanted, "the tree")
    equal(os.path.getsize(observer.path("t1/moved/b3/2")), 2)


@arranged
def sizes_of_many(home, actor, observer):
    for number in range(100):
        make(home.path(f"{number}"), bytes(number))
    equal(sum(e.stat().st_size for e in os.scandir(observer.directory)), 4950)
    for number in range(0, 100, 2):
        with opened(actor.path(f"{number}"), os.O_WRONLY | os.O_APPEND) as fd:
            os.write(fd, bytes(1000))
    equal(sum(e.stat().st_size for e in os.scandir(observer.directory)), 54950)
