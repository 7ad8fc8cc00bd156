"""flock(2), fcntl record locks and open file description locks."""

import ctypes
import fcntl
import os
import random
import signal
import struct
import subprocess
import time
from errno import EAGAIN, EBADF, EDEADLK, EINTR, EINVAL, EOVERFLOW

from harness import (Child, Holder, case, check, equal, expect, in_child, make, opened, outcome,
                     read, wait_until)
from syscalls import OFD_GETLK, OFD_SETLK, OFD_SETLKW, call, lock

GETLK, SETLK, SETLKW = fcntl.F_GETLK, fcntl.F_SETLK, fcntl.F_SETLKW
READ, WRITE, UNLOCK = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
EX, SH, UN, NB = fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_UN, fcntl.LOCK_NB


def open_here(path="f"):
    return os.open(path, os.O_RDWR | os.O_CREAT)


def take(command, kind, start=0, length=0, path="f"):
    """Opens and locks; the descriptor stays open in this process."""
    lock(open_here(path), command, kind, start, length)


def held(size=32, path="f"):
    """What another process meets: a letter a byte, '.' free, r and w locked."""

    def probe():
        fd = open_here(path)
        text = ""
        for offset in range(size):
            answer = lock(fd, GETLK, WRITE, offset, 1)
            text += {READ: "r", WRITE: "w", UNLOCK: "."}[answer.type]
        return text

    return in_child(probe)


def refused(kind, start=0, length=0, command=SETLK, path="f"):
    """Is another process refused this lock?"""

    def attempt():
        answer = outcome(take, command, kind, start, length, path)
        check(answer in (None, "EAGAIN", "EACCES"), f"answer {answer}")
        return answer is not None

    return in_child(attempt)


# fcntl record locks


@case
def record_conflicts(t):
    make("f")
    for mine, other, wanted in ((READ, READ, False), (READ, WRITE, True), (WRITE, READ, True),
                                (WRITE, WRITE, True)):
        holder = Holder((take, SETLK, mine))
        equal(refused(other), wanted, f"{mine} against {other}")
        holder.let_go()
        equal(refused(WRITE), False, "after its end")


@case
def record_own_locks_never_conflict(t):
    with opened("f", os.O_CREAT | os.O_RDWR) as a, opened("f") as b:
        lock(a, SETLK, WRITE)
        lock(b, SETLK, WRITE)
        lock(b, SETLK, READ)
        equal(lock(a, GETLK, WRITE).type, UNLOCK)


@case
def record_ranges(t):
    holder = Holder((take, SETLK, WRITE, 10, 10))
    for start, length, wanted in ((0, 10, False), (0, 11, True), (19, 1, True), (20, 5, False),
                                  (12, 3, True), (0, 0, True), (20, 0, False)):
        equal(refused(WRITE, start, length), wanted, f"range {start}+{length}")
    holder.let_go()


@case
def record_split(t):
    with opened("f", os.O_CREAT | os.O_RDWR) as fd:
        lock(fd, SETLK, WRITE, 4, 12)
        lock(fd, SETLK, UNLOCK, 8, 4)
        equal(held(20), "....wwww....wwww....")


@case
def record_merge_and_overwrite(t):
    with opened("f", os.O_CREAT | os.O_RDWR) as fd:
        lock(fd, SETLK, WRITE, 0, 4)
        lock(fd, SETLK, WRITE, 8, 4)
        lock(fd, SETLK, WRITE, 4, 4)
        equal(held(14), "wwwwwwwwwwww..")
        lock(fd, SETLK, READ, 2, 4)
        equal(held(14), "wwrrrrwwwwww..")
        lock(fd, SETLK, READ, 0, 12)
        equal(held(14), "rrrrrrrrrrrr..")
        lock(fd, SETLK, UNLOCK)
        equal(held(14), "." * 14)


@case
def record_merged_range_is_one(t):
    with opened("f", os.O_CREAT | os.O_RDWR) as fd:
        lock(fd, SETLK, WRITE, 0, 10)
        lock(fd, SETLK, WRITE, 10, 10)
        answer = in_child(lambda: lock(open_here(), GETLK, WRITE))
        equal((answer.start, answer.length), (0, 20))


