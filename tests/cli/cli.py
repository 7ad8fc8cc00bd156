#!/usr/bin/env python3
"""The command line: refusals (exit code, one line, nothing half done), and the life of a mount."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import stat
import struct
import subprocess
from pathlib import Path

import suite
from suite import (Skip, case, cfs, check, equal, is_refusal, kill, mounts_at, need_root,
                   refused, run, running, snapshot, succeeds, wait_until)

USAGE, DATAERR, NOINPUT, UNAVAILABLE, TEMPFAIL, NOPERM, CONFIG = 64, 65, 66, 69, 75, 77, 78
VERBS = ("mount", "serve", "umount", "status", "nodes", "token", "stat", "fsck", "doctor", "version")
NOBODY = 65534


def directory(path):
    path.mkdir(parents=True)
    return path


def need_mounts():
    need_root()
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise Skip("no /dev/fuse")


def make_store(path, **changes):
    """A store as an earlier run would have left it, with other values in its node.json."""
    for part in ("meta", "data"):
        directory(path / part)
    identity = {"format": 3, "cluster_id": "0123456789abcdef" * 2, "node_id": 7,
                "machine": Path("/etc/machine-id").read_text().strip(),
                "store_id": "0123456789abcdef"}
    (path / "node.json").write_text(json.dumps(identity | changes))
    return path


def lock_store(path):
    """Holds the lock that a node holds; ends with the file that it returns."""
    lock = open(path / "lock", "w", encoding="ascii")
    fcntl.fcntl(lock, fcntl.F_OFD_SETLK,
                struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    return lock


def store_refused(work, exit_code, words, store, **kwargs):
    """`cfs mount` on this store is refused and changes nothing."""
    if not (work / "mnt").exists():
        directory(work / "mnt")
    before = snapshot(work)
    refused(exit_code, words, "mount", work / "mnt", "--store", store, **kwargs)
    equal(snapshot(work), before, "the work directory afterwards")
    equal(mounts_at(work / "mnt"), [], "mounts afterwards")


class Mounted:
    """A mount made by `cfs mount`."""

    def __init__(self, work, *options, store=None, mnt=None):
        need_mounts()
        self.store = store or work / "store"
        self.mnt = mnt or work / "mnt"
        self.mnt.mkdir(exist_ok=True)
        self.options = options
        self.mount()

    def mount(self):
        equal(succeeds("mount", self.mnt, "--store", self.store, *self.options), "", "stdout")

    @property
    def pid(self):
        return int((self.store / "cfs.pid").read_text())

    def kill(self):
        pid = self.pid
        kill(pid)
        wait_until(lambda: not running(pid), "end of the killed daemon")


# What the command line itself refuses, and help.


@case
def wrong_words(work):
    refused(USAGE, ["verb"])
    refused(USAGE, ["'frob'"], "frob")
    refused(USAGE, ["verb", "'--frob'"], "--frob")
    for verb in VERBS:
        refused(USAGE, ["unknown option --frob"], verb, "--frob")
        refused(USAGE, ["unknown option --frob"], verb, "--frob=1")
        refused(USAGE, ["unknown option -Z"], verb, "-Z")
    for verb in ("mount", "umount", "stat"):
        refused(USAGE, ["missing"], verb)
        refused(USAGE, ["'b c'"], verb, work, "b c")
    for verb in ("serve", "nodes", "token", "doctor", "version"):
        refused(USAGE, ["'b c'"], verb, "b c")
    refused(USAGE, ["--remove-lost needs ids"], "nodes", "--remove-lost")
    refused(USAGE, ["--store", "needs a value"], "mount", work, "--store")
    refused(USAGE, ["-o", "needs a value"], "mount", work, "-o")
    refused(USAGE, ["--store takes DIR"], "mount", work, "--store=")
    refused(USAGE, ["--foreground", "no value"], "mount", work, "--foreground=yes")
    for option in ("--io-uring", "--passthrough"):
        refused(USAGE, [option, "auto|on|off", "'maybe'"], "mount", work, f"{option}=maybe")
    refused(USAGE, ["--locks", "auto|kernel|daemon", "'on'"], "mount", work, "--locks=on")
    refused(USAGE, ["not both"], "status", work, "--store", work)


@case
def help_and_version(work):
    del work
    overview = succeeds("--help")
    for verb in VERBS:
        check(f"\n  {verb} " in overview, f"{verb} is not in cfs --help")
        text = succeeds(verb, "--help")
        check(text.startswith(f"Usage: cfs {verb} "), f"help of {verb} is {text!r}")
        equal(succeeds(verb, "-h"), text, "-h")
        # Wherever it stands, and whatever else is missing.
        equal(succeeds(verb, "x", "--he"), text, "--he after an argument")
    check(succeeds("version").startswith("cfs "), "version")
    equal(succeeds("--version"), succeeds("version"), "--version")


@case
def bash_completion(work):
    """What the completion offers for the last word; bash makes three of --name=value."""
    (work / "only").mkdir()
    if run("bash", "--version").returncode != 0:
        raise Skip("no bash")
    for words, wanted in [
            (["mo"], ["mount"]),
            (["status", "--s"], ["--store="]),
            (["mount", "--locks", "=", "k"], ["kernel"]),
            (["mount", "--passthrough", "="], ["auto", "on", "off"]),
            (["mount", "--store", "=", f"{work}/"], [f"{work}/only"]),
            (["umount", f"{work}/on"], [f"{work}/only"])]:
        script = """source "$1"; compopt() { :; }; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
            _cfs "$1" "${@: -1}" "${@: -2:1}"; printf '%s\\n' "${COMPREPLY[@]}" """
        done = run("bash", "-c", script, "bash", suite.REPOSITORY / "packaging" / "cfs.bash",
                   suite.BINARY, *words)
        equal(done.stdout.split(), wanted, f"completion of {words} ({done.stderr})")


# Mount points.


@case
def mount_point_missing(work):
    refused(NOINPUT, [work / "no", "does not exist"], "mount", work / "no", "--store", work / "s")
    equal(snapshot(work), {}, "what is there")


@case
def mount_point_not_a_directory(work):
    (work / "file").write_text("x")
    refused(USAGE, [work / "file", "not a directory"], "mount", work / "file", "--store",
            work / "s")
    equal(list(snapshot(work)), [work / "file"], "what is there")


@case
def mount_point_busy(work):
    need_root()
    mnt = directory(work / "m n")
    equal(run("mount", "-t", "tmpfs", "none", mnt).returncode, 0, "mount of a tmpfs")
    refused(UNAVAILABLE, [mnt, "already", "tmpfs"], "mount", mnt, "--store", work / "s")
    check(not (work / "s").exists(), "a store was made")
    equal(len(mounts_at(mnt)), 1, "number of mounts")


@case
def mount_point_and_store_nested(work):
    mnt = directory(work / "mnt")
    refused(USAGE, ["hidden"], "mount", mnt, "--store", mnt / "store")
    refused(USAGE, ["hidden"], "mount", mnt, "--store", mnt)
    inside = directory(work / "s" / "mnt")
    (work / "link").symlink_to(work / "s")
    refused(USAGE, ["inside"], "mount", inside, "--store", work / "link")
    equal(snapshot(mnt), {}, "what is in the mount point")
    equal(list(snapshot(work / "s")), [inside], "what is in the store")


@case
def no_fuse_device(work):
    need_root()
    directory(work / "mnt")

    def mount_with_dev(prepare):
        # In a mount namespace of its own, with an own /dev.
        return run("unshare", "--mount", "--propagation", "private", "sh", "-c",
                   f'mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && {prepare} '
                   '"$@"', "sh", suite.BINARY, "mount", work / "mnt", "--store", work / "s")

    is_refusal(mount_with_dev(""), UNAVAILABLE, "/dev/fuse", "modprobe fuse")
    done = mount_with_dev("mknod -m 600 /dev/fuse c 10 229 && chmod 777 " + str(work) +
                          f" && setpriv --reuid={NOBODY} --clear-groups")
    is_refusal(done, NOPERM, "/dev/fuse", "root")
    check(not (work / "s").exists(), "a store was made")


# Stores.


@case
def store_in_use(work):
    store = make_store(work / "s")
    lock = lock_store(store)
    (store / "cfs.pid").write_text(f"{os.getpid()}\n")
    store_refused(work, UNAVAILABLE, ["in use", f"process {os.getpid()}"], store)
    lock.close()


@case
def store_of_another_machine(work):
    store = make_store(work / "s", machine="f" * 32)
    store_refused(work, CONFIG, ["another machine", "f" * 32, "node.json"], store)


@case
def store_of_another_format(work):
    store = make_store(work / "s", format=99, cluster_id=["unknown"])
    store_refused(work, CONFIG, ["format 99", "newer"], store)
    store_refused(work, CONFIG, ["format 1", "before"], make_store(work / "old", format=1))


@case
def store_damaged(work):
    for number, changes in enumerate([{"format": "1"}, {"node_id": 0}, {"cluster_id": "xyz"},
                                      {"machine": None}]):
        store_refused(work, DATAERR, ["node.json", "damaged"],
                      make_store(work / f"s{number}", **changes))
    text = make_store(work / "text")
    (text / "node.json").write_text('{"format":')
    store_refused(work, DATAERR, ["node.json", "damaged"], text)
    for part in ("meta", "data"):
        store = make_store(work / f"no-{part}")
        (store / part).rmdir()
        store_refused(work, DATAERR, ["damaged", f"{part}/ is missing"], store)


@case
def store_not_a_directory(work):
    (work / "file").write_text("x")
    store_refused(work, USAGE, ["not a directory"], work / "file")
    store_refused(work, USAGE, ["not a directory"], work / "file" / "below")


@case
def store_not_empty(work):
    other = directory(work / "other")
    (other / "thesis.tex").write_text("x")
    store_refused(work, CONFIG, ["not empty", "thesis.tex"], other)
    # RocksDB's files without node.json are no fresh store either.
    half = directory(work / "half" / "meta")
    (half / "CURRENT").write_text("x")
    store_refused(work, CONFIG, ["not empty", "meta"], half.parent)


@case
def store_not_writable(work):
    need_root()
    for name in ("fresh", "old"):
        parent = directory(work / name)
        equal(run("mount", "-t", "tmpfs", "none", parent).returncode, 0, "mount of a tmpfs")
        if name == "old":
            make_store(parent / "s")
        equal(run("mount", "-o", "remount,ro", parent).returncode, 0, "remount")
        store_refused(work, NOPERM, ["not writable", "Read-only"], parent / "s")
    closed = make_store(work / "closed")
    os.chown(closed, NOBODY, NOBODY)
    before = snapshot(work)
    done = run("setpriv", "--bounding-set=-dac_override,-dac_read_search", suite.BINARY, "mount",
               work / "mnt", "--store", closed)
    is_refusal(done, NOPERM, "not writable", "Permission denied")
    equal(snapshot(work), before, "the work directory afterwards")


@case
def store_without_space(work):
    need_root()
    # 0: no inode left for the directory, then for the lock, meta/, data/, node.json.
    for free in range(5):
        disk = directory(work / f"disk{free}")
        done = run("mount", "-t", "tmpfs", "-o", f"nr_inodes={free + 1}", "none", disk)
        equal(done.returncode, 0, "mount of a tmpfs")
        (work / "mnt").mkdir(exist_ok=True)
        refused(TEMPFAIL, [disk / "s", "No space left"], "mount", work / "mnt", "--store",
                disk / "s")
        equal(os.listdir(disk), [], "what is left")


@case
def store_by_default(work):
    environment = {name: value for name, value in os.environ.items()
                   if name not in ("CFS_STORE", "XDG_STATE_HOME", "HOME")}
    user = {"user": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}

    def doctor_on(store, as_user=None, **variables):
        done = cfs("doctor", "--json", env=environment | variables,
                   **(user if as_user is None else as_user))
        finding = json.loads(done.stdout)["checks"][-1]["finding"]
        check(finding.startswith(f"{store} is on "), f"finding is {finding!r}, not on {store}")

    doctor_on(work / "a", CFS_STORE=f"{work}/a", XDG_STATE_HOME="/x", HOME="/y")
    doctor_on(work / "b/cfs", XDG_STATE_HOME=f"{work}/b", HOME="/y")
    doctor_on(work / ".local/state/cfs", HOME=str(work))
    doctor_on(work / ".local/state/cfs", HOME=str(work), XDG_STATE_HOME="relative")
    if os.geteuid() == 0:
        doctor_on("/var/lib/cfs", as_user={}, HOME=str(work))
    is_refusal(cfs("doctor", env=environment, **user), USAGE, "--store", "CFS_STORE")


# The other verbs, without a mount.


@case
def nothing_to_talk_to(work):
    (work / "file").write_text("x")
    refused(NOINPUT, ["not the mount point"], "umount", work)
    refused(NOINPUT, [work / "no"], "umount", work / "no")
    refused(NOINPUT, ["not in a cfs mount"], "status", work)
    refused(NOINPUT, [work / "no"], "status", work / "no")
    refused(NOINPUT, ["not in a cfs mount"], "stat", work / "file")
    refused(NOINPUT, [work / "no"], "stat", work / "no")
    refused(NOINPUT, [work / "no"], "status", "--store", work / "no")
    refused(UNAVAILABLE, ["no cfs runs"], "status", "--store", make_store(work / "s"))


@case
def doctor(work):
    done = cfs("doctor", "--json", "--store", work / "s")
    answer = json.loads(done.stdout)
    equal(done.returncode, 0 if answer["can_mount"] else UNAVAILABLE, "exit code")
    checks = {entry["name"]: entry for entry in answer["checks"]}
    wanted = {"kernel", "/dev/fuse", "fuse module", "privileges", "passthrough", "io_uring",
              "fuse over io_uring", "open files", "request size", "allow_other", "store"}
    equal(set(checks), wanted, "checks")
    for entry in checks.values():
        check(entry["level"] in ("ok", "warn", "fail") and entry["finding"], f"{entry}")
    equal(answer["can_mount"], all(entry["level"] != "fail" for entry in checks.values()),
          "can_mount")
    text = cfs("doctor", "--store", work / "s")
    equal(text.returncode, done.returncode, "exit code of the table")
    check(all(entry["finding"] in text.stdout and entry["advice"] in text.stdout
              for entry in checks.values()), f"the table says else than JSON: {text.stdout}")
    check(not (work / "s").exists(), "the store was made")


@case
def doctor_of_an_ordinary_user(work):
    need_root()
    user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    done = cfs("doctor", "--json", "--store", work / "s", **user)
    checks = {entry["name"]: entry for entry in json.loads(done.stdout)["checks"]}
    equal(done.returncode, UNAVAILABLE, "exit code")  # For it may not write to the store.
    check("can't mount" in done.stderr, f"stderr is {done.stderr!r}")
    equal(checks["store"]["level"], "fail", "level of the store")
    equal(checks["passthrough"]["level"], "warn", "level of passthrough")
    check("root" in checks["passthrough"]["advice"], "advice for passthrough")


# The life of a mount.


@case
def mount_and_umount(work):
    m = Mounted(work)
    equal(mounts_at(m.mnt), [(str(m.mnt), "fuse.cfs", f"cfs:{m.store}")], "mounts")
    pid = m.pid
    check(running(pid), "no process runs")
    equal(oct(m.store.stat().st_mode), oct(0o40700), "mode of the store")
    equal(os.getsid(pid), pid, "session of the daemon")
    equal(os.readlink(f"/proc/{pid}/cwd"), "/", "its working directory")
    equal([os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)],
          ["/dev/null", "/dev/null", str(m.store / "cfs.log")], "its standard streams")
    succeeds("umount", m.mnt)
    check(not running(pid), "umount did not wait for the daemon")
    equal(mounts_at(m.mnt), [], "mounts afterwards")
    check(not (m.store / "cfs.pid").exists(), "cfs.pid is left")
    check(not (m.store / "cfs.sock").exists(), "cfs.sock is left")
    lock_store(m.store).close()
    identity = (m.store / "node.json").read_bytes()
    m.mount()
    equal((m.store / "node.json").read_bytes(), identity, "identity after a second mount")
    succeeds("umount", m.mnt)


@case
def log_stays_small(work):
    """At a start and while a daemon runs: it becomes cfs.log.1 in place of the one before."""
    m = Mounted(work)
    log, old = m.store / "cfs.log", m.store / "cfs.log.1"
    pid = m.pid
    for number in range(2):
        os.truncate(log, (16 << 20) + number + 1)
        wait_until(lambda: old.exists() and old.stat().st_size == (16 << 20) + number + 1,
                   "a log that is too large")
        wait_until(lambda: os.readlink(f"/proc/{pid}/fd/2") == str(log), "a new log")
    succeeds("umount", m.mnt)
    check("ended" in log.read_text(), "the daemon's last words are not in its log")
    os.truncate(log, 17 << 20)
    m.mount()
    equal(old.stat().st_size, 17 << 20, "size of the log before")
    check("mounted" in log.read_text(), "the daemon's first words are not in its log")
    succeeds("umount", m.mnt)


@case
def mount_by_relative_paths(work):
    need_mounts()
    directory(work / "mnt")
    (work / "link").symlink_to("mnt")
    succeeds("mount", "link/", "--store", "store/", cwd=work)
    equal([entry[2] for entry in mounts_at(work / "mnt")], [f"cfs:{work / 'store'}"], "source")
    succeeds("status", "mnt", cwd=work)
    succeeds("umount", "./link", cwd=work)
    equal(mounts_at(work / "mnt"), [], "mounts afterwards")


@case
def mount_in_odd_places(work):
    """Spaces, backslashes, commas, and a path longer than a socket's address."""
    odd = directory(work / "a b\\c,d" / ("long" * 40))
    m = Mounted(work, store=odd / "store", mnt=odd / "mnt")
    equal([entry[2] for entry in mounts_at(m.mnt)], [f"cfs:{m.store}"], "source")
    equal(json.loads(succeeds("status", m.mnt, "--json"))["store"], str(m.store), "store")
    succeeds("umount", m.mnt)


