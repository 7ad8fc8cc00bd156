"""fio with verify=crc32c by every engine: verified by the writer, then after a remount."""

import json
from pathlib import Path

from sites import Site, Skip, add_case, check

JOBS = {
    "buffered_write": "--ioengine=psync --rw=write --bs=128k --end_fsync=1",
    "buffered_randwrite": "--ioengine=psync --rw=randwrite --bs=4k --fsync=256",
    "buffered_randrw": "--ioengine=psync --rw=randrw --bs=16k",
    "dsync_write": "--ioengine=psync --rw=write --bs=64k --sync=dsync",
    "vector_randrw": "--ioengine=pvsync2 --rw=randrw --bs=12k",
    "direct_randwrite": "--ioengine=libaio --iodepth=16 --direct=1 --rw=randwrite --bs=4k",
    "direct_randrw": "--ioengine=libaio --iodepth=16 --direct=1 --rw=randrw --bs=64k",
    "mmap_randwrite": "--ioengine=mmap --rw=randwrite --bs=4k",
    "mmap_randrw": "--ioengine=mmap --rw=randrw --bs=8k",
    "io_uring_randrw": "--ioengine=io_uring --iodepth=16 --rw=randrw --bs=4k",
    "io_uring_direct": "--ioengine=io_uring --iodepth=16 --direct=1 --rw=randwrite --bs=8k",
    "splice_randwrite": "--ioengine=splice --rw=write --bs=64k",
}


def verified(site: Site, options: str) -> None:
    if "io_uring" in options and not io_uring_allowed():
        raise Skip("kernel.io_uring_disabled")
    command = ("fio", "--name=job", f"--directory={site.dir}", *options.split(),
               f"--size={site.pick('12m', '1g')}", "--numjobs=2", "--thread",
               "--verify=crc32c", "--verify_fatal=1", "--fallocate=none",
               f"--randseed={site.rng.getrandbits(31)}", "--output-format=json")
    first = run_fio(site, *command, "--do_verify=1")
    check(first["write"]["io_bytes"] > 0, "fio wrote nothing")
    check(first["read"]["io_bytes"] > 0, "fio verified nothing")
    site.remount()  # What is verified now comes from the store, not from the page cache.
    second = run_fio(site, *command, "--verify_only")
    check(second["read"]["io_bytes"] > 0, "fio verified nothing after the remount")


def run_fio(site: Site, *command) -> dict:
    report = site.run(*command)
    jobs = json.loads(report[report.index("{"):])["jobs"]
    check(len(jobs) == 2 and not any(job["error"] for job in jobs), "a job failed")
    return jobs[0]


def io_uring_allowed() -> bool:
    setting = Path("/proc/sys/kernel/io_uring_disabled")
    return not setting.exists() or setting.read_text().strip() == "0"


for _name, _options in JOBS.items():
    add_case(f"fio.{_name}", verified, _options, needs=("fio",))
