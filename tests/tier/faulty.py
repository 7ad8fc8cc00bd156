"""A backend that fails, waits and does less than it is asked for, as rules say: see faulty_fs.cc."""

import contextlib
import os
import shutil
import subprocess
import time
from pathlib import Path

import harness


class Faulty:
    """faulty_fs over a directory of its own, `source`, mounted on `mnt`; gone after the with block."""

    def __init__(self, workspace):
        self._folder = workspace.new_directory()
        self.source, self.mnt = f"{self._folder}/source", f"{self._folder}/backend"
        self._file = f"{self._folder}/rules"
        self._process = None
        for path in (self.source, self.mnt):
            os.mkdir(path)

    def __enter__(self):
        harness.need_root()
        self.rules()
        self.start()
        return self

    def start(self):
        build = Path(harness.BINARY).parent
        directory = Path(os.environ.get("CFS_BUILD", build / "meson"))
        candidates = [d / "tests" / "tier" / "faulty_fs" for d in (directory, build.parent)]
        binary = next((c for c in candidates if c.exists()), None)
        harness.check(binary, f"{candidates[0]} has not been built")
        # Of the process group of the case: it ends with it whatever happens.
        self._process = subprocess.Popen([binary, self.source, self.mnt, self._file],
                                         stdin=subprocess.DEVNULL)
        harness.wait_until(lambda: self._process.poll() is not None or os.path.ismount(self.mnt), 10,
                           "mount of faulty_fs")
        harness.check(self._process.poll() is None, "faulty_fs does not mount")

    def stop(self):
        """As a server that has gone: every call fails with ENOTCONN."""
        self._process.kill()
        self._process.wait(20)

    def __exit__(self, *_):
        self.stop()
        harness.run("umount", "-l", self.mnt)
        shutil.rmtree(self._folder, ignore_errors=True)

    def rules(self, *lines):
        """What holds from now on, instead of what held before; counts begin anew."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._file}.fired")
        with open(f"{self._file}.new", "w", encoding="ascii") as f:
            f.writelines(f"{line}\n" for line in lines)
        os.rename(f"{self._file}.new", self._file)

    @contextlib.contextmanager
    def ruled(self, *lines):
        """The rules hold in the block, and have to be met in it."""
        self.rules(*lines)
        try:
            yield
            harness.check(self.fired(), f"empty pass: nothing has met {lines}")
        finally:
            self.rules()

    def fired(self):
        """One line for each call that met a rule which is no delay and no rate."""
        with contextlib.suppress(FileNotFoundError):
            return Path(f"{self._file}.fired").read_text(encoding="utf-8",
                                                         errors="replace").splitlines()
        return []

    def wait_fired(self, timeout=10):
        begin = time.monotonic()
        harness.wait_until(self.fired, timeout * harness.TIME_FACTOR, "a call that meets a rule")
        return time.monotonic() - begin