@case
def record_to_end_of_file(t):
    make("f", b"0123456789")
    holder = Holder((take, SETLK, WRITE, 5, 0))
    equal((refused(WRITE, 4, 1), refused(WRITE, 1000, 1), refused(WRITE, (1 << 62), 1)),
          (False, True, True))
    answer = in_child(lambda: lock(open_here(), GETLK, WRITE))
    equal((answer.start, answer.length), (5, 0))
    holder.let_go()


@case
def record_whence_and_negative_length(t):
    make("f", b"0123456789")
    with opened("f") as fd:
        lock(fd, SETLK, WRITE, -3, 2, os.SEEK_END)
        equal(held(12), ".......ww...")
        os.lseek(fd, 4, os.SEEK_SET)
        lock(fd, SETLK, READ, 0, -2, os.SEEK_CUR)
        equal(held(12), "..rr...ww...")


@case
def record_getlk_names_the_holder(t):
    make("f")
    holder = Holder((take, SETLK, READ, 3, 4))
    with opened("f") as fd:
        answer = lock(fd, GETLK, WRITE, 0, 100)
        equal((answer.type, answer.whence, answer.start, answer.length, answer.pid),
              (READ, os.SEEK_SET, 3, 4, holder.child.pid))
        answer = lock(fd, GETLK, READ, 0, 100)
        equal((answer.type, answer.start, answer.length), (UNLOCK, 0, 100), "no conflict")
    holder.let_go()


@case
def record_not_inherited_by_fork(t):
    with opened("f", os.O_CREAT | os.O_RDWR) as fd:
        lock(fd, SETLK, WRITE)

        def in_fork():
            expect(EAGAIN, lock, fd, SETLK, WRITE)
            os.close(fd)  # Must not drop the parent's lock.

        in_child(in_fork)
        equal(refused(WRITE), True, "refused after the child's close")


@case
def record_released_by_close_of_any_descriptor(t):
    make("f")
    a = os.open("f", os.O_RDWR)
    with opened("f", os.O_RDONLY):
        lock(a, SETLK, WRITE)
        equal(refused(WRITE), True)
    equal(refused(WRITE), False, "refused after the close of another descriptor")
    os.close(a)


@case
def record_kept_when_other_file_closes(t):
    make("g")
    with opened("f", os.O_CREAT | os.O_RDWR) as fd:
        lock(fd, SETLK, WRITE)
        os.close(os.open("g", os.O_RDWR))
        equal(refused(WRITE), True)


@case
def record_released_by_close_of_dup(t):
    with opened("f", os.O_CREAT | os.O_RDWR) as fd:
        lock(fd, SETLK, WRITE)
        os.close(os.dup(fd))
        equal(refused(WRITE), False)


@case
def record_released_by_kill(t):
    make("f")
    holder = Holder((take, SETLK, WRITE))
    holder.child.kill()
    holder.child.ended_by()
    equal(refused(WRITE), False)


@case
def record_errors(t):
    make("f")
    with opened("f", os.O_RDONLY) as reader, opened("f", os.O_WRONLY) as writer:
        expect(EBADF, lock, reader, SETLK, WRITE)
        expect(EBADF, lock, writer, SETLK, READ)
        expect(EINVAL, lock, reader, SETLK, 77)
        expect(EINVAL, lock, reader, SETLK, READ, 0, 0, 9)
        expect(EINVAL, lock, reader, SETLK, READ, -1, 1)
        expect(EINVAL, lock, reader, SETLK, READ, 5, -6)
        expect(EOVERFLOW, lock, reader, SETLK, READ, (1 << 63) - 1, 2)
        lock(reader, GETLK, WRITE)
        expect(EINVAL, lock, reader, GETLK, UNLOCK)
    with opened("f", os.O_PATH) as fd:
        expect(EBADF, lock, fd, SETLK, READ)
    expect(EBADF, fcntl.fcntl, 999, SETLK, bytes(32))


@case
def record_unlock_of_nothing(t):
    with opened("f", os.O_CREAT | os.O_RDWR) as fd:
        lock(fd, SETLK, UNLOCK)
        lock(fd, SETLK, UNLOCK, 100, 5)


@case
def record_blocking_waits(t):
    make("f")
    holder = Holder((take, SETLK, WRITE))
    waiter = Child(take, SETLKW, WRITE)
    waiter.wait_blocked()
    holder.let_go()
    waiter.result()


