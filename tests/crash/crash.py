#!/usr/bin/env python3
"""Crash test: writers on a cfs mount, kill -9 or power failure, an oracle outside the mount.

  crash.py [--short | --long] [--mode MODE]     the whole suite
  crash.py --kind kill9 --rounds N              one case
  crash.py --kind power --fs xfs|ext4 --rounds N
  crash.py --kind power --fs xfs|ext4 --negative-control
  crash.py --reference xfs|ext4 [--negative-control]
                                                the test's own test, directly on that file system

The store lives on over the rounds. model.py says what is checked, writer.py what is done. In a
round of power failure a kill -9 may come first. A negative control runs with syncs that do nothing,
and passes if the oracle notices.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback

from model import Loss, Model, Seen, clone
from stage import MODES, URING, Cfs, Failure, Reference, eventually
from writer import OPERATIONS, SYNCS, Writer

WRITERS = ["w0", "w1", "w2", "w3"]
CONTROL_ROUNDS = 5
ROUND_SECONDS_MAX = 120
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def unsynced(op):
    """The operation without what it promises to sync, for it returned while power was being cut.

    Then ext4 says 0 to an fsync whose commit the cut has aborted. In a real power failure nothing
    returns any more.
    """
    return {**op, "sync": False, "op": "late sync" if op["op"] in SYNCS else op["op"]}


def ended(pid):
    """Whether a child process has ended; it stays to be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


class Log:
    """What one writer has logged in one leg."""

    def __init__(self, path):
        path.touch()
        self.path, self.file, self.rest = path, open(path, "rb"), b""
        self.pending, self.failed = None, False

    def poll(self):
        """Yields (operation, answer) for each new answer; `pending` is the one without."""
        *lines, self.rest = (self.rest + self.file.read()).split(b"\n")
        for line in lines:
            record = json.loads(line)
            if isinstance(record, dict):
                self.pending = record
            else:
                yield self.pending, record
                self.pending = None


