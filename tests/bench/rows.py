"""The rows of the benchmark, their targets and their sizes."""

import dataclasses
import fnmatch


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table. Targets are the least ratio to reach, None where there is none."""

    name: str
    unit: str
    fio: tuple = ()  # (rw, block size, direct); empty for metadata rows.
    of_null: float | None = None
    of_native: float | None = None
    stores: tuple = ("tmpfs", "ext4")  # Where the targets hold.
    after: str | None = None  # The row that leaves behind what this one needs.


def _data_row(name, unit, rw, block, direct):
    # of_native holds where the null daemon reaches it itself: see verdicts().
    return Row(name, unit, (rw, block, direct), of_null=0.97, of_native=0.9)


def _meta_row(name, after=None, of_null=None, of_native=None, stores=("tmpfs",)):
    return Row(name, "op/s", of_null=of_null, of_native=of_native, stores=stores, after=after)


ROWS = (
    _meta_row("create", of_null=0.6),
    _meta_row("stat_cold", "create", of_null=0.7),
    _meta_row("stat_warm", "create", of_native=0.9, stores=("tmpfs", "ext4")),
    _meta_row("open_read", "create", of_null=0.8),
    _meta_row("readdir_cold", "create"),
    _meta_row("readdir_warm", "create", of_null=0.8, stores=("tmpfs", "ext4")),
    _meta_row("rename", "create", of_null=0.6),
    _meta_row("unlink", "rename", of_null=0.6),
    _meta_row("mkdir", of_null=0.6),
    _meta_row("rmdir", "mkdir"),
    _data_row("seq_write_1m", "MB/s", "write", "1M", False),
    _data_row("seq_read_1m", "MB/s", "read", "1M", False),
    _data_row("rand_read_4k", "op/s", "randread", "4k", False),
    _data_row("rand_write_4k", "op/s", "randwrite", "4k", False),
    _data_row("direct_seq_write_1m", "MB/s", "write", "1M", True),
    _data_row("direct_seq_read_1m", "MB/s", "read", "1M", True),
    _data_row("direct_rand_read_4k", "op/s", "randread", "4k", True),
    _data_row("direct_rand_write_4k", "op/s", "randwrite", "4k", True),
)


@dataclasses.dataclass(frozen=True)
class ClusterRow:
    """One line of the cluster's table. The ceiling is the least of `bounds` in the same round."""

    name: str
    unit: str
    part: str  # What of cluster_part.py measures it.
    bounds: tuple  # "raw": raw TCP over the same link; "null": the null daemon; "alone": cfs alone.
    target: float | None = None  # The least ratio to the ceiling.
    fio: tuple = ()
    jobs: int = 1  # Processes of fio, or nodes that work at once.
    rate: str | None = None  # What the link is limited to.
    here: bool = False  # Metadata: is the owner the node that works?
    after: str | None = None


