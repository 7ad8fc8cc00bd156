"""What the benchmark measures, how it is mounted and how it is taken away again."""

import contextlib
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ENABLE_URING = pathlib.Path("/sys/module/fuse/parameters/enable_uring")
URING_QUEUE_DEPTH = 8
STEP_TIMEOUT_S = 300


class BenchError(Exception):
    """Ends the run; the text is one line for the user."""


def run(command, timeout=STEP_TIMEOUT_S):
    """Runs to the end and returns stdout; a failure is a BenchError with its last line."""
    try:
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, timeout=timeout
        )
    except FileNotFoundError as error:
        raise BenchError(f"{command[0]} not found") from error
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{command[0]} did not end within {timeout} s") from error
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise BenchError(f"{command[0]} failed ({done.returncode}): {lines[-1]}")
    return done.stdout


def is_mounted(path):
    wanted = str(path).replace(" ", "\\040")
    with open("/proc/self/mountinfo", encoding="utf-8") as mounts:
        return any(line.split()[4] == wanted for line in mounts)


def unmount(path):
    """Unmounts, detached if need be: nothing may stay mounted behind us."""
    for flags in ([], [], ["-l"]):
        if not is_mounted(path):
            return
        subprocess.run(["umount", *flags, str(path)], capture_output=True, check=False)
        time.sleep(0.1)


def cpu_ticks(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def settle(contenders, limit_s=5.0):
    """Waits until no daemon has background work left that would disturb the next measurement."""
    deadline = time.monotonic() + limit_s
    before = None
    while time.monotonic() < deadline:
        now = sum(cpu_ticks(contender.pid) for contender in contenders if contender.pid)
        if now == before:
            return
        before = now
        time.sleep(0.06)


def file_system_type(path):
    return run(["findmnt", "-n", "-o", "FSTYPE", "-T", path]).strip()


class Contender:
    """Something to measure: `directory` is where, once started."""

    pid = 0

    def __init__(self, kind, transport=None):
        self.kind = kind
        self.name = kind if transport is None else f"{kind}-{transport}"
        self.transport = transport

    def start(self, base):
        self.base = base / self.name
        self.directory = self.base / "mnt"
        self.directory.mkdir(parents=True)

    def daemon_bytes(self):
        """Data bytes that passed through the daemon, None where that is not known."""
        return None

    def stop(self):
        shutil.rmtree(self.base, ignore_errors=True)


class Native(Contender):
    def __init__(self):
        super().__init__("native")


class Null(Contender):
    def __init__(self, transport, binary, files, options=()):
        super().__init__("null", transport)
        self.binary = binary
        self.options = options
        self.pool = files + files // 2  # No round runs out of backing files made ahead.
        self.process = None

    def start(self, base):
        super().start(base)
        backing = self.base / "backing"
        backing.mkdir()
        command = [self.binary, self.directory, "--backing", backing, "--pool", self.pool,
                   *self.options]
        if self.transport == "uring":
            command += ["-o", f"io_uring,io_uring_q_depth={URING_QUEUE_DEPTH}"]
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdout=subprocess.PIPE,
            text=True,
            # As cfs does when it becomes a daemon: the scheduler treats sessions as groups.
            start_new_session=True,
        )
        self.pid = self.process.pid
        readable, _, _ = select.select([self.process.stdout], [], [], 60)
        if not readable or self.process.stdout.readline() != "ready\n":
            raise BenchError(f"{self.name} did not start")
        if self.transport == "uring" and not has_ring_threads(self.pid):
            raise BenchError(f"{self.name} runs without io_uring")

    def stop(self):
        unmount(self.directory)
        if self.process is not None:
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process.stdout.close()
        super().stop()


class Cfs(Contender):
    def __init__(self, transport, binary):
        super().__init__("cfs", transport)
        self.binary = binary

    def start(self, base):
        super().start(base)
        self.store = self.base / "store"
        uring = "on" if self.transport == "uring" else "off"
        run([self.binary, "mount", self.directory, "--store", self.store, f"--io-uring={uring}"])
        self.pid = self.status()["pid"]

    def status(self):
        return json.loads(run([self.binary, "status", self.directory, "--json"]))

    def daemon_bytes(self):
        fuse = self.status()["fuse"]
        return {"read": fuse["read_bytes"], "written": fuse["write_bytes"]}

    def stop(self):
        if is_mounted(self.directory):
            with contextlib.suppress(BenchError):
                run([self.binary, "umount", self.directory], timeout=60)
        if is_mounted(self.directory):
            unmount(self.directory)
            if self.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
        super().stop()


def has_ring_threads(pid):
    tasks = pathlib.Path(f"/proc/{pid}/task").glob("*/comm")
    return any(task.read_text().startswith("fuse-ring") for task in tasks)


@contextlib.contextmanager
def store_directory(store, disk_dir):
    """A fresh directory on a tmpfs of our own or on the disk."""
    base = pathlib.Path(tempfile.mkdtemp(prefix="cfs-bench-", dir=disk_dir))
    try:
        if store == "tmpfs":
            run(["mount", "-t", "tmpfs", "-o", "mode=0755,size=80%", "cfs-bench", base])
        yield base
    finally:
        unmount(base)
        shutil.rmtree(base, ignore_errors=True)


def choose_transports(asked):
    """What was asked for, else what this kernel has."""
    if asked is not None:
        return asked
    if os.access(ENABLE_URING, os.W_OK):
        return ["dev", "uring"]
    print("note: this kernel has no FUSE-over-io_uring", file=sys.stderr)
    return ["dev"]


@contextlib.contextmanager
def uring_enabled(wanted):
    """Turns on the kernel's switch for FUSE-over-io_uring and puts it back."""
    if not wanted:
        yield
        return
    try:
        before = ENABLE_URING.read_text()
        ENABLE_URING.write_text("Y")
    except OSError as error:
        raise BenchError(f"no FUSE-over-io_uring here: {error}") from error
    try:
        yield
    finally:
        ENABLE_URING.write_text(before)