class Campaign:
    """Rounds on one stage. `lie`: the writers skip their syncs."""

    def __init__(self, stage, folder, seed, lie=False):
        self.stage, self.rng, self.lie = stage, random.Random(seed), lie
        self.logs_folder, self.legs, self.logs = folder / "logs", 0, {}
        self.logs_folder.mkdir()
        self.exact = {root: Model(root, True, stage.opens_sync) for root in WRITERS}
        self.durable = {root: Model(root, False, stage.opens_sync) for root in WRITERS}
        self.numbers = dict.fromkeys(WRITERS, 0)
        self.owners = {}  # Inode number -> (writer, fid), for ever.
        self.totals = collections.Counter()
        self.kinds = collections.Counter()
        for path in [stage.top, *(stage.top / name for name in ["shared", *WRITERS])]:
            path.mkdir()
        for path in [*stage.top.iterdir(), stage.top, stage.top.parent]:
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)

    def round(self, kind):
        if kind == "power" and self.stage.has_daemon and self.rng.random() < 0.3:
            self._leg("kill9")
        self._leg(kind)
        self.totals["rounds"] += 1

    def finish(self, kind):
        """An orderly restart changes nothing, and everything can be removed."""
        self.stage.remount()
        seen = Seen(self.stage.top)
        for root in WRITERS:
            self._match(self.exact[root], seen)
        shutil.rmtree(self.stage.top)
        self._check_store(0)
        untried = [kind for kind in OPERATIONS if not self.kinds[kind]]
        if self.totals["rounds"] >= 10 and untried:
            raise Failure(f"empty pass: never done: {' '.join(untried)}")
        if kind == "power" and self.totals["rounds"] >= 20 and not self.totals["undone operations"]:
            raise Failure("empty pass: no power failure has undone anything")

    def _leg(self, kind):
        self.legs += 1
        for path in self.logs_folder.glob(f"{self.legs - 3}-*"):
            path.unlink()
        active = self.rng.sample(WRITERS, self.rng.choice((2, 3)))
        self.logs = {root: Log(self.logs_folder / f"{self.legs}-{root}") for root in active}
        # A sync that does nothing is not noticed if another does its work: often there is one kind.
        ways = SYNCS if self.rng.random() < 0.5 else (self.rng.choice(SYNCS),)
        writers = {root: self._start(root, kind, ways) for root in active}
        self.crashed_at, syncs = float("inf"), self.totals["syncs"]
        watchdog = threading.Timer(ROUND_SECONDS_MAX, self._give_up)
        watchdog.start()
        try:
            time.sleep(self.rng.uniform(0.1, 1.2))
            eventually(lambda: self._poll() or self.totals["syncs"] > syncs
                       or any(map(ended, writers.values())), 20)
            for root, pid in writers.items():
                if ended(pid):
                    raise Failure(f"{root} ended before the crash")
            if self.totals["syncs"] == syncs:
                raise Failure("empty pass: no sync has returned")
            if kind == "kill9":
                seen = self._kill9(writers)
            else:
                seen = self._cut_power(writers)
        finally:
            watchdog.cancel()
            for pid in writers.values():
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        self._check(seen, kind)

    def _start(self, root, kind, ways):
        seed = self.rng.random()
        pid = os.fork()
        if pid:
            return pid
        try:
            ghost = kind == "kill9" and self.stage.passthrough
            sync_stores = self.stage.has_daemon and not self.stage.passthrough
            Writer(str(self.stage.top), self.exact[root], self.logs[root].path, seed,
                   self.numbers[root], ways, ghost, sync_stores, self.lie).run()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    def _give_up(self):
        print(f"# no end of a round in {ROUND_SECONDS_MAX} s: the daemon is killed", flush=True)
        if self.stage.has_daemon:
            signal.pidfd_send_signal(self.stage.daemon, signal.SIGKILL)

    def _cut_power(self, writers):
        self.crashed_at = time.monotonic()
        self.stage.cut_power()
        time.sleep(self.rng.uniform(0, 0.03))
        for root in list(writers):
            self._reap(writers, root, signal.SIGKILL)
        self.stage.reboot()
        return Seen(self.stage.top)

    def _kill9(self, writers):
        self.stage.check_log()
        self.crashed_at = time.monotonic()
        self.stage.kill_daemon()
        if not eventually(lambda: self._poll() or all(
                log.failed or ended(writers[root]) for root, log in self.logs.items()), 10):
            raise Failure("a writer noticed nothing of the daemon's end")
        self.stage.mount()
        with contextlib.ExitStack() as stack:
            held = self._look_at_ghosts(stack) if self.stage.passthrough else {}
            for root in list(writers):
                self._reap(writers, root, signal.SIGTERM)
            seen = Seen(self.stage.top)
            for path, file in held.items():
                file.seek(0)
                if file.read() != seen.entries[path].content:
                    raise Loss(f"{path}: a descriptor opened while ghosts wrote reads stale bytes")
        return seen

    def _look_at_ghosts(self, stack):
        """Checks that what ghosts have written is seen while they go on.

        Returns files that were opened and read meanwhile: path -> file, which `stack` closes.
        """
        self._poll()
        models = {root: clone(self.exact[root]) for root in self.logs}
        seen = Seen(self.stage.top, live=True)
        held = {}
        for path, entry in seen.entries.items():
            if entry.kind == "file" and self.rng.random() < 0.2:
                mode = self.rng.choice(("rb", "r+b"))
                held[path] = stack.enter_context(open(self.stage.top / path, mode, buffering=0))
                held[path].read()
        writes, stores = self.totals["ghost writes"], self.totals["ghost stores"]
        if not eventually(lambda: self._poll(models) or (
                self.totals["ghost writes"] > writes and self.totals["ghost stores"] > stores), 10):
            raise Failure("empty pass: no ghost writes after the remount")
        for root, model in models.items():
            if self.logs[root].pending:
                model.apply(self.logs[root].pending, certain=False)
            self._match(model, seen)
        return held

    def _reap(self, writers, root, number):
        os.kill(writers[root], number)
        if not eventually(lambda: ended(writers[root]), 20):
            raise Failure(f"{root} doesn't end: last operation {self.logs[root].pending}")
        status = os.waitpid(writers.pop(root), 0)[1]
        # Without passthrough, or without a disk, a store may meet a SIGBUS. A ghost may not.
        failed = os.WIFEXITED(status) and os.WEXITSTATUS(status)
        ghost = number == signal.SIGTERM and self.stage.passthrough
        if failed or (ghost and os.WIFSIGNALED(status)):
            raise Failure(f"{root} failed after the crash: wait status {status}, "
                          f"last operation {self.logs[root].pending}")

    def _poll(self, copies=None):
        """Takes in what the writers have logged; for `copies` of the models, as uncertain."""
        for root, log in self.logs.items():
            for op, (number, when, error, ino) in log.poll():
                if error and when < self.crashed_at:
                    raise Failure(f"{root}: {op['op']} failed before the crash: "
                                  f"{os.strerror(error)}: {op}")
                if when > self.crashed_at:
                    op = unsynced(op)
                for model in (self.exact[root], self.durable[root]):
                    model.apply(op, certain=not error)
                    if ino:
                        model.inos[op["fid"]] = ino
                if copies:
                    copies[root].apply(op, certain=False)
                if ino:
                    self._own(ino, root, op["fid"])
                self._count(op, error, log)
                self.numbers[root] = number
                log.failed = log.failed or bool(error)

    def _own(self, ino, root, fid):
        """Inode numbers of cfs are never used again."""
        if self.stage.has_daemon and self.owners.setdefault(ino, (root, fid)) != (root, fid):
            raise Loss(f"inode {ino} of {root}'s file {fid:x} was that of {self.owners[ino]}")

    def _count(self, op, error, log):
        self.totals["operations"] += 1
        self.kinds[op["op"]] += 1
        if not error:
            self.totals["syncs"] += op["op"] in SYNCS or bool(op.get("sync"))
            self.totals["ghost writes"] += log.failed and op["op"] == "write"
            self.totals["ghost stores"] += log.failed and op["op"] == "store"

    def _match(self, model, seen):
        try:
            return model.match(seen)
        except Loss as loss:
            raise Loss(f"{model.root}: {loss}") from loss

    def _check(self, seen, kind):
        self._poll()
        for root, log in self.logs.items():
            if log.pending:
                self.exact[root].apply(log.pending, certain=False)
                self.durable[root].apply(log.pending, certain=False)
                self.numbers[root] = log.pending["n"]
                self.totals["in flight"] += 1
        known = {"shared"}.union(*(seen.of(root) for root in WRITERS))
        if strangers := seen.entries.keys() - known:
            raise Loss(f"names that nobody made: {sorted(strangers)[:5]}")
        for root in WRITERS:
            if kind == "kill9":
                self._match(self.exact[root], seen)
            else:
                done = len(self.durable[root].ops)
                self.totals["undone operations"] += done - self._match(self.durable[root], seen)
            self.totals["torn cells"] += self.durable[root].adopt(seen, durable=kind == "power")
            if kind == "kill9":
                self.exact[root].adopt(seen, durable=True)
            else:
                self.exact[root] = clone(self.durable[root])
                self.exact[root].exact = True
            for fid, ino in self.durable[root].inos.items():
                self._own(ino, root, fid)
        self.totals["files checked"] += seen.files()
        self._check_store(seen.files())

    def _check_store(self, inodes):
        if self.stage.has_daemon and not self.stage.unsafe_fsync:
            self.stage.check_log()
            if leak := self.stage.leaked(inodes):
                raise Failure(leak)


