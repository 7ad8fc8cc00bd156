#!/usr/bin/env python3
"""A mount in front of a backend that fails, hangs, answers late and does less than it was asked for.

    faults.py [--mode MODE] [--filter REGEX]

Goal: nothing dirty is dropped and nothing wrong comes to the backend, whatever that answers; the mount
stays usable; `cfs sync` and `cfs status` say what is the matter; when the backend is well again all gets
there, also when cfs was killed meanwhile. Method: real mounts over faulty_fs, a file system that shows a
directory and fails as rules say. What the mount has is compared with that directory, past faulty_fs.

faulty_fs is a FUSE file system, of which cfs knows that syncfs does not reach it: it fsyncs files and
directories instead. So this is also the test of that way; syncfs of others is writeback.py's.
"""

import contextlib
import errno
import json
import os
import random
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "mount"), str(HERE.parent / "mount" / "posix")]
import harness  # noqa: E402  (It is where the path above says.)
import trees  # noqa: E402
import writeback  # noqa: E402
from faulty import Faulty  # noqa: E402
from harness import (Child, case, cfs, check, equal, expect, make, opened, outcome,  # noqa: E402
                     read, wait_until)
from writeback import (FACTOR, check_content, check_same, check_sync_fails, content, dirty,  # noqa: E402
                       evict, made, move, status, sync)

# Cases of that module are registered along with it; these are run by its own suite.
harness.CASES.clear()

# What the log may say when the backend refuses something.
ERRORS = r"(?i)flush|backend|staged"


@contextlib.contextmanager
def over(t, *names, mode="writeback", **kwargs):
    """A mount over a faulty backend that has these files; that is its `faulty`, and what that shows its
    `real`."""
    with Faulty(t.workspace) as faulty:
        made(faulty.source, *names)
        with trees.over(t, faulty.mnt, mode=mode, errors=ERRORS, **kwargs) as mount:
            mount.faulty, mount.real = faulty, faulty.source
            try:
                yield mount
            finally:
                faulty.rules()


def check_flushed(mount, **kwargs):
    """All is there, and nothing else: seen past faulty_fs, which could show it wrongly."""
    mount.faulty.rules()
    writeback.check_flushed(mount, **kwargs)
    check_same(mount.mnt, mount.real)
    equal(status(mount)["flush_failures"], 0, "failures that are left")


def check_whole(mount, **versions):
    """Each name is not there or has one of these contents, as a whole."""
    for name, wanted in versions.items():
        got = outcome(read, f"{mount.real}/{name}")
        check(got in wanted, f"{name} is {harness.shorten(got)} on the backend")


def check_says(mount, path, error):
    """So do a sync, and the status."""
    check_sync_fails(mount, path, os.strerror(error))
    said = status(mount)
    check(said["flush_failures"] > 0 and os.strerror(error) in json.dumps(said["last_flush_failure"]),
          f"status: {said}")


def leave(mount, how):
    """Ends cfs amidst the fault, or does not."""
    if how == "kill":
        mount.kill()
    elif how == "stop":
        mount.stop()


# Each call that is made on the backend when something is flushed.

NAMES = ("f", "g", "h", "i", "links/a", "d/x", "d/s", "e/y", "gone/z")
MANY = b"changed through one of its names"


def fill(root):
    made(root, *NAMES)
    os.link(f"{root}/links/a", f"{root}/links/b")
    os.setxattr(f"{root}/g", "user.old", b"1")
    os.symlink("x", f"{root}/pointer")
    trees.old(f"{root}/d")


def change(root):
    """Something that needs each of the calls."""
    make(f"{root}/new", b"n" * 2_000_000)
    made(root, "made/deep/f")
    make(f"{root}/f", b"F" * 300_000)
    with open(f"{root}/h", "ab") as f:
        f.write(b"more")
    with opened(f"{root}/links/a", os.O_WRONLY | os.O_TRUNC) as fd:
        os.write(fd, MANY)
    os.link(f"{root}/i", f"{root}/d/i")
    os.unlink(f"{root}/gone/z")
    os.rmdir(f"{root}/gone")
    os.rename(f"{root}/d/x", f"{root}/e/x")
    os.rename(f"{root}/e", f"{root}/d/e")
    writeback.exchange(root, "f", "g")
    os.rename(f"{root}/h", f"{root}/d/s")
    os.symlink("nowhere", f"{root}/dangling")
    os.mkfifo(f"{root}/fifo")
    for name in ("f", "d"):
        os.setxattr(f"{root}/{name}", "user.new", b"2")
    os.removexattr(f"{root}/f", "user.old")
    os.chown(f"{root}/i", 1, 2)
    os.chmod(f"{root}/i", 0o600)
    os.chmod(f"{root}/made", 0o700)
    os.utime(f"{root}/pointer", ns=(1, 2), follow_symlinks=False)


