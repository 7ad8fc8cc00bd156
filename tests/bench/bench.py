#!/usr/bin/env python3
"""Benchmark of cfs against its ceiling and its floor, interleaved in one run.

Contenders: cfs; native, the bare file system under the store; null, the null daemon that is built
next to this script: the ceiling of what any FUSE file system can reach here. cfs and null run with
requests over /dev/fuse ("dev") and over FUSE-over-io_uring ("uring"). Every row of every round runs
on all contenders back to back, in random order; ratios are taken within a round, and what is
printed is the median of the rounds with minimum and maximum. The second part does the same with
nodes of a cluster, in network namespaces on this machine (cluster_part.py).

Needs root (mount, passthrough, drop_caches, namespaces), /dev/fuse and fio.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import time

from contenders import (
    BenchError,
    Cfs,
    Native,
    Null,
    choose_transports,
    file_system_type,
    run,
    settle,
    store_directory,
    uring_enabled,
)
from backend_part import BackendPart
from cluster_part import ClusterPart
from loads import prepare_data, run_fio
from report import (
    analyse,
    analyse_backend,
    analyse_cluster,
    print_verdicts,
    report,
    report_backend,
    report_cluster,
)
from rows import BACKEND_ROWS, CLUSTER_ROWS, FULL, QUICK, ROWS, SMOKE, select_rows

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


class Bench:
    def __init__(self, options, sizes, rows):
        self.options = options
        self.sizes = sizes
        self.rows = rows
        self.meta_bench = options.build / "meta_bench"
        self.random = random.Random(1)

    def contenders(self):
        names = self.options.contenders
        result = [Native()] if "native" in names else []
        for transport in self.options.transport:
            if "null" in names:
                binary = self.options.build / "null_daemon"
                result.append(Null(transport, binary, self.sizes.files))
            if "cfs" in names:
                result.append(Cfs(transport, self.options.cfs))
        return result

    def measure_store(self, store):
        """All rounds on one store: {"rows": {row: {contender: [value of each round]}}, ...}."""
        values = {row.name: {} for row in self.rows}
        passed_through = {}
        with contextlib.ExitStack() as stack:
            base = stack.enter_context(store_directory(store, self.options.disk_dir))
            contenders = self.contenders()
            for contender in contenders:
                stack.callback(contender.stop)
                contender.start(base)
            kind = file_system_type(base)
            for number in range(0 if self.sizes.warm_up else 1, self.sizes.rounds + 1):
                progress(f"{store}: round {number} of {self.sizes.rounds}")
                for row, contender, value in self.one_round(contenders):
                    if number > 0:
                        values[row.name].setdefault(contender.name, []).append(value)
            for contender in contenders:
                count = contender.daemon_bytes()
                if count is not None:
                    passed_through[contender.name] = count
        progress("")
        return {"file_system": kind, "rows": values, "bytes_through_daemon": passed_through}

    def one_round(self, contenders):
        for row in self.rows:
            for contender in self.random.sample(contenders, len(contenders)):
                self.prepare(row, contender)
                if self.sizes.settle:
                    settle(contenders)
                yield row, contender, self.measure(row, contender)
        for contender in contenders:
            # Is there if the rows that empty it were not asked for.
            shutil.rmtree(contender.directory / "meta", ignore_errors=True)

    def prepare(self, row, contender):
        """What the row needs and does not measure."""
        if row.fio:
            prepare_data(row.fio, contender, self.sizes)
        else:
            (contender.directory / "meta").mkdir(exist_ok=True)

    def measure(self, row, contender):
        try:
            if row.fio:
                value = run_fio(row.fio, contender, self.sizes, row.unit)
            else:
                value = self.metadata(row, contender)
        except BenchError as error:
            raise BenchError(f"{row.name} on {contender.name}: {error}") from error
        if value <= 0:
            raise BenchError(f"{row.name} on {contender.name}: nothing was done")
        return value

    def metadata(self, row, contender):
        directory = contender.directory / "meta"
        output = run(
            [self.meta_bench, "--dir", directory, "--row", row.name, "--files", self.sizes.files]
        )
        if row.name in ("unlink", "rmdir"):
            directory.rmdir()  # A directory that kept something fails here.
        return json.loads(output)["per_second"]


def commit():
    git = ["git", "-C", str(REPOSITORY)]
    try:
        name = run([*git, "rev-parse", "--short", "HEAD"]).strip()
        return name + ("-dirty" if run([*git, "status", "--porcelain"]).strip() else "")
    except BenchError:
        return "unknown"


def progress(text):
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def parse_arguments():
    def listed(*allowed):
        def parse(text):
            words = text.split(",")
            for word in words:
                if word not in allowed:
                    raise argparse.ArgumentTypeError(f"'{word}' is none of {', '.join(allowed)}")
            return words
        return parse

    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="small sizes, under 4 minutes")
    size.add_argument("--smoke", action="store_true", help="tiny sizes: does it run at all?")
    parts = ["node", "backend", "cluster"]
    parser.add_argument("--parts", type=listed(*parts), default=parts, metavar="LIST",
                        help="node (one node), backend (flush, stage-in), cluster (several)")
    parser.add_argument("--contenders", type=listed("cfs", "native", "null"),
                        default=["cfs", "native", "null"], metavar="LIST",
                        help="of one node; a cluster is measured beside all of its bounds")
    parser.add_argument("--store", type=listed("tmpfs", "ext4"), default=["tmpfs", "ext4"],
                        metavar="LIST", help="tmpfs, ext4 (a directory on the disk)")
    parser.add_argument("--transport", type=listed("dev", "uring"), metavar="LIST",
                        help="dev (/dev/fuse), uring (FUSE-over-io_uring); default: what works")
    parser.add_argument("--rows", type=lambda text: text.split(","), default=["*"],
                        metavar="LIST", help="names or patterns, e.g. stat_*,create")
    parser.add_argument("--rounds", type=int, metavar="N")
    parser.add_argument("--files", type=int, metavar="N",
                        help="files in the metadata rows of one node")
    parser.add_argument("--pin", action="store_true",
                        help="all on one CPU at real-time priority: repeatable on a busy machine, "
                        "but blind to what the scheduler costs")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all values here")
    parser.add_argument("--build", type=pathlib.Path, metavar="DIR",
                        default=REPOSITORY / "build/meson/tests/bench",
                        help="where null_daemon, meta_bench and net_bench are")
    parser.add_argument("--cfs", type=pathlib.Path, metavar="BINARY",
                        default=pathlib.Path(os.environ.get("CFS", REPOSITORY / "build/cfs")))
    parser.add_argument("--disk-dir", type=pathlib.Path, default=pathlib.Path("/var/tmp"),
                        metavar="DIR", help="where the ext4 store is made (default: %(default)s)")
    return parser.parse_args()


def check_prerequisites(options):
    """Returns why this machine can't run the benchmark; raises for what the user can mend."""
    if os.geteuid() != 0:
        return "needs root"
    if not os.path.exists("/dev/fuse"):
        return "needs /dev/fuse"
    if options.parts == ["backend"]:
        needed = []
    else:
        needed = [options.build / "meta_bench"]
    if needed and ("null" in options.contenders or "cluster" in options.parts):
        needed.append(options.build / "null_daemon")
    if "cfs" in options.contenders or {"backend", "cluster"} & set(options.parts):
        needed.append(options.cfs)
    if "cluster" in options.parts:
        needed.append(options.build / "net_bench")
    for binary in needed:
        if not (binary.is_file() and os.access(binary, os.X_OK)):
            raise BenchError(f"{binary} is missing: build first, or see --contenders")
    return None


