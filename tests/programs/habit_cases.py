"""Habits of everyday programs: saving, following, watching, locking, Python's modules."""

import dbm.dumb
import fcntl
import gzip
import mailbox
import mmap
import multiprocessing
import os
import select
import shelve
import shutil
import socket
import stat
import subprocess
import tempfile
import zipfile
from pathlib import Path

from harness import Child
from sites import Site, check, program_case, wait_until
from trees import compare, make_tree, manifest


class Lines:
    """The lines that a program prints, as they come."""

    def __init__(self, process: subprocess.Popen):
        self._process = process
        self._buffer = b""

    def next(self, seconds: float = 10) -> str:
        while b"\n" not in self._buffer:
            ready = select.select([self._process.stdout], [], [], seconds)[0]
            check(ready, f"{self._process.args[0]} did not see a change within {seconds:g} s")
            self._buffer += os.read(self._process.stdout.fileno(), 1 << 16)
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()


@program_case()
def save_by_rename(site: Site) -> None:
    """Editors and configuration tools: write a temporary, sync, rename over the old.

    Readers meet the old or the new version, whole, and never an older one after a newer.
    """
    path, versions = site.dir / "saved", site.pick(1000, 10_000)
    done = multiprocessing.Event()

    def body(version: int) -> bytes:
        return b"%d\n" % version * (1 + version * 37 % 5000)

    def save(version: int) -> None:
        temporary = path.with_name(f".saved.{version}.tmp")
        with open(temporary, "xb") as file:
            file.write(body(version))
            file.flush()
            if version % 10 == 0:
                os.fsync(file.fileno())
        os.rename(temporary, path)
        if version % 10 == 0:
            directory = os.open(site.dir, os.O_RDONLY | os.O_DIRECTORY)
            os.fsync(directory)
            os.close(directory)

    def read() -> int:
        last = seen = 0
        while not done.is_set():
            data = path.read_bytes()
            version = int(data[:data.index(b"\n")])
            check(data == body(version), f"version {version} is torn: {len(data)} bytes")
            check(version >= last, f"version {version} came after {last}")
            seen, last = seen + (version != last), version
        return seen

    save(0)
    readers = [Child(read) for _ in range(2)]
    for version in range(1, versions):
        save(version)
    done.set()
    check(sum(reader.result() for reader in readers) > 2, "the readers saw no versions")
    check(os.listdir(site.dir) == ["saved"], "temporary files are left")


@program_case()
def save_with_backup(site: Site) -> None:
    """vim: a swap file held open, the old file to NAME~, the new one written in its place."""
    path, backup = site.dir / "text", site.dir / "text~"
    path.write_text("version 0")
    os.chown(path, 1000, 1000)
    path.chmod(0o640)
    for version in range(1, site.pick(50, 1000)):
        with open(site.dir / ".text.swp", "xb") as swap:
            swap.write(b"b0VIM" + bytes(4091))
            swap.flush()
            os.fsync(swap.fileno())
            old = path.stat()
            # vim tries with a file of a number whether it may keep the owner.
            probe = os.open(site.dir / "4913", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o100640)
            os.fchown(probe, old.st_uid, old.st_gid)
            check(os.fstat(probe).st_uid == old.st_uid, "the probe file has another owner")
            os.close(probe)
            os.unlink(site.dir / "4913")
            os.rename(path, backup)
            with open(path, "xb") as file:
                file.write(b"version %d" % version)
                os.fsync(file.fileno())
                os.fchown(file.fileno(), old.st_uid, old.st_gid)
                os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode))
            check(backup.read_text() == f"version {version - 1}", "the backup is not the old file")
            check(backup.stat().st_ino == old.st_ino, "the backup is another inode")
            os.unlink(backup)
            os.unlink(site.dir / ".text.swp")
    new = path.stat()
    check((new.st_uid, new.st_gid, stat.S_IMODE(new.st_mode)) == (1000, 1000, 0o640),
          "owner or mode were lost")
    check(os.listdir(site.dir) == ["text"], "files are left")


