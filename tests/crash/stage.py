"""What the crash test runs on: a loop-mounted file system, a cfs mount, and how each is crashed."""

import contextlib
import fcntl
import json
import os
import pathlib
import select
import signal
import struct
import subprocess
import time

_SHUTDOWN = 0x8004587D  # XFS_IOC_GOINGDOWN and EXT4_IOC_SHUTDOWN: _IOR('X', 125, __u32).
_NO_LOG_FLUSH = 2
URING = pathlib.Path("/sys/module/fuse/parameters/enable_uring")

MODES = {
    "passthrough": [],
    "daemon-io": ["--passthrough=off"],
    "uring": ["--io-uring=on"],
    "uring-daemon-io": ["--io-uring=on", "--passthrough=off"],
    "locks-daemon": ["--locks=daemon"],
}
MKFS = {"xfs": ["mkfs.xfs", "-q"], "ext4": ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0"]}


class Failure(Exception):
    """The test failed for another reason than that something was lost."""


def run(*command, env=None):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env,
                              check=False)
    except (subprocess.TimeoutExpired, OSError) as error:
        raise Failure(str(error)) from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-500:]
        raise Failure(f"{' '.join(map(str, command))}: exit {done.returncode}: {said}")
    return done.stdout


def eventually(condition, seconds):
    """Whether the condition comes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def mounts(path):
    """The lines of mountinfo about a mount point (which can't be asked if its daemon is dead)."""
    lines = pathlib.Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if line.split(" ")[4] == str(path)]


def unmount(path):
    """Unmounts whatever is there, in use or not."""
    for _ in mounts(path):
        run("umount", "-l", path)


