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


def select_rows(patterns):
    """The rows that match, with those that they build on, in running order."""
    by_name = {row.name: row for row in ROWS}
    wanted = set()
    for pattern in patterns:
        names = fnmatch.filter(by_name, pattern)
        if not names:
            raise ValueError(f"no row matches '{pattern}'; rows: {' '.join(by_name)}")
        for name in names:
            while name is not None:
                wanted.add(name)
                name = by_name[name].after
    return [row for row in ROWS if row.name in wanted]


@dataclasses.dataclass
class Sizes:
    files: int
    file_mib: int
    runtime_s: float
    rounds: int
    # A round that is thrown away: a virtual machine pays for memory when it first touches it.
    warm_up: bool
    # Wait between measurements until no daemon is busy.
    settle: bool


FULL = Sizes(files=20000, file_mib=512, runtime_s=0.7, rounds=5, warm_up=True, settle=True)
QUICK = Sizes(files=4000, file_mib=64, runtime_s=0.2, rounds=3, warm_up=False, settle=True)
SMOKE = Sizes(files=50, file_mib=4, runtime_s=0.1, rounds=1, warm_up=False, settle=False)