@case
def record_blocking_waits_for_its_range_only(t):
    make("f")
    with opened("f") as fd:
        lock(fd, SETLK, WRITE, 0, 30)
        waiter = Child(take, SETLKW, WRITE, 10, 10)
        waiter.wait_blocked()
        lock(fd, SETLK, UNLOCK, 0, 10)
        lock(fd, SETLK, UNLOCK, 20, 10)
        time.sleep(0.05)
        check(waiter.running(), "granted too early")
        lock(fd, SETLK, UNLOCK, 10, 10)
        waiter.result()


@case
def record_downgrade_lets_readers_in(t):
    make("f")
    with opened("f") as fd:
        lock(fd, SETLK, WRITE)
        readers = [Child(take, SETLKW, READ) for _ in range(3)]
        for reader in readers:
            reader.wait_blocked()
        lock(fd, SETLK, READ)
        for reader in readers:
            reader.result()


@case
def record_many_waiters_all_get_it(t):
    make("f")
    with opened("f") as fd:
        lock(fd, SETLK, WRITE)
        waiters = [Child(take, SETLKW, WRITE) for _ in range(10)]
        for waiter in waiters:
            waiter.wait_blocked()
        lock(fd, SETLK, UNLOCK)
        for waiter in waiters:
            waiter.result()


def blocked_until_signal(take_it):
    """The errno of a blocking call that SIGALRM interrupts."""
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.siginterrupt(signal.SIGALRM, True)
    signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
    try:
        take_it()
    except OSError as error:
        return error.errno
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return 0


@case
def record_waiter_is_interrupted(t):
    make("f")
    holder = Holder((take, SETLK, WRITE))

    def wait():
        request = ctypes.create_string_buffer(struct.pack("hhqqi4x", WRITE, 0, 0, 0, 0))
        with opened("f") as fd:
            return blocked_until_signal(lambda: call("fcntl", fd, SETLKW, request))

    equal(in_child(wait), EINTR, "errno")
    holder.let_go()
    equal(refused(WRITE), False, "refused after the waiter gave up")


@case
def record_waiter_is_killed(t):
    make("f")
    holder = Holder((take, SETLK, WRITE))
    waiter = Child(take, SETLKW, WRITE)
    waiter.wait_blocked()
    waiter.kill()
    equal(waiter.ended_by(5), signal.SIGKILL)
    holder.let_go()
    equal(refused(WRITE), False, "refused after the waiter's end")


@case
def record_killed_holder_wakes_waiter(t):
    make("f")
    holder = Holder((take, SETLK, WRITE))
    waiter = Child(take, SETLKW, WRITE)
    waiter.wait_blocked()
    holder.child.kill()
    waiter.result()


@case
def record_deadlock_is_refused(t):
    make("f")
    with opened("f") as fd:
        lock(fd, SETLK, WRITE, 0, 1)

        def other_way():
            take(SETLK, WRITE, 1, 1)
            lock(open_here(), SETLKW, WRITE, 0, 1)

        waiter = Child(other_way)
        waiter.wait_blocked()
        expect(EDEADLK, lock, fd, SETLKW, WRITE, 1, 1)
        lock(fd, SETLK, UNLOCK)
        waiter.result()


@case
def record_deadlock_of_three(t):
    make("f")
    with opened("f") as fd:
        lock(fd, SETLK, WRITE, 0, 1)

        def hold_and_wait(mine, wanted):
            with opened("f") as own:
                lock(own, SETLK, WRITE, mine, 1)
                lock(own, SETLKW, WRITE, wanted, 1)

        second = Child(hold_and_wait, 1, 0)
        second.wait_blocked()
        third = Child(hold_and_wait, 2, 1)
        third.wait_blocked()
        expect(EDEADLK, lock, fd, SETLKW, WRITE, 2, 1)
        lock(fd, SETLK, UNLOCK)
        second.result()
        third.result()


@case
def record_upgrade_deadlock(t):
    make("f")
    with opened("f") as fd:
        lock(fd, SETLK, READ)

        def upgrade():
            with opened("f") as own:
                lock(own, SETLK, READ)
                lock(own, SETLKW, WRITE)

        waiter = Child(upgrade)
        waiter.wait_blocked()
        expect(EDEADLK, lock, fd, SETLKW, WRITE)
        lock(fd, SETLK, UNLOCK)
        waiter.result()


