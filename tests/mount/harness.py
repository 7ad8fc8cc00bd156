"""What every test of a mounted cfs shares: mounts, cases, a watchdog, a log scan.

A suite registers small functions with @case and calls main():

    @harness.case
    def excl_refuses_existing(t):         # runs in a process and directory of its own
        harness.make("f")
        harness.expect(EEXIST, os.open, "f", os.O_CREAT | os.O_EXCL | os.O_RDWR)

    if __name__ == "__main__":
        sys.exit(harness.main(__doc__))

`t` is the Environment of the case. With shared_mount=True (the default of main) all
cases of a run share one mount and may also run on a plain directory (--reference);
otherwise a case makes what it needs:

    with t.new_mount(store="tmpfs") as m:
        ...m.mnt, m.store, m.status(), m.kill(), m.start()...

Whatever a case leaves behind (processes of its session, mounts, daemons, frozen file
systems, files) is removed when it ends or hangs. An ERROR line in a daemon's log that
was not announced and every sanitizer report fail the case they appear in.
"""

import argparse
import contextlib
import dataclasses
import errno
import fcntl
import inspect
import json
import os
import pickle
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
BINARY = os.environ.get("CFS", str(REPOSITORY / "build" / "cfs"))
MODES = {
    "passthrough": ["--io-uring=off"],
    "daemon-io": ["--io-uring=off", "--passthrough=off"],
    "uring": ["--io-uring=on"],
    "uring-daemon-io": ["--io-uring=on", "--passthrough=off"],
    "locks-daemon": ["--io-uring=off", "--locks=daemon"],
    # The shared mount is that of the second of three nodes; a case's own mounts are no clusters.
    "cluster": ["--io-uring=off"],
    # The same, but the node is a client, which stores no files.
    "client": ["--io-uring=off"],
    # In front of a directory of its own, where the flusher brings all that is made.
    "backend": ["--io-uring=off"],
}
CLUSTER_NODES = 3
STORES = ("disk", "tmpfs", "loop-ext4", "loop-xfs")
NOBODY = 65534
EXIT_SKIPPED = 77
SANITIZER_REPORT = re.compile(
    r"ERROR: (Address|Leak)Sanitizer|runtime error:|WARNING: ThreadSanitizer")
URING_PARAMETER = "/sys/module/fuse/parameters/enable_uring"
FITHAW = 0xC0045878
NAMESPACES = "/run/netns"


class Skip(Exception):
    """The case can't run here; the message says why."""


class Failure(AssertionError):
    """The case's claim is not true."""


# Assertions and small helpers of cases.


def expect(wanted, function, *args, **kwargs):
    """Fails unless the call raises OSError with one of the errnos `wanted`."""
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    names = "/".join(map(errno_name, wanted))
    try:
        result = function(*args, **kwargs)
    except OSError as error:
        if error.errno not in wanted:
            raise Failure(f"expected {names}, got {errno_name(error.errno)}") from None
        return
    raise Failure(f"expected {names}, got success ({result!r})")


def equal(actual, wanted, what="value"):
    if actual != wanted:
        raise Failure(f"{what} is {shorten(actual)}, not {shorten(wanted)}")


def check(condition, message):
    if not condition:
        raise Failure(message)


def outcome(function, *args, **kwargs):
    """The call's result, or the name of the errno it raised: for comparing two runs."""
    try:
        return function(*args, **kwargs)
    except OSError as error:
        return errno_name(error.errno)


def errno_name(number):
    """Linux has two names for one number; Python knows the other one."""
    return "EOPNOTSUPP" if number == errno.EOPNOTSUPP else errno.errorcode.get(number, str(number))


def shorten(value):
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:80]}...({len(text)} characters)"


def make(path, data=b"", mode=0o644):
    """Creates a file with exactly this content and mode, whatever the umask."""
    with open(path, "wb") as f:
        f.write(data)
        os.fchmod(f.fileno(), mode)
    return path


def read(path):
    with open(path, "rb") as f:
        return f.read()


