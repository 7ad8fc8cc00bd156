#!/usr/bin/env python3
"""Checks of the source tree itself: includes, forgotten files, banned words."""

import argparse
import concurrent.futures
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import suites

REPOSITORY = Path(__file__).resolve().parents[1]
BUILD = Path(os.environ.get("CFS_BUILD", REPOSITORY / "build" / "meson"))
NOT_OURS = re.compile(r"(^|/)(\.git|build|build-[^/]*|subprojects/fuse-[^/]*|"
                      r"subprojects/packagecache|__pycache__)(/|$)")

# What a folder may include: other folders, or single headers of them. main.cc sees all.
MAY_INCLUDE = {
    "base": (),
    "net": ("base",),
    "tier": ("base",),
    "ring": ("base", "net"),
    "meta": ("base", "net", "ring"),
    "server": ("base", "net", "ring", "meta", "tier"),
    "fuse": ("base", "server/file_system.h", "server/control.h", "server/node_config.h"),
    "cli": ("base", "server/cluster_words.h", "server/control.h", "server/file_system.h",
            "server/fsck.h", "server/node_config.h", "server/store_dir.h"),
}
# A library is known to files that begin so: one of them, or one folder.
LIBRARY_USERS = {
    "rocksdb/": "cfs/meta/store_rocksdb",
    "isa-l/": "cfs/base/crc32c.cc",
    "liburing": "cfs/tier/io_uring.cc",
    "ucp/": "cfs/net/transport_ucx",
    "ucs/": "cfs/net/transport_ucx",
    "raft": "cfs/ring/keeper_raft.cc",
    "xxhash.h": "cfs/ring/hash.cc",
    "fuse": "cfs/fuse/",
}
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)
BANNED_WORD = "FIX" + "ME"
# These differ by process, compiler or release: nothing stored or sent may depend on them.
UNSTABLE = re.compile(r"\b(absl::Hash|std::hash|std::shuffle|std::\w+_distribution)\b")

# What cfs/base has types of its own for, and where they are needed.
NOT_DECIDED = re.compile(r"\b(std::(?:thread|mutex|condition_variable|promise)\b|steady_clock::now"
                         r"|absl::Now\b)")
SIMULATED = ("cfs/meta/", "cfs/ring/", "cfs/server/", "cfs/tier/")
NOT_SIMULATED = ("cfs/server/control.",)  # The socket that commands talk to.


def files(*suffixes, under=""):
    """Paths relative to the repository, as text."""
    for directory, names, found in os.walk(REPOSITORY / under):
        relative = Path(directory).relative_to(REPOSITORY)
        names[:] = [n for n in names if not NOT_OURS.search(str(relative / n))]
        yield from (str(relative / f) for f in sorted(found) if f.endswith(suffixes or ("",)))


def text(path):
    return (REPOSITORY / path).read_text(encoding="utf-8", errors="replace")


def introspect(what):
    listing = subprocess.run(["meson", "introspect", what, BUILD],
                             stdout=subprocess.PIPE, check=True)
    return json.loads(listing.stdout)


def folders_include_what_they_may():
    for path in files(".h", ".cc", under="cfs"):
        folder = path.split("/")[1]
        if folder not in MAY_INCLUDE:
            if "/" in path.removeprefix("cfs/"):
                yield f"{path}: no rule for the folder {folder}"
            continue
        for header in INCLUDE.findall(text(path)):
            if not header.startswith("cfs/"):
                continue
            _, other, *_ = header.split("/")
            if other != folder and not {other, header.removeprefix("cfs/")} & set(
                    MAY_INCLUDE[folder]):
                yield f"{path} includes {header}"


def libraries_have_one_user():
    for path in files(".h", ".cc", under="cfs"):
        for header in INCLUDE.findall(text(path)):
            for library, user in LIBRARY_USERS.items():
                if header.startswith(library) and not path.startswith(user):
                    yield f"{path} includes {header}"