class Case:
    """One line of the suite's output."""

    def __init__(self, options, kind, fs, rounds, control=False, reference=False):
        self.options, self.kind, self.fs, self.rounds = options, kind, fs, rounds
        self.control, self.reference = control, reference
        words = ["crash", "reference" if reference else kind, fs, "control" if control else None,
                 options.mode if options.mode != "passthrough" and not reference else None]
        self.name = "-".join(filter(None, words))

    def run(self):
        """Returns whether it did not fail."""
        if missing := self._missing():
            print(f"skip {self.name}: {missing}", flush=True)
            return True
        begin, folder = time.monotonic(), pathlib.Path(tempfile.mkdtemp(prefix="cfs-crash-"))
        stage = campaign = None
        try:
            stage = self._stage(folder)
            campaign = Campaign(stage, folder, self.options.seed,
                                lie=self.control and self.reference)
            found = self._rounds(campaign)
            if self.control and not found:
                raise Failure(f"blind: no loss found in {self.rounds} rounds without any sync")
        except Exception as error:  # pylint: disable=broad-except
            self._explain(error, stage, campaign)
            return False
        finally:
            if stage:
                stage.close()
            shutil.rmtree(folder)
        totals = ", ".join(f"{count} {what}" for what, count in campaign.totals.items() if count)
        print(f"# {self.name}: {totals} in {time.monotonic() - begin:.0f} s"
              + (f"; found: {found}" if found else ""))
        print(f"ok {self.name}", flush=True)
        if stage.leak_unchecked:
            print(f"skip {self.name}-leak: {stage.leak_unchecked}", flush=True)
        return True

    def _rounds(self, campaign):
        """Returns the loss that a control found."""
        try:
            for _ in range(self.rounds):
                campaign.round(self.kind)
        except Loss as loss:
            if self.control:
                return str(loss)[:300]
            raise
        if not self.control:
            campaign.finish(self.kind)
        return None

    def _missing(self):
        if os.geteuid():
            return "needs root"
        if not self.reference and not os.path.exists("/dev/fuse"):
            return "no /dev/fuse"
        if self.fs and not os.path.exists("/dev/loop-control"):
            return "no loop devices"
        if self.fs and not shutil.which(f"mkfs.{self.fs}"):
            return f"no mkfs.{self.fs}"
        if self.options.mode.startswith("uring") and not self.reference and not URING.exists():
            return f"no {URING}"
        return None

    def _stage(self, folder):
        if self.reference:
            return Reference(folder, self.fs)
        if self.control:
            binary = os.environ.get("CFS_FAULT", REPOSITORY / "build-asan/cfs")
        else:
            binary = os.environ.get("CFS", REPOSITORY / "build/cfs")
        return Cfs(folder, binary, self.options.mode, self.fs, unsafe_fsync=self.control)

    def _explain(self, error, stage, campaign):
        if not isinstance(error, (Loss, Failure)):
            traceback.print_exception(error)
        what = f"lost: {error}" if isinstance(error, Loss) else f"{error}"
        print(f"FAIL {self.name}: {what}")
        print(f"# again: {sys.argv[0]} {self._arguments()}")
        if campaign:
            kept = pathlib.Path(tempfile.mkdtemp(prefix="cfs-crash-logs-"))
            shutil.copytree(campaign.logs_folder, kept, dirs_exist_ok=True)
            print(f"# leg {campaign.legs}; the writers' logs, LEG-WRITER, are kept in {kept}")
            for root, log in campaign.logs.items():
                print(f"# last operations of {root}:")
                lines = log.path.read_text().splitlines()[-20:]
                print(*(f"#   {line}" for line in lines), sep="\n")
        if stage and stage.has_daemon:
            print("# end of cfs.log:")
            print(*(f"#   {line}" for line in stage.log_tail()), sep="\n")
        sys.stdout.flush()

    def _arguments(self):
        words = ["--reference", self.fs] if self.reference else ["--kind", self.kind]
        words += ["--fs", self.fs] if self.fs and not self.reference else []
        words += ["--negative-control"] if self.control else []
        words += ["--mode", self.options.mode, "--rounds", self.rounds, "--seed", self.options.seed]
        return " ".join(map(str, words))