@case
def daemon_keeps_nothing_of_its_shell(work):
    need_mounts()
    directory(work / "mnt")
    reader, writer = os.pipe()
    succeeds("mount", work / "mnt", "--store", work / "store", pass_fds=[writer])
    os.close(writer)
    os.set_blocking(reader, False)
    equal(os.read(reader, 1), b"", "what the pipe gives")  # BlockingIOError: someone has it open.
    os.close(reader)
    succeeds("umount", work / "mnt")


@case
def mount_with_closed_streams(work):
    need_mounts()
    directory(work / "mnt")
    done = run("sh", "-c", '"$@" <&- >&- 2>&-', "sh", suite.BINARY, "mount", work / "mnt",
               "--store", work / "store")
    equal(done.returncode, 0, "exit code")
    pid = int((work / "store" / "cfs.pid").read_text())
    equal([os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)],
          ["/dev/null", "/dev/null", str(work / "store" / "cfs.log")], "standard streams")
    succeeds("umount", work / "mnt")


@case
def status_and_stat(work):
    m = Mounted(work)
    by_mount = json.loads(succeeds("status", m.mnt, "--json"))
    by_store = json.loads(succeeds("status", "--store", m.store, "--json"))
    for answer in (by_mount, by_store):
        equal([answer["pid"], answer["mount"], answer["store"]], [m.pid, str(m.mnt), str(m.store)],
              "pid, mount and store")
    check(isinstance(by_mount["fuse"]["read_bytes"], int), "read_bytes")
    check("\nstore " in succeeds("status", m.mnt), "the table has no store")
    answer = json.loads(succeeds("stat", m.mnt, "--json"))
    equal(answer["ino"], os.stat(m.mnt).st_ino, "ino")
    check("ino " in succeeds("stat", m.mnt), "the table has no ino")
    refused(NOPERM, ["Permission denied"], "status", "--store", m.store, user=NOBODY,
            extra_groups=[])
    succeeds("umount", m.mnt)