def contents(root):
    """Of all regular files but one that is written in place."""
    return {read(path) for name, path in trees.walk(root)
            if os.path.isfile(path) and not os.path.islink(path) and not name.startswith(b"links/")}


def refused(t, *rules, how=None, sync_fails=True):
    """All of that while a rule holds, and then without it; cfs ends in between, as `how` says."""
    for rule in rules:
        with over(t) as m:
            fill(m.real)
            for name in NAMES:
                read(f"{m.mnt}/{name}")
            known = contents(m.mnt)
            with m.faulty.ruled(rule):
                change(m.mnt)
                wanted, known = writeback.seen(m.mnt, True, ()), known | contents(m.mnt)
                if sync_fails:
                    error = os.strerror(getattr(errno, rule.split()[3]))
                    done = cfs("sync", m.mnt, timeout=60 * FACTOR)
                    check(done.returncode != 0 and error in done.stderr, f"{rule}: sync: {done}")
                    said = status(m)
                    check(dirty(m) > 0, f"{rule}: what could not be flushed is clean")
                    # After a lost answer, what it was about may be missed elsewhere.
                    check("after" in rule or error in said["last_flush_failure"], f"{rule}: {said}")
                else:
                    m.faulty.wait_fired()
                check(contents(m.real) <= known | {b""}, f"{rule}: wrong bytes on the backend")
                if how == "kill":
                    m.kill()
                elif how == "stop":
                    m.stop()
            check(contents(m.real) <= known | {b""}, f"{rule}: wrong bytes on the backend")
            if how:
                m.start()
            now = writeback.seen(m.mnt, True, ())
            changed = sorted(n for n in now.keys() | wanted.keys() if now.get(n) != wanted.get(n))
            equal(changed, [], f"{rule}: what is not the same in the mount")
            check_flushed(m)
            evict(m)
            check_flushed(m)


@case(timeout=60)
def making_is_refused(t):
    refused(t, "create * errno ENOSPC", "mkdir * errno EROFS", "symlink * errno EACCES")


@case(timeout=60)
def making_is_refused_and_cfs_killed(t):
    refused(t, "mknod * errno EPERM", "create .cfs/* errno EDQUOT", "link * errno EMLINK", how="kill")


@case(timeout=60)
def data_is_refused(t):
    refused(t, "write * errno ENOSPC", "truncate * errno EFBIG", "fsync * errno EIO")


@case(timeout=60)
def data_is_refused_and_cfs_killed(t):
    refused(t, "write * errno EIO", "fsync * errno ENOSPC", "open links/* errno EACCES", how="kill")


@case(timeout=60)
def names_are_refused(t):
    refused(t, "rename * errno EACCES", "unlink * errno EPERM", "rmdir * errno EBUSY")


@case(timeout=60)
def names_are_refused_and_cfs_killed(t):
    refused(t, "rename * errno EIO", "unlink * errno EIO", "fsyncdir * errno EIO", how="kill")


@case(timeout=60)
def attributes_are_refused(t):
    refused(t, "setxattr * errno ENOSPC", "removexattr * errno EACCES", "chown * errno EPERM", how="stop")


@case(timeout=60)
def attributes_of_directories_are_refused(t):
    refused(t, "chmod * errno EPERM", "utimens d errno EPERM", "utimens * errno EROFS", how=None)


@case(timeout=60)
def looking_is_refused(t):
    refused(t, "lookup * errno EIO", "getattr * errno EIO", "listxattr * errno EIO")


@case(timeout=60)
def looking_is_stale_and_cfs_killed(t):
    refused(t, "getattr * errno ESTALE", "lookup * errno EACCES", how="kill")


@case(timeout=60)
def everything_is_refused(t):
    refused(t, "* * errno EIO", "* * errno ESTALE")


@case(timeout=60)
def everything_is_refused_and_cfs_killed(t):
    refused(t, "* * errno EACCES", "* * errno EIO", how="kill")


@case(timeout=60)
def answers_are_lost(t):
    refused(t, "rename * after EIO", "link * after EIO", "unlink * after EIO", "rmdir * after EIO")