def measure(options, sizes, rows):
    load_before = os.getloadavg()
    started = time.monotonic()
    node_rows = [row for row in rows if row in ROWS]
    backend_rows = [row for row in rows if row in BACKEND_ROWS]
    cluster_rows = [row for row in rows if row in CLUSTER_ROWS]
    bench = Bench(options, sizes, node_rows)
    results = {
        "commit": commit(),
        "kernel": os.uname().release,
        "cpus": os.cpu_count(),
        "sizes": dataclasses.asdict(sizes),
        "pinned": options.pin,
        "transports": options.transport,
        "stores": {},
    }
    if node_rows:
        with uring_enabled("uring" in options.transport):
            for store in options.store:
                results["stores"][store] = bench.measure_store(store)
    for store, result in results["stores"].items():
        result["ratios"] = {
            transport: {
                row.name: analyse(row, store, result["rows"][row.name], transport)
                for row in node_rows
            }
            for transport in options.transport
        }
    if backend_rows:
        results["backend"] = measure_backend(options, sizes, backend_rows)
    if cluster_rows:
        results["cluster"] = measure_cluster(options, sizes, cluster_rows)
    results["load"] = {"before": load_before, "after": os.getloadavg()}
    results["seconds"] = round(time.monotonic() - started)
    return results


