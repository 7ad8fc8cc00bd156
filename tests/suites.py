"""The test suites, as data: what tests/run runs in which build, in which mode, how long.

Unit tests are not listed here: they are those that meson knows as tests.
"""

import dataclasses

# A variant is a build: where make puts it, and by how much it is slower.
VARIANTS = {"plain": ("build", 1), "asan": ("build-asan", 3), "tsan": ("build-tsan", 5)}

# What --mode says to the suites that mount (tests/mount/harness.py knows the options).
MODES = ("passthrough", "daemon-io", "uring", "uring-daemon-io", "locks-daemon")
NO_MODE = ("",)
EVERYWHERE = {variant: MODES for variant in VARIANTS}


@dataclasses.dataclass(frozen=True)
class Suite:
    """One program that prints `ok NAME`, `FAIL NAME: reason` or `skip NAME: reason` a case."""

    name: str
    command: tuple  # The first word is relative to the repository; {build}: meson's directory.
    short: dict  # Variant -> modes in which `make test` runs it.
    long: dict  # The same for `make test-long`.
    timeout: int  # Seconds in a short run of the plain build.
    long_timeout: int
    short_args: tuple = ()
    long_args: tuple = ()
    shortened: str = ""  # What the short run does less of.


UNIT_TIMEOUT = 60

SUITES = (
    Suite("tidy", ("tests/tidy.py",),
          short={"plain": NO_MODE}, long={"plain": NO_MODE},
          timeout=60, long_timeout=900, long_args=("--headers",),
          shortened="headers are not compiled alone"),
    Suite("cli", ("tests/cli/cli.py",),
          short={"plain": NO_MODE, "asan": NO_MODE},
          long={variant: NO_MODE for variant in VARIANTS},
          timeout=120, long_timeout=300),
    Suite("man_pages", ("tests/cli/man_pages.py",),
          short={"plain": NO_MODE}, long={"plain": NO_MODE}, timeout=30, long_timeout=30),
    Suite("posix", ("tests/mount/posix_suite.py",),
          short={"plain": MODES, "asan": ("passthrough", "uring-daemon-io"),
                 "tsan": ("daemon-io", "uring")},
          long=EVERYWHERE, timeout=180, long_timeout=900),
    Suite("random_ops", ("tests/mount/random_ops.py",),
          short={"plain": ("passthrough", "uring-daemon-io"), "asan": ("daemon-io",),
                 "tsan": ("passthrough",)},
          long=EVERYWHERE, timeout=120, long_timeout=1800, long_args=("--long",),
          shortened="fewer operations"),
    Suite("fsx", ("tests/mount/fsx.py",),
          short={"plain": ("passthrough", "daemon-io"), "asan": ("uring-daemon-io",),
                 "tsan": ("daemon-io",)},
          long=EVERYWHERE, timeout=120, long_timeout=1800, long_args=("--long",),
          shortened="fewer operations"),
    Suite("writer_rule", ("tests/mount/writer_rule.py",),
          short={"plain": ("passthrough", "daemon-io"), "asan": ("passthrough",)},
          long=EVERYWHERE, timeout=120, long_timeout=300),
    Suite("seam", ("tests/mount/seam.py",),
          short={"plain": ("locks-daemon", "uring"), "tsan": ("locks-daemon",)},
          long=EVERYWHERE, timeout=120, long_timeout=600),
    Suite("limits", ("tests/mount/limits.py",),
          short={"plain": ("passthrough",)}, long={"plain": ("passthrough", "uring")},
          timeout=180, long_timeout=28800, long_args=("--long", "--ten-million"),
          shortened="20,000 files instead of 1 and 10 million"),
    Suite("uring_reply_race", ("{build}/tests/mount/uring_reply_race",),
          short={"plain": NO_MODE, "tsan": NO_MODE}, long={v: NO_MODE for v in VARIANTS},
          timeout=60, long_timeout=300, long_args=("--long",),
          shortened="12 s of 120 s of load"),
    Suite("crash", ("tests/crash/crash.py",),
          short={"plain": ("passthrough",), "asan": ("daemon-io",)},
          long={"plain": MODES, "asan": ("passthrough", "daemon-io"), "tsan": ("passthrough",)},
          timeout=300, long_timeout=7200, long_args=("--long",),
          shortened="20 of 200 crashes"),
    Suite("programs", ("tests/programs/programs.py",),
          short={"plain": ("passthrough",)},
          long={"plain": MODES, "asan": ("passthrough", "daemon-io"), "tsan": ("passthrough",)},
          timeout=420, long_timeout=7200, long_args=("--long",),
          shortened="smaller programs and data"),
    Suite("bench", ("tests/bench/bench.py", "--smoke", "--build", "{build}/tests/bench"),
          short={"plain": NO_MODE}, long={"plain": NO_MODE},
          timeout=120, long_timeout=120),
)

# Reasons to skip a case that say nothing about cfs or the machine: (suite, words of the reason),
# regular expressions. All others are printed loudly.
ALLOWED_SKIPS = (
    ("programs", "not POSIX; cfs has none|marks all mounts|FUSE has no FIEMAP|syncs all file systems"
                 "|fails on ext4 too"),
    ("writer_rule", "without passthrough nobody writes unseen|with passthrough they go on"),
)
