"""Inserts rows into an sqlite database and tells, on stdout, what was committed.

    sqlite_writer.py DATABASE WRITER FIRST COUNT JOURNAL SYNCHRONOUS

Each transaction adds one row and counts it in another table; its number goes to
stdout, which the test holds, as soon as COMMIT has returned.
"""

import os
import random
import sqlite3
import sys
import zlib

SCHEMA = """
CREATE TABLE IF NOT EXISTS rows (writer INT, number INT, payload BLOB, checksum INT,
                                 PRIMARY KEY (writer, number));
CREATE INDEX IF NOT EXISTS rows_by_checksum ON rows (checksum);
CREATE TABLE IF NOT EXISTS counts (writer INT PRIMARY KEY, count INT);
"""


def connect(path: str, journal: str, synchronous: str) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=60, isolation_level=None)
    database.execute(f"PRAGMA journal_mode={journal}")
    database.execute(f"PRAGMA synchronous={synchronous}")
    database.execute("PRAGMA wal_autocheckpoint=50")
    database.execute("PRAGMA cache_size=20")  # Spills, so that a rollback has work to do.
    return database


def main(path, writer, first, count, journal, synchronous) -> None:
    database = connect(path, journal, synchronous)
    rng = random.Random(f"{writer} {first}")
    for number in range(int(first), int(first) + int(count)):
        payload = rng.randbytes(rng.choice((10, 500, 5000, 60_000)))
        database.execute("BEGIN IMMEDIATE")
        database.execute("INSERT INTO rows VALUES (?, ?, ?, ?)",
                         (writer, number, payload, zlib.crc32(payload)))
        database.execute("INSERT INTO counts VALUES (?, 1) "
                         "ON CONFLICT DO UPDATE SET count = count + 1", (writer,))
        database.execute("COMMIT")
        os.write(1, b"%d\n" % number)
    database.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