@case(timeout=60)
def answers_are_lost_and_cfs_killed(t):
    refused(t, "rename * after EIO", "mkdir,create,symlink,mknod * after EIO",
            "chmod,chown,utimens,setxattr,truncate * after EIO", how="kill")


@case(timeout=60)
def one_in_a_few_fails(t):
    """At other places of a flush each time: whatever has been done by then."""
    with over(t) as m:
        fill(m.real)
        trees.tree(m.mnt)
        change(m.mnt)
        for number in range(25):
            kind = ("errno EIO", "after EIO")[number % 2]
            m.faulty.rules(f"rename,link,unlink,rmdir,mkdir,create,write,fsync,fsyncdir,truncate,setxattr,"
                           f"chown,chmod,utimens,symlink,mknod * {kind} count 1")
            cfs("sync", m.mnt, timeout=60 * FACTOR)
        check_flushed(m)
        evict(m)
        check_flushed(m)


# What others see of it.


@case(timeout=60)
def what_is_refused_does_not_hold_up_the_rest(t):
    with over(t, "d/f", "e/f") as m:
        trees.tree(m.mnt)
        for rule, error in (("rename d/* errno EACCES", errno.EACCES),
                            ("fsyncdir d errno EIO", errno.EIO)):
            with m.faulty.ruled(rule):
                number = str(error)
                made(m.mnt, f"d/{number}", f"e/{number}", number)
                make(f"{m.mnt}/e/f", number.encode())
                check_says(m, f"d/{number}", error)
                for name in (f"e/{number}", number):
                    equal(outcome(read, f"{m.real}/{name}"), content(name), f"{rule}: {name}")
                equal(read(f"{m.real}/e/f"), number.encode(), "a rewritten file")
                check(dirty(m) <= 4, f"{rule}: too much is dirty: {status(m)}")
            check_flushed(m)


@case(timeout=60)
def tries_back_off(t):
    """After 0, 1, 3 and 7 seconds, about."""
    rules = ("rename f errno EIO", "fsyncdir * errno EIO", "write * errno ENOSPC", "* * errno EIO",
             "opendir .cfs/* errno EIO")
    with contextlib.ExitStack() as stack:
        mounts = []
        for rule in rules:
            m = stack.enter_context(over(t, "f"))
            read(f"{m.mnt}/f")
            m.faulty.rules(rule)
            make(f"{m.mnt}/f", b"rewritten")
            mounts.append(m)
        time.sleep(8)
        counts = {}
        for m, rule in zip(mounts, rules):
            calls = m.faulty.fired()
            counts[rule] = max((calls.count(call) for call in set(calls)), default=0)
        check(all(0 < count < 14 for count in counts.values()), f"calls in 8 s: {counts}")
        for m in mounts:
            check_flushed(m)


# A backend that does not answer.


def hung(t, rule):
    with over(t, "f", "g", "d/h", "far/away") as m:
        for name in ("f", "g"):
            read(f"{m.mnt}/{name}")
        os.listdir(f"{m.mnt}/d")
        sync(m)
        with m.faulty.ruled(rule):
            make(f"{m.mnt}/f", b"rewritten")
            m.faulty.wait_fired()
            begin = time.monotonic()
            writeback.check_still_usable(m, "meanwhile")
            move(m, "g renamed", "d moved")
            equal(read(f"{m.mnt}/renamed"), content("g"), "a file that is here")
            os.stat(f"{m.mnt}/moved/h")
            check(dirty(m) > 0, "clean")
            taken = time.monotonic() - begin
            check(taken < 3 * FACTOR, f"what needs no backend has taken {taken:.1f} s")
            begin = time.monotonic()
            done = cfs("sync", "--deadline", "1", m.mnt, timeout=60 * FACTOR)
            taken = time.monotonic() - begin
            check(done.returncode != 0 and done.stderr, f"sync: {done}")
            check(0.5 < taken < 1 + 5 * FACTOR, f"a sync of at most 1 s took {taken:.1f} s")
            yield m
        check_flushed(m)


hung = contextlib.contextmanager(hung)


@case(timeout=60)
def writes_hang(t):
    with hung(t, "write * hang"):
        pass


