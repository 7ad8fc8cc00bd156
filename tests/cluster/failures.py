#!/usr/bin/env python3
"""Nodes that are killed, cut off or lose power while others work.

    failures.py [--nodes 1|3] [--long] [--mode MODE] [--filter REGEX]

Goal: what needs a node that is gone fails with EIO when it has been tried for --io-timeout and not
earlier, everything else goes on at once; when the node is back everything is, and nothing that
was acknowledged is lost, torn or doubled. Method: processes work on the mounts of nodes of a real
cluster and write down what was acknowledged outside of it, where no fault reaches. With --nodes 1
only the harness itself is tested: that cables are cut and that errors are seen.
"""

import contextlib
import fcntl
import os
import signal
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "mount"))
import harness  # noqa: E402  (It is where the path above says.)
from arrangement import OPTIONS, OTHERS  # noqa: E402
from cluster import Cluster  # noqa: E402
from harness import (Child, Failure, Holder, check, equal, make, opened, outcome,  # noqa: E402
                     read, wait_until)
from network import Network, remove_stale  # noqa: E402
from syscalls import AT_EMPTY_PATH, OFD_SETLK, OFD_SETLKW, linkat, lock  # noqa: E402

FACTOR = harness.TIME_FACTOR
IO_TIMEOUT = 3
SOON = 5 * FACTOR  # For what has to be over in the end, but waits for somebody else.
AT_ONCE = 1 * FACTOR  # For what has to go on meanwhile; far below IO_TIMEOUT.
SLOWER_MAX = 2  # How many times as long local operations may take while others hang.
SIZE = 200_000
PACE = 0.002  # Seconds between a worker's calls: it has to be there, not to use up the machine.


def case(function):
    return harness.case(function, timeout=120)


def cluster_case(function=None, *, long=False):
    """One for a cluster; with long, one that the short form leaves out."""

    def register(f):
        return case(f) if OPTIONS.nodes > 1 and (OPTIONS.long or not long) else f

    return register(function) if function else register


def new_cluster(t, io_timeout=IO_TIMEOUT * FACTOR, **kwargs):
    kwargs.setdefault("store", t.store)
    return Cluster(t.workspace, OPTIONS.nodes, t.mode, io_timeout=io_timeout, one_owner=True,
                   **kwargs)