def cases(options):
    if options.reference:
        return [Case(options, "power", options.reference, options.rounds, options.negative_control,
                     reference=True)]
    if options.kind:
        return [Case(options, options.kind, options.fs, options.rounds, options.negative_control)]
    rounds = {"kill9": 10, "xfs": 5, "ext4": 5}
    if options.long:
        rounds = {"kill9": 100, "xfs": 50, "ext4": 50}
    suite = [Case(options, "kill9", None, rounds["kill9"])]
    for fs in ("xfs", "ext4"):
        suite += [Case(options, "power", fs, rounds[fs]),
                  Case(options, "power", fs, CONTROL_ROUNDS, control=True),
                  Case(options, "power", fs, CONTROL_ROUNDS, control=True, reference=True)]
    return suite


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--short", action="store_true", help="the suite with few rounds (default)")
    length.add_argument("--long", action="store_true", help="the suite with many rounds")
    parser.add_argument("--kind", choices=["kill9", "power"])
    parser.add_argument("--fs", choices=["xfs", "ext4"],
                        help="what the store is on, for --kind power")
    parser.add_argument("--reference", choices=["xfs", "ext4"], help="power failures without cfs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--mode", choices=MODES, default="passthrough")
    parser.add_argument("--negative-control", action="store_true",
                        help="pass only if the missing syncs are noticed")
    options = parser.parse_args()
    if (options.kind == "power") != bool(options.fs):
        parser.error("--fs belongs to --kind power")
    if options.negative_control and not (options.fs or options.reference):
        parser.error("--negative-control needs --kind power or --reference")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    return 0 if all([case.run() for case in cases(options)]) else 1


if __name__ == "__main__":
    sys.exit(main())