@contextlib.contextmanager
def opened(path, flags=os.O_RDWR, mode=0o666, **kwargs):
    fd = os.open(path, flags, mode, **kwargs)
    try:
        yield fd
    finally:
        os.close(fd)


def need_root():
    if os.geteuid() != 0:
        raise Skip("needs root")


def wait_until(condition, timeout, what):
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise Failure(f"{what}: not within {timeout:g} s")
        time.sleep(0.01)


class Child:
    """A forked process that runs function(*args), as another user if `uid` is given.

    The function's value or exception comes back from result().
    """

    def __init__(self, function, *args, uid=None, gid=None, groups=()):
        if uid is not None:
            need_root()
        self._pipe, write_end = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._pipe)
                if uid is not None:
                    os.setgroups(list(groups))
                    os.setresgid(*[uid if gid is None else gid] * 3)
                    os.setresuid(uid, uid, uid)
                answer = (True, function(*args))
            except BaseException as error:  # Whatever it is, the parent raises it.
                answer = (False, error)
            try:
                with open(write_end, "wb") as f:
                    f.write(pickle.dumps(answer))
            finally:
                os._exit(0)
        os.close(write_end)
        self._status = None

    def running(self):
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = status
        return self._status is None

    def result(self, timeout=20):
        deadline = time.monotonic() + timeout
        data = b""
        while True:
            left = max(0, deadline - time.monotonic())
            if not select.select([self._pipe], [], [], left)[0]:
                self.kill()
                raise Failure(f"child still runs after {timeout} s")
            block = os.read(self._pipe, 1 << 16)
            if not block:
                break
            data += block
        os.close(self._pipe)
        wait_until(lambda: not self.running(), 10, "end of child")
        if not data:
            raise Failure(f"child ended with wait status {self._status:#x}")
        good, value = pickle.loads(data)
        if good:
            return value
        raise value

    def ended_by(self, timeout=20):
        """The signal that ended the process (0: it exited)."""
        wait_until(lambda: not self.running(), timeout, "end of child")
        return os.WTERMSIG(self._status) if os.WIFSIGNALED(self._status) else 0

    def kill(self, number=signal.SIGKILL):
        if self.running():
            os.kill(self.pid, number)

    def wait_blocked(self, timeout=10):
        """Returns when the process sleeps in a system call, or fails."""

        def asleep():
            return process_state(self.pid) in ("S", "D")

        def still_asleep():
            if not asleep():
                return False
            time.sleep(0.02)
            return asleep()

        wait_until(still_asleep, timeout, "child blocks")
        check(self.running(), "child ended instead of blocking")


class Holder:
    """A process that does what it is told, one call at a time, until it is let go."""

    def __init__(self, *calls):
        self._go_out, self._go = os.pipe()
        self._done, self._done_in = os.pipe()
        self.child = Child(self._run, calls)
        for _ in calls:
            os.read(self._done, 1)

    def _run(self, calls):
        for function, *arguments in calls:
            function(*arguments)
            os.write(self._done_in, b"x")
        os.read(self._go_out, 1)

    def let_go(self):
        os.write(self._go, b"x")
        self.child.result()


def in_child(function, *args, **kwargs):
    return Child(function, *args, **kwargs).result()


def as_user(uid, function, *args, gid=None, groups=()):
    """function(*args) in a process of that user (and group: same number by default)."""
    return in_child(function, *args, uid=uid, gid=gid, groups=groups)


def process_state(pid):
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text[text.rindex(")") + 2]


def same_as_native(t, function):
    """Fails unless function(directory) answers on the mount as on the store's file system.

    On a reference run both directories are native, which checks the function itself.
    """
    os.mkdir("compared")
    with tempfile.TemporaryDirectory(dir=t.native) as native:
        os.chmod(native, 0o755)
        equal(outcome(function, os.path.abspath("compared")), outcome(function, native),
              "answer of the mount")


# Mounts.


@dataclasses.dataclass
class MountPoint:
    path: str
    kind: str
    source: str
    options: str


