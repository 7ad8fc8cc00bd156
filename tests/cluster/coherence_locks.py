"""flock, fcntl and open file description locks between nodes."""

import fcntl
import os
import struct
from errno import EAGAIN

from arrangement import arranged
from harness import (Child, Failure, Holder, check, equal, expect, in_child, make, opened, outcome,
                     wait_until)
from syscalls import OFD_SETLK, OFD_SETLKW, lock

READ, WRITE, UNLOCK = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
ROUNDS = 60


class Kind:
    """One of the three kinds of lock, all of which know shared and exclusive."""

    def __init__(self, name):
        self.name = name

    def take(self, fd, exclusive, wait=False):
        if self.name == "flock":
            operation = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
            fcntl.flock(fd, operation | (0 if wait else fcntl.LOCK_NB))
            return
        if self.name == "record":
            command = fcntl.F_SETLKW if wait else fcntl.F_SETLK
        else:
            command = OFD_SETLKW if wait else OFD_SETLK
        lock(fd, command, WRITE if exclusive else READ)

    def release(self, fd):
        if self.name == "flock":
            fcntl.flock(fd, fcntl.LOCK_UN)
        else:
            lock(fd, fcntl.F_SETLK if self.name == "record" else OFD_SETLK, UNLOCK)

    def open_and_take(self, path, exclusive, wait=False):
        """The descriptor stays open in this process."""
        fd = os.open(path, os.O_RDWR)
        self.take(fd, exclusive, wait)
        return fd

    def refused(self, place, exclusive=True):
        """Is another process refused the lock at that place?"""
        answer = in_child(lambda: outcome(self.open_and_take, place.path(), exclusive))
        check(answer in ("EAGAIN", "EACCES") or isinstance(answer, int), f"answer {answer}")
        return isinstance(answer, str)


    def check_released(self, place, by):
        """At once; but of the last close of a descriptor FUSE tells without waiting."""
        if self.name != "record":
            wait_until(lambda: not self.refused(place), 2, f"released by {by}")
        equal(self.refused(place), False, f"refused after {by}")


KINDS = [Kind(name) for name in ("flock", "record", "ofd")]


def for_each_kind(function):
    """Registers function(kind, home, actor, observer) for the three kinds."""
    for kind in KINDS:
        def body(home, actor, observer, kind=kind):
            make(home.path())
            function(kind, home, actor, observer)

        body.__name__ = f"{kind.name}_{function.__name__}"
        arranged(body)
    return function


@for_each_kind
def conflicts(kind, _, actor, observer):
    for mine, other, wanted in ((False, False, False), (False, True, True), (True, False, True),
                                (True, True, True)):
        holder = Holder((kind.open_and_take, actor.path(), mine))
        equal(kind.refused(observer, other), wanted, f"exclusive {mine} against {other}")
        holder.let_go()
        kind.check_released(observer, "the end of the process")


@for_each_kind
def released_by_unlock(kind, _, actor, observer):
    with opened(actor.path()) as fd:
        kind.take(fd, True)
        equal(kind.refused(observer), True, "refused")
        kind.release(fd)
        equal(kind.refused(observer), False, "refused after the unlock")


@for_each_kind
def released_by_close(kind, _, actor, observer):
    with opened(actor.path()) as fd:
        kind.take(fd, True)
        equal(kind.refused(observer), True, "refused")
    kind.check_released(observer, "the close")


@for_each_kind
def released_by_death(kind, _, actor, observer):
    holder = Holder((kind.open_and_take, actor.path(), True))
    equal(kind.refused(observer), True, "refused")
    holder.child.kill()
    holder.child.ended_by()
    kind.check_released(observer, "kill -9 of the owner")