@case(timeout=60)
def everything_hangs(t):
    with hung(t, "* * hang") as m:
        reader = Child(read, f"{m.mnt}/far/away")
        reader.wait_blocked()
        equal(read(f"{m.mnt}/f"), b"rewritten", "another file meanwhile")
        m.faulty.rules()
        equal(reader.result(20 * FACTOR), content("far/away"), "what somebody has waited for")
        m.faulty.rules("* * hang")
        made(m.mnt, "again")
        m.faulty.wait_fired()


@case(timeout=60)
def killed_while_the_backend_hangs(t):
    with hung(t, "* * hang") as m:
        m.kill()
        m.faulty.rules()
        m.start()
        check_content(m, renamed="g")
        m.faulty.rules("rename * hang")
        made(m.mnt, "again")
        m.faulty.wait_fired()
        m.kill()
        m.faulty.rules()
        m.start()
        m.faulty.rules("lookup * errno EIO count 1")
        made(m.mnt, "last")
        m.faulty.wait_fired()


@case(timeout=90)
def a_hung_backend_comes_back_while_cfs_ends(t):
    """umount does not wait for what is not on its way, but for the calls that are."""
    with hung(t, "fsync,rename * hang") as m:
        child = Child(cfs, "umount", m.mnt)
        time.sleep(1)
        m.faulty.rules()
        done = child.result(60 * FACTOR)
        check(done.returncode == 0 and not m.mounted(), f"umount: {done}")
        m.pid = None
        m.start()
        m.faulty.rules("lookup * delay 0.01", "lookup * errno EIO count 1")
        made(m.mnt, "last")
        m.faulty.wait_fired()


# Less at a time, and slower.


@case(timeout=60)
def reads_and_writes_are_short(t):
    with over(t, "old") as m:
        data = random.Random(1).randbytes(3_000_001)
        make(f"{m.real}/large", data)
        with m.faulty.ruled("read,write * short 40961"):
            equal(read(f"{m.mnt}/large"), data, "what was read with short reads")
            make(f"{m.mnt}/new", data[::-1])
            make(f"{m.mnt}/old", data[5:])
            sync(m)
            equal(read(f"{m.real}/new"), data[::-1], "a new file")
            equal(read(f"{m.real}/old"), data[5:], "a rewritten one")
            evict(m)
            equal(read(f"{m.mnt}/new"), data[::-1], "what has come back")
        check_flushed(m)


@case(timeout=60)
def a_slow_backend_slows_nobody_down(t):
    data = os.urandom(1_000_000)
    with over(t) as m:
        m.faulty.rules("read,write * rate 5M")
        begin = time.monotonic()
        for number in range(20):
            make(f"{m.mnt}/{number}", data)
        taken = time.monotonic() - begin
        check(taken < 2 * FACTOR, f"20 MB were written in {taken:.1f} s")
        syncer = Child(cfs, "sync", m.mnt)
        seen = set()
        while syncer.running():
            seen.add(status(m)["flushed_bytes"])
            time.sleep(0.1)
        check(syncer.result().returncode == 0, "sync failed")
        taken = time.monotonic() - begin
        check(taken > 3, f"empty pass: all was there in {taken:.1f} s")
        check(len(seen) > 3, f"progress: {sorted(seen)}")
        evict(m)
        begin = time.monotonic()
        reader = Child(read, f"{m.mnt}/0")
        make(f"{m.mnt}/other", data)
        check(time.monotonic() - begin < 1 * FACTOR, "a write waits for a read of another file")
        equal(reader.result(), data, "what was read slowly")
        check_flushed(m)


@case(timeout=60)
def made_shorter_while_it_is_copied(t):
    """No state of the file is of its former size and without its data."""
    data = b"a" * 1_000_000
    with over(t) as m:
        make(f"{m.mnt}/f", data)
        with m.faulty.ruled("truncate .cfs/* delay 1", "truncate .cfs/* short 1"):
            syncer = Child(cfs, "sync", m.mnt)
            m.faulty.wait_fired()
            with opened(f"{m.mnt}/f", os.O_WRONLY | os.O_TRUNC) as fd:
                while syncer.running():
                    check(outcome(read, f"{m.real}/f") in (data, b"", "ENOENT"), "wrong bytes there")
                    time.sleep(0.05)
                os.write(fd, b"new")
            syncer.result()
            check(outcome(read, f"{m.real}/f") in (data, b"", b"new", "ENOENT"), "wrong bytes there")
        check_flushed(m)