def mounts():
    """All mounts of this process, in mount order."""
    result = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
        for line in f:
            left, right = line.split(" - ", 1)
            path = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), left.split()[4])
            kind, source = right.split()[:2]
            result.append(MountPoint(path, kind, source, left.split()[5]))
    return result


def mount_options(path):
    """The options of the mount that a path is on."""
    path = os.path.abspath(path)
    here = max((m for m in mounts() if f"{path}/".startswith(m.path.rstrip("/") + "/")),
               key=lambda m: len(m.path))
    return here.options.split(",")


def run(*command, timeout=60, **kwargs):
    """subprocess.run with captured text output."""
    if "input" not in kwargs:
        kwargs.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout,
                          check=False, **kwargs)


def run_checked(*command, **kwargs):
    done = run(*command, **kwargs)
    if done.returncode != 0:
        raise Failure(f"{' '.join(command)}: exit {done.returncode}: "
                      f"{(done.stderr or done.stdout).strip()}")
    return done.stdout


def cfs(*args, **kwargs):
    return run(BINARY, *args, **kwargs)


def sanitizers():
    """Which sanitizers the binary was built with."""
    names = {b"__asan_init": "address", b"__tsan_init": "thread"}
    try:
        image = Path(BINARY).read_bytes()
    except OSError:
        return set()
    return {name for symbol, name in names.items() if symbol in image}


TIME_FACTOR = 6 if sanitizers() else 1


def daemon_environment():
    environment = dict(os.environ)
    suppressions = REPOSITORY / "tests" / "tsan.supp"
    if suppressions.exists():
        environment.setdefault("TSAN_OPTIONS", f"suppressions={suppressions}")
    environment.setdefault("UBSAN_OPTIONS", "print_stacktrace=1")
    return environment


def check_stores(*stores):
    """Fails unless `cfs fsck` finds nothing wrong: the stores of all nodes, which have ended."""
    done = cfs("fsck", *stores, timeout=600)
    errors = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    check(done.returncode == 0, f"fsck: exit {done.returncode}: {done.stderr.strip()}: "
                                f"{'; '.join(errors[:5])}")


class Uring:
    """Holds FUSE-over-io_uring enabled; its last user on the machine restores the setting."""

    LEDGER = Path(tempfile.gettempdir()) / "cfs-test-enable-uring"

    def __enter__(self):
        if not os.access(URING_PARAMETER, os.W_OK):
            raise Skip("enable_uring of the fuse module can't be set")
        with self._ledger() as ledger:
            parameter = Path(URING_PARAMETER)
            ledger.setdefault("was", parameter.read_text().strip())
            ledger["users"] = ledger.get("users", []) + [os.getpid()]
            parameter.write_text("Y")
        return self

    def __exit__(self, *_):
        with self._ledger() as ledger:
            ledger["users"].remove(os.getpid())
            if not any(Path(f"/proc/{pid}").exists() for pid in ledger["users"]):
                Path(URING_PARAMETER).write_text(ledger["was"])
                ledger.clear()

    @contextlib.contextmanager
    def _ledger(self):
        while True:
            with open(self.LEDGER, "a+", encoding="ascii") as f:
                fcntl.flock(f, fcntl.LOCK_EX)
                if os.fstat(f.fileno()).st_nlink == 0:
                    continue  # Removed between open and flock.
                f.seek(0)
                ledger = json.loads(f.read() or "{}")
                yield ledger
                f.truncate(0)
                f.write(json.dumps(ledger))
                if not ledger:
                    os.unlink(self.LEDGER)
                return