@program_case()
def tail_follows(site: Site) -> None:
    """tail -F sees what is appended, a truncation and a rotation.

    It polls on FUSE, once a second if not told otherwise.
    """
    log = site.dir / "log"
    log.write_text("first\n")
    with site.popen("tail", "-n", "+1", "-s", "0.02", "-F", log, stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL) as tail:
        try:
            lines = Lines(tail)
            check(lines.next() == "first", "tail began with another line")
            for i in range(site.pick(100, 2000)):
                with open(log, "a") as file:
                    file.write(f"line {i}\n")
                line = lines.next()
                check(line == f"line {i}", f"tail printed {line!r} for line {i}")
            log.rename(site.dir / "log.1")
            log.write_text("rotated\n")
            check(lines.next() == "rotated", "tail did not follow the rotation")
            with open(log, "r+") as file:
                file.truncate(0)
                file.write("cut\n")
            check(lines.next() == "cut", "tail did not see the truncation")
        finally:
            tail.kill()


@program_case()
def append_from_many_processes(site: Site) -> None:
    """A log file that several programs append to: no line is lost, torn or overwritten."""
    log, count = site.dir / "log", site.pick(500, 20_000)
    script = f'for i in $(seq {count}); do echo "$0 $i abcdefghijklmnopqrstuvwxyz"; done >> "$1"'
    writers = [site.popen("sh", "-c", script, name, log) for name in "abcd"]
    for writer in writers:
        check(writer.wait() == 0, "a writer failed")
    lines = log.read_text().splitlines()
    for name in "abcd":
        expected = [f"{name} {i} abcdefghijklmnopqrstuvwxyz" for i in range(1, count + 1)]
        check([line for line in lines if line.startswith(name)] == expected,
              f"lines of writer {name} are lost or out of order")
    check(len(lines) == 4 * count, f"{len(lines)} lines")


def count_up(path: str, times: int, lock: str) -> None:
    for _ in range(times):
        with open(path, "r+") as file:
            (fcntl.flock if lock == "flock" else fcntl.lockf)(file, fcntl.LOCK_EX)
            value = int(file.read())
            file.seek(0)
            file.write(str(value + 1))
            file.flush()