@case
def second_mount_refused(work):
    m = Mounted(work)
    other = directory(work / "other")
    refused(UNAVAILABLE, ["in use", f"process {m.pid}"], "mount", other, "--store", m.store)
    equal(mounts_at(other), [], "mounts at the other place")
    refused(UNAVAILABLE, ["already a cfs mount", m.store], "mount", m.mnt, "--store", work / "s2")
    check(not (work / "s2").exists(), "a store was made")
    succeeds("status", m.mnt)
    succeeds("umount", m.mnt)


@case
def store_on_fuse(work):
    m = Mounted(work)
    other = directory(work / "other")
    refused(CONFIG, ["network", "fuse"], "mount", other, "--store", m.mnt / "store")
    equal(os.listdir(m.mnt), [], "what is in the mount")
    succeeds("umount", m.mnt)


@case
def umount_busy(work):
    m = Mounted(work)
    user = os.open(m.mnt, os.O_RDONLY)
    refused(TEMPFAIL, ["in use", "fuser"], "umount", m.mnt)
    succeeds("status", m.mnt)
    os.close(user)
    succeeds("umount", m.mnt)


@case
def dead_mount_recovered(work):
    m = Mounted(work)
    first = m.pid
    m.kill()
    refused(UNAVAILABLE, ["dead", f"cfs mount {m.mnt}"], "status", m.mnt)
    refused(UNAVAILABLE, ["no cfs runs"], "status", "--store", m.store)
    succeeds("mount", m.mnt, "--store", f"{m.store}/")  # Another spelling of the same store.
    check(m.pid != first, "no new daemon")
    equal(len(mounts_at(m.mnt)), 1, "number of mounts")
    succeeds("status", m.mnt)
    succeeds("umount", m.mnt)