class Workspace:
    """The directories of one run, on disk and on tmpfs, and what may be left in them."""

    def __init__(self):
        # Of network namespaces: whose process has gone, theirs may be removed.
        self.namespace_prefix = f"cfs{os.getpid()}-"
        self.disk = tempfile.mkdtemp(prefix="cfs-test-")
        os.chmod(self.disk, 0o755)  # Other users have to reach the mount.
        self._tmpfs = None

    @property
    def tmpfs(self):
        if self._tmpfs is None:
            if not any(m.path == "/dev/shm" and m.kind == "tmpfs" for m in mounts()):
                raise Skip("/dev/shm is no tmpfs")
            self._tmpfs = f"/dev/shm/{os.path.basename(self.disk)}"
            os.makedirs(self._tmpfs, exist_ok=True)  # A case's process may have made it.
        return self._tmpfs

    def new_directory(self, on="disk"):
        path = tempfile.mkdtemp(dir=self.tmpfs if on == "tmpfs" else self.disk)
        os.chmod(path, 0o755)
        return path

    def _roots(self):
        return [self.disk, f"/dev/shm/{os.path.basename(self.disk)}"]

    def daemons(self):
        """Pids of the cfs processes that work in these directories."""
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                command = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if (os.path.basename(command[0]).startswith(b"cfs") and
                    any(a.startswith(os.fsencode(r)) for a in command for r in self._roots())):
                found.append(int(entry))
        return found

    def sweep(self, keep=None):
        """Ends daemons, mounts and networks that a case left, apart from those of `keep`."""
        kept = keep.directories if keep else []
        left = [m for m in mounts()
                if any(m.path.startswith(r + "/") for r in self._roots())
                and not any(m.path.startswith(k + "/") for k in kept)]
        for m in left:
            if not m.kind.startswith("fuse"):  # Opening a hung mount would hang.
                thaw(m.path)
        for pid in self.daemons():
            if not keep or pid not in keep.pids:
                kill(pid)
        for m in reversed(left):
            run("umount", "-l", m.path)
        for name in namespaces(self.namespace_prefix):
            if not keep or name not in keep.namespaces:
                run("ip", "netns", "delete", name)

    def close(self):
        self.sweep()
        for root in self._roots():
            shutil.rmtree(root, ignore_errors=True)