def content(name, size=SIZE):
    return (name.encode() * (size // len(name) + 1))[:size]


def make_files(cluster, *names):
    """Files with content(name), each made on the node that its name begins with."""
    for name in names:
        node = next(n for n in cluster.nodes if n.name == name[0])
        make(f"{node.mnt}/{name}", content(name))


def sync_directory(path):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def see_files(cluster, *names):
    """Every node reads all of them, right."""
    for root in cluster.roots:
        equal(sorted(set(os.listdir(root)) & set(names)), sorted(names), f"names in {root}")
        for name in names:
            check(read(f"{root}/{name}") == content(name), f"other content in {root}/{name}")


def timed(function, *args):
    """Its answer, and the seconds it took."""
    start = time.monotonic()
    answer = outcome(function, *args)
    return answer, time.monotonic() - start


def local_operations(root):
    """Nothing of this needs a node other than that of `root` and the founder."""
    path = f"{root}/local-{os.getpid()}"
    make(path, b"x")
    equal(os.stat(path).st_size, 1, "size")
    equal(read(path), b"x", "content")
    os.rename(path, f"{path}-new")
    os.unlink(f"{path}-new")


class Worker:
    """A process that calls step(number) for 0, 1, 2 ... and writes down what came of it.

    What was acknowledged survives the process: acknowledged(), errors() say which numbers, and
    the slowest call.
    """

    def __init__(self, t, step):
        self._log = f"{t.workspace.new_directory()}/log"
        self._stop = f"{self._log}.stop"
        Path(self._log).touch()
        self._child = Child(self._run, step)

    def _run(self, step):
        with open(self._log, "a", buffering=1, encoding="ascii") as log:
            number = 0
            while not os.path.exists(self._stop):
                answer, seconds = timed(step, number)
                name = answer if isinstance(answer, str) else "-"
                log.write(f"{number} {name} {seconds:.3f}\n")
                number += 1
                time.sleep(PACE)

    def _lines(self):
        lines = Path(self._log).read_text(encoding="ascii").splitlines(keepends=True)
        return [line.split() for line in lines if line.endswith("\n")]

    def acknowledged(self):
        return [int(number) for number, error, _ in self._lines() if error == "-"]

    def errors(self):
        """Number -> name of the errno and seconds."""
        return {int(number): (error, float(seconds))
                for number, error, seconds in self._lines() if error != "-"}

    def slowest(self):
        return max(float(seconds) for _, _, seconds in self._lines())

    def wait_acknowledged(self, more, timeout=20 * FACTOR):
        """Returns after that many further acknowledgements."""
        wanted = len(self.acknowledged()) + more
        wait_until(lambda: len(self.acknowledged()) >= wanted or not self._child.running(),
                   timeout, f"{more} more acknowledged operations")
        check(self._child.running(), "the worker died")

    def wait_error(self, timeout=20 * FACTOR):
        before = len(self.errors())
        wait_until(lambda: len(self.errors()) > before, timeout, "an operation fails")

    def stop(self):
        Path(self._stop).touch()
        self._child.result(60 * FACTOR)


def check_tried(answers, io_timeout):
    """All failed with EIO, after they had been tried for the I/O time-out."""
    wrong = [f"{what}: {harness.shorten(answer)} after {seconds:.1f} s"
             for what, (answer, seconds) in answers.items()
             if answer != "EIO" or not 0.7 * io_timeout < seconds < io_timeout + SOON]
    check(not wrong, f"not EIO after {io_timeout} s, but " + ", ".join(wrong))


# A dead node


def operations_on(stack, path, held):
    """What needs the data of a file, by name; `held` opens a descriptor in time."""
    fds = {name: stack.enter_context(opened(path)) for name in held}
    return {
        "open and read": lambda: read(path),
        "read": lambda: os.pread(fds["read"], 10, 0),
        "write": lambda: os.pwrite(fds["write"], b"x", 0),
        "extend": lambda: os.pwrite(fds["extend"], b"x", SIZE),
        "truncate": lambda: os.ftruncate(fds["truncate"], 10),
        "fsync": lambda: (os.pwrite(fds["fsync"], b"x", 0), os.fsync(fds["fsync"])),
    }


@cluster_case
def operations_on_a_killed_node_fail_after_the_timeout(t):
    with new_cluster(t) as cluster, contextlib.ExitStack() as stack:
        a, b, c = cluster.nodes
        make_files(cluster, "A1", "B1", "C1")
        see_files(cluster, "A1", "B1", "C1")
        children = {}
        b_files = {}
        for node in (a, c):
            make(f"{b.mnt}/B-{node.name}", content("x"))
            b_files[node] = operations_on(stack, f"{node.mnt}/B-{node.name}",
                                          ("read", "write", "extend", "truncate", "fsync"))
        b.kill()
        for node in (a, c):
            for what, function in b_files[node].items():
                children[f"{what} from {node.name}"] = Child(timed, function)
        for node in (a, c):
            for _ in range(10):
                _, seconds = timed(local_operations, node.mnt)
                check(seconds < AT_ONCE, f"local operations on {node.name} took {seconds:.1f} s")
            for name in ("A1", "C1"):
                answer, seconds = timed(read, f"{node.mnt}/{name}")
                equal((answer == content(name), seconds < AT_ONCE), (True, True), f"read {name}")
            check("B1" in os.listdir(node.mnt), "the name of a file on the dead node is gone")
        check_tried({what: child.result(60 * FACTOR) for what, child in children.items()},
                    IO_TIMEOUT * FACTOR)
        b.start()
        wait_until(lambda: outcome(read, f"{a.mnt}/B1") == content("B1"), SOON, "B1 is back")
        see_files(cluster, "A1", "B1", "C1")
        for node in (a, b, c):
            local_operations(node.mnt)


@cluster_case
def descriptors_work_again_when_the_node_is_back(t):
    with new_cluster(t) as cluster:
        a, b, c = cluster.nodes
        make_files(cluster, "B1")
        with opened(f"{a.mnt}/B1") as here, opened(f"{c.mnt}/B1", os.O_RDONLY) as there:
            b.kill()
            equal(outcome(os.pread, here, 10, 0), "EIO", "read from the dead node")
            b.start()
            wait_until(lambda: outcome(os.pread, here, 10, 0) == content("B1")[:10], SOON,
                       "the descriptor reads again")
            os.pwrite(here, b"again", 0)
            equal(os.pread(there, 5, 0), b"again", "what the other descriptor reads")


@cluster_case
def local_operations_are_not_slowed_by_hanging_ones(t):
    """Two hundred operations wait for a node that does not answer."""
    callers, io_timeout = 200, 8 * FACTOR
    with new_cluster(t, io_timeout=io_timeout) as cluster:
        a, b, c = cluster.nodes
        for number in range(callers):
            make(f"{b.mnt}/B{number}", b"x")
        for node in (a, c):
            os.mkdir(f"{node.mnt}/{node.name}")
        hanging = [Hanging(node.mnt, callers // 2, start) for node, start in ((a, 0), (c, 100))]

        def measure(node):
            """Median, the best of several, for others use the machine too; and the slowest."""
            # A lookup that hangs keeps its directory locked, against creates: not in that one.
            samples = [[timed(local_operations, f"{node.mnt}/{node.name}")[1] for _ in range(50)]
                       for _ in range(4)]
            return min(map(statistics.median, samples)), max(map(max, samples))

        before = {node: measure(node)[0] for node in (a, c)}
        cluster.isolate(b)
        for each in hanging:
            each.go()
        for node in (a, c):
            now, slowest = measure(node)
            text = (f"local operations on {node.name}: median {before[node] * 1e3:.2f} ms, "
                    f"{now * 1e3:.2f} ms while {callers} hang, at most {slowest * 1e3:.0f} ms")
            print(f"# {text}", flush=True)
            check(now < SLOWER_MAX * before[node] + 0.001 and slowest < AT_ONCE, text)
        ended = [each.ended() for each in hanging]
        answers = [each.answers(io_timeout + SOON) for each in hanging]
        equal([set(each) for each in answers], [{"EIO"}, {"EIO"}], "answers")
        equal(ended, [0, 0], "operations that hung no longer when the others had been measured")
        check(cluster.network.lost(b.index) > 0, "empty pass: no packet was lost")
        cluster.heal()
        wait_until(lambda: outcome(read, f"{a.mnt}/B0") == b"x", SOON, "B is back")


class Hanging:
    """A process with a thread for each operation: half read by descriptors, half open."""

    def __init__(self, root, count, first):
        self._begin_out, self._begin = os.pipe()
        self._ended_out, self._ended = os.pipe()
        ready_out, self._ready = os.pipe()
        self._count = count
        self._child = Child(self._run, root, first)
        equal(os.read(ready_out, 1), b"x", "the process is ready")
        os.set_blocking(self._ended_out, False)

    def _run(self, root, first):
        paths = [f"{root}/B{first + number}" for number in range(self._count)]
        fds = {path: os.open(path, os.O_RDWR) for path in paths[::2]}
        answers = []

        def hang(path):
            function = (lambda: os.pread(fds[path], 1, 0)) if path in fds else lambda: read(path)
            answer = outcome(function)
            answers.append(answer if isinstance(answer, str) else "success")
            os.write(self._ended, b"x")

        threading.stack_size(256 << 10)
        threads = [threading.Thread(target=hang, args=(path,)) for path in paths]
        os.write(self._ready, b"x")
        os.read(self._begin_out, 1)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers

    def go(self):
        os.write(self._begin, b"x")
        time.sleep(0.3)  # Nothing shows that the last thread is in its call.

    def ended(self):
        with contextlib.suppress(BlockingIOError):
            return len(os.read(self._ended_out, 1000))
        return 0

    def answers(self, timeout):
        return self._child.result(timeout)


@cluster_case
def locks_of_a_killed_node_are_released(t):
    with new_cluster(t) as cluster:
        a, b, c = cluster.nodes
        for name in ("flock", "record", "ofd"):
            make(f"{a.mnt}/{name}")

        def take(root, wait):
            for name, function in (
                    ("flock", lambda fd: fcntl.flock(fd, fcntl.LOCK_EX | (
                        0 if wait else fcntl.LOCK_NB))),
                    ("record", lambda fd: lock(fd, fcntl.F_SETLKW if wait else fcntl.F_SETLK,
                                               fcntl.F_WRLCK)),
                    ("ofd", lambda fd: lock(fd, OFD_SETLKW if wait else OFD_SETLK,
                                            fcntl.F_WRLCK))):
                try:
                    function(os.open(f"{root}/{name}", os.O_RDWR))
                except BlockingIOError:
                    return name
            return None

        holder = Holder((take, b.mnt, False))
        equal(harness.in_child(take, c.mnt, False), "flock", "what is refused at first")
        waiter = Child(take, c.mnt, True)
        waiter.wait_blocked()
        b.kill()
        equal(waiter.result(IO_TIMEOUT * FACTOR + 2 * SOON), None, "what the waiter was refused")
        equal(harness.in_child(take, a.mnt, False), None, "what is refused afterwards")
        holder.child.kill()


@cluster_case
def the_founder_killed_during_creates(t):
    """Every acknowledged file is there with its content, none is doubled."""
    with new_cluster(t) as cluster:
        founder, *others = cluster.nodes

        def create(root, name):
            def step(number):
                path = f"{root}/{name}-{number}"
                if number % 2:  # Through a temporary name.
                    make(f"{path}.new", content(path[-9:], 3000))
                    os.rename(f"{path}.new", path)
                else:
                    with opened(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY) as fd:
                        os.write(fd, content(path[-9:], 3000))

            return step

        workers = {node: Worker(t, create(node.mnt, node.name)) for node in others}
        for _ in range(3 if OPTIONS.long else 1):
            for worker in workers.values():
                worker.wait_acknowledged(50)
            founder.kill()
            for worker in workers.values():
                worker.wait_error()
            founder.start()
            for worker in workers.values():
                worker.wait_acknowledged(50)
        for worker in workers.values():
            worker.stop()
        for node in cluster.nodes:
            names = os.listdir(node.mnt)
            equal(len(set(names)), len(names), "names that are listed once")
            for other, worker in workers.items():
                equal({error for error, _ in worker.errors().values()}, {"EIO"}, "errors")
                for number in worker.acknowledged():
                    name = f"{other.name}-{number}"
                    check(name in names, f"acknowledged {name} is lost, seen on {node.name}")
                    path = f"{node.mnt}/{name}"
                    wanted = content(f"{other.mnt}/{name}"[-9:], 3000)
                    check(read(path) == wanted, f"other content in {path}")
            inodes = {}
            for name in names:
                s = os.stat(f"{node.mnt}/{name}")
                equal(s.st_nlink, 1, f"links of {name}")
                twin = inodes.setdefault(s.st_ino, name)
                equal(twin, name, f"inode {s.st_ino}")


@cluster_case
def unlinked_but_open_files_survive_restarts_of_others(t):
    with new_cluster(t) as cluster:
        _, b, c = cluster.nodes
        names = ("A1", "B1", "C1")
        make_files(cluster, *names)
        fds = {name: os.open(f"{b.mnt}/{name}", os.O_RDWR) for name in names}
        for name in names:
            os.unlink(f"{c.mnt}/{name}")

        def use(when):
            for number, (name, fd) in enumerate(fds.items()):
                wait_until(lambda fd=fd: outcome(os.pread, fd, 10, 0) != "EIO", SOON,
                           f"{name} can be read {when}")
                check(os.pread(fd, SIZE, 0) == content(name), f"{name}: other content {when}")
                equal(os.fstat(fd).st_nlink, 0, "links")
                os.pwrite(fd, content(name)[number:number + 100], number)
                os.fsync(fd)

        use("at first")
        for node in (c, cluster.nodes[0]):
            node.stop()
            node.start()
            use(f"after a restart of {node.name}")
            node.kill()
            node.start()
            use(f"after kill -9 of {node.name}")
        for fd in fds.values():
            os.close(fd)
        see_files(cluster)


@cluster_case(long=True)
def everything_there_after_restart_of_all(t):
    with new_cluster(t) as cluster:
        make_files(cluster, "A1", "B1", "C1")
        os.mkdir(f"{cluster.roots[1]}/d")
        os.link(f"{cluster.roots[2]}/A1", f"{cluster.roots[2]}/d/A2")
        for end in ("stop", "kill"):
            for node in reversed(cluster.nodes):
                getattr(node, end)()
            for node in cluster.nodes:
                node.launch()
            for node in cluster.nodes:
                node.wait_ready()
            wait_until(lambda: outcome(see_files, cluster, "A1", "B1", "C1") is None, SOON,
                       f"everything is there after {end} of all")
            equal(read(f"{cluster.roots[0]}/d/A2"), content("A1"), "a second name")


@cluster_case
def a_node_without_a_mount(t):
    with new_cluster(t, serve_only=(2,)) as cluster:
        c = cluster.nodes[2]
        make_files(cluster, "A1", "B1")
        for end in (c.kill, c.stop):
            see_files(cluster, "A1", "B1")
            end()
            see_files(cluster, "A1", "B1")
            c.start()


# Cables


def writer(fd):
    """A step that writes numbered records."""
    def step(number):
        os.pwrite(fd, struct.pack("Q", number) * 64, number * 512)

    return step


def check_records(path, worker):
    """Each acknowledged record is there; the others, whole or not at all."""
    data = read(path)
    acknowledged = set(worker.acknowledged())
    for number in range(len(data) // 512):
        record = data[number * 512:number * 512 + 512]
        wanted = struct.pack("Q", number) * 64
        check(record == wanted or (number not in acknowledged and record == bytes(512)),
              f"record {number} of {path} is {record[:16]}")
    check(max(acknowledged) < len(data) // 512, "the last acknowledged records are lost")


def cut_during_io(t, pairs):
    """pairs(a, b): which one-way cables to cut."""
    with new_cluster(t) as cluster, contextlib.ExitStack() as stack:
        a, b, c = cluster.nodes
        for name in ("Bfromc", "Cfromb", "Cfromc"):
            make(f"{c.mnt if name[0] == 'C' else b.mnt}/{name}")
        workers = {}
        # The founder can be reached by all: only b and c do not hear each other.
        for name, node in (("Bfromc", c), ("Cfromb", b), ("Cfromc", c)):
            fd = os.open(f"{node.mnt}/{name}", os.O_RDWR)
            stack.callback(os.close, fd)
            workers[name] = Worker(t, writer(fd))
        for worker in workers.values():
            worker.wait_acknowledged(30)
        for source, target in pairs(b, c):
            cluster.cut(source, target, one_way=True)
        for name in ("Bfromc", "Cfromb"):
            workers[name].wait_error()
        workers["Cfromc"].wait_acknowledged(30)
        for source, target in pairs(b, c):
            check(cluster.network.lost(target.index) > 0, "empty pass: no packet was lost")
        cluster.heal()
        for worker in workers.values():
            worker.wait_acknowledged(30)
        for worker in workers.values():
            worker.stop()
        equal(workers["Cfromc"].errors(), {}, "errors of what needs no cable")
        check(workers["Cfromc"].slowest() < AT_ONCE,
              f"what needs no cable took {workers['Cfromc'].slowest()} s")
        for name in ("Bfromc", "Cfromb"):
            check_tried({f"record {number} of {name}": answer for number, answer
                         in workers[name].errors().items()}, IO_TIMEOUT * FACTOR)
        for name, worker in workers.items():
            for node in (a, b, c):
                check_records(f"{node.mnt}/{name}", worker)


@cluster_case
def cut_cable_during_io(t):
    cut_during_io(t, lambda b, c: [(b, c), (c, b)])


@cluster_case(long=True)
def cable_cut_one_way_during_io(t):
    cut_during_io(t, lambda b, c: [(b, c)])


@cluster_case(long=True)
def cable_cut_the_other_way_during_io(t):
    cut_during_io(t, lambda b, c: [(c, b)])


@cluster_case
def a_short_cut_fails_nothing(t):
    """1.5 s, with the default time-out: operations take longer, and that is all."""
    with new_cluster(t, io_timeout=20 * FACTOR) as cluster, contextlib.ExitStack() as stack:
        workers = {}
        for number, node in enumerate(cluster.nodes):
            other = cluster.nodes[number - 1]
            make(f"{other.mnt}/records-{node.name}")
            fd = os.open(f"{node.mnt}/records-{node.name}", os.O_RDWR)
            stack.callback(os.close, fd)
            workers[f"records-{node.name}"] = Worker(t, writer(fd))
            os.mkdir(f"{other.mnt}/names-{node.name}")

            def create(number, folder=f"{node.mnt}/names-{node.name}"):
                make(f"{folder}/{number}", b"%d" % number)

            workers[f"names-{node.name}"] = Worker(t, create)
        for worker in workers.values():
            worker.wait_acknowledged(20)
        for node in cluster.nodes:
            cluster.isolate(node)
        time.sleep(1.5)  # How long the fault takes.
        lost = sum(cluster.network.lost(node.index) for node in cluster.nodes)
        check(lost > 0, "empty pass: no packet was lost")
        cluster.heal()
        for worker in workers.values():
            worker.wait_acknowledged(20)
        for worker in workers.values():
            worker.stop()
        for name, worker in workers.items():
            equal(worker.errors(), {}, f"errors of {name}")
            for node in cluster.nodes:
                if name.startswith("records"):
                    check_records(f"{node.mnt}/{name}", worker)
                else:
                    equal(len(os.listdir(f"{node.mnt}/{name}")), len(worker.acknowledged()),
                          f"names in {name}")


@cluster_case(long=True)
def slow_cables(t):
    """What takes longer than the time-out, but moves, does not fail."""
    with new_cluster(t, io_timeout=2 * FACTOR) as cluster:
        a, b, _ = cluster.nodes
        data = content("slow", 6_000_000)
        cluster.shape("12mbit")
        _, seconds = timed(make, f"{a.mnt}/A1", data)
        answer, seconds = timed(read, f"{b.mnt}/A1")
        check(seconds > 2 * FACTOR, f"empty pass: it took {seconds:.1f} s only")
        check(answer == data, "other content" if isinstance(answer, bytes) else f"{answer}")
        cluster.shape(None)
        see_files(cluster)


# Power


def power_loss(t, victim_of):
    """What a node has been told is durable is, when another one's power goes."""
    with new_cluster(t, store="loop-xfs") as cluster:
        victim = victim_of(cluster.nodes)
        workers = {}
        for node in cluster.nodes:
            if node is victim:
                continue
            for home in (node, victim):
                name = f"{home.name}by{node.name}"
                os.mkdir(f"{home.mnt}/{name}")

                def step(number, home=home, folder=f"{node.mnt}/{name}"):
                    path = f"{folder}/{number}"
                    if home is victim:
                        # Made there, for the data to be there; written and synced here.
                        make(f"{victim.mnt}/{os.path.basename(folder)}/{number}")
                    with opened(path, os.O_CREAT | os.O_WRONLY) as fd:
                        os.write(fd, content(f"{number} ", 5000))
                        os.fsync(fd)

                workers[name] = Worker(t, step)
        for worker in workers.values():
            worker.wait_acknowledged(20)
        cluster.power_loss(victim)
        for name, worker in workers.items():
            if victim.name in name or victim.index == 0:
                worker.wait_error()
        victim.start()
        cluster.heal()
        for worker in workers.values():
            worker.wait_acknowledged(10)
            worker.stop()
        for name, worker in workers.items():
            for node in cluster.nodes:
                for number in worker.acknowledged():
                    answer = outcome(read, f"{node.mnt}/{name}/{number}")
                    check(answer == content(f"{number} ", 5000),
                          f"fsynced {name}/{number}, read on {node.name}: {answer[:20]!r}")


@cluster_case(long=True)
def fsynced_files_survive_power_loss_of_their_home(t):
    power_loss(t, lambda nodes: nodes[1])


@cluster_case
def fsynced_files_survive_power_loss_of_the_founder(t):
    power_loss(t, lambda nodes: nodes[0])


@cluster_case
def fsync_tells_of_a_write_that_went_with_the_power_of_the_home(t):
    with new_cluster(t, store="loop-xfs") as cluster:
        a, b, _ = cluster.nodes
        make(f"{b.mnt}/f")
        with opened(f"{b.mnt}/f") as fd:
            os.fsync(fd)
        with opened(f"{a.mnt}/f") as fd:
            os.write(fd, b"first")
            a.expect_error("writes are lost with the power of their home")
            cluster.power_loss(b)
            b.start()
            cluster.heal()
            wait_until(lambda: outcome(os.pwrite, fd, b"second", 5) == 6, 20 * FACTOR, "a write")
            equal(outcome(os.fsync, fd), "EIO", "the first fsync afterwards")
            os.pwrite(fd, b"first", 0)
            os.fsync(fd)
        equal(read(f"{b.mnt}/f"), b"firstsecond")


@cluster_case
def fsync_tells_of_a_name_that_went_with_the_power_of_the_founder(t):
    with new_cluster(t, store="loop-xfs") as cluster:
        a, b, _ = cluster.nodes
        os.mkdir(f"{b.mnt}/d")
        sync_directory(b.mnt)
        with opened(f"{b.mnt}/d/f", os.O_CREAT | os.O_WRONLY) as fd:
            os.write(fd, b"data")
            cluster.power_loss(a)
            a.start()
            cluster.heal()
            wait_until(lambda: outcome(os.listdir, f"{b.mnt}/d") in ([], ["f"]), 20 * FACTOR,
                       "the founder is back")
            there = os.listdir(f"{b.mnt}/d")
            equal(outcome(os.fsync, fd), None if there else "EIO", f"fsync, with {there} there")


@cluster_case
def names_of_files_of_a_dead_node_can_be_changed(t):
    with new_cluster(t) as cluster:
        a, b, c = cluster.nodes
        make_files(cluster, "B1", "B2", "B3")
        b.kill()
        wait_until(lambda: outcome(os.rename, f"{a.mnt}/B1", f"{a.mnt}/B4") is None, 15 * FACTOR,
                   "rename")
        os.unlink(f"{c.mnt}/B2")
        os.rename(f"{c.mnt}/B4", f"{c.mnt}/B3")
        equal(outcome(read, f"{a.mnt}/B3"), "EIO", "its data")
        b.start()
        wait_until(lambda: outcome(read, f"{a.mnt}/B3") == content("B1"), SOON, "the data is back")
        for node in (a, b, c):
            equal([name for name in os.listdir(node.mnt) if name[0] == "B"], ["B3"])


@cluster_case
def a_removed_pipe_gets_no_name_again(t):
    """The kernel of another node does not know that it has none."""
    with new_cluster(t) as cluster:
        a, b, _ = cluster.nodes
        os.mkfifo(f"{a.mnt}/p")
        fd = os.open(f"{b.mnt}/p", os.O_PATH)
        try:
            os.unlink(f"{a.mnt}/p")
            answer = outcome(linkat, fd, "", f"{b.mnt}/q", AT_EMPTY_PATH)
            equal(answer, "ENOENT", "link of a removed pipe")
        finally:
            os.close(fd)
        a.stop()
        a.start()
        equal(outcome(os.stat, f"{a.mnt}/q"), "ENOENT")
        make_files(cluster, "A1")
        see_files(cluster, "A1")


# The harness itself


@case
def cut_cables_lose_packets(t):
    with Network(t.workspace.namespace_prefix, 3) as network:
        def reached():
            return [(a, b) for a in range(3) for b in range(3)
                    if a != b and network.receives(a, b)]

        everything = reached()
        equal(len(everything), 6, "hosts that reach each other")
        network.cut(0, 1, one_way=True)
        equal(sorted(set(everything) - set(reached())), [(0, 1)], "cut one way")
        network.cut(0, 1)
        equal(sorted(set(everything) - set(reached())), [(0, 1), (1, 0)], "cut")
        equal((network.lost(0), network.lost(1), network.lost(2)), (1, 2, 0), "packets lost")
        network.heal()
        equal(reached(), everything, "after mending")


@case
def a_cut_connection_goes_on_when_mended(t):
    with Network(t.workspace.namespace_prefix, 2) as network, contextlib.ExitStack() as stack:
        server, client = (stack.enter_context(network.socket(host, socket.SOCK_STREAM))
                          for host in (0, 1))
        server.listen()
        client.connect(server.getsockname())
        peer = stack.enter_context(server.accept()[0])
        network.cut(0, 1)
        client.sendall(b"x")
        peer.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            raise Failure(f"{peer.recv(1)} came through a cut cable")
        network.heal()
        peer.settimeout(10)
        equal(peer.recv(1), b"x", "what comes when it is mended")


@case
def shaped_cables_are_slow(t):
    with Network(t.workspace.namespace_prefix, 2) as network:
        def seconds(size):
            with network.socket(0, socket.SOCK_STREAM) as server, \
                    network.socket(1, socket.SOCK_STREAM) as client:
                server.listen()
                client.connect(server.getsockname())
                peer = server.accept()[0]
                sender = Child(lambda: client.sendall(bytes(size)))
                start = time.monotonic()
                while size > 0:
                    size -= len(peer.recv(1 << 16))
                peer.close()
                sender.result()
            return time.monotonic() - start

        network.shape("20mbit")
        slow = seconds(2_500_000)
        check(0.7 < slow < 10, f"20 Mbit took {slow:.2f} s at 20 Mbit/s")
        network.shape(None)
        check(seconds(2_500_000) < slow / 3, "as slow without the limit")


@case
def networks_of_killed_runs_are_removed(t):
    ended = Child(lambda: None)
    ended.result()
    stale = f"cfs{ended.pid}-{ended.pid}-0-bridge"
    harness.need_root()
    harness.run_checked("ip", "netns", "add", stale)
    with Network(t.workspace.namespace_prefix, 1) as network:
        equal(harness.namespaces(stale), [], "what is left of the killed run")
        remove_stale()
        equal(len(harness.namespaces(t.workspace.namespace_prefix)), len(network.names),
              "of this one")
    equal(harness.namespaces(t.workspace.namespace_prefix), [], "left afterwards")


@case
def unannounced_error_lines_fail(t):
    with Cluster(t.workspace, 1, t.mode, t.store) as cluster:
        node = cluster.nodes[0]
        node.expect_error("wanted")
        with open(f"{node.store}/cfs.log", "a", encoding="ascii") as log:
            for text in ("wanted", "not announced"):
                log.write(f"2026-01-02T03:04:05.678901Z ERROR {text} inode=1\n")
        problems = cluster.problems()
        equal(len(problems), 1, "lines found")
        check("node A" in problems[0] and "not announced" in problems[0], problems[0])


@case
def everything_ends_with_a_killed_run(t):
    """A run that is told to end in the middle of a case leaves nothing."""
    run = subprocess.Popen(
        [sys.executable, __file__, "--nodes", "1", "--filter", "^sleeps_in_a_network$", "--mode",
         t.mode], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "CFS_TEST_SLEEP": "1"})
    try:
        wait_until(lambda: len(harness.namespaces(f"cfs{run.pid}-")) == 3, 10 * FACTOR,
                   "it has made its network")
    finally:
        run.send_signal(signal.SIGTERM)
        run.communicate(timeout=30)
    equal(harness.namespaces(f"cfs{run.pid}-"), [], "namespaces left")


def sleeps_in_a_network(t):
    """What the case before this one ends."""
    with Network(t.workspace.namespace_prefix, 2):
        time.sleep(60)


if os.environ.get("CFS_TEST_SLEEP"):
    case(sleeps_in_a_network)

if __name__ == "__main__":
    sys.exit(harness.main(__doc__, shared_mount=False, argv=OTHERS))
