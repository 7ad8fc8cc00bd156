#!/usr/bin/env python3
"""The man pages name the verbs and options that --help shows: all of them and no others."""

import re
import subprocess

import suite
from suite import Skip, case, equal, succeeds

MAN = suite.REPOSITORY / "man"
VERB_PAGES = {"mount": "cfs-mount.8.scd", "fsck": "cfs-fsck.8.scd",
              "doctor": "cfs-doctor.8.scd"}


def options_of_help(verb):
    """As --help shows them, "-o, --options=OPTION[,...]"."""
    return {re.split(r"\s{2,}", line.strip())[0]
            for line in succeeds(verb, "--help").splitlines() if re.match(r" +-", line)}


def options_of_page(text):
    """The terms of option lists: lines that begin with a bold dash."""
    return {line.replace("*", "").replace("_", "")
            for line in text.splitlines() if line.startswith("*-")}


def section(text, heading):
    """What follows a heading, up to the next one of its depth or above."""
    depth = heading.index(" ")
    match = re.search(rf"^{re.escape(heading)}$(.*?)(^#{{1,{depth}}} |\Z)", text, re.M | re.S)
    return match[1] if match else ""


def verbs():
    return re.findall(r"^  (\w+)  ", succeeds("--help"), re.M)


@case
def every_verb_is_described(_):
    page = (MAN / "cfs.1.scd").read_text()
    described = re.findall(r"^## cfs (\w+)$", page, re.M)
    equal(sorted(described), sorted(verbs()), "verbs in cfs.1")
    synopsis = re.findall(r"^\*cfs (\w+)\*", section(page, "# SYNOPSIS"), re.M)
    equal(sorted(synopsis), sorted(verbs()), "verbs in the synopsis of cfs.1")


@case
def options_are_those_of_help(_):
    for verb in verbs():
        if verb in VERB_PAGES:
            text = section((MAN / VERB_PAGES[verb]).read_text(), "# OPTIONS")
        else:
            text = section((MAN / "cfs.1.scd").read_text(), f"## cfs {verb}")
        equal(options_of_page(text), options_of_help(verb), f"options of {verb} in its page")


@case
def pages_are_valid_scdoc(_):
    for page in sorted(MAN.glob("*.scd")):
        try:
            done = subprocess.run(["scdoc"], stdin=page.open("rb"), capture_output=True,
                                  text=True, check=False)
        except FileNotFoundError:
            raise Skip("no scdoc") from None
        equal((done.returncode, done.stderr), (0, ""), f"outcome of scdoc on {page.name}")


if __name__ == "__main__":
    suite.main(__doc__)