def namespaces(prefix):
    """Names of the network namespaces that begin so."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(name for name in os.listdir(NAMESPACES) if name.startswith(prefix))
    return []


def thaw(path):
    """Undoes a freeze, if there is one: everything else would wait for it."""
    with contextlib.suppress(OSError), opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        fcntl.ioctl(fd, FITHAW, 0)


def kill(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def dying_at(point):
    """Nodes that are started in here end themselves at the point."""
    os.environ["CFS_TEST_DIE_AT"] = point
    try:
        yield
    finally:
        del os.environ["CFS_TEST_DIE_AT"]


def need_fault_points():
    if b"CFS_TEST_DIE_AT" not in Path(BINARY).read_bytes():
        raise Skip("this build has no fault points")


def stacks(pid):
    """Where each thread of a process waits, for the report of a hang."""
    lines = []
    for task in sorted(Path(f"/proc/{pid}/task").glob("*")):
        with contextlib.suppress(OSError):
            name = (task / "comm").read_text().strip()
            channel = (task / "wchan").read_text().strip()
            lines.append(f"  thread {task.name} {name} waits in {channel}")
            with contextlib.suppress(OSError):
                lines += [f"    {line}" for line in (task / "stack").read_text().splitlines()]
    return "\n".join(lines)


class Mount:
    """A cfs mount in directories of its own; gone after the with block in any case.

    mnt, store: the directories. native: a plain directory on the store's file system.
    Where the store goes: "disk", "tmpfs", "loop-ext4", "loop-xfs" (a file system of its
    own), or the path of a directory that the caller has made and will remove.
    errors: regular expression of the ERROR lines that the test announces.
    foreground=False lets `cfs mount` put its daemon in the background.
    Leaving the block unmounts, and fails when that does, when the daemon doesn't exit
    with 0, when fsck finds the store wrong, or when its log or standard error hold what
    they must not.
    """

    def __init__(self, workspace, mode="passthrough", store="disk", options=(), errors=None,
                 foreground=True):
        self._workspace = workspace
        self._options = [*MODES[mode], *options]
        self._over_backend = mode == "backend" and "--backend" not in options
        self._uring = Uring() if "--io-uring=on" in self._options else None
        self._store_kind = store
        self._announced = [errors] if errors else []
        self._foreground = foreground
        self._process = None
        self._offsets = {}
        self._cleanup = contextlib.ExitStack()
        self.pid = None
        self.directories = []
        self.namespaces = []

    @property
    def pids(self):
        return [self.pid]

    def __enter__(self):
        if not os.path.exists("/dev/fuse"):
            raise Skip("/dev/fuse is missing")
        with self._cleanup:
            if self._uring:
                self._cleanup.enter_context(self._uring)
            self._prepare()
            self._begin()
            self._cleanup = self._cleanup.pop_all()
        return self

    def _begin(self):
        self.start()

    def __exit__(self, kind, *_):
        with self._cleanup:
            if kind is None:
                self.stop()
                self._check_store()
                found = self.problems()
                check(not found, "; ".join(found))

    def _check_store(self):
        check_stores(self.store)

    def _prepare(self):
        work = self._workspace.new_directory()
        self.directories.append(work)
        self._cleanup.callback(shutil.rmtree, work, ignore_errors=True)
        self.mnt = f"{work}/mnt"
        os.mkdir(self.mnt)
        if self._over_backend:
            os.mkdir(f"{work}/backend")
            self._options += ["--backend", f"{work}/backend"]
        base = work
        if self._store_kind == "tmpfs":
            base = self._workspace.new_directory("tmpfs")
            self.directories.append(base)
            self._cleanup.callback(shutil.rmtree, base, ignore_errors=True)
        elif self._store_kind.startswith("loop-"):
            base = f"{work}/fs"
            loop_file_system(f"{work}/image", base, self._store_kind.removeprefix("loop-"))
            self._cleanup.callback(run, "umount", "-l", base)
        elif self._store_kind != "disk":
            base = self._store_kind
        self.store, self.native = f"{base}/store", f"{base}/native"
        os.mkdir(self.native)
        self._stderr = f"{work}/daemon.stderr"
        self._cleanup.callback(self._force)

    def start(self):
        """Mounts (also again, after kill()), and returns when the mount is usable."""
        self.launch()
        self.wait_ready()

    def launch(self):
        with open(self._stderr, "ab") as errors:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=errors, stderr=errors,
                env=daemon_environment(), start_new_session=True)

    def _command(self):
        command = [BINARY, "mount", self.mnt, "--store", self.store, *self._options]
        return [*command, "--foreground"] if self._foreground else command

    def wait_ready(self):
        deadline = time.monotonic() + 30 * TIME_FACTOR
        while not self._ready():
            code = self._process.poll()
            if code or (code == 0 and self._foreground) or time.monotonic() > deadline:
                raise Failure(f"mount failed: exit {code}: {self._tail(self._stderr)}")
            time.sleep(0.005)
        self.pid = self.status()["pid"]

    def _ready(self):
        if not self._foreground and self._process.poll() is None:
            return False  # It returns when the mount is usable, says its contract.
        return self.mounted() and cfs("status", self.mnt, "--json").returncode == 0

    def mounted(self):
        return any(m.path == self.mnt and m.kind == "fuse.cfs" for m in mounts())

    def status(self):
        return json.loads(run_checked(BINARY, "status", self.mnt, "--json"))

    def stat(self, path):
        return json.loads(run_checked(BINARY, "stat", path, "--json"))

    def stop(self):
        """`cfs umount`: fails unless mount and daemon are gone after it."""
        if self.pid is None:
            return
        run_checked(BINARY, "umount", self.mnt, timeout=60 * TIME_FACTOR)
        check(not self.mounted(), "still mounted after cfs umount")
        code = self._process.wait(10)
        check(code == 0, f"daemon ended with {code}: {self._tail(self._stderr)}")
        check(process_state(self.pid) in (None, "Z"), "daemon still runs after cfs umount")
        self.pid = None

    def kill(self):
        """kill -9 of the daemon; the mount point stays behind, dead."""
        kill(self.pid)
        self._process.wait(20)
        wait_until(lambda: process_state(self.pid) in (None, "Z"), 20, "end of daemon")
        self.pid = None

    def expect_error(self, pattern):
        """Announces ERROR lines that match this regular expression."""
        self._announced.append(pattern)

    def died(self):
        """The exit code of a daemon in the foreground, minus the signal; None: it runs."""
        return self._process.poll()

    def last_words(self):
        """The end of what a daemon in the foreground has said."""
        return self._tail(self._stderr)

    def ended(self):
        """Has the daemon ended by itself?"""
        if self._foreground:
            self._process.poll()
        return process_state(self.pid) in (None, "Z")

    def stacks(self):
        return stacks(self.pid) if self.pid else ""

    def _force(self):
        if self._process and self._process.poll() is None:
            self._process.kill()
        if self.pid:
            kill(self.pid)
        while self.mounted():
            if run("umount", "-l", self.mnt).returncode != 0:
                break
        if self._process:
            self._process.wait(20)

    def problems(self):
        """Log lines and sanitizer reports since the last call that fail a test."""
        found = []
        if os.path.exists(f"{self.store}/cfs.log.1"):
            found.append("the log is longer than any test has reason for")
        for path in (f"{self.store}/cfs.log", self._stderr):
            for line in self._new_lines(path):
                error = re.match(r"\S+ ERROR ", line)
                if SANITIZER_REPORT.search(line):
                    print(self._tail(path, 100), file=sys.stderr)
                    found.append(line)
                elif error and not any(re.search(a, line) for a in self._announced):
                    found.append(line)
        return found

    def _new_lines(self, path):
        try:
            with open(path, encoding="utf-8", errors="replace") as f:
                f.seek(self._offsets.get(path, 0))
                text = f.read()
                self._offsets[path] = f.tell()
        except FileNotFoundError:
            return []
        return text.splitlines()

    def _tail(self, path, lines=3):
        with contextlib.suppress(OSError):
            text = Path(path).read_text(encoding="utf-8", errors="replace")
            return "\n".join(text.strip().splitlines()[-lines:])
        return ""


def loop_file_system(image, mount_point, kind, size_mib=1024, options="loop"):
    """Makes an image file with a file system in it and mounts it."""
    need_root()
    with open(image, "wb") as f:
        f.truncate(size_mib << 20)
    run_checked(f"mkfs.{kind}", "-q", *(["-F"] if kind == "ext4" else ["-f"]), image)
    os.makedirs(mount_point, exist_ok=True)
    run_checked("mount", "-t", kind, "-o", options, image, mount_point)


# Cases and their runner.


@dataclasses.dataclass
class Case:
    name: str
    function: object
    timeout: float
    errors: str


CASES = []


def case(function=None, *, timeout=30, errors=None):
    """Registers a case, named after its module and function.

    errors: regular expression of the ERROR lines that the case announces.
    """

    def register(f):
        module = f.__module__.removesuffix("_cases")
        name = f.__name__ if module == "__main__" else f"{module}.{f.__name__}"
        CASES.append(Case(name, f, timeout * TIME_FACTOR, errors))
        return f

    return register(function) if function else register


@dataclasses.dataclass
class Environment:
    """What a case may know about where it runs; its working directory is its own."""

    mode: str
    workspace: Workspace
    store: str = "disk"
    mount: Mount = None  # The shared one, if any.
    native: str = None  # A directory on the file system that the store is on.

    @property
    def on_cfs(self):
        return self.mount is not None

    def new_mount(self, **kwargs):
        kwargs.setdefault("store", self.store)
        return Mount(self.workspace, self.mode, **kwargs)


def new_shared_mount(workspace, args):
    if args.mode in ("cluster", "client"):
        return new_cluster(workspace, args)
    return Mount(workspace, args.mode, args.store)


def new_cluster(workspace, args, nodes=CLUSTER_NODES):
    """A cluster as the shared mount, which is that of its second node if it has one."""
    sys.path.append(str(REPOSITORY / "tests" / "cluster"))
    import cluster  # pylint: disable=import-outside-toplevel  (It imports this module.)

    return cluster.Cluster(workspace, nodes, args.mode, args.store, shared=min(1, nodes - 1),
                           clients=(1,) if args.mode == "client" else ())


def main(description, shared_mount=True, argv=None, new_shared=new_shared_mount):
    """Runs the registered cases as the command line says; returns the exit status.

    new_shared(workspace, args) makes the mount that all cases share.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=MODES, default="passthrough")
    parser.add_argument("--store", choices=STORES, default="disk",
                        help="where the store is (default: %(default)s)")
    parser.add_argument("--filter", metavar="REGEX", default="", help="run matching cases only")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    if shared_mount:
        parser.add_argument("--reference", metavar="DIR",
                            help="run on this plain directory instead of a mount")
    args = parser.parse_args(argv)
    chosen = [c for c in CASES if re.search(args.filter, c.name)]
    if args.list:
        print("\n".join(c.name for c in chosen))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    workspace = Workspace()
    runner = Runner(args, workspace, new_shared if shared_mount and not args.reference else None)
    try:
        return runner.run(chosen)
    finally:
        workspace.close()


