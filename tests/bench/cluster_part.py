"""The rows of clusters: nodes in network namespaces of this machine, with stores on tmpfs, beside
what bounds them. Everything in turn: a row's cfs and its bounds back to back, in random order.

Today the first node of a cluster owns everything. Where a file's metadata is, `cfs stat` is asked:
rows for nodes that own nothing are absent, and the reason is in the result.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import random
import subprocess
import sys

from contenders import BenchError, Null, run, settle
from loads import first_line, prepare_data, processes, run_fio, run_together, write_file
from rows import LINK_BYTES_PER_S

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path += [str(TESTS / "mount"), str(TESTS / "cluster")]

SMALL = 64  # What net_bench sends at least.
NODES_AT_ONCE = 4
DIRECTORIES_TRIED = 100  # The owner follows from the name.
METHODS = {"transport_read_64k": "read_64k_gb_per_s", "transport_read_1m": "read_1024k_gb_per_s"}


@dataclasses.dataclass
class Place:
    """Where a load works, as contenders.Contender has it."""

    directory: pathlib.Path
    base: pathlib.Path
    pid: int


class ClusterPart:
    def __init__(self, options, sizes, rows, progress):
        self.options = options
        self.sizes = sizes
        self.rows = rows
        self.progress = progress
        self.random = random.Random(1)
        self.values = {row.name: {} for row in rows}
        self.absent = {}  # Row -> why.
        self.net_bench = options.build / "net_bench"

    def measure(self):
        """{"rows": {row: {contender: [value of each round]}}, "absent": {row: reason}}, or
        {"skipped": reason}.
        """
        os.environ["CFS"] = str(self.options.cfs)
        # Reads the environment, and is not needed by who measures one node.
        import harness  # pylint: disable=import-outside-toplevel

        workspace = None
        try:
            harness.need_root()
            workspace = harness.Workspace()
            for part in ("transport", "remote", "metadata", "local"):
                rows = [row for row in self.rows if row.part == part]
                if rows:
                    getattr(self, f"measure_{part}")(rows, workspace)
        except harness.Skip as skip:
            return {"skipped": str(skip)}
        except (harness.Failure, subprocess.TimeoutExpired) as error:
            raise BenchError(str(error)) from error
        finally:
            if workspace:
                workspace.close()
            self.progress("")
        return {"rows": self.values, "absent": self.absent}

    def rounds(self, what, times=1):
        """Numbers of rounds; the values of round 0 are not kept."""
        last = times * self.sizes.rounds
        for number in range(0 if self.sizes.warm_up else 1, last + 1):
            self.progress(f"{what}: round {number} of {last}")
            yield number

    def in_turn(self, row, number, measures, daemons=()):
        """Calls a dict of functions, of contenders, in random order and keeps their values."""
        for name in self.random.sample(list(measures), len(measures)):
            if self.sizes.settle:
                settle(daemons)
            try:
                value = measures[name]()
            except BenchError as error:
                raise BenchError(f"{row.name} on {name}: {error}") from error
            if value <= 0:
                raise BenchError(f"{row.name} on {name}: nothing was done")
            if number > 0:
                self.values[row.name].setdefault(name, []).append(value)

    # The transport, between two processes.

    def measure_transport(self, rows, _):
        self.progress("transport")
        trips, reads = self.sizes.round_trips, max(4, self.sizes.round_trips // 10)
        command = [self.net_bench, "--json", trips, reads]
        on_two = json.loads(run(command))
        on_one = json.loads(run(["taskset", "--cpu-list", "0", self.net_bench, "--json", trips, 4]))
        for row in rows:
            answers = on_one if row.name.endswith("_one_cpu") else on_two
            for contender, key in (("cfs", "cfs, tcp only"), ("raw", "raw tcp")):
                values = answers[key]
                self.values[row.name][contender] = (
                    values[METHODS[row.name]] if row.name in METHODS
                    else [1e6 / time for time in values["round_trip_us"]])

    # Files of another node.

    def measure_remote(self, rows, workspace):
        from cluster import Cluster  # pylint: disable=import-outside-toplevel

        with contextlib.ExitStack() as stack:
            cluster = stack.enter_context(Cluster(workspace, nodes=2, store="tmpfs"))
            home, worker = cluster.nodes
            write_file(f"{home.mnt}/data", self.sizes.file_mib)
            threads = ["--no-passthrough", "--threads", os.cpu_count()]
            null = self.null_daemon(stack, workspace, "null", 8, threads)
            write_file(null.directory / "data", self.sizes.file_mib)
            raw = stack.enter_context(self.raw_server(cluster.network))
            daemons = [place(home), place(worker), null]

            def measures(row):
                rw, block, _ = row.fio
                result = {
                    "cfs": lambda: run_fio(row.fio, place(worker), self.sizes, row.unit, row.jobs,
                                           overwrite=True),
                    "raw": lambda: self.raw_rate(cluster.network, raw, row),
                }
                if "null" in row.bounds:
                    # O_DIRECT, or the kernel would read what it has.
                    result["null"] = lambda: run_fio((rw, block, True), null, self.sizes, row.unit,
                                                     row.jobs, overwrite=True)
                return result

            for number in self.rounds("remote data"):
                for rate in dict.fromkeys(row.rate for row in rows):
                    if rate:
                        cluster.shape(rate)
                    for row in rows:
                        if row.rate == rate:
                            self.in_turn(row, number, measures(row), daemons)
                    if rate:
                        cluster.shape(None)
            check_home(worker, home)

    @contextlib.contextmanager
    def raw_server(self, network):
        """Serves raw TCP on the first host; where it listens."""
        command = [*network.enter(0), self.net_bench, "--raw-serve", f"{network.address(0)}:0"]
        with processes([command]) as (server,):
            yield first_line(server)

    def raw_command(self, network, host, server, put, get, in_flight):
        return [*network.enter(host), self.net_bench, "--raw", server, put, get, in_flight,
                self.sizes.runtime_s]

    def raw_rate(self, network, server, row):
        """What fio would do if there were nothing but the network."""
        rw, block, _ = row.fio
        size = {"1M": 1 << 20, "4k": 4096}[block]
        put, get = (0, size) if rw.endswith("read") else (size, SMALL)
        # One that reads or writes in order may have the link always busy.
        in_flight = row.jobs if rw.startswith("rand") else 4
        command = self.raw_command(network, 1, server, put, get, in_flight)
        rate = json.loads(run(command))["per_second"]
        if row.rate and rate * size > 1.1 * LINK_BYTES_PER_S:
            raise BenchError(f"{rate * size / 1e6:.0f} MB/s over a link of {row.rate}")
        return rate * size / 1e6 if row.unit == "MB/s" else rate

    def null_daemon(self, stack, workspace, name, files, options=()):
        null = Null("dev", self.options.build / "null_daemon", files, options)
        null.name = name
        stack.callback(null.stop)
        null.start(pathlib.Path(workspace.new_directory("tmpfs")))
        return null

    # Metadata of one's own and of another node.

    def measure_metadata(self, rows, workspace):
        from cluster import Cluster  # pylint: disable=import-outside-toplevel

        with contextlib.ExitStack() as stack:
            cluster = stack.enter_context(
                Cluster(workspace, nodes=NODES_AT_ONCE + 1, store="tmpfs"))
            cluster.wait_balanced()  # Or a directory's owner may be another soon.
            network = cluster.network
            raw = stack.enter_context(self.raw_server(network))
            directories = {here: owned_directories(cluster.nodes, here) for here in (True, False)}
            nulls = []
            for i in range(NODES_AT_ONCE):
                null = self.null_daemon(stack, workspace, f"null{i}", self.sizes.cluster_files)
                (null.directory / "meta").mkdir()
                nulls.append(null)
            daemons = [*map(place, cluster.nodes), *nulls]

            def measures(row):
                result = {
                    "cfs": lambda: self.metadata(row, [*directories[row.here]][:row.jobs]),
                    "null": lambda: self.metadata(row, [null.directory / "meta"
                                                        for null in nulls[:row.jobs]]),
                }
                if "raw" in row.bounds:
                    clients = [self.raw_command(network, host + 1, raw, 0, SMALL, 1)
                               for host in range(row.jobs)]
                    result["raw"] = lambda: sum(
                        answer["per_second"] for answer in run_together(clients))
                return result

            for row in rows:
                there_are = len(directories[row.here])
                if there_are < row.jobs:
                    what = "of its own" if row.here else "of another"
                    self.absent[row.name] = f"nodes with a directory {what}: {there_are}"
            for number in self.rounds("metadata"):
                for row in rows:
                    if row.name not in self.absent:
                        self.in_turn(row, number, measures(row), daemons)
                # Something is there if the rows that empty them were not asked for.
                for directory in [*directories[True], *directories[False],
                                  *(null.directory / "meta" for null in nulls)]:
                    for name in os.listdir(directory):
                        os.unlink(directory / name)
            for here, by_path in directories.items():
                for path, node in by_path.items():
                    if owns(node, path) != here:
                        raise BenchError(f"{path} has another owner now")

    def metadata(self, row, directories):
        """Operations a second of all together, each in its directory."""
        name, _, _ = row.name.rsplit("_", 2)
        answers = run_together(
            [[self.options.build / "meta_bench", "--dir", directory, "--row", name, "--files",
              self.sizes.cluster_files, "--wait"] for directory in directories], wait=True)
        for directory in directories:
            if name == "unlink" and os.listdir(directory):
                raise BenchError(f"{directory} is not empty afterwards")
        return (sum(answer["operations"] for answer in answers)
                / max(answer["seconds"] for answer in answers))

    # A node's own data.

    def measure_local(self, rows, workspace):
        from cluster import Cluster  # pylint: disable=import-outside-toplevel
        from harness import Mount  # pylint: disable=import-outside-toplevel

        with contextlib.ExitStack() as stack:
            cluster = stack.enter_context(Cluster(workspace, nodes=3, store="tmpfs"))
            alone = stack.enter_context(Mount(workspace, store="tmpfs"))
            node = cluster.nodes[-1]
            for each in (node, alone):
                if not each.status()["passthrough"]:
                    raise BenchError("no passthrough here")
            daemons = [*map(place, cluster.nodes), place(alone)]

            def measure_on(row, mount):
                prepare_data(row.fio, place(mount), self.sizes)
                return run_fio(row.fio, place(mount), self.sizes, row.unit)

            for number in self.rounds("local data", self.sizes.local_times):
                for row in rows:
                    self.in_turn(row, number, {"cfs": lambda row=row: measure_on(row, node),
                                               "alone": lambda row=row: measure_on(row, alone)},
                                 daemons)
            check_home(node, node)


def place(mount):
    return Place(pathlib.Path(mount.mnt), pathlib.Path(mount.store), mount.pid)


def check_home(seen_from, home):
    """The rows are about something else if the data is."""
    if seen_from.stat(f"{seen_from.mnt}/data")["home"] != home.status()["node"]:
        raise BenchError(f"the data is not on node {home.name}")


def owns(node, path):
    return node.stat(path)["owner"] == node.status()["node"]


def owned_directories(nodes, here):
    """Path -> node: a directory a node that it owns, or does not own; of those that have one."""
    where = "owned by" if here else "not owned by"
    slots = [node.status()["slots"]["owned"] for node in nodes]
    result = {}
    for node, owned in zip(nodes, slots):
        if (owned if here else sum(slots) - owned) == 0:
            continue
        for attempt in range(DIRECTORIES_TRIED):
            path = pathlib.Path(node.mnt, f"{where} {node.name} {attempt}")
            path.mkdir()
            if owns(node, path) == here:
                result[path] = node
                break
            path.rmdir()
        else:
            raise BenchError(f"none of {DIRECTORIES_TRIED} directories is {where} node {node.name}")
    return result