@case(timeout=60)
def in_place_and_interrupted(t):
    """What is written in place is whole after a sync, wherever it was interrupted."""
    data = random.Random(3).randbytes(8_000_000)
    with over(t, "one") as m:
        os.link(f"{m.real}/one", f"{m.real}/two")
        trees.tree(m.mnt)
        for number, how in enumerate(("errno", "after", "kill", "errno")):
            with opened(f"{m.mnt}/one", os.O_WRONLY) as fd:
                os.pwrite(fd, data, number)
            rule = f"write * {'hang' if how == 'kill' else how + ' EIO'}"
            with m.faulty.ruled("write * delay 0.05", rule):
                if how == "kill":
                    m.faulty.wait_fired()
                    m.kill()
                else:
                    check_says(m, "one" if number % 2 else "", errno.EIO)
            if how == "kill":
                m.start()
            check_flushed(m)
            equal(read(f"{m.real}/two")[number:], data, "by its other name")


# What is had from there.


@case(timeout=60)
def errors_of_listing(t):
    for mode in ("readonly", "writeback"):
        with over(t, "d/f", "d/e/g", mode=mode) as m:
            os.symlink("nowhere", f"{m.real}/d/s")
            os.listdir(m.mnt)
            for op in ("opendir", "readdir", "getattr", "lookup", "readlink", "listxattr"):
                for name, shown in (("EIO", None), ("EACCES", None), ("ESTALE", None), ("ENOMEM", None)):
                    with m.faulty.ruled(f"{op} d* errno {name}"):
                        harness.expect(getattr(errno, shown or name), os.listdir, f"{m.mnt}/d")
                        harness.expect(getattr(errno, shown or name), os.stat, f"{m.mnt}/d/f")
            equal(sorted(os.listdir(f"{m.mnt}/d")), ["e", "f", "s"], "names")
            check(status(m)["failures"] > 0, f"status: {status(m)}")
            trees.check_equal(m)


@case(timeout=60)
def errors_of_copying(t):
    for mode in ("readonly", "writeback"):
        with over(t, "d/f", "g", mode=mode) as m:
            make(f"{m.real}/d/f", os.urandom(3_000_000))
            trees.tree(m.mnt, contents=False)
            for op in ("open", "read", "lookup", "getattr"):
                for name in ("EIO", "EACCES", "ESTALE", "ENXIO"):
                    shown = {"ENXIO": "ESTALE"}.get(name, name)
                    with m.faulty.ruled(f"{op} d/f errno {name}"):
                        equal(outcome(read, f"{m.mnt}/d/f"), shown, f"{op} that fails with {name}")
                    equal(read(f"{m.mnt}/g"), content("g"), "another file")
            m.faulty.rules("read d/f errno EIO count 1")
            equal(outcome(read, f"{m.mnt}/d/f"), "EIO", "the first open")
            equal(m.stat(f"{m.mnt}/d/f")["layout"], "backend", "layout of what could not be copied")
            m.faulty.rules()
            trees.check_equal(m)


@case(timeout=60)
def a_backend_that_has_gone(t):
    """It is another file system when it is mounted again, which cfs sees when it is."""
    with over(t, "f", "g") as m:
        read(f"{m.mnt}/f")
        sync(m)
        m.faulty.stop()
        make(f"{m.mnt}/f", b"rewritten")
        writeback.check_still_usable(m, "meanwhile")
        check_says(m, "f", errno.ENOTCONN)
        equal(outcome(read, f"{m.mnt}/g"), "ENOTCONN", "what is only there")
        done = cfs("stop", m.mnt)
        check(done.returncode != 0 and os.strerror(errno.ENOTCONN) in done.stderr, f"stop: {done}")
        m.stop()
        harness.run("umount", "-l", m.faulty.mnt)
        m.faulty.start()
        m.start()
        check_content(m, meanwhile_renamed="meanwhile_new", g="g")
        check_flushed(m)
        equal(read(f"{m.real}/f"), b"rewritten", "content")


# Anything at any time.

OPS = ("lookup", "getattr", "chmod", "chown", "truncate", "utimens", "readlink", "mknod", "mkdir", "unlink",
       "rmdir", "symlink", "rename", "link", "open", "create", "read", "write", "fsync", "opendir", "readdir",
       "fsyncdir", "setxattr", "getxattr", "listxattr", "removexattr", "*")
ERRNOS = ("EIO", "ENOSPC", "EACCES", "ESTALE", "EROFS", "EPERM", "EDQUOT", "EBUSY", "ENOMEM")