class Runner:
    """Runs cases one after the other, each in a process of its own, and prints results."""

    def __init__(self, args, workspace, new_shared):
        self._args = args
        self._workspace = workspace
        self._new_shared = new_shared
        self._reference = getattr(args, "reference", None)
        self._mount = None
        self._count = {"ok": 0, "FAIL": 0, "skip": 0}
        self._failed = set()  # Names: these may have left their directories.

    def run(self, cases):
        with contextlib.ExitStack() as stack:
            try:
                self._require(stack)
            except Skip as skip:
                for c in cases:
                    self._report(c.name, "skip", str(skip))
                return self._exit_status()
            if self._reference:
                os.makedirs(self._reference, exist_ok=True)
                root = tempfile.mkdtemp(dir=self._reference)
                os.chmod(root, 0o755)
                stack.callback(shutil.rmtree, root, ignore_errors=True)
                native = f"{root}/native"
                os.mkdir(native)
                where = Environment("reference", self._workspace, native=native)
                self._run_all(cases, where, root)
            elif self._new_shared:
                self._run_on_shared(cases)
            else:
                where = Environment(self._args.mode, self._workspace, self._args.store)
                self._run_all(cases, where, self._workspace.disk)
        return self._exit_status()

    def _require(self, stack):
        if self._reference:
            return
        if not os.path.exists("/dev/fuse"):
            raise Skip("/dev/fuse is missing")
        if not os.access(BINARY, os.X_OK):
            sys.exit(f"{BINARY}: no such program: build it, or set CFS")
        if "uring" in self._args.mode:
            stack.enter_context(Uring())

    def _run_on_shared(self, cases):
        """A mount that a case broke is replaced by a new one for the cases after it."""
        left = list(cases)
        while left:
            try:
                with self._new_shared(self._workspace, self._args) as self._mount:
                    where = Environment(self._args.mode, self._workspace, mount=self._mount,
                                        native=self._mount.native)
                    left = left[self._run_all(left, where, self._mount.mnt):]
                    if self._mount.pid is None:
                        raise MountLost
                    left_over = set(os.listdir(self._mount.mnt)) - self._failed
                    equal(left_over, set(), "what is left in the mount")
                self._report("unmount", "ok")
            except MountLost:
                pass
            except Skip as skip:
                for c in left:
                    self._report(c.name, "skip", str(skip))
                return
            except (Failure, subprocess.TimeoutExpired) as error:
                self._report("mount and unmount", "FAIL", str(error))
                return
            finally:
                self._mount = None

    def _run_all(self, cases, where, root):
        """Returns how many it ran: fewer than all when the shared mount is lost."""
        for index, c in enumerate(cases):
            started = time.monotonic()
            verdict, reason = self._run_one(c, where, root)
            if self._mount:
                found = [line for line in self._mount.problems()
                         if not (c.errors and re.search(c.errors, line))]
                lost = self._mount.pid is None or self._mount.ended()
                if lost:
                    found.append("the daemon ended")
                if found:
                    verdict, reason = "FAIL", "; ".join(filter(None, [reason, *found]))
            else:
                lost = False
            self._report(c.name, verdict, reason, time.monotonic() - started)
            if lost:
                self._mount.pid = None
                return index + 1
        return len(cases)

    def _run_one(self, c, where, root):
        directory = f"{root}/{c.name}"
        receiver, sender = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(receiver)
                os.setsid()
                verdict, reason = run_in(directory, c, where)
                os.write(sender, json.dumps([verdict, reason[:2000]]).encode() + b"\n")
            finally:
                os._exit(0)
        os.close(sender)
        try:
            answer = self._await(pid, receiver, c.timeout)
            if answer is None:
                answer = ["FAIL", f"hung for {c.timeout:g} s"]
                self._break_hang(pid)
        finally:
            os.close(receiver)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        self._workspace.sweep(keep=self._mount)
        self._reap(pid)
        if not self._mount:
            shutil.rmtree(directory, ignore_errors=True)
        return answer

    @staticmethod
    def _await(pid, receiver, timeout):
        """The verdict the process sends; None if none comes in time."""
        process = os.pidfd_open(pid)
        try:
            ready = select.select([receiver, process], [], [], timeout)[0]
            if not ready:
                return None
            # A verdict sent just before the end counts, so look at the pipe first.
            if receiver in select.select([receiver], [], [], 0)[0]:
                data = os.read(receiver, 1 << 16)
                if data:
                    return json.loads(data)
            return ["FAIL", "its process died"]
        finally:
            os.close(process)

    def _break_hang(self, pid):
        print(f"process of the case:\n{stacks(pid)}", file=sys.stderr)
        for daemon in self._workspace.daemons():
            print(f"daemon {daemon}:\n{stacks(daemon)}", file=sys.stderr)
            kill(daemon)
        if self._mount:
            self._mount.pid = None

    @staticmethod
    def _reap(pid):
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return
            time.sleep(0.001)

    def _report(self, name, verdict, reason="", seconds=0.0):
        self._count[verdict] += 1
        if verdict == "FAIL":
            self._failed.add(name)
        reason = " ".join(reason.split())
        slow = f" ({seconds:.1f} s)" if seconds >= 1 else ""
        print(f"{verdict} {name}{': ' + reason if reason else slow}", flush=True)

    def _exit_status(self):
        if self._count["FAIL"]:
            return 1
        return EXIT_SKIPPED if self._count["skip"] and not self._count["ok"] else 0


