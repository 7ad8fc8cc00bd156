"""Where a program runs, and how a case of this suite is registered.

A case is a function of a Site. It keeps what it knows for certain (sources, oracles)
in site.outside, which is never on the file system under test.
"""

import contextlib
import dataclasses
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import harness
from harness import Failure, Skip, check, wait_until

__all__ = ["Failure", "Site", "Skip", "add_case", "check", "program_case", "wait_until"]

LONG_TIME_FACTOR = 10


@dataclasses.dataclass
class Options:
    """Of the whole run; set before any case starts."""

    long: bool = False
    seed: int = 1


OPTIONS = Options()


class Site:
    """A directory on the mount (or on the reference file system) and one outside it."""

    def __init__(self, directory: Path, outside: Path, mount: harness.Mount | None, name: str):
        self.dir = directory
        self.outside = outside
        self.rng = random.Random(f"{OPTIONS.seed} {name}")
        self._mount = mount

    def pick(self, short, long):
        return long if OPTIONS.long else short

    def popen(self, *command, env=None, **options) -> subprocess.Popen:
        options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("cwd", self.dir)
        return subprocess.Popen(
            [os.fspath(part) for part in command],
            env={**os.environ, "LC_ALL": "C.UTF-8", "HOME": str(self.outside), **(env or {})},
            **options)

    def run(self, *command, expect=0, **options) -> str:
        """Runs a program to its end; what it printed is the result."""
        with self.popen(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                        **options) as process:
            output = process.stdout.read().decode(errors="replace")
        if process.returncode != expect:
            words = " ".join(os.fspath(part) for part in command[:6])
            tail = " ".join(output.split())[-500:]
            raise Failure(f"`{words}` ended with {process.returncode}: {tail}")
        return output

    def remount(self) -> None:
        """Unmounts and mounts again, which leaves nothing in a cache; no-op on a reference."""
        if self._mount:
            self._mount.stop()
            self._mount.start()

    def kill_daemon(self) -> None:
        self._mount.kill()

    def recover(self) -> None:
        """Mounts over the dead mount, once the programs that used it have ended."""
        self._mount.start()


@contextlib.contextmanager
def new_site(t: harness.Environment, name: str):
    with contextlib.ExitStack() as stack:
        outside = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=t.workspace.disk)))
        outside.chmod(0o755)  # Programs also run as other users.
        if t.mode == "reference":
            mount, directory = None, Path.cwd()
        else:
            mount = stack.enter_context(t.new_mount())
            directory = Path(mount.mnt, "case")
            directory.mkdir()
        yield Site(directory, outside, mount, name)


@dataclasses.dataclass(frozen=True)
class ProgramCase:
    """What the harness calls: checks what the body needs, and gives it a site."""

    name: str
    body: Callable
    arguments: tuple
    needs: tuple[str, ...]
    kills_daemon: bool

    def __call__(self, t: harness.Environment) -> None:
        for program in self.needs:
            if not shutil.which(program):
                raise Skip(f"{program} is not installed")
        if self.kills_daemon and t.mode == "reference":
            raise Skip("a reference directory has no daemon to kill")
        with new_site(t, self.name) as site:
            self.body(site, *self.arguments)

    @property
    def __code__(self):
        """The harness names the line of this code at which a case fails."""
        return self.body.__code__


def add_case(name: str, body: Callable, *arguments, timeout: float = 60,
             needs: tuple[str, ...] = (), kills_daemon: bool = False) -> None:
    """Registers body(site, *arguments). `needs`: programs without which it is skipped."""
    factor = harness.TIME_FACTOR * (LONG_TIME_FACTOR if OPTIONS.long else 1)
    harness.CASES.append(harness.Case(
        name, ProgramCase(name, body, arguments, needs, kills_daemon), timeout * factor, None))


def program_case(**options):
    """Registers the decorated function under the name of its module and its own."""

    def register(body):
        module = body.__module__.removesuffix("_cases")
        add_case(f"{module}.{body.__name__}", body, **options)
        return body

    return register
