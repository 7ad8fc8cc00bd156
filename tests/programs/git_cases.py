"""git: a repository's whole life, and the stat data that its index relies on."""

import os
from pathlib import Path

from sites import Site, check, program_case
from trees import compare, make_content, make_tree, manifest

GIT = ("git", "-c", "gc.autoDetach=false")
IDENTITY = {f"GIT_{who}_{what}": value
            for who in ("AUTHOR", "COMMITTER")
            for what, value in (("NAME", "Test"), ("EMAIL", "test@example.org"))}
IDENTITY |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}


def git(site: Site, repository: Path, *arguments) -> str:
    return site.run(*GIT, "-C", repository, *arguments, env=IDENTITY)


def check_clean(site: Site, repository: Path, when: str) -> None:
    output = git(site, repository, "status", "--porcelain")
    check(not output, f"git status {when}: {output[:200]!r}")


def check_stat_data(site: Site, repository: Path, when: str) -> None:
    """Unlike status, diff-files compares without refreshing the index first:
    an inode number, size or time that changed by itself shows."""
    output = git(site, repository, "diff-files")
    check(not output, f"stat data changed {when}: {output[:200]!r}")


def make_repository(site: Site, file_count: int) -> tuple[Path, dict[str, dict]]:
    """Makes branches main, left, right and merged; returns what each holds."""
    repository = site.dir / "repository"
    files = make_tree(repository, site.rng, file_count)
    git(site, repository, "init", "-q", "-b", "main")
    git(site, repository, "add", "-A")
    git(site, repository, "commit", "-qm", "first")
    content = {"main": manifest(repository, content_only=True)}
    for number, branch in enumerate(("left", "right")):
        git(site, repository, "checkout", "-qb", branch, "main")
        mine = [path for path in files[number::2] if site.rng.random() < 0.2]
        for path in mine:
            action = site.rng.random()
            if action < 0.6:
                path.write_bytes(make_content(site.rng))
            elif action < 0.8:
                path.rename(path.with_name(f"{path.name}-{branch}"))
            else:
                path.unlink()
        git(site, repository, "add", "-A")
        git(site, repository, "commit", "-qm", branch)
        content[branch] = manifest(repository, content_only=True)
    git(site, repository, "checkout", "-qb", "merged", "left")
    # Renames are not followed, so that the two branches never conflict.
    git(site, repository, "merge", "-q", "-X", "no-renames", "-m", "merged", "right")
    content["merged"] = manifest(repository, content_only=True)
    return repository, content


def check_branches(site: Site, repository: Path, content: dict[str, dict]) -> None:
    for branch, expected in content.items():
        git(site, repository, "checkout", "-q", branch)
        check_clean(site, repository, f"on {branch}")
        compare(expected, manifest(repository, content_only=True), f"checkout of {branch}")


@program_case(needs=("git",))
def life(site: Site) -> None:
    repository, content = make_repository(site, site.pick(700, 8000))
    check_branches(site, repository, content)
    git(site, repository, "fsck", "--full", "--strict")
    git(site, repository, "gc", "-q", "--prune=now")
    git(site, repository, "fsck", "--full", "--strict")
    check_clean(site, repository, "after gc")
    check_stat_data(site, repository, "after gc")

    linked, packed = site.dir / "linked", site.dir / "packed.git"
    git(site, site.dir, "clone", "-q", repository, linked)
    check_branches(site, linked, content)
    git(site, site.dir, "clone", "-q", "--bare", "--no-local", repository, packed)
    git(site, packed, "fsck", "--full", "--strict")
    git(site, packed, "worktree", "add", "-q", site.dir / "worktree", "right")
    compare(content["right"], manifest(site.dir / "worktree", content_only=True), "worktree")

    # A push and a fetch between them.
    (linked / "new").write_text("pushed")
    git(site, linked, "add", "new")
    git(site, linked, "commit", "-qm", "new")
    git(site, linked, "push", "-q", packed, "HEAD:refs/heads/new")
    git(site, repository, "fetch", "-q", packed, "new")
    check(git(site, repository, "show", "FETCH_HEAD:new") == "pushed", "fetch brought other bytes")


@program_case(needs=("git",))
def index_outlives_remount(site: Site) -> None:
    repository, content = make_repository(site, site.pick(300, 3000))
    check_clean(site, repository, "before the remount")
    site.remount()
    check_stat_data(site, repository, "by the remount")
    compare(content["merged"], manifest(repository, content_only=True), "after the remount")
    git(site, repository, "fsck", "--full", "--strict")