class MountLost(Exception):
    """The shared mount's daemon has gone; the case that did it has been reported."""


def run_in(directory, c, where):
    """Runs a case in a fresh directory and removes that; returns verdict and reason."""
    os.umask(0o022)
    try:
        os.mkdir(directory)
        os.chdir(directory)
        c.function(where)
        verdict = "ok", ""
    except Skip as skip:
        verdict = "skip", str(skip)
    except Failure as error:
        verdict = "FAIL", f"{error}{place(error, c.function)}"
    except Exception as error:  # Of any kind: the other cases have to run.
        traceback.print_exc()
        verdict = "FAIL", f"{type(error).__name__}: {error}{place(error, c.function)}"
    try:
        os.chdir("/")
        remove_tree(directory)
    except OSError as error:
        if verdict[0] != "FAIL":
            verdict = "FAIL", f"removing its directory: {error}"
    return verdict


def place(error, function):
    """The line of the case's own file where it failed."""
    file = inspect.unwrap(function).__code__.co_filename
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
             if frame.filename == file]
    name = os.path.basename(file)
    return f" ({name}:{lines[-1]})" if lines else ""


def remove_tree(directory):
    if os.geteuid() != 0:  # Root needs no permission to look into them.
        for path, names, _ in os.walk(directory):
            for name in names:
                if not os.path.islink(os.path.join(path, name)):
                    os.chmod(os.path.join(path, name), 0o700)
    shutil.rmtree(directory)