class Disk:
    """A file system on a sparse image file, which can lose power."""

    def __init__(self, folder, fs):
        self.fs, self.image, self.path = fs, folder / f"{fs}.image", folder / "disk"
        self.path.mkdir()
        with open(self.image, "wb") as image:
            image.truncate(1 << 30)
        run(*MKFS[fs], self.image)
        self.mount()

    def mount(self):
        # The loop device goes with the unmount.
        run("mount", "-o", "loop", "-t", self.fs, self.image, self.path)

    def cut_power(self):
        """From now on nothing reaches the disk, neither data nor log."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def reboot(self):
        """Mounts what was on the disk: loop device and cache are new, the log is replayed."""
        if not eventually(self._unmounted, 10):
            raise Failure(f"{self.path} stays busy after the power failure")
        self._wait_for_loop()
        self.mount()

    def close(self):
        if not mounts(self.path):
            return
        if not eventually(self._unmounted, 10):
            unmount(self.path)
        self._wait_for_loop()

    def _unmounted(self):
        done = subprocess.run(["umount", self.path], capture_output=True, check=False)
        return done.returncode == 0

    def _wait_for_loop(self):
        if not eventually(lambda: not run("losetup", "-j", self.image), 10):
            raise Failure(f"a loop device keeps {self.image}")


class Reference:
    """The tree directly on a disk: shows what oracle and power failure are worth, without cfs."""

    opens_sync = has_daemon = passthrough = False
    leak_unchecked = None

    def __init__(self, folder, fs):
        self.disk = Disk(folder, fs)
        self.top = self.disk.path / "tree"

    def cut_power(self):
        self.disk.cut_power()

    def reboot(self):
        self.disk.reboot()

    def remount(self):
        run("umount", self.disk.path)
        self.disk.mount()

    def close(self):
        self.disk.close()


class Cfs:
    """A cfs mount with its store in `folder`, or with `fs` on a disk that can lose power."""

    opens_sync = has_daemon = True
    leak_unchecked = None

    def __init__(self, folder, binary, mode, fs=None, unsafe_fsync=False):
        self.binary, self.options = os.path.realpath(binary), MODES[mode]
        self.passthrough = not mode.endswith("daemon-io")
        self.unsafe_fsync = unsafe_fsync
        self.mnt, self.top = folder / "mnt", folder / "mnt" / "tree"
        self.mnt.mkdir()
        self.daemon, self.log_read, self.uring_was = None, 0, None
        self.env = {**os.environ, **({"CFS_TEST_UNSAFE_FSYNC": "1"} if unsafe_fsync else {})}
        self.disk = Disk(folder, fs) if fs else None
        self.store = (self.disk.path if fs else folder) / "store"
        self.store.mkdir()
        try:
            if "--io-uring=on" in self.options:
                self.uring_was = URING.read_text()
                URING.write_text("Y")
            self.mount()
        except BaseException:
            self.close()
            raise

    def mount(self):
        if (self.store / "node.json").exists() and not self.unsafe_fsync:
            self.fsck()
        log = self.store / "cfs.log"
        self.log_read = log.stat().st_size if log.exists() else 0
        run(self.binary, "mount", self.mnt, "--store", self.store, *self.options, env=self.env)
        pid = int((self.store / "cfs.pid").read_text())
        self.daemon = os.pidfd_open(pid)
        if os.path.realpath(f"/proc/{pid}/exe") != self.binary or self.status()["pid"] != pid:
            raise Failure(f"process {pid} of {self.store}/cfs.pid is not the daemon of {self.mnt}")
        lines = mounts(self.mnt)
        if len(lines) != 1 or f" - fuse.cfs cfs:{self.store} " not in lines[0]:
            raise Failure(f"{self.mnt} is not one mount of {self.store}: {lines}")

    def fsck(self):
        """What a crash has left is right as it is, before recovery has looked at it."""
        done = subprocess.run([self.binary, "fsck", self.store], capture_output=True, text=True,
                              timeout=60, check=False)
        if done.returncode:
            raise Failure(f"fsck: exit {done.returncode}: {(done.stdout + done.stderr)[:1000]}")

    def status(self):
        return json.loads(run(self.binary, "status", "--store", self.store, "--json"))

    def kill_daemon(self):
        """kill -9, and makes sure that the mount was that process's."""
        self.check_alive()
        self._end_daemon()
        try:
            os.statvfs(self.mnt)
        except OSError:
            return
        raise Failure(f"{self.mnt} goes on answering after its daemon was killed")

    def check_alive(self):
        if select.select([self.daemon], [], [], 0)[0]:
            raise Failure("the daemon ended by itself")

    def _end_daemon(self):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.daemon, signal.SIGKILL)
        ended = select.select([self.daemon], [], [], 10)[0]
        os.close(self.daemon)
        self.daemon = None
        if not ended:
            raise Failure("the daemon outlives kill -9")

    def cut_power(self):
        self.check_alive()
        self.check_log()
        self.disk.cut_power()

    def reboot(self):
        self._end_daemon()  # It may have given up when its disk failed.
        unmount(self.mnt)
        self.disk.reboot()
        self.mount()

    def remount(self):
        """An orderly restart."""
        self.check_log()
        run(self.binary, "umount", self.mnt)
        if not select.select([self.daemon], [], [], 0)[0]:
            raise Failure("cfs umount returned before the daemon had ended")
        os.close(self.daemon)
        self.daemon = None
        self.mount()

    def check_log(self):
        """Fails if the running daemon has logged an error."""
        if (self.store / "cfs.log.1").exists():
            raise Failure("the log is longer than any test has reason for")
        with open(self.store / "cfs.log", "rb") as log:
            log.seek(self.log_read)
            text = log.read().decode(errors="replace")
        errors = [line for line in text.splitlines() if line.split(" ")[1:2] == ["ERROR"]]
        if errors:
            raise Failure(f"cfs.log: {errors[0]}")

    def log_tail(self):
        try:
            return (self.store / "cfs.log").read_text(errors="replace").splitlines()[-60:]
        except OSError as error:
            return [f"cfs.log: {error.strerror}"]

    def leaked(self, inodes):
        """None if, soon, each backing file belongs to an inode or the pool; else the problem."""
        if "pool" not in self.status().get("chunk_store", {}):
            self.leak_unchecked = "cfs status --json has no .chunk_store.pool"
            return None

        def excess():
            files = sum(len(names) for _, _, names in os.walk(self.store / "data"))
            return files - self.status()["chunk_store"]["pool"] - inodes

        if eventually(lambda: excess() == 0, 10):
            return None
        return f"{excess()} more files in {self.store}/data than {inodes} inodes and the pool need"

    def close(self):
        with contextlib.ExitStack() as steps:  # All are tried, the last one first.
            if self.uring_was is not None:
                steps.callback(URING.write_text, self.uring_was)
            if self.disk:
                steps.callback(self.disk.close)
            steps.callback(unmount, self.mnt)
            if self.daemon is None:
                self._find_daemon()
            if self.daemon is not None:
                self._end_daemon()

    def _find_daemon(self):
        """Finds the daemon that a failed mount may have left."""
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.store / "cfs.pid").read_text())
            if str(self.store).encode() in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
                self.daemon = os.pidfd_open(pid)
