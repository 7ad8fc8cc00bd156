"""sqlite: many writers, kill -9 of the writers, kill -9 of the daemon.

A row is acknowledged when its writer has said so on a pipe, outside the mount.
After anything, the database holds every acknowledged row, at most one more a
writer (committed, not yet told), and passes its own integrity check.
"""

import contextlib
import sqlite3
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import sqlite_writer
from sites import Site, add_case, check, program_case, wait_until

FOREVER = 10**9


class Writer:
    """One writing process and what it has acknowledged."""

    def __init__(self, site: Site, path: Path, number: int, first: int, count: int,
                 journal: str, synchronous: str):
        self.number = number
        self.next = first  # All below it is acknowledged.
        self._process = site.popen(
            sys.executable, sqlite_writer.__file__, path, str(number), str(first), str(count),
            journal, synchronous, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self._process.stdout:
            self.next = int(line) + 1

    def alive(self) -> bool:
        return self._process.poll() is None

    def wait(self) -> int:
        self._reader.join()
        errors = self._process.stderr.read().decode().splitlines()
        self.error = errors[-1] if errors else ""
        return self._process.wait()

    def kill(self) -> None:
        self._process.kill()
        self.wait()


def start_writers(site: Site, path: Path, firsts: list[int], count: int, journal: str,
                  synchronous: str) -> list[Writer]:
    return [Writer(site, path, number, first, count, journal, synchronous)
            for number, first in enumerate(firsts)]


def create(site: Site, journal: str, synchronous: str) -> Path:
    path = site.dir / "rows.db"
    with contextlib.closing(sqlite_writer.connect(str(path), journal, synchronous)) as database:
        database.executescript(sqlite_writer.SCHEMA)
        mode = database.execute("PRAGMA journal_mode").fetchone()[0]
        check(mode == journal, f"sqlite chose journal mode {mode}, not {journal}")
    return path


def verify(path: Path, writers: list[Writer]) -> list[int]:
    """Checks the database against the writers; returns how many rows each has."""
    counts = []
    with contextlib.closing(sqlite3.connect(path, timeout=60)) as database:
        result = database.execute("PRAGMA integrity_check").fetchall()
        check(result == [("ok",)], f"integrity_check: {result[:3]}")
        for payload, checksum in database.execute("SELECT payload, checksum FROM rows"):
            check(zlib.crc32(payload) == checksum, "a row has another payload than was written")
        for writer in writers:
            key = (writer.number,)
            numbers = [number for number, in database.execute(
                "SELECT number FROM rows WHERE writer = ? ORDER BY number", key)]
            check(numbers == list(range(len(numbers))), f"writer {writer.number} has gaps")
            check(writer.next <= len(numbers) <= writer.next + 1,
                  f"writer {writer.number}: {writer.next} rows acknowledged, {len(numbers)} there")
            counted = database.execute("SELECT count FROM counts WHERE writer = ?", key).fetchone()
            check((counted or (0,))[0] == len(numbers), "a transaction was torn")
            counts.append(len(numbers))
    return counts


def concurrent(site: Site, journal: str) -> None:
    path = create(site, journal, "FULL")
    count = site.pick(60, 1000)
    writers = start_writers(site, path, [0] * 4, count, journal, "FULL")
    with contextlib.closing(sqlite3.connect(path, timeout=60)) as database:
        seen = 0
        while any(writer.alive() for writer in writers):
            now = database.execute("SELECT count(*) FROM rows").fetchone()[0]
            check(now >= seen, f"a reader saw {seen} rows, then {now}")
            seen = now
            time.sleep(0.05)
    for writer in writers:
        check(writer.wait() == 0, f"writer {writer.number}: {writer.error}")
        check(writer.next == count, f"writer {writer.number} stopped at {writer.next}")
    verify(path, writers)


def kill_writers(site: Site, journal: str) -> None:
    path = create(site, journal, "FULL")
    firsts = [0] * 3
    for _ in range(site.pick(4, 40)):
        writers = start_writers(site, path, firsts, FOREVER, journal, "FULL")
        wait_until(lambda: sum(writer.next for writer in writers) > sum(firsts), 30, "a commit")
        time.sleep(site.rng.uniform(0, 0.4))
        for writer in writers:
            check(writer.alive(), "a writer ended before it was killed")
        for writer in writers:
            writer.kill()
        firsts = verify(path, writers)


def kill_daemon(site: Site, journal: str, synchronous: str) -> None:
    """With synchronous=OFF no call asks for durability: what write(2) took has to survive,
    also what went on through open descriptors after the daemon's death."""
    path = create(site, journal, synchronous)
    firsts = [0] * 3
    for _ in range(site.pick(2, 15)):
        writers = start_writers(site, path, firsts, FOREVER, journal, synchronous)
        wait_until(lambda: sum(writer.next for writer in writers) > sum(firsts) + 10, 30,
                   "ten commits")
        time.sleep(site.rng.uniform(0, 0.3))
        check(all(writer.alive() for writer in writers), "a writer ended before the kill")
        site.kill_daemon()
        time.sleep(0.2)  # Long enough for them to notice, or to go on.
        for writer in writers:
            writer.kill()
        site.recover()
        firsts = verify(path, writers)


@program_case(needs=("sqlite3",))
def shell(site: Site) -> None:
    """The sqlite3 program: import, .backup, VACUUM INTO and .dump agree."""
    rows = site.outside / "rows.csv"
    rows.write_text("".join(f"{i},{site.rng.random()}\n" for i in range(20_000)))
    site.run("sqlite3", "a.db", "CREATE TABLE t (i INTEGER PRIMARY KEY, x REAL)",
             f".import --csv {rows} t", ".backup b.db", "VACUUM INTO 'c.db'")
    dumps = {name: site.run("sqlite3", name, "PRAGMA integrity_check", ".dump")
             for name in ("a.db", "b.db", "c.db")}
    check(dumps["a.db"].count("INSERT") == 20_000, "rows are missing")
    check(len(set(dumps.values())) == 1, "a copy of the database differs")


for _journal in "wal", "delete", "truncate", "persist":
    add_case(f"sqlite.concurrent_{_journal}", concurrent, _journal)
for _journal in "wal", "delete":
    add_case(f"sqlite.kill_writers_{_journal}", kill_writers, _journal)
    for _synchronous in "FULL", "OFF":
        add_case(f"sqlite.kill_daemon_{_journal}_{_synchronous.lower()}", kill_daemon, _journal,
                 _synchronous, kills_daemon=True)