def measure_backend(options, sizes, rows):
    result = BackendPart(options, sizes, rows, progress).measure()
    result["ratios"] = {row.name: analyse_backend(row, result["rows"][row.name]) for row in rows}
    for name, found in result["ratios"].items():
        if not found:
            raise BenchError(f"{name} is missing")
    return result


def measure_cluster(options, sizes, rows):
    result = ClusterPart(options, sizes, rows, progress).measure()
    if "skipped" not in result:
        due = [row for row in rows if row.name not in result["absent"]]
        result["ratios"] = {row.name: analyse_cluster(row, result["rows"][row.name]) for row in due}
        for name, found in result["ratios"].items():
            if not found:
                raise BenchError(f"{name} is missing")
    return result


def main():
    options = parse_arguments()
    sizes = SMOKE if options.smoke else QUICK if options.quick else FULL
    sizes = dataclasses.replace(
        sizes, rounds=options.rounds or sizes.rounds, files=options.files or sizes.files
    )
    if options.pin:
        # Inherited by daemons and loads.
        os.sched_setaffinity(0, {0})
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    # So that a run that is ended unmounts too.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, lambda caught, _: sys.exit(128 + caught))
    try:
        rows = select_rows(options.rows, [*(ROWS if "node" in options.parts else ()),
                                          *(BACKEND_ROWS if "backend" in options.parts else ()),
                                          *(CLUSTER_ROWS if "cluster" in options.parts else ())])
        reason = check_prerequisites(options)
        if reason:
            print(f"skip bench: {reason}")
            return 77
        options.transport = choose_transports(options.transport)
        results = measure(options, sizes, rows)
    except (BenchError, OSError, ValueError) as error:
        print(f"FAIL bench: {error}" if options.smoke else f"bench: {error}")
        return 1
    load = results["load"]
    print(f"cfs benchmark: commit {results['commit']}, kernel {results['kernel']}, "
          f"{results['cpus']} CPUs, load {load['before'][0]:.2f} before, {load['after'][0]:.2f} "
          f"after, {sizes.rounds} rounds, {sizes.files} files, {sizes.file_mib} MiB, "
          f"{results['seconds']} s{', pinned to one CPU' if options.pin else ''}")
    if load["before"][0] > 1 and not (options.smoke or options.pin):
        print("warning: the machine was not idle before the run: ratios of short rows mean little")
    verdicts = report(results, [row for row in rows if row in ROWS])
    if "backend" in results:
        verdicts += report_backend(results["backend"], [row for row in rows if row in BACKEND_ROWS])
    cluster = results.get("cluster", {})
    if "ratios" in cluster:
        verdicts += report_cluster(cluster, [row for row in rows if row in CLUSTER_ROWS])
    elif cluster:
        print(f"\nskip bench_cluster: {cluster['skipped']}")
    print_verdicts(verdicts)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.smoke:
        print("ok bench")
        if "ratios" in cluster:
            print("ok bench_cluster")
    return 0


if __name__ == "__main__":
    sys.exit(main())