def random_rule(rng):
    action = rng.choice([f"errno {rng.choice(ERRNOS)}"] * 5 + ["after EIO"] * 2 +
                        ["delay 0.01", "hang", "short 100", "rate 1M"])
    count = f" count {rng.randrange(1, 20)}" if rng.random() < 0.5 and action != "hang" else ""
    return f"{rng.choice(OPS)} {rng.choice(('*', '*', '.cfs*', '[ab]*', '*[cd]'))} {action}{count}"


def random_faults(t, seed, rounds, kills):
    rng = random.Random(seed)
    with contextlib.ExitStack() as stack:
        faulty = stack.enter_context(Faulty(t.workspace))
        m, script = writeback.script_over(t, stack, seed, backend=faulty.mnt, errors=ERRORS)
        m.faulty, m.real = faulty, faulty.source
        stack.callback(faulty.rules)
        trees.tree(m.mnt)  # What cannot be looked up or opened would be seen by the script.
        fired = 0
        for number in range(rounds):
            rules = [random_rule(rng) for _ in range(rng.randrange(1, 4))]
            fired += len(faulty.fired())
            faulty.rules(*rules)
            for _ in range(40):
                check(script.step(), "the daemon has gone")
            if rng.random() < 0.5:
                cfs("sync", "--deadline", "1", m.mnt)
            else:
                time.sleep(rng.random())
            if kills and number % 4 == 3:
                m.kill()
                faulty.rules()
                m.start()
                trees.tree(m.mnt)  # As above: copies that were not on the device are there only.
            if number % 4 == 1:
                check_flushed(m)
                writeback.check_model(m, script.model)
        check(fired > 5, f"empty pass: {fired} calls met a rule")
        check_flushed(m)
        writeback.check_model(m, script.model)
        evict(m)
        writeback.check_model(m, script.model)
        check_flushed(m)


@case(timeout=90)
def random_faults_a(t):
    random_faults(t, seed=22, rounds=14, kills=False)


@case(timeout=90)
def random_faults_b(t):
    random_faults(t, seed=2, rounds=12, kills=True)


@case(timeout=60)
def half_done_is_not_taken_for_others_work(t):
    """What was written in place, or put in place, before something failed is removed here then."""
    with over(t, "one", "alone", "timed") as m:
        os.link(f"{m.real}/one", f"{m.real}/two")
        os.listdir(m.mnt)
        for name, rule in (("one", "fsync [ot]* errno EIO"), ("alone", "rename alone after EIO"),
                           ("timed", "utimens timed after EIO")):
            with m.faulty.ruled(rule):
                if name == "timed":
                    os.utime(f"{m.mnt}/{name}", ns=(1, 2))
                else:
                    with opened(f"{m.mnt}/{name}", os.O_WRONLY) as fd:
                        os.pwrite(fd, b"changed, and longer than it was" * 100, 0)
                check_sync_fails(m, os.strerror(errno.EIO))
            os.rename(f"{m.mnt}/{name}", f"{m.mnt}/{name}.moved")
            sync(m)
            check(not os.path.lexists(f"{m.mnt}/{name}"), f"{name} has come back")
        with m.faulty.ruled("fsync [ot]* errno EIO"):
            with opened(f"{m.mnt}/two", os.O_WRONLY) as fd:
                os.pwrite(fd, b"again", 9000)
            check_sync_fails(m, os.strerror(errno.EIO))
            os.unlink(f"{m.mnt}/two")
            os.unlink(f"{m.mnt}/one.moved")
        check_flushed(m)
        equal(sorted(os.listdir(m.mnt)), ["alone.moved", "timed.moved"], "names")


@case(timeout=60)
def a_mount_that_meets_errors(t):
    with over(t, "f") as m:
        make(f"{m.mnt}/f", b"rewritten")
        m.kill()
        for rule, starts in (("* * errno EIO", False), ("* .cfs* errno EIO", False),
                             ("lookup,getattr f errno EIO", True)):
            with m.faulty.ruled(rule):
                harness.run("umount", "-l", m.mnt)
                m.launch()
                if starts:
                    m.wait_ready()
                    check_says(m, "f", errno.EIO)
                else:
                    wait_until(lambda: m.died() is not None, 20 * FACTOR, "end of the mount")
                    said = m.last_words()
                    check(m.died() != 0 and m.backend in said and os.strerror(errno.EIO) in said,
                          f"{rule}: {m.died()}: {said}")
        check_flushed(m)


if __name__ == "__main__":
    sys.exit(harness.main(__doc__, shared_mount=False))