@case
def record_thousand_ranges(t):
    with opened("f", os.O_CREAT | os.O_RDWR) as fd:
        for number in range(1000):
            lock(fd, SETLK, WRITE, number * 2, 1)
        equal(held(10), "w.w.w.w.w.")
        equal(refused(WRITE, 1001, 1), False)
        lock(fd, SETLK, WRITE, 0, 2000)
        equal(refused(WRITE, 1001, 1), True)
        lock(fd, SETLK, UNLOCK)
        equal(refused(WRITE), False)


@case
def record_follows_the_inode(t):
    make("f")
    os.link("f", "g")
    with opened("f") as fd:
        lock(fd, SETLK, WRITE)
        equal(refused(WRITE, path="g"), True, "refused through the other name")
        os.rename("f", "h")
        equal(refused(WRITE, path="h"), True, "refused after rename")
        make("f")
        equal(refused(WRITE, path="f"), False, "refused on a new file of the old name")


@case
def record_on_unlinked_file(t):
    make("f")
    with opened("f") as fd:
        os.unlink("f")
        lock(fd, SETLK, WRITE)

        def attempt():
            with opened(f"/proc/self/fd/{fd}", os.O_RDWR) as own:
                expect(EAGAIN, lock, own, SETLK, WRITE)

        in_child(attempt)


@case
def record_counter(t):
    """Processes add to a number under the lock: none is lost."""
    make("f", b"0000")

    def add():
        with opened("f") as fd:
            for _ in range(50):
                lock(fd, SETLKW, WRITE)
                os.pwrite(fd, b"%04d" % (int(os.pread(fd, 4, 0)) + 1), 0)
                lock(fd, SETLK, UNLOCK)

    for child in [Child(add) for _ in range(4)]:
        child.result()
    equal(read("f"), b"0200")


@case
def record_survives_exec(t):
    make("f")
    fd = open_here()
    os.set_inheritable(fd, True)

    def run():
        lock(fd, SETLKW, WRITE)  # The question below may hold it for a moment.
        os.execv("/bin/sleep", ["sleep", "20"])

    child = Child(run)
    wait_until(lambda: refused(WRITE), 10, "lock of the other process")
    wait_until(lambda: os.readlink(f"/proc/{child.pid}/exe").endswith(("sleep", "coreutils")),
               10, "exec")
    equal(refused(WRITE), True)
    child.kill()
    child.ended_by()
    equal(refused(WRITE), False)


@case
def lockf(t):
    make("f", b"0123456789")
    with opened("f") as fd:
        fcntl.lockf(fd, EX | NB, 4, 2)
        equal(held(10), "..wwww....")
        fcntl.lockf(fd, UN, 4, 2)
        equal(held(10), "." * 10)


# flock


def flocked(path="f", how=EX):
    fcntl.flock(open_here(path), how)


def flock_refused(how):
    def attempt():
        answer = outcome(flocked, "f", how | NB)
        check(answer in (None, "EAGAIN"), f"answer {answer}")
        return answer is not None

    return in_child(attempt)


@case
def flock_conflicts(t):
    make("f")
    for mine, other, wanted in ((SH, SH, False), (SH, EX, True), (EX, SH, True), (EX, EX, True)):
        holder = Holder((flocked, "f", mine))
        equal(flock_refused(other), wanted)
        holder.let_go()
        equal(flock_refused(EX), False, "after its end")


@case
def flock_belongs_to_the_description(t):
    with opened("f", os.O_CREAT | os.O_RDWR) as a, opened("f") as b:
        fcntl.flock(a, EX)
        expect(EAGAIN, fcntl.flock, b, EX | NB)
        copy = os.dup(a)
        fcntl.flock(copy, EX | NB)
        os.close(copy)
        expect(EAGAIN, fcntl.flock, b, SH | NB)
        fcntl.flock(a, UN)
        fcntl.flock(b, EX | NB)


@case
def flock_is_inherited_by_fork(t):
    fd = open_here()
    fcntl.flock(fd, EX)
    holder = Holder((fcntl.flock, fd, EX | NB))
    os.close(fd)
    equal(flock_refused(SH), True, "refused while the child has it open")
    holder.let_go()
    equal(flock_refused(EX), False)


@case
def flock_child_unlocks_for_both(t):
    with opened("f", os.O_CREAT | os.O_RDWR) as fd:
        fcntl.flock(fd, EX)
        in_child(fcntl.flock, fd, UN)
        equal(flock_refused(EX), False)