@program_case()
def counters_under_locks(site: Site) -> None:
    for lock in "flock", "fcntl":
        path = site.dir / lock
        path.write_text("0")
        times = site.pick(300, 10_000)
        workers = [multiprocessing.Process(target=count_up, args=(str(path), times, lock))
                   for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
            check(worker.exitcode == 0, f"a worker under {lock} failed")
        value = int(path.read_text())
        check(value == 4 * times, f"{4 * times} increments under {lock} gave {value}")


@program_case(needs=("flock",))
def flock_program(site: Site) -> None:
    """flock(1) excludes, gives up when asked to, and a killed holder's lock is gone."""
    lock = site.dir / "lock"
    holder = site.popen("flock", "--no-fork", lock, "sleep", "600")
    wait_until(lambda: lock.exists() and not free(site, lock), 10, "the lock")
    site.run("flock", "--nonblock", "--conflict-exit-code", "42", lock, "true", expect=42)
    site.run("flock", "--wait", "0.2", "--conflict-exit-code", "42", lock, "true", expect=42)
    holder.kill()
    holder.wait()
    site.run("flock", "--wait", "10", lock, "true")


def free(site: Site, lock: Path) -> bool:
    return site.popen("flock", "--nonblock", lock, "true").wait() == 0


@program_case()
def temporary_files(site: Site) -> None:
    with tempfile.TemporaryFile(dir=site.dir) as file:  # O_TMPFILE where there is one.
        file.write(b"x" * 100_000)
        file.seek(99_999)
        check(file.read() == b"x", "an unnamed file lost its end")
        check(not os.listdir(site.dir), "an unnamed file has a name")
    with tempfile.NamedTemporaryFile(dir=site.dir) as file:
        name = Path(file.name)
        check(stat.S_IMODE(name.stat().st_mode) == 0o600, "a temporary file is readable by others")
    check(not name.exists(), "a temporary file stays")
    with tempfile.TemporaryDirectory(dir=site.dir) as name:
        make_tree(Path(name, "tree"), site.rng, 100)
    check(not Path(name).exists(), "a temporary directory stays")
    with tempfile.SpooledTemporaryFile(max_size=10, dir=site.dir) as file:
        file.write(b"more than ten bytes")
        file.seek(0)
        check(file.read() == b"more than ten bytes", "a spooled file lost bytes")


@program_case()
def archives(site: Site) -> None:
    """shutil, zipfile, tarfile and gzip of Python, out of and into the mount."""
    tree = site.dir / "tree"
    make_tree(tree, site.rng, site.pick(300, 2000))
    expected = manifest(tree, content_only=True)
    for kind in "zip", "gztar", "xztar":
        archive = shutil.make_archive(str(site.dir / f"archive-{kind}"), kind, tree)
        shutil.unpack_archive(archive, site.dir / kind)
        compare(expected, manifest(site.dir / kind, content_only=True), kind)
    with zipfile.ZipFile(site.dir / "archive-zip.zip", "a") as file:
        file.writestr("added", b"later")
        check(file.testzip() is None, "a member of the zip file is damaged")
        check(file.read("added") == b"later", "the added member differs")
    shutil.copytree(tree, site.dir / "copy")
    compare(expected, manifest(site.dir / "copy", content_only=True), "copytree")
    shutil.move(site.dir / "copy", site.dir / "moved")
    shutil.move(site.dir / "moved", site.outside / "moved")
    compare(expected, manifest(site.outside / "moved", content_only=True), "move to outside")
    shutil.move(site.outside / "moved", site.dir / "back")
    compare(expected, manifest(site.dir / "back", content_only=True), "move from outside")
    shutil.rmtree(site.dir / "back")
    usage = shutil.disk_usage(site.dir)
    check(0 < usage.free <= usage.total, f"statvfs says {usage}")


@program_case()
def small_databases(site: Site) -> None:
    """Files that libraries keep by rename, by rewriting in place and by hard links."""
    count = site.pick(200, 5000)
    with shelve.Shelf(dbm.dumb.open(str(site.dir / "shelf"), "c")) as shelf:
        for i in range(count):
            shelf[f"key {i}"] = {"value": i, "payload": site.rng.randbytes(100)}
        for i in range(0, count, 3):
            del shelf[f"key {i}"]
    with shelve.Shelf(dbm.dumb.open(str(site.dir / "shelf"), "r")) as shelf:
        check({shelf[key]["value"] for key in shelf} == {i for i in range(count) if i % 3},
              "the shelf holds other values")
    for box in mailbox.Maildir(site.dir / "maildir"), mailbox.mbox(site.dir / "mbox"):
        keys = []
        for i in range(count):
            keys.append(box.add(f"Subject: number {i}\n\nbody {i}\n"))
        for key in keys[::2]:
            box.lock()
            box.remove(key)
            box.unlock()
        box.flush()
        left = sorted(int(message["Subject"].split()[1]) for message in box)
        check(left == list(range(1, count, 2)), f"{type(box).__name__} holds {left[:10]}")
        box.close()


@program_case()
def shared_memory(site: Site) -> None:
    """Processes that map one file see each other's stores; read(2) and msync see them too."""
    path, page, count = site.dir / "mapped", mmap.PAGESIZE, site.pick(2000, 100_000)
    path.write_bytes(bytes(4 * page))

    def fill(number: int) -> None:
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            for i in range(count):
                memory[number::4] = bytes([i % 251]) * page
            memory.flush()

    workers = [multiprocessing.Process(target=fill, args=(number,)) for number in range(4)]
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
            check(worker.exitcode == 0, "a worker failed")
        wanted = bytes([(count - 1) % 251]) * 4 * page
        check(memory[:] == wanted, "a mapping misses stores of others")
        check(path.read_bytes() == wanted, "read(2) misses stores")
        os.pwrite(file.fileno(), b"by write", 3 * page - 4)
        check(memory[3 * page - 4:3 * page + 4] == b"by write", "a mapping misses a write")
    site.remount()
    check(path.read_bytes() == wanted[:3 * page - 4] + b"by write" + wanted[3 * page + 4:],
          "stores are lost after a remount")


@program_case()
def zero_copy(site: Site) -> None:
    """sendfile, copy_file_range and splice, within the mount and across its border."""
    source = site.dir / "source"
    data = site.rng.randbytes(site.pick(3_000_001, 100_000_001))
    source.write_bytes(data)

    def sendfile(reader: int, writer: int) -> int:
        return os.sendfile(writer, reader, None, 1 << 20)

    def copy_file_range(reader: int, writer: int) -> int:
        return os.copy_file_range(reader, writer, 1 << 20)

    pipe = os.pipe()

    def splice(reader: int, writer: int) -> int:
        count = os.splice(reader, pipe[1], 1 << 16)
        left = count
        while left:
            left -= os.splice(pipe[0], writer, left)
        return count

    inside, outside, back = site.dir / "inside", site.outside / "outside", site.dir / "back"
    # copy_file_range doesn't cross file systems.
    for copy, pairs in ((copy_file_range, [(source, inside)]),
                        (sendfile, [(source, inside), (inside, outside), (outside, back)]),
                        (splice, [(source, inside), (inside, outside), (outside, back)])):
        for origin, target in pairs:
            with open(origin, "rb") as reader, open(target, "wb") as writer:
                while copy(reader.fileno(), writer.fileno()):
                    pass
            check(target.read_bytes() == data, f"{copy.__name__} to {target.name} differs")
    for end in pipe:
        os.close(end)


@program_case()
def sockets_and_pipes(site: Site) -> None:
    """A daemon's socket and a fifo in the file system."""
    os.chdir(site.dir)  # The path of a socket may have no more than 107 bytes.
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        server.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect("socket")
            peer = server.accept()[0]
            client.sendall(b"hello")
            check(peer.recv(10) == b"hello", "the socket lost bytes")
            peer.close()
    os.unlink("socket")
    os.mkfifo("fifo")
    with site.popen("sh", "-c", "seq 100000 > fifo") as writer:
        with open("fifo") as file:
            check(file.read().split() == [str(i + 1) for i in range(100_000)],
                  "the fifo lost bytes")
    check(writer.returncode == 0, "the fifo's writer failed")
    os.chdir("/")


@program_case(needs=("gzip", "sort", "split", "sha256sum"))
def pipelines(site: Site) -> None:
    """sort with temporary files, split and join, gzip, checksums: what scripts do."""
    numbers = list(range(site.pick(100_000, 3_000_000)))
    site.rng.shuffle(numbers)
    (site.dir / "numbers").write_text("".join(f"{number}\n" for number in numbers))
    site.run("sort", "-n", "-S", "64k", "--parallel=2", "-T", site.dir, "-o", "numbers", "numbers")
    wanted = "".join(f"{number}\n" for number in range(len(numbers))).encode()
    check((site.dir / "numbers").read_bytes() == wanted, "sort in place lost lines")
    site.run("split", "-b", "70001", "-a", "4", "numbers", "part.")
    site.run("sh", "-c", "sha256sum part.* > sums && cat part.* | gzip > joined.gz")
    site.remount()
    site.run("sha256sum", "--quiet", "-c", "sums")
    with gzip.open(site.dir / "joined.gz") as file:
        check(file.read() == wanted, "split, cat and gzip lost bytes")
    site.run("sh", "-c", "sed -i 's/^/x/' part.* && truncate -s 10 part.aaaa")
    check((site.dir / "part.aaaa").read_bytes() == b"x0\nx1\nx2\nx", "sed -i or truncate differ")
