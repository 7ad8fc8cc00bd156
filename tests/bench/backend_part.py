"""The rows of a backend: what is flushed to it and staged in from it, beside cp between the same two
file systems, and programs that read through it or write meanwhile.

Store and backend are file systems of their own, ext4 on images that are made anew in each round: ext4
goes around inodes that were freed in the last minutes, and would slow down whoever comes later. What
is to be flushed is made while the backend is frozen, so that nothing is flushed before the clock runs.
"""

import contextlib
import fcntl
import json
import multiprocessing
import os
import pathlib
import random
import resource
import shutil
import statistics
import subprocess
import tempfile
import threading
import time

from contenders import BenchError, cpu_ticks, run, unmount
from loads import write_file

FIFREEZE, FITHAW = 0xC0045877, 0xC0045878
IMAGE_GIB = 24
SMALL_MIN, SMALL_MAX = 4 << 10, 64 << 10
IN_DIRECTORY = 500
READERS = 4
LARGE_FILE = 2 << 20  # Of the loader's second data set.
WRITES_SIZE = 16 << 20
# What is read at a time, as cp does.
PIECE = 256 << 10
TICKS = os.sysconf("SC_CLK_TCK")


def make_small(root, count, size=None):
    """Files of 4 to 64 KiB, or of one size; some in each directory. Their paths."""
    chosen = random.Random(count)
    data = os.urandom(max(SMALL_MAX, size or 0))
    paths = []
    for number in range(count):
        directory = root / str(number // IN_DIRECTORY)
        if number % IN_DIRECTORY == 0:
            directory.mkdir(parents=True)
        path = directory / f"file{number}"
        with open(path, "wb", buffering=0) as file:
            file.write(data[:size or chosen.randint(SMALL_MIN, SMALL_MAX)])
        paths.append(path)
    return paths


def drop_caches():
    os.sync()
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3\n", encoding="utf-8")


def read_all(job):
    paths, begin = job
    while time.monotonic() < begin:
        pass  # All begin at once.
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        while os.read(fd, PIECE):
            pass
        os.close(fd)
    return time.monotonic()


def read_epoch(pool, paths, seed):
    """Seconds that some processes take to read all of them, each its own, in random order."""
    shuffled = random.Random(seed).sample(paths, len(paths))
    begin = time.monotonic() + 0.05
    ends = pool.map(read_all, [(shuffled[i::READERS], begin) for i in range(READERS)], chunksize=1)
    return max(ends) - begin


def write_latency(path, going_on, most=1.0):
    """The 99th percentile of writes of 4 KiB at random places, in seconds, while it goes on."""
    chosen = random.Random(1)
    block, times = os.urandom(4096), []
    end = time.monotonic() + most
    fd = os.open(path, os.O_WRONLY)
    try:
        while going_on() and (len(times) < 1000 or time.monotonic() < end):
            at = chosen.randrange(WRITES_SIZE // 4096) * 4096
            begin = time.perf_counter()
            os.pwrite(fd, block, at)
            times.append(time.perf_counter() - begin)
    finally:
        os.close(fd)
    return statistics.quantiles(times, n=100)[98]


class Stand:
    """Store and backend on file systems of their own, and a mount; for one round."""

    def __init__(self, binary, base):
        self.binary, self.base = binary, base
        self.frozen = self.pid = None
        self.store, self.backend, self.mnt = (base / name for name in ("s", "b", "mnt"))

    def __enter__(self):
        try:
            for path in (self.store, self.backend):
                image = path.with_suffix(".image")
                with open(image, "wb") as file:
                    file.truncate(IMAGE_GIB << 30)
                run(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1", image])
                path.mkdir()
                run(["mount", "-o", "loop", image, path])
            self.mnt.mkdir()
            (self.backend / "tree").mkdir()
        except BaseException:
            self.__exit__()
            raise
        return self

    def mount(self):
        run([self.binary, "mount", self.mnt, "--store", self.store / "store",
             "--backend", self.backend / "tree"])
        os.listdir(self.mnt)
        self.pid = json.loads(run([self.binary, "status", self.mnt, "--json"]))["pid"]

    def __exit__(self, *_):
        self.thaw()
        subprocess.run([str(self.binary), "stop", str(self.mnt)], capture_output=True, check=False)
        for path in (self.mnt, self.store, self.backend):
            unmount(path)
        shutil.rmtree(self.base, ignore_errors=True)

    def freeze(self):
        self.frozen = os.open(self.backend, os.O_RDONLY)
        fcntl.ioctl(self.frozen, FIFREEZE, 0)

    def thaw(self):
        if self.frozen is not None:
            with contextlib.suppress(OSError):
                fcntl.ioctl(self.frozen, FITHAW, 0)
            os.close(self.frozen)
            self.frozen = None

    def cfs(self, *words):
        run([self.binary, *words])

    def cost(self, work):
        """Seconds, and seconds of CPU time of whatever is run and of the daemon."""
        def used():
            children = resource.getrusage(resource.RUSAGE_CHILDREN)
            return children.ru_utime + children.ru_stime + cpu_ticks(self.pid) / TICKS

        cpu, begin = used(), time.monotonic()
        work()
        return time.monotonic() - begin, max(used() - cpu, 1 / TICKS)


class BackendPart:
    def __init__(self, options, sizes, rows, progress):
        self.options, self.sizes, self.progress = options, sizes, progress
        self.wanted = {row.name for row in rows}
        self.random = random.Random(1)
        self.values = {row.name: {"cfs": [], "native": []} for row in rows}

    def measure(self):
        for number in range(1, self.sizes.rounds + 1):
            for part in ("flush", "stagein", "loader", "foreground"):
                if any(name.startswith(part) for name in self.wanted):
                    self.progress(f"backend, {part}: round {number} of {self.sizes.rounds}")
                    base = pathlib.Path(tempfile.mkdtemp(prefix="cfs-bench-",
                                                         dir=self.options.disk_dir))
                    with Stand(self.options.cfs, base) as stand:
                        getattr(self, part)(stand)
        self.progress("")
        return {"rows": self.values}

    def note(self, row, contender, value):
        if row in self.wanted:
            self.values[row][contender].append(value)

    def in_turn(self, *works):
        for work in self.random.sample(works, len(works)):
            os.sync()
            work()

    def note_copies(self, what, contender, cost, large):
        seconds, cpu = cost
        done = self.sizes.large_mib * 1.048576 if large else self.sizes.small_files
        size = "large" if large else "small"
        self.note(f"{what}_{size}", contender, done / seconds)
        if large:
            self.note(f"{what}_{size}_cpu", contender, done / cpu)

    def flush(self, stand):
        stand.mount()

        def flushed(name, make, large):
            stand.freeze()
            make(stand.mnt / name)
            stand.thaw()
            self.note_copies("flush", "cfs", stand.cost(lambda: stand.cfs("sync", stand.mnt)), large)

        def copied(name, make, command, large):
            make(stand.store / name)
            self.note_copies("flush", "native", stand.cost(lambda: run(
                ["sh", "-c", command, "sh", stand.store / name, stand.backend / name])), large)

        if self.wanted & {"flush_large", "flush_large_cpu"}:
            self.in_turn(lambda: flushed("large", self.make_large, True),
                         lambda: copied("large", self.make_large, 'cp "$1" "$2" && sync "$2"', True))
        if "flush_small" in self.wanted:
            self.in_turn(lambda: flushed("small", self.make_small, False),
                         lambda: copied("small", self.make_small,
                                        'cp -a "$1" "$2" && sync -f "$2"', False))

    def make_large(self, path):
        with open(path, "wb", buffering=0) as file:
            data = os.urandom(1 << 20)
            for _ in range(self.sizes.large_mib):
                file.write(data)

    def make_small(self, path):
        return make_small(path, self.sizes.small_files)

    def stagein(self, stand):
        write_file(stand.backend / "tree/large", self.sizes.large_mib)
        self.make_small(stand.backend / "tree/small")
        stand.mount()
        for name, cp, large in (("large", 'cp "$1" "$2" && sync "$2"', True),
                                ("small", 'cp -a "$1" "$2" && sync -f "$2"', False)):
            def staged(name=name, large=large):
                drop_caches()
                self.note_copies("stagein", "cfs", stand.cost(
                    lambda: stand.cfs("stagein", *([] if large else ["-r"]), stand.mnt / name)), large)

            def copied(name=name, cp=cp, large=large):
                drop_caches()
                self.note_copies("stagein", "native", stand.cost(lambda: run(
                    ["sh", "-c", cp, "sh", stand.backend / "tree" / name, stand.store / name])), large)

            if any(row.startswith(f"stagein_{name}") for row in self.wanted):
                self.in_turn(staged, copied)

    def loader(self, stand):
        """Each epoch reads all files once. Native: from the backend's file system itself."""
        sets = {"small": make_small(stand.backend / "tree/small", self.sizes.small_files),
                "large": make_small(stand.backend / "tree/large",
                                    max(READERS, self.sizes.large_mib // 2), LARGE_FILE)}
        stand.mount()
        with multiprocessing.get_context("fork").Pool(READERS) as pool:
            for name, paths in sets.items():
                below = [stand.mnt / path.relative_to(stand.backend / "tree") for path in paths]

                def epochs(contender, paths, name=name):
                    drop_caches()
                    first = read_epoch(pool, paths, 1)
                    later = [read_epoch(pool, paths, seed) for seed in (2, 3)]
                    self.note(f"loader_{name}_first", contender, len(paths) / first)
                    self.note(f"loader_{name}_later", contender, len(paths) * 2 / sum(later))

                self.in_turn(lambda p=below, e=epochs: e("cfs", p),
                             lambda p=paths, e=epochs: e("native", p))

    def foreground(self, stand):
        """Writes of one program while what others have made is flushed, and while nothing is."""
        stand.mount()
        path = stand.mnt / "written"
        write_file(path, WRITES_SIZE >> 20)
        stand.cfs("sync", stand.mnt)
        self.note("foreground_write", "native", 1 / write_latency(path, lambda: True))
        stand.freeze()
        self.make_large(stand.mnt / "large")
        self.make_small(stand.mnt / "small")
        stand.thaw()
        failed = []

        def sync():
            try:
                stand.cfs("sync", stand.mnt)
            except BenchError as error:
                failed.append(error)

        syncer = threading.Thread(target=sync)
        syncer.start()
        self.note("foreground_write", "cfs", 1 / write_latency(path, syncer.is_alive, 60))
        syncer.join()
        if failed:
            raise failed[0]
