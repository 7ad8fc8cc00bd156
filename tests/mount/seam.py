#!/usr/bin/env python3
"""A thousand blocked callers must not slow down anybody else.

Goal: the daemon never waits for a file lock or a slow device in a thread that it needs
for other requests. Method: a thousand callers block in lock requests that the daemon
keeps (--locks=daemon), or in fsync of a store whose device stands still; a process that
asks for attributes, names and data is timed before and while they do. Then all are let
go, or killed, and have to end as they should.

The device of the store stands still because it is an image on a frozen file system:
writes to it wait in the kernel, and what is in the page cache can still be read.
"""

import contextlib
import fcntl
import json
import os
import random
import select
import signal
import statistics
import struct
import sys
import threading
import time

import harness
from harness import Child, Failure, case, check, equal, loop_file_system, opened, run, run_checked

CALLERS = 1000
PROCESSES = 100  # Of the callers; the others are threads, a hundredth of the weight.
SAMPLES = 400
OFD_SETLK, OFD_SETLKW = 37, 38
THREAD_STACK_BYTES = 256 << 10


def lock(fd, command, kind, start=0, length=0):
    fcntl.fcntl(fd, command, struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0))


# The timed process


class Prober:
    """Times operations that the daemon has to answer; opens all it needs at its start."""

    def __init__(self, mnt):
        os.mkdir(f"{mnt}/probe")
        for number in range(20):
            harness.make(f"{mnt}/probe/f{number}", os.urandom(1 << 16))
        self._orders, self._order = os.pipe()
        self._answers, self._answer = os.pipe()
        self._child = Child(self._serve, f"{mnt}/probe")
        self.measure()  # Also says that it is ready.

    def measure(self):
        """{operation: (median, 99th percentile)} in microseconds."""
        os.write(self._order, b"x")
        with open(os.dup(self._answers), encoding="ascii") as answers:
            ready, _, _ = select.select([answers], [], [], 30 * harness.TIME_FACTOR)
            if not ready:
                raise Failure("the timed operations hang: " + self._where())
            return {name: tuple(value) for name, value in json.loads(answers.readline()).items()}

    def end(self):
        self._child.kill()
        self._child.ended_by()

    def _where(self):
        return harness.stacks(self._child.pid).strip().splitlines()[0].strip()

    def _serve(self, directory):
        chance = random.Random(1)
        serial = iter(range(1 << 40))
        writer = os.open(f"{directory}/f0", os.O_RDWR)
        reader = os.open(f"{directory}/f1", os.O_RDONLY)

        def missing_name():
            with contextlib.suppress(FileNotFoundError):
                os.stat(f"{directory}/missing{next(serial)}")

        def open_read_close():
            with opened(f"{directory}/f{chance.randrange(2, 20)}", os.O_RDONLY) as fd:
                os.pread(fd, 4096, 0)

        operations = {
            "getattr": lambda: os.stat(f"{directory}/f0"),  # Open for writing: never cached.
            "lookup": missing_name,
            "read": lambda: os.pread(reader, 4096, chance.randrange(15) * 4096),
            "open": open_read_close,
        }
        while os.read(self._orders, 1):
            answer = {name: timed(operation) for name, operation in operations.items()}
            os.write(self._answer, json.dumps(answer).encode() + b"\n")
        os.close(writer)


def timed(operation):
    samples = []
    for _ in range(SAMPLES):
        before = time.perf_counter_ns()
        operation()
        samples.append((time.perf_counter_ns() - before) / 1000)
    return statistics.median(samples), statistics.quantiles(samples, n=100)[98]


def check_unchanged(mount, prober, before):
    """One of three measurements has to be quiet: the machine has other work too."""
    requests = mount.status()["fuse"]["requests"]
    for _ in range(3):
        now = prober.measure()
        slower = [f"{name}: median {before[name][0]:.0f} -> {now[name][0]:.0f} us, "
                  f"p99 {before[name][1]:.0f} -> {now[name][1]:.0f} us"
                  for name in before
                  if now[name][0] > 3 * before[name][0] + 30
                  or now[name][1] > 5 * before[name][1] + 5000]
        if not slower:
            break
    check(not slower, "; ".join(slower))
    after = mount.status()["fuse"]["requests"]
    for name in ("getattr", "lookup", "open"):
        check(after[name] - requests[name] >= SAMPLES * 0.9, f"{name} did not reach the daemon")
    print("\n".join(f"# {name}: median {before[name][0]:.0f} -> {now[name][0]:.0f} us, "
                    f"p99 {before[name][1]:.0f} -> {now[name][1]:.0f} us" for name in before))


# The blocked callers


