"""What works on a contender: fio, and programs that begin at once."""

import contextlib
import json
import os
import select
import subprocess

from contenders import STEP_TIMEOUT_S, BenchError, run

READY_TIMEOUT_S = 60


def makes_file(fio):
    """Buffered sequential writing fills a new file; the other data rows work on that file."""
    rw, _, direct = fio
    return rw == "write" and not direct


def write_file(path, mib):
    with open(path, "wb", buffering=0) as file:
        for _ in range(mib):
            file.write(bytes(1 << 20))
        os.fsync(file.fileno())


def prepare_data(fio, contender, sizes):
    """What run_fio() with the same arguments needs and does not measure."""
    data = contender.directory / "data"
    if makes_file(fio):
        data.unlink(missing_ok=True)  # Allocation is part of the row.
    elif not data.exists():
        write_file(data, sizes.file_mib)


def run_fio(fio, contender, sizes, unit, jobs=1, overwrite=False):
    """MB/s or operations a second of (rw, block size, direct) on the contender's data file.

    overwrite: the file stays as it is, whatever is written to it.
    """
    rw, block, direct = fio
    command = [
        "fio", "--name=bench", f"--filename={contender.directory / 'data'}", f"--rw={rw}",
        f"--bs={block}", f"--size={sizes.file_mib}M", f"--direct={int(direct)}",
        "--ioengine=psync", "--thread", "--fallocate=none", "--gtod_reduce=1",
        "--clocksource=clock_gettime",  # Else every fio first calibrates the CPU's clock.
        "--randrepeat=1", "--norandommap", f"--numjobs={jobs}", "--group_reporting",
        "--iomem_align=4k",  # Else FUSE splits what is direct: 1 MiB is in 257 pages then.
        # The cache that fio would drop is the FUSE inode's, which passthrough does not use.
        "--invalidate=0", "--output-format=json",
    ]
    if overwrite or not makes_file(fio):
        command += ["--time_based", f"--runtime={int(sizes.runtime_s * 1000)}ms"]
    reads = rw.endswith("read")
    if reads and not direct and not overwrite:
        command.append("--pre_read=1")
    output = run(command)
    job = json.loads(output[output.index("{"):])["jobs"][0]
    if job["error"]:
        raise BenchError(f"fio: {os.strerror(job['error'])}")
    result = job["read" if reads else "write"]
    if not reads:
        # Outside of what was measured, so that its writeback does not meet the next row.
        run(["sync", "-f", contender.base])
    return result["bw_bytes"] / 1e6 if unit == "MB/s" else result["iops"]


@contextlib.contextmanager
def processes(commands):
    """Runs programs with pipes; whatever happens, they have ended after the with block."""
    running = []
    try:
        for command in commands:
            running.append(subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True, bufsize=1))
        yield running
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
            process.communicate()


def first_line(process):
    readable, _, _ = select.select([process.stdout], [], [], READY_TIMEOUT_S)
    line = process.stdout.readline() if readable else ""
    if not line:
        process.kill()
        raise BenchError(f"{process.args[0]} did not start: {last_line(process.communicate()[1])}")
    return line.strip()


def last_line(text):
    return (text.strip().splitlines() or ["no message"])[-1]


def run_together(commands, wait=False):
    """The JSON lines that programs print; with `wait` all have said "ready" before one begins."""
    with processes(commands) as running:
        if wait:
            for process in running:
                if first_line(process) != "ready":
                    raise BenchError(f"{process.args[0]} is not ready")
            for process in running:
                process.stdin.write("\n")
        answers = []
        for process in running:
            try:
                output, errors = process.communicate(timeout=STEP_TIMEOUT_S)
            except subprocess.TimeoutExpired as error:
                raise BenchError(f"{process.args[0]} did not end") from error
            if process.returncode != 0:
                raise BenchError(f"{process.args[0]} failed: {last_line(errors)}")
            answers.append(json.loads(output))
        return answers
