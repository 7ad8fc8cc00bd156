"""What cases share that change names while nodes come, go and die at named points."""

import os
import signal
import time
from pathlib import Path

import harness
from cluster import Cluster
from harness import Child, check, equal, opened, outcome, read, wait_until

FACTOR = harness.TIME_FACTOR
# Answers that leave open whether it has happened: of a node that cannot be reached, of a mount that
# is gone, and none.
UNCERTAIN = ("EIO", "ENOTCONN", "ECONNABORTED", None)
IO_TIMEOUT = 4 * FACTOR
PACE = 0.1  # Seconds: there has to be work, and all of it is read again by all nodes.


def new_cluster(t, nodes, late=0, store=None, serve_only=()):
    return Cluster(t.workspace, nodes, t.mode, store=store or t.store, io_timeout=IO_TIMEOUT,
                   late=late, serve_only=serve_only)


def wait_dead(node, point):
    """The node has ended itself at the point; it can be started again then."""
    wait_until(lambda: node.died() is not None, 40 * FACTOR, f"node {node.name} reaches {point}")
    equal(node.died(), -signal.SIGKILL, f"how node {node.name} ended")
    node.pid = None


def content(name):
    return name.encode() * 7


class Names:
    """A process that makes and moves names below a directory, until it is stopped.

    It works on names of its own, so that what it has been told says what has to be there. With
    synced, a step is over when all that it has changed is on the device.
    """

    def __init__(self, t, root, top, synced=False):
        self._root, self._top, self._synced = root, top, synced
        self._log = f"{t.workspace.new_directory()}/log"
        Path(self._log).touch()
        self._child = Child(self._run)

    def _run(self):
        with open(self._log, "a", buffering=1, encoding="ascii") as log:
            os.makedirs(f"{self._root}/{self._top}", exist_ok=True)
            if self._synced:
                self._sync(self._root)
            number = 0
            while not os.path.exists(f"{self._log}.stop"):
                for step in self._steps(number):
                    words = " ".join(step)
                    log.write(f"try {words}\n")
                    answer = outcome(self._do, *step)
                    log.write(f"{answer if isinstance(answer, str) else 'ok'} {words}\n")
                number += 1
                time.sleep(PACE)

    def _steps(self, n):
        top = self._top
        yield "mkdir", f"{top}/d{n}"
        yield "make", f"{top}/d{n}/f"
        yield "make", f"{top}/g{n}"
        if n > 0:
            yield "rename", f"{top}/g{n}", f"{top}/d{n - 1}/g{n}"  # Into another directory's slot.
            yield "link", f"{top}/d{n}/f", f"{top}/d{n - 1}/l{n}"
        if n > 2:
            yield "rename", f"{top}/d{n - 2}", f"{top}/d{n}/was{n - 2}"  # A directory's move.
            yield "unlink", f"{top}/d{n}/was{n - 2}/f"
        if n % 5 == 4:
            yield "mkdir", f"{top}/r{n}"
            yield "rmdir", f"{top}/r{n}"

    def _do(self, verb, *paths):
        full = [f"{self._root}/{path}" for path in paths]
        if verb == "make":
            fd = os.open(full[0], os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            try:
                os.write(fd, content(paths[0]))
            finally:
                os.close(fd)
        else:
            {"mkdir": os.mkdir, "rename": os.rename, "link": os.link, "unlink": os.unlink,
             "rmdir": os.rmdir}[verb](*full)
        if self._synced:
            there = {"make": full, "mkdir": full, "rename": full[1:], "link": full[1:]}
            for path in (*there.get(verb, ()), *map(os.path.dirname, full)):
                self._sync(path)

    @staticmethod
    def _sync(path):
        with opened(path, os.O_RDONLY) as fd:
            os.fsync(fd)

    def steps(self):
        """(verb, paths, answer), None as the answer of one that was never heard of."""
        result, pending = [], None
        for line in Path(self._log).read_text(encoding="ascii").splitlines():
            answer, verb, *paths = line.split()
            if answer == "try":
                pending = (verb, paths)
                continue
            result.append((verb, paths, answer))
            pending = None
        return result + ([(*pending, None)] if pending else [])

    def acknowledged(self):
        return sum(answer == "ok" for _, _, answer in self.steps())

    def wait(self, more, timeout=40):
        wanted = self.acknowledged() + more
        wait_until(lambda: self.acknowledged() >= wanted or not self._child.running(),
                   timeout * FACTOR, f"{more} more acknowledged changes of names")

    def stop(self):
        Path(f"{self._log}.stop").touch()
        self._child.result(60 * FACTOR)

    def check(self, roots):
        """What was acknowledged is there for all nodes, and what was not is whole or not at all."""
        files, links, unknown, errors = {}, {}, set(), {}
        for verb, paths, answer in self.steps():
            if answer not in ("ok", *UNCERTAIN):
                # A step that follows from one of which nobody knows.
                errors[answer] = errors.get(answer, 0) + 1
                check(unknown, f"{verb} {paths}: {answer}")
                continue
            if answer != "ok":
                unknown.update(paths)
                continue
            source = paths[0]
            if verb in ("mkdir", "make"):
                files[source] = None if verb == "mkdir" else content(source)
            elif verb == "rename":
                for path in [p for p in files if p == source or p.startswith(f"{source}/")]:
                    files[paths[1] + path[len(source):]] = files.pop(path)
            elif verb == "link" and source in files:
                files[paths[1]] = files[source]
                links[paths[1]] = source
            elif verb in ("unlink", "rmdir"):
                files.pop(source, None)
        def uncertain(path):
            return any(path == u or path.startswith(f"{u}/") for u in unknown)
        for root in roots:
            seen = {}
            for folder, folders, names in os.walk(f"{root}/{self._top}"):
                for name in folders:
                    seen[os.path.relpath(f"{folder}/{name}", root)] = None
                for name in names:
                    path = f"{folder}/{name}"
                    # Data that was never synced may be gone with the power of its home.
                    seen[os.path.relpath(path, root)] = outcome(read, path)
                equal(os.stat(folder).st_nlink, 2 + len(folders), f"links of {folder}")
            missing = [p for p in files if p not in seen and not uncertain(p)]
            extra = [p for p in seen if p not in files and not uncertain(p)]
            wrong = [p for p in files if p in seen and seen[p] != files[p] and not uncertain(p)]
            check(not missing and not extra and not wrong,
                  f"in {root}: missing {missing[:5]}, extra {extra[:5]}, other content {wrong[:5]}")
        return len(files)