@case
def flock_converts(t):
    make("f")
    with opened("f") as fd:
        fcntl.flock(fd, EX)
        fcntl.flock(fd, SH)
        equal((flock_refused(SH), flock_refused(EX)), (False, True))
        fcntl.flock(fd, EX)
        equal(flock_refused(SH), True)


@case
def flock_released_by_last_close(t):
    fd = open_here()
    copy = os.dup(fd)
    fcntl.flock(fd, EX)
    os.close(fd)
    equal(flock_refused(SH), True, "refused while the copy is open")
    os.close(copy)
    equal(flock_refused(EX), False)


@case
def flock_not_released_by_close_of_other_description(t):
    with opened("f", os.O_CREAT | os.O_RDWR) as fd:
        fcntl.flock(fd, EX)
        os.close(os.open("f", os.O_RDWR))
        equal(flock_refused(SH), True)


@case
def flock_blocks(t):
    make("f")
    holder = Holder((flocked, "f", EX))
    waiter = Child(flocked, "f", EX)
    reader = Child(flocked, "f", SH)
    waiter.wait_blocked()
    reader.wait_blocked()
    holder.let_go()
    waiter.result()
    reader.result()


@case
def flock_waiter_is_interrupted(t):
    make("f")
    holder = Holder((flocked, "f", EX))

    def wait():
        with opened("f") as fd:
            return blocked_until_signal(lambda: call("flock", fd, EX))

    equal(in_child(wait), EINTR, "errno")
    holder.let_go()
    equal(flock_refused(EX), False)


@case
def flock_waiter_is_killed(t):
    make("f")
    holder = Holder((flocked, "f", EX))
    waiter = Child(flocked, "f", EX)
    waiter.wait_blocked()
    waiter.kill()
    equal(waiter.ended_by(5), signal.SIGKILL)
    holder.let_go()
    equal(flock_refused(EX), False)


@case
def flock_needs_no_write_permission(t):
    make("f")
    with opened("f", os.O_RDONLY) as fd:
        fcntl.flock(fd, EX)
        equal(flock_refused(SH), True)


@case
def flock_on_directory(t):
    os.mkdir("d")
    with opened("d", os.O_RDONLY) as a, opened("d", os.O_RDONLY) as b:
        fcntl.flock(a, EX)
        expect(EAGAIN, fcntl.flock, b, SH | NB)
        fcntl.flock(a, UN)
        fcntl.flock(b, EX | NB)


@case
def flock_errors(t):
    make("f")
    with opened("f") as fd:
        expect(EINVAL, fcntl.flock, fd, 77)
        expect(EINVAL, fcntl.flock, fd, SH | EX)
    with opened("f", os.O_PATH) as fd:
        expect(EBADF, fcntl.flock, fd, EX)
    expect(EBADF, fcntl.flock, 999, EX)


@case
def flock_and_record_locks_do_not_meet(t):
    make("f")
    with opened("f") as fd:
        fcntl.flock(fd, EX)
        equal(refused(WRITE), False)
        lock(fd, SETLK, WRITE)
        fcntl.flock(fd, UN)
        equal((flock_refused(EX), refused(READ)), (False, True))


@case
def flock_tool(t):
    make("f")
    with opened("f") as fd:
        fcntl.flock(fd, EX)
        equal(subprocess.run(["flock", "-n", "f", "true"], check=False).returncode, 1)
        fcntl.flock(fd, UN)
        equal(subprocess.run(["flock", "-n", "f", "true"], check=False).returncode, 0)


# Open file description locks


@case
def ofd_conflicts_between_descriptions(t):
    with opened("f", os.O_CREAT | os.O_RDWR) as a, opened("f") as b:
        lock(a, OFD_SETLK, WRITE, 0, 10)
        expect(EAGAIN, lock, b, OFD_SETLK, WRITE, 5, 10)
        lock(b, OFD_SETLK, WRITE, 10, 10)
        lock(a, OFD_SETLK, READ, 0, 10)
        lock(b, OFD_SETLK, READ, 0, 10)


@case
def ofd_conflicts_with_process_locks(t):
    with opened("f", os.O_CREAT | os.O_RDWR) as a, opened("f") as b:
        lock(a, OFD_SETLK, WRITE)
        expect(EAGAIN, lock, b, SETLK, WRITE)
        expect(EAGAIN, lock, a, SETLK, WRITE)
        lock(a, OFD_SETLK, UNLOCK)
        lock(a, SETLK, WRITE)
        expect(EAGAIN, lock, a, OFD_SETLK, WRITE)