@case
def dead_mount_kept_when_its_successor_is_refused(work):
    m = Mounted(work)
    m.kill()
    refused(CONFIG, ["another machine"], "mount", m.mnt, "--store",
            make_store(work / "s2", machine="f" * 32))
    equal(len(mounts_at(m.mnt)), 1, "number of mounts")


@case
def dead_mount_unmounted(work):
    m = Mounted(work)
    user = os.open(m.mnt, os.O_RDONLY)  # Busy, but nobody can use it.
    m.kill()
    succeeds("umount", m.mnt)
    os.close(user)
    equal(mounts_at(m.mnt), [], "mounts afterwards")


@case
def hanging_daemon_is_not_dead(work):
    m = Mounted(work)
    pid = m.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        refused(UNAVAILABLE, ["already a cfs mount"], "mount", m.mnt, "--store", work / "s2")
        refused(TEMPFAIL, ["not answered"], "status", "--store", m.store)
    finally:
        os.kill(pid, signal.SIGCONT)
    succeeds("umount", m.mnt)


@case
def foreground(work):
    need_mounts()
    mnt = directory(work / "mnt")
    for end in ("SIGTERM", "SIGINT", "umount"):
        with subprocess.Popen([suite.BINARY, "mount", mnt, "--store", work / "store",
                               "--foreground"], stderr=subprocess.PIPE) as process:
            try:
                wait_until(lambda: mounts_at(mnt), "mount")
                os.listdir(mnt)
                if end == "umount":
                    succeeds("umount", mnt)
                else:
                    process.send_signal(getattr(signal, end))
                log = process.communicate(timeout=suite.TIMEOUT)[1]
            finally:
                process.kill()
        equal(process.returncode, 0, f"exit code after {end}")
        check(b" INFO " in log, f"stderr has no log: {log!r}")
        equal(mounts_at(mnt), [], f"mounts after {end}")