class Callers:
    """A process with many threads, each in one blocking call on a descriptor of its own.

    prepare(index) opens it, when the object is made; call(descriptor, index) blocks,
    from start() on. No other process has the descriptors.
    """

    def __init__(self, count, prepare, call):
        self._count = count
        self._returned, self._return = os.pipe()
        self._orders, self._order = os.pipe()
        self.child = Child(self._run, prepare, call)
        os.read(self._returned, 1)

    def start(self):
        os.write(self._order, b"x")

    def _run(self, prepare, call):
        descriptors = [prepare(index) for index in range(self._count)]
        os.write(self._return, b"x")
        os.read(self._orders, 1)
        threading.stack_size(THREAD_STACK_BYTES)
        failures = []

        def one(index):
            try:
                call(descriptors[index], index)
                os.write(self._return, b".")
            except OSError as error:
                failures.append(str(error))

        threads = [threading.Thread(target=one, args=(i,)) for i in range(self._count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return failures

    def blocked(self):
        """Threads that wait in the kernel for an answer of the daemon."""
        count = 0
        for task in os.listdir(f"/proc/{self.child.pid}/task"):
            with contextlib.suppress(OSError):
                with open(f"/proc/{self.child.pid}/task/{task}/wchan", encoding="ascii") as f:
                    count += f.read() == "request_wait_answer"
        return count

    def wait_blocked(self):
        harness.wait_until(lambda: self.blocked() >= self._count, 30 * harness.TIME_FACTOR,
                           f"{self._count} callers block")

    def returned(self):
        ready, _, _ = select.select([self._returned], [], [], 0)
        return len(os.read(self._returned, 1 << 16)) if ready else 0

    def finish(self):
        equal(self.child.result(120 * harness.TIME_FACTOR), [], "failures of the callers")


def lock_mount(t):
    return t.new_mount(options=["--locks=daemon"])


class LockWaiters:
    """A thousand callers that wait for locks while this process holds them all."""

    def __init__(self, mnt):
        self._path = harness.make(f"{mnt}/locked")
        self._holder = os.open(self._path, os.O_RDWR)
        lock(self._holder, OFD_SETLK, fcntl.F_WRLCK)

        def wait_in_thread(fd, index):
            if index % 2:
                lock(fd, OFD_SETLKW, fcntl.F_RDLCK, 1 << 20)
            else:
                lock(fd, OFD_SETLKW, fcntl.F_WRLCK, index, 1)

        self.threads = Callers(CALLERS - PROCESSES, lambda _: os.open(self._path, os.O_RDWR),
                               wait_in_thread)
        self.threads.start()
        self.processes = [Child(self._wait_in_process) for _ in range(PROCESSES)]
        for process in self.processes:
            process.wait_blocked()
        self.threads.wait_blocked()
        equal(self.threads.returned(), 0, "locks granted too early")

    def _wait_in_process(self):
        with opened(self._path) as fd:
            lock(fd, fcntl.F_SETLKW, fcntl.F_WRLCK, 2 << 20, 1)

    def release(self):
        lock(self._holder, OFD_SETLK, fcntl.F_UNLCK)  # Forked waiters hold copies of it.

    def end(self):
        """Fails if any lock is left."""
        os.close(self._holder)
        with opened(self._path) as fd:
            lock(fd, OFD_SETLK, fcntl.F_WRLCK)


@case(timeout=180)
def lock_waiters_do_not_slow_others(t):
    with lock_mount(t) as mount:
        prober = Prober(mount.mnt)
        before = prober.measure()
        waiters = LockWaiters(mount.mnt)
        check_unchanged(mount, prober, before)
        waiters.release()
        waiters.threads.finish()
        for process in waiters.processes:
            process.result(60 * harness.TIME_FACTOR)
        waiters.end()
        prober.end()


@case(timeout=120)
def killed_lock_waiters_end_at_once(t):
    with lock_mount(t) as mount:
        waiters = LockWaiters(mount.mnt)
        check_killed_at_once([*waiters.processes[::2], waiters.threads.child])
        alive = waiters.processes[1::2]
        check(all(process.running() for process in alive), "a waiter that was not killed ended")
        waiters.release()
        for process in alive:
            process.result(60 * harness.TIME_FACTOR)
        waiters.end()


def check_killed_at_once(children):
    started = time.monotonic()
    for child in children:
        child.kill()
    for child in children:
        equal(child.ended_by(10), signal.SIGKILL, "signal")
    check(time.monotonic() - started < 5 * harness.TIME_FACTOR, "killed callers lingered")


# fsync on a device that stands still


class StandingDevice:
    """A file system whose device can be made to stand still; the store goes there."""

    def __init__(self, t):
        self._work = t.workspace.new_directory()
        self.path = f"{self._work}/fs"
        self._outer = f"{self._work}/outer"

    def __enter__(self):
        loop_file_system(f"{self._work}/outer.image", self._outer, "ext4", 3000)
        # noatime: else a read would wait for the journal, whoever serves it.
        loop_file_system(f"{self._outer}/image", self.path, "xfs", 2000, "loop,noatime")
        return self

    def __exit__(self, *_):
        self.go()
        run("umount", "-l", self.path)
        run("umount", "-l", self._outer)

    def stand(self):
        run_checked("fsfreeze", "-f", self._outer)

    def go(self):
        harness.thaw(self._outer)


@contextlib.contextmanager
def fsync_callers(t):
    """(mount, device, prober, its times before, callers in fsync) with the device standing."""
    with StandingDevice(t) as device, t.new_mount(store=device.path) as mount:
        prober = Prober(mount.mnt)

        def open_and_write(index):
            fd = os.open(f"{mount.mnt}/f{index}", os.O_CREAT | os.O_RDWR)
            os.write(fd, bytes(4096))
            return fd

        before = prober.measure()
        callers = Callers(CALLERS, open_and_write, lambda fd, _: os.fsync(fd))
        device.stand()
        try:
            callers.start()
            callers.wait_blocked()
            equal(callers.returned(), 0, "fsyncs that did not wait for the device")
            yield mount, device, prober, before, callers
        finally:
            device.go()
        prober.end()


@case(timeout=240)
def fsync_callers_do_not_slow_others(t):
    with fsync_callers(t) as (mount, device, prober, before, callers):
        check_unchanged(mount, prober, before)
        equal(callers.returned(), 0, "fsyncs that did not wait for the device")
        device.go()
        callers.finish()


if __name__ == "__main__":
    sys.exit(harness.main(__doc__, shared_mount=False))