@case
def ofd_survives_close_of_other_descriptor(t):
    with opened("f", os.O_CREAT | os.O_RDWR) as fd:
        lock(fd, OFD_SETLK, WRITE)
        os.close(os.open("f", os.O_RDWR))
        os.close(os.dup(fd))
        equal(refused(WRITE), True)


@case
def ofd_released_by_last_close(t):
    fd = open_here()
    copy = os.dup(fd)
    lock(fd, OFD_SETLK, WRITE)
    os.close(fd)
    equal(refused(WRITE), True, "refused while the copy is open")
    os.close(copy)
    equal(refused(WRITE), False)


@case
def ofd_last_close_releases_its_own_only(t):
    with opened("f", os.O_CREAT | os.O_RDWR) as a:
        lock(a, OFD_SETLK, WRITE, 0, 10)
        with opened("f") as b:
            lock(b, OFD_SETLK, WRITE, 10, 10)
        equal(held(24), "wwwwwwwwww..............")


@case
def ofd_is_shared_with_fork(t):
    with opened("f", os.O_CREAT | os.O_RDWR) as fd:
        lock(fd, OFD_SETLK, WRITE)
        in_child(lock, fd, OFD_SETLK, READ)
        equal((refused(READ), refused(WRITE)), (False, True))
        in_child(lock, fd, OFD_SETLK, UNLOCK)
        equal(refused(WRITE), False)


@case
def ofd_survives_the_process_that_took_it(t):
    with opened("f", os.O_CREAT | os.O_RDWR) as fd:
        in_child(lock, fd, OFD_SETLK, WRITE)
        equal(refused(WRITE), True)


@case
def ofd_blocks(t):
    with opened("f", os.O_CREAT | os.O_RDWR) as fd:
        lock(fd, OFD_SETLK, WRITE)
        waiters = [Child(take, OFD_SETLKW, WRITE), Child(take, SETLKW, WRITE)]
        for waiter in waiters:
            waiter.wait_blocked()
        lock(fd, OFD_SETLK, UNLOCK)
        for waiter in waiters:
            waiter.result()


@case
def ofd_waiter_is_killed(t):
    with opened("f", os.O_CREAT | os.O_RDWR) as fd:
        lock(fd, OFD_SETLK, WRITE)
        waiter = Child(take, OFD_SETLKW, WRITE)
        waiter.wait_blocked()
        waiter.kill()
        equal(waiter.ended_by(5), signal.SIGKILL)
    equal(refused(WRITE), False)


@case
def ofd_getlk(t):
    with opened("f", os.O_CREAT | os.O_RDWR) as a, opened("f") as b:
        lock(a, OFD_SETLK, WRITE, 3, 4)
        answer = lock(b, OFD_GETLK, READ)
        equal((answer.type, answer.start, answer.length), (WRITE, 3, 4))
        equal(lock(a, OFD_GETLK, READ).type, UNLOCK, "own lock")


@case
def ofd_split_and_merge(t):
    with opened("f", os.O_CREAT | os.O_RDWR) as fd:
        lock(fd, OFD_SETLK, WRITE, 0, 16)
        lock(fd, OFD_SETLK, UNLOCK, 4, 4)
        lock(fd, OFD_SETLK, READ, 12, 8)
        equal(held(22), "wwww....wwwwrrrrrrrr..")


@case
def ofd_errors(t):
    make("f")
    with opened("f", os.O_RDONLY) as fd:
        expect(EBADF, lock, fd, OFD_SETLK, WRITE)
        with_pid = struct.pack("hhqqi4x", READ, 0, 0, 0, 1)
        expect(EINVAL, fcntl.fcntl, fd, OFD_SETLK, with_pid)
        expect(EINVAL, fcntl.fcntl, fd, OFD_GETLK, with_pid)


@case
def interleaved_processes_end_without_locks(t):
    """Random locking by several processes; afterwards everything is free."""
    make("f")

    def churn(seed):
        chance = random.Random(seed)
        with opened("f") as fd:
            for _ in range(150):
                kind = chance.choice((READ, WRITE, UNLOCK, UNLOCK))
                start, length = chance.randrange(60), chance.randrange(1, 20)
                command = chance.choice((SETLK, OFD_SETLK))
                outcome(lock, fd, command, kind, start, length)

    for child in [Child(churn, seed) for seed in range(4)]:
        child.result()
    equal(held(40), "." * 40)
