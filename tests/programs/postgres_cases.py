"""PostgreSQL: initdb, pgbench, kill -9 of the server, kill -9 of the daemon.

pgbench runs outside and counts the transactions that the server has acknowledged,
each of which adds a row to pgbench_history. After the crash and recovery all of them
must be there, the balances must agree, and amcheck and the page checksums must pass.
"""

import glob
import os
import pwd
import re
import signal
import subprocess
import time
from pathlib import Path

from sites import Failure, Site, Skip, add_case, check, wait_until

CLIENTS = 4
SETTINGS = """
listen_addresses = ''
unix_socket_directories = '{sockets}'
shared_buffers = 16MB
max_wal_size = 64MB  # Small, so that checkpoints and WAL recycling happen.
checkpoint_timeout = 30s
autovacuum_naptime = 1s
logging_collector = off
"""


class Server:
    """A PostgreSQL server whose data directory is on the mount, as an unprivileged user."""

    def __init__(self, site: Site):
        programs = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
        if not programs:
            raise Skip("PostgreSQL is not installed")
        self._site = site
        self._programs = Path(programs[-1])
        names = {user.pw_name: user for user in pwd.getpwall()}
        user = names.get("postgres") or names["nobody"]
        self._identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self._sockets = site.outside / "sockets"
        self.data = site.dir / "postgres"
        self._log = site.outside / "postgres.log"
        for directory in self._sockets, self.data:
            directory.mkdir(mode=0o700)
            os.chown(directory, user.pw_uid, user.pw_gid)
        self.run("initdb", "-D", self.data, "-A", "trust", "-U", "postgres", "--no-locale",
                 "--encoding=UTF8", "--data-checksums")
        with open(self.data / "postgresql.conf", "a") as file:
            file.write(SETTINGS.format(sockets=self._sockets))
        self._process = None

    def _command(self, program: str, *arguments) -> tuple:
        return self._programs / program, *arguments

    def run(self, program: str, *arguments, **options) -> str:
        return self._site.run(*self._command(program, *arguments), cwd="/",
                              env={"PGHOST": str(self._sockets), "PGUSER": "postgres"},
                              **self._identity, **options)

    def start(self) -> None:
        with open(self._log, "ab") as log:
            self._process = self._site.popen(*self._command("postgres", "-D", self.data),
                                             stdout=log, stderr=log, cwd="/", **self._identity)
        deadline = time.monotonic() + 60
        while True:
            try:
                self.run("pg_isready", "-q")
                return
            except Failure:
                check(self._process.poll() is None and time.monotonic() < deadline,
                      f"the server did not start: {self.log_tail()}")
                time.sleep(0.1)

    def log_tail(self) -> str:
        return " | ".join(self._log.read_text().splitlines()[-4:])

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)
        check(self._process.wait() == 0, f"the server did not stop: {self.log_tail()}")

    def kill(self) -> None:
        """kill -9 of the postmaster; its children notice and end."""
        self._process.kill()
        self._process.wait()
        wait_until(lambda: not self._processes(), 20, "the end of the server processes")

    def _processes(self) -> list[str]:
        """Those that have the data directory as working directory."""
        found = []
        for link in glob.glob("/proc/[0-9]*/cwd"):
            try:
                if os.readlink(link).startswith(str(self.data)):
                    found.append(link)
            except OSError:
                pass  # It has ended since the listing.
        return found

    def query(self, sql: str) -> str:
        return self.run("psql", "-XAtqc", sql, "postgres").strip()

    def start_pgbench(self, seconds: int) -> subprocess.Popen:
        return self._site.popen(
            *self._command("pgbench", "-n", "-c", str(CLIENTS), "-j", "2", "-T", str(seconds),
                           "postgres"),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/",
            env={"PGHOST": str(self._sockets), "PGUSER": "postgres"}, **self._identity)

    def verify(self, acknowledged: int) -> int:
        """Returns how many transactions are there."""
        there = int(self.query("SELECT count(*) FROM pgbench_history"))
        check(acknowledged <= there <= acknowledged + CLIENTS,
              f"{acknowledged} transactions acknowledged, {there} there")
        sums = self.query(
            "SELECT (SELECT coalesce(sum(delta), 0) FROM pgbench_history),"
            " (SELECT sum(abalance) FROM pgbench_accounts),"
            " (SELECT sum(tbalance) FROM pgbench_tellers),"
            " (SELECT sum(bbalance) FROM pgbench_branches)").split("|")
        check(len(set(sums)) == 1, f"the balances differ: {sums}")
        self.run("pg_amcheck", "--install-missing", "--heapallindexed", "--parent-check",
                 "postgres")
        return there


def transactions(pgbench: subprocess.Popen) -> int:
    output = pgbench.communicate()[0].decode(errors="replace")
    found = re.search(r"transactions actually processed: (\d+)", output)
    check(found, f'pgbench: {" ".join(output.split())[-300:]}')
    return int(found[1])


def pgbench_with_kills(site: Site, kill_daemon: bool) -> None:
    server = Server(site)
    server.start()
    server.run("pgbench", "-i", "-q", "-s", str(site.pick(2, 20)), "postgres")
    total = 0
    if not kill_daemon:
        pgbench = server.start_pgbench(site.pick(4, 60))
        total = transactions(pgbench)
        check(pgbench.returncode == 0, "pgbench failed")
        check(server.verify(total) == total, "transactions appeared")
    for _ in range(site.pick(1, 6)):
        pgbench = server.start_pgbench(600)
        time.sleep(site.rng.uniform(2, site.pick(3, 15)))
        check(pgbench.poll() is None, "pgbench ended before the kill")
        if kill_daemon:
            site.kill_daemon()
        else:
            server.kill()
        # It ends by itself: the server's next sync of the WAL fails, or nobody answers.
        acknowledged = transactions(pgbench)
        check(acknowledged > 0, "nothing was committed before the kill")
        if kill_daemon:
            server.kill()
            site.recover()
        server.start()
        total = server.verify(total + acknowledged)
    server.stop()
    server.run("pg_checksums", "--check", "-D", server.data)


add_case("postgres.kill_server", pgbench_with_kills, False, timeout=180)
add_case("postgres.kill_daemon", pgbench_with_kills, True, timeout=180, kills_daemon=True)