def formats_are_stable():
    for path in files(".h", ".cc", under="cfs"):
        if "_format." in path or path.startswith("cfs/ring/"):
            for word in UNSTABLE.findall(text(path)):
                yield f"{path} uses {word}"


def simulated_code_asks_base():
    """What the simulator runs has no threads, locks, time and chance that it does not decide."""
    for path in files(".h", ".cc", under="cfs"):
        if path.startswith(SIMULATED) and not path.startswith(NOT_SIMULATED):
            for word in NOT_DECIDED.findall(text(path)):
                yield f"{path} uses {word}"


def no_banned_words():
    for path in files():
        if BANNED_WORD in text(path):
            yield f"{path} says {BANNED_WORD}"


def names_source(meson_build, path):
    name = Path(path).stem.removesuffix("_fuzz")
    return re.search(rf"'{name}(\.cc)?'", text(meson_build)) is not None


def sources_are_built():
    built = {source for target in introspect("--targets")
             for group in target["target_sources"] for source in group.get("sources", ())}
    for path in [*files(".cc", under="cfs"), *files(".cc", under="tests")]:
        # Fuzz targets and what needs fault points are in builds of their own.
        folder = os.path.dirname(path)
        if str(REPOSITORY / path) not in built and not (
                folder in ("tests/fuzz", "tests/simulator") and
                names_source(f"{folder}/meson.build", path)):
            yield f"{path} is in no meson.build"


def tests_are_run():
    """Each test program and script is a suite, or something that another test file names."""
    scripts = {path: text(path) for path in files(".py", under="tests")}
    commands = " ".join(word for suite in suites.SUITES for word in suite.command)
    meson_tests = {word for test in introspect("--tests") for word in test["cmd"]}

    def named_elsewhere(path, name):
        return any(re.search(rf"\b{name}\b", body)
                   for other, body in scripts.items() if other != path)

    for path in scripts:
        name = Path(path).stem
        # The modules of a suite are named without the part that all of them share.
        if path not in commands and not any(
                named_elsewhere(path, n) for n in (name, name.removesuffix("_cases"))):
            yield f"{path} is no suite and imported by none"
    for target in introspect("--targets"):
        if target["type"] == "executable" and target["defined_in"].startswith(
                str(REPOSITORY / "tests")):
            program, name = target["filename"][0], target["name"]
            if (program not in meson_tests and f"/{name}" not in commands
                    and not named_elsewhere(None, name)):
                yield f"{name} is built and never run"


def headers_compile_alone():
    compilations = json.loads((BUILD / "compile_commands.json").read_text(encoding="utf-8"))
    ours = [c for c in compilations
            if (Path(c["directory"]) / c["file"]).resolve().is_relative_to(REPOSITORY / "cfs")]

    def compile_alone(path):
        folder = str(Path(path).parent)
        like = next((c for c in ours if f"{folder}/" in c["file"]), ours[0])
        words = shlex.split(like["command"])
        del words[words.index("-o"):]  # And what follows: -c and the source.
        done = subprocess.run([*words, "-fsyntax-only", "-x", "c++", REPOSITORY / path],
                              cwd=like["directory"], capture_output=True, text=True, check=False)
        return f"{path}: {done.stderr.splitlines()[0]}" if done.returncode else None

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from filter(None, pool.map(compile_alone, files(".h", under="cfs")))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--headers", action="store_true",
                        help="also compile each header alone, which takes a while")
    args = parser.parse_args()
    checks = [folders_include_what_they_may, libraries_have_one_user, formats_are_stable,
              simulated_code_asks_base, no_banned_words, sources_are_built, tests_are_run]
    if args.headers:
        checks.append(headers_compile_alone)
    failed = False
    for check in checks:
        faults = list(check())
        print(f"FAIL {check.__name__}: {'; '.join(faults)}" if faults else f"ok {check.__name__}",
              flush=True)
        failed = failed or bool(faults)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
