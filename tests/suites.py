"""The test suites, as data: what tests/run runs in which build, in which mode, how long.

Unit tests are not listed here: they are those that meson knows as tests.
"""

import dataclasses

# A variant is a build: where make puts it, and by how much it is slower.
VARIANTS = {"plain": ("build", 1), "asan": ("build-asan", 3), "tsan": ("build-tsan", 5),
            "clang": ("build-clang", 1)}
# Those that have all tests; that of clang has the simulator.
FULL = ("plain", "asan", "tsan")

# What --mode says to the suites that mount (tests/mount/harness.py knows the options).
MODES = ("passthrough", "daemon-io", "uring", "uring-daemon-io", "locks-daemon")
NO_MODE = ("",)
EVERYWHERE = {variant: MODES for variant in FULL}


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
    # Variant -> regular expression of the cases that a short run has of them.
    short_cases: dict = dataclasses.field(default_factory=dict)
    shortened: str = ""  # What the short run does less of.


UNIT_TIMEOUT = 60
# Cases that a build without fault points skips; the others are run in it.
NEED_FAULT_POINTS = "_at_|a_joiner_is_lost|from_a_giver_that_is_lost"

SUITES = (
    Suite("tidy", ("tests/tidy.py",),
          short={"plain": NO_MODE}, long={"plain": NO_MODE},
          timeout=60, long_timeout=900, long_args=("--headers",),
          shortened="headers are not compiled alone"),
    Suite("cli", ("tests/cli/cli.py",),
          short={"plain": NO_MODE, "asan": NO_MODE},
          long={variant: NO_MODE for variant in FULL},
          timeout=120, long_timeout=300),
    Suite("fsck", ("tests/fsck/fsck.py",),
          short={"plain": ("passthrough",), "asan": ("passthrough",)},
          long={variant: ("passthrough",) for variant in FULL},
          timeout=120, long_timeout=300),
    Suite("man_pages", ("tests/cli/man_pages.py",),
          short={"plain": NO_MODE}, long={"plain": NO_MODE}, timeout=30, long_timeout=30),
    Suite("cluster", ("tests/cluster/membership.py",),
          short={"plain": NO_MODE},
          long={variant: NO_MODE for variant in FULL},
          timeout=300, long_timeout=300),
    Suite("posix", ("tests/mount/posix_suite.py",),
          short={"plain": ("passthrough", "daemon-io", "uring-daemon-io", "locks-daemon", "cluster"),
                 "asan": ("passthrough", "uring-daemon-io"), "tsan": ("uring",)},
          long={**EVERYWHERE, "plain": (*MODES, "cluster", "client")},
          timeout=300, long_timeout=900),
    Suite("random_ops", ("tests/mount/random_ops.py",),
          short={"plain": ("passthrough", "uring-daemon-io", "cluster"), "asan": ("daemon-io",),
                 "tsan": ("passthrough",)},
          long={**EVERYWHERE, "plain": (*MODES, "cluster")},
          timeout=120, long_timeout=1800, short_args=("--seed", "1"), long_args=("--long",),
          shortened="fewer operations, of one seed"),
    Suite("fsx", ("tests/mount/fsx.py",),
          short={"plain": ("passthrough", "daemon-io"), "asan": ("uring-daemon-io",),
                 "tsan": ("daemon-io",)},
          long=EVERYWHERE, timeout=120, long_timeout=1800, short_args=("--seed", "1"),
          long_args=("--long",), shortened="fewer operations, of one seed"),
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
          short={"plain": NO_MODE, "tsan": NO_MODE}, long={v: NO_MODE for v in FULL},
          timeout=60, long_timeout=300, long_args=("--long",),
          shortened="12 s of 120 s of load"),
    Suite("coherence", ("tests/cluster/coherence.py",),
          short={"plain": ("passthrough",), "asan": ("passthrough",)},
          long={"plain": ("passthrough", "daemon-io"), "asan": ("passthrough",)},
          timeout=180, long_timeout=1200, long_args=("--long",),
          shortened="a third of the arrangements"),
    # tmpfs cannot be asked whether it would wait.
    Suite("coherence_tmpfs", ("tests/cluster/coherence.py", "--store", "tmpfs"),
          short={"plain": ("passthrough",)}, long={"plain": ("passthrough",)},
          timeout=60, short_args=("--filter", "writes_while_another_waits"),
          long_timeout=1200, shortened="one case"),
    # XFS can, and is: what the network thread does there goes elsewhere on other stores.
    Suite("coherence_xfs", ("tests/cluster/coherence.py", "--store", "loop-xfs"),
          short={"plain": ("passthrough",)}, long={"plain": ("passthrough",)},
          timeout=120, short_args=("--filter", "writes|pieces|appends"),
          long_timeout=1200, shortened="cases that write and read data"),
    Suite("failures", ("tests/cluster/failures.py",),
          short={"plain": ("passthrough",)}, long={"plain": ("passthrough",)},
          timeout=300, long_timeout=900, long_args=("--long",),
          shortened="fewer kinds of cuts and power loss"),
    # With planted bugs, each of which must be found.
    Suite("simulator", ("{build}/tests/simulator/simulator",),
          short={"clang": NO_MODE}, long={"clang": NO_MODE, "asan": NO_MODE},
          timeout=600, long_timeout=3600,
          # Whole nodes fail with seed 884, which is open.
          short_args=("--seeds", "1000", "--whole-seeds", "800"),
          long_args=("--seeds", "20000", "--whole-seeds", "3000"),
          shortened="1,000 of 20,000 seeds, of whole nodes 800 of 3,000"),
    Suite("hand_over", ("tests/cluster/hand_over.py",),
          short={"plain": ("passthrough",), "asan": ("passthrough",)},
          long={"plain": ("passthrough", "daemon-io"), "asan": ("passthrough",)},
          timeout=240, long_timeout=900, long_args=("--long",),
          short_cases={"asan": NEED_FAULT_POINTS},
          shortened="power is lost at four of the fourteen points"),
    Suite("placement", ("tests/cluster/placement.py",),
          short={"plain": ("passthrough",)},
          long={"plain": ("passthrough", "daemon-io"), "asan": ("passthrough",)},
          timeout=120, long_timeout=300),
    Suite("remove_lost", ("tests/cluster/remove_lost.py",),
          short={"plain": ("passthrough",), "asan": ("passthrough",)},
          long={"plain": ("passthrough", "daemon-io"), "asan": ("passthrough",)},
          timeout=480, long_timeout=900,
          short_cases={
              "asan": f"^(?!survivor|coordinator_lost_at_(decided$|told)).*({NEED_FAULT_POINTS})"}),
    Suite("backend_readonly", ("tests/tier/readonly.py",),
          short={"plain": ("passthrough",), "asan": ("passthrough",), "tsan": ("daemon-io",)},
          long=EVERYWHERE, timeout=180, long_timeout=900,
          short_cases={"asan": "killed|all_is_as|has_changed|new_content",
                       "tsan": "what_many|evicted|stagein|large_directory"}),
    Suite("backend_writeback", ("tests/tier/writeback.py",),
          short={"plain": ("passthrough",), "asan": ("passthrough",), "tsan": ("daemon-io",)},
          long=EVERYWHERE, timeout=420, long_timeout=1800,
          short_cases={"asan": "killed_at_each|killed_at_any_moment_a|changes_of|kept_twice",
                       "tsan": "killed_while|by_itself|wait_for_writers|directories_are_exch"}),
    # Over a FUSE file system, where directories are fsynced, and with the calls of it refused.
    Suite("backend_faults", ("tests/tier/faults.py",),
          short={"plain": ("passthrough",), "asan": ("passthrough",), "tsan": ("daemon-io",)},
          long=EVERYWHERE, timeout=240, long_timeout=1800,
          short_cases={"asan": "data_is_refused_and|answers_are_lost_and|random_faults_b|half_done",
                       "tsan": "everything_hangs|one_in_a_few|killed_while"}),
    Suite("backend_capacity", ("tests/tier/capacity.py",),
          short={"plain": ("passthrough",), "asan": ("passthrough",), "tsan": ("daemon-io",)},
          long=EVERYWHERE, timeout=420, long_timeout=1800,
          short_cases={"asan": "killed_under|read_than_fits|pins_keep",
                       "tsan": "wait_for_the_backend|stage_in"}),
    Suite("backend_refresh", ("tests/tier/refresh.py",),
          short={"plain": ("passthrough",), "asan": ("passthrough",), "tsan": ("daemon-io",)},
          long=EVERYWHERE, timeout=300, long_timeout=1800,
          short_cases={"asan": "names_come|links_are|is_dirty|same_names|killed",
                       "tsan": "names_come|open_files|while_it_is_used"}),
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
          timeout=180, long_timeout=180),
    Suite("fuzz", ("tests/fuzz/fuzz.py", "--build", "build-fuzz/meson"),
          short={"plain": NO_MODE}, long={"plain": NO_MODE},
          timeout=360, long_timeout=2400,
          short_args=("--seconds", "60"), long_args=("--seconds", "600"),
          shortened="a minute for each target instead of ten"),
    Suite("net_bench", ("{build}/tests/bench/net_bench", "--smoke"),
          short={"plain": NO_MODE}, long={"plain": NO_MODE},
          timeout=30, long_timeout=30),
)

# Reasons to skip a case that say nothing about cfs or the machine: (suite, words of the reason),
# regular expressions. All others are printed loudly.
ALLOWED_SKIPS = (
    ("programs", "not POSIX; cfs has none|marks all mounts|FUSE has no FIEMAP|syncs all file systems"
                 "|fails on ext4 too"),
    ("hand_over|backend_writeback", "has no fault points"),
    ("remove_lost", "has no fault points|the root directory's slot went along"),
    ("cluster", "with a sanitizer take too much memory"),
    ("writer_rule", "without passthrough nobody writes unseen|with passthrough they go on"),
)