@for_each_kind
def waiter_is_woken(kind, _, actor, observer):
    with opened(actor.path()) as fd:
        for how in ("unlock", "close of all", "death"):
            if how == "unlock":
                kind.take(fd, True)
            else:
                holder = Holder((kind.open_and_take, actor.path(), True))
            waiter = Child(lambda: os.close(kind.open_and_take(observer.path(), True, wait=True)))
            waiter.wait_blocked()
            if how == "unlock":
                kind.release(fd)
            elif how == "death":
                holder.child.kill()
            else:
                holder.let_go()
            try:
                waiter.result(10)
            except Failure:
                raise Failure(f"not woken by {how}") from None


@for_each_kind
def waiter_can_be_killed(kind, _, actor, observer):
    holder = Holder((kind.open_and_take, actor.path(), True))
    waiter = Child(lambda: kind.open_and_take(observer.path(), True, wait=True))
    waiter.wait_blocked()
    waiter.kill()
    waiter.ended_by()
    holder.let_go()
    kind.check_released(actor, "the end of both processes")
    kind.check_released(observer, "the end of both processes")


@for_each_kind
def upgraded(kind, _, actor, observer):
    with opened(actor.path()) as a, opened(observer.path()) as b:
        if kind.name == "record":
            # Both descriptors have one owner, unless they are in different processes.
            holder = Holder((kind.open_and_take, observer.path(), False))
            kind.take(a, False)
            expect(EAGAIN, kind.take, a, True)
            holder.let_go()
        else:
            kind.take(a, False)
            kind.take(b, False)
            expect(EAGAIN, kind.take, a, True)
            kind.release(b)
        # A failed upgrade of a flock may have dropped it.
        kind.take(a, True)
        equal(kind.refused(observer, False), True, "refused after the upgrade")


@for_each_kind
def counter_under_lock(kind, _, actor, observer):
    """The lock keeps two nodes apart, and what one has written under it the other one reads."""
    def count(place):
        with opened(place.path()) as fd:
            for _ in range(ROUNDS):
                kind.take(fd, True, wait=True)
                value = struct.unpack("Q", os.pread(fd, 8, 0) or bytes(8))[0]
                os.pwrite(fd, struct.pack("Q", value + 1), 0)
                kind.release(fd)

    for child in [Child(count, place) for place in (actor, observer)]:
        child.result(60)
    with opened(observer.path()) as fd:
        equal(struct.unpack("Q", os.pread(fd, 8, 0))[0], 2 * ROUNDS, "counted")


@arranged
def record_ranges(home, actor, observer):
    make(home.path())
    holder = Holder((lambda: lock(os.open(actor.path(), os.O_RDWR), fcntl.F_SETLK, WRITE, 10, 10),))
    with opened(observer.path()) as fd:
        for start, length, wanted in ((0, 10, False), (0, 11, True), (19, 1, True), (20, 5, False),
                                      (12, 3, True), (0, 0, True), (20, 0, False)):
            answer = outcome(lock, fd, fcntl.F_SETLK, READ, start, length)
            equal(answer == "EAGAIN", wanted, f"range {start}+{length} refused")
            lock(fd, fcntl.F_SETLK, UNLOCK)
        found = lock(fd, fcntl.F_GETLK, WRITE, 0, 100)
        equal((found.type, found.start, found.length), (WRITE, 10, 10), "F_GETLK")
    holder.let_go()


@arranged
def lock_file(home, actor, observer):
    """The oldest way: O_EXCL and unlink."""
    make(home.path(), struct.pack("Q", 0))

    def count(place):
        def take():
            with opened(place.path("lock"), os.O_CREAT | os.O_EXCL | os.O_WRONLY):
                pass

        with opened(place.path()) as fd:
            for _ in range(ROUNDS):
                wait_until(lambda: outcome(take) != "EEXIST", 30, "the lock file goes")
                value = struct.unpack("Q", os.pread(fd, 8, 0))[0]
                os.pwrite(fd, struct.pack("Q", value + 1), 0)
                os.unlink(place.path("lock"))

    for child in [Child(count, place) for place in (actor, observer)]:
        child.result(60)
    with opened(observer.path()) as fd:
        equal(struct.unpack("Q", os.pread(fd, 8, 0))[0], 2 * ROUNDS, "counted")