TRANSPORT_ROWS = tuple(
    ClusterRow(name, unit, "transport", ("raw",), target)
    for name, unit, target in (
        ("round_trip_64b", "1/s", 0.67),  # 1.5 times as long.
        ("round_trip_64b_one_cpu", "1/s", 0.67),
        ("transport_read_64k", "GB/s", None),
        ("transport_read_1m", "GB/s", None),
    )
)
LINK_RATE, LINK_BYTES_PER_S = "2gbit", 250e6
REMOTE_ROWS = tuple(
    ClusterRow(f"remote_{name}{suffix}", unit, "remote", bounds, target, (*fio, False), jobs, rate)
    for rate, suffix, bounds, target in ((LINK_RATE, f"_{LINK_RATE}", ("raw",), 0.9),
                                         (None, "", ("raw", "null"), 0.8))
    for name, unit, fio, jobs in (
        ("seq_write_1m", "MB/s", ("write", "1M"), 1),
        ("seq_read_1m", "MB/s", ("read", "1M"), 1),
        ("rand_read_4k", "op/s", ("randread", "4k"), 1),
        ("rand_write_4k", "op/s", ("randwrite", "4k"), 1),
        ("rand_read_4k_x4", "op/s", ("randread", "4k"), 4),
        ("rand_write_4k_x4", "op/s", ("randwrite", "4k"), 4),
    )
)
OWNER_ROWS = tuple(
    ClusterRow(f"{name}_{where}_{nodes}", "op/s", "metadata", bounds, here=where == "here",
               jobs=nodes, after=after and f"{after}_{where}_{nodes}")
    for where, bounds in (("here", ("null",)), ("there", ("raw", "null")))
    for nodes in (1, 2, 4)
    for name, after in (("create", None), ("stat_cold", "create"), ("rename", "create"),
                        ("unlink", "rename"))
)
LOCAL_ROWS = tuple(
    ClusterRow(f"local_{name}", unit, "local", ("alone",), 0.97, (*fio, False))
    for name, unit, fio in (
        ("seq_write_1m", "MB/s", ("write", "1M")),
        ("seq_read_1m", "MB/s", ("read", "1M")),
        ("rand_read_4k", "op/s", ("randread", "4k")),
        ("rand_write_4k", "op/s", ("randwrite", "4k")),
    )
)
@dataclasses.dataclass(frozen=True)
class BackendRow:
    """One line of the backend's table, beside the same without cfs: see backend_part.py."""

    name: str
    unit: str
    target: float | None = None  # The least ratio.
    after: str | None = None


BACKEND_ROWS = (
    BackendRow("flush_large", "MB/s", 1.0),
    BackendRow("flush_large_cpu", "MB/CPU s", 2.0),
    BackendRow("flush_small", "files/s", 1.5),
    BackendRow("stagein_large", "MB/s", 1.0),
    BackendRow("stagein_large_cpu", "MB/CPU s", 2.0),
    BackendRow("stagein_small", "files/s", 1.5),
    BackendRow("loader_small_first", "files/s"),
    BackendRow("loader_small_later", "files/s"),
    BackendRow("loader_large_first", "files/s"),
    BackendRow("loader_large_later", "files/s", 0.8),
    BackendRow("foreground_write", "1/p99 s", 0.67),  # 1.5 times as long.
)

CLUSTER_ROWS = TRANSPORT_ROWS + REMOTE_ROWS + OWNER_ROWS + LOCAL_ROWS


def select_rows(patterns, rows):
    """The rows that match, with those that they build on, in running order."""
    by_name = {row.name: row for row in rows}
    wanted = set()
    for pattern in patterns:
        names = fnmatch.filter(by_name, pattern)
        if not names:
            raise ValueError(f"no row matches '{pattern}'; rows: {' '.join(by_name)}")
        for name in names:
            while name is not None:
                wanted.add(name)
                name = by_name[name].after
    return [row for row in rows if row.name in wanted]


@dataclasses.dataclass
class Sizes:
    files: int
    cluster_files: int  # A node, in the metadata rows of a cluster.
    round_trips: int  # Of the transport, a round.
    file_mib: int
    runtime_s: float
    rounds: int
    local_times: int  # As many rounds of local rows of clusters: the difference is small.
    # A round that is thrown away: a virtual machine pays for memory when it first touches it.
    warm_up: bool
    # Wait between measurements until no daemon is busy.
    settle: bool
    large_mib: int  # Of the backend's rows.
    small_files: int


FULL = Sizes(files=20000, cluster_files=2000, round_trips=3000, file_mib=512, runtime_s=0.7,
             rounds=5, local_times=3, warm_up=True, settle=True,
             large_mib=1024, small_files=20000)
QUICK = Sizes(files=4000, cluster_files=500, round_trips=1000, file_mib=64, runtime_s=0.2, rounds=3,
              local_times=3, warm_up=False, settle=True, large_mib=128, small_files=2000)
SMOKE = Sizes(files=50, cluster_files=20, round_trips=20, file_mib=4, runtime_s=0.1, rounds=1,
              local_times=1, warm_up=False, settle=False, large_mib=20, small_files=40)