@contextlib.contextmanager
def device_for_everyone():
    """As a distribution's udev rules have it."""
    device = Path("/dev/fuse")
    mode = stat.S_IMODE(device.stat().st_mode)
    device.chmod(0o666)
    try:
        yield
    finally:
        device.chmod(mode)


# What an ordinary user does in a mount of his own, and says at the end.
OF_A_USER = """
import fcntl, os, sys
os.chdir(sys.argv[1])
os.mkdir("d")
with open("d/f", "wb") as f:
    f.write(b"x" * 3000000)
    f.flush()
    os.fsync(f.fileno())
    fcntl.flock(f, fcntl.LOCK_EX)
os.rename("d/f", "g")
os.link("g", "h")
os.symlink("g", "s")
os.setxattr("g", "user.a", b"value")
os.truncate("g", 2000000)
os.chmod("g", 0o4750)
try:
    os.chown("g", 0, 0)
except PermissionError:
    print(open("s", "rb").read() == b"x" * 2000000, os.getxattr("h", "user.a"),
          oct(os.stat("h").st_mode), os.stat("h").st_nlink, sorted(os.listdir(".")))
"""


@case
def ordinary_user_with_fusermount(work):
    """No passthrough, and nobody else gets in; the rest is as for root."""
    need_mounts()
    if shutil.which("fusermount3") is None:
        raise Skip("no fusermount3")
    user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    home = directory(work / "home")
    os.chown(home, NOBODY, NOBODY)
    mnt, store = home / "mnt", home / "store"
    with device_for_everyone():
        equal(run("mkdir", mnt, **user).returncode, 0, "mkdir")
        for mount in range(2):
            succeeds("mount", mnt, "--store", store, **user)
            equal([entry[1] for entry in mounts_at(mnt)], ["fuse.cfs"], "mounts")
            if mount == 0:
                equal(run("/usr/bin/python3", "-c", OF_A_USER, mnt, **user).stdout,
                      "True b'value' 0o104750 2 ['d', 'g', 'h', 's']\n", "what he saw")
                # Killed: the second mount takes the dead one away.
                pid = int((store / "cfs.pid").read_text())
                kill(pid)
                wait_until(lambda pid=pid: not running(pid), "end of the killed daemon")
        status = json.loads(succeeds("status", mnt, "--json", **user))
        equal(status["passthrough"], False, "passthrough")
        equal(run("cat", mnt / "g", **user).stdout, "x" * 2000000, "content after a restart")
        other = run("ls", mnt, user=NOBODY - 1, group=NOBODY, extra_groups=[])
        check("Permission denied" in other.stderr, f"another user: {other}")
        succeeds("umount", mnt, **user)
    equal(mounts_at(mnt), [], "mounts afterwards")


@case
def unknown_fuse_option(work):
    need_mounts()
    mnt = directory(work / "mnt")
    done = cfs("mount", mnt, "--store", work / "store", "-o", "frobnicate")
    check(done.returncode in (USAGE, CONFIG), f"exit code is {done.returncode}")
    is_refusal(done, done.returncode, "frobnicate")
    equal(mounts_at(mnt), [], "mounts afterwards")
    lock_store(work / "store").close()
    check(not (work / "store" / "cfs.pid").exists(), "cfs.pid is left")


if __name__ == "__main__":
    suite.main(__doc__)
