"""rsync, tar and cp of a tree with everything in it; find, du, diff and mv on it."""

import os
from pathlib import Path

from sites import Site, check, program_case
from trees import compare, make_content, make_odd_tree, make_tree, manifest

ODD = ("setfacl", "setcap")  # What making the odd tree needs.
# Without the window rsync compares times by the second only.
RSYNC = ("rsync", "-aHAX", "--modify-window=-1")
TAR = ("tar", "--acls", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--format=posix")


def odd_source(site: Site) -> tuple[Path, dict]:
    source = site.outside / "source"
    make_odd_tree(source, site.rng)
    return source, manifest(source)


def check_rsync_agrees(site: Site, source: Path, target: Path) -> None:
    output = site.run(*RSYNC, "-n", "--checksum", "--delete", "--itemize-changes", f"{source}/",
                      f"{target}/")
    check(not output, f"rsync sees differences: {output[:300]!r}")


@program_case(needs=("rsync", *ODD))
def rsync(site: Site) -> None:
    source, expected = odd_source(site)
    target, back = site.dir / "target", site.outside / "back"
    site.run(*RSYNC, "--sparse", f"{source}/", f"{target}/")
    compare(expected, manifest(target), "rsync to the mount")
    check_rsync_agrees(site, source, target)
    site.remount()
    compare(expected, manifest(target), "after a remount")
    site.run(*RSYNC, "--sparse", f"{target}/", f"{back}/")
    compare(expected, manifest(back), "rsync from the mount")

    # A second run that updates, in place and by replacement, and deletes.
    for number, path in enumerate(sorted((source / "plain").rglob("f*"))):
        if number % 3 == 0 and path.stat().st_nlink == 1:
            path.unlink() if number % 2 else path.write_bytes(make_content(site.rng))
    expected = manifest(source)
    for options in ("--delete",), ("--inplace", "--no-whole-file"), ("--ignore-times", "--append"):
        site.run(*RSYNC, *options, f"{source}/", f"{target}/")
    compare(expected, manifest(target), "rsync of the changes")
    check_rsync_agrees(site, source, target)


@program_case(needs=("rsync",))
def rsync_many_files(site: Site) -> None:
    source = site.outside / "source"
    make_tree(source, site.rng, site.pick(2000, 20_000))
    expected = manifest(source)
    site.run(*RSYNC, f"{source}/", f"{site.dir}/target/")
    compare(expected, manifest(site.dir / "target"), "rsync to the mount")
    check_rsync_agrees(site, source, site.dir / "target")
    # Within the mount; unchanged files become hard links.
    site.run(*RSYNC, f"--link-dest={site.dir}/target", f"{source}/", f"{site.dir}/snapshot/")
    for path in source.rglob("f*"):
        name = path.relative_to(source)
        check((site.dir / "target" / name).samefile(site.dir / "snapshot" / name),
              f"{name} is no hard link")


@program_case(needs=("tar", *ODD))
def tar(site: Site) -> None:
    source, _ = odd_source(site)
    # tar leaves sockets out, and hard links of what is no file.
    (source / "special" / "socket").unlink()
    (source / "links" / "fifo-too").unlink()
    expected = manifest(source)
    archive = site.outside / "in.tar"
    target, back = site.dir / "target", site.outside / "back"
    target.mkdir()
    back.mkdir()
    site.run(*TAR, "--sparse", "-cf", archive, "-C", source, ".")
    site.run(*TAR, "-xpf", archive, "-C", target)
    compare(expected, manifest(target), "tar to the mount")
    site.run(*TAR, "--compare", "-f", archive, "-C", target)
    # And the archive itself on the mount.
    site.run(*TAR, "--sparse", "-czf", site.dir / "out.tgz", "-C", target, ".")
    site.run(*TAR, "-xpf", site.dir / "out.tgz", "-C", back)
    compare(expected, manifest(back), "tar from the mount")


@program_case(needs=ODD)
def cp(site: Site) -> None:
    source, expected = odd_source(site)
    first, second = site.dir / "first", site.dir / "second"
    site.run("cp", "-a", "--sparse=always", source, first)
    compare(expected, manifest(first), "cp -a to the mount")
    site.run("cp", "-a", "--reflink=auto", first, second)
    compare(expected, manifest(second), "cp -a within the mount")
    site.run("cp", "-a", second, site.outside / "back")
    compare(expected, manifest(site.outside / "back"), "cp -a from the mount")
    site.run("cp", "-al", first, site.dir / "linked")
    # diff takes no special file; they have been compared above.
    for tree in first, second:
        site.run("rm", "-r", tree / "special", tree / "links", tree / "sparse")
    site.run("diff", "-r", "--no-dereference", first, second)
    (second / "modes" / "777").write_text("node")
    output = site.run("diff", "-rq", "--no-dereference", first, second, expect=1)
    check(output.count("\n") == 1 and "777" in output, f"diff found {output[:200]!r}")


@program_case(needs=ODD)
def mv(site: Site) -> None:
    source, _ = odd_source(site)
    here, there = site.dir / "here", site.dir / "there"
    there.mkdir()
    site.run("mv", source, here)  # Between file systems: a copy, then a removal.
    check(not source.exists(), "mv left the source")
    expected = manifest(here)
    inodes = {path.relative_to(here): path.lstat().st_ino for path in here.rglob("*")}
    site.run("mv", here, there / "moved")  # Within one: a rename.
    moved = there / "moved"
    compare(expected, manifest(moved), "mv within the mount")
    check(inodes == {path.relative_to(moved): path.lstat().st_ino for path in moved.rglob("*")},
          "inode numbers changed")
    for entry in sorted(moved.iterdir()):
        site.run("mv", "-t", site.dir, entry)
    check(not list(moved.iterdir()), "the old directory is not empty")
    site.run("rmdir", moved, there)
    after = manifest(site.dir)
    for entries in expected, after:
        del entries[b"."]  # Another directory now.
    compare(expected, after, "mv of each entry")


@program_case()
def find_and_du(site: Site) -> None:
    tree = site.dir / "tree"
    files = make_tree(tree, site.rng, site.pick(2000, 20_000))
    for path in files[::50]:
        os.utime(path, (10**9, 10**9))
    for path in files[::70]:
        path.chmod(0o751)
    directories = [tree, *(path for path in tree.rglob("d*") if path.is_dir())]

    def found(*tests) -> set[Path]:
        return {Path(name) for name in site.run("find", tree, *tests, "-print0").split("\0")[:-1]}

    check(found() == {*files, *directories}, "find sees other files")
    check(found("-type", "d") == set(directories), "find -type d")
    check(found("!", "-newermt", "2002-01-01") == set(files[::50]), "find -newermt")
    check(found("-type", "f", "-perm", "751") == set(files[::70]), "find -perm")
    check(found("-name", "*.c") == {path for path in files if path.suffix == ".c"}, "find -name")
    large = {path for path in files if path.stat().st_size > 20_000}
    check(found("-type", "f", "-size", "+20000c") == large, "find -size")
    # GNU find and du trust nlink of a directory for the number of its subdirectories.
    for directory in directories:
        subdirectories = sum(entry.is_dir() for entry in os.scandir(directory))
        check(directory.stat().st_nlink in (1, 2 + subdirectories), f"nlink of {directory}")

    total = sum(path.lstat().st_size for path in files + directories)
    output = site.run("du", "--apparent-size", "-sb", tree)
    check(int(output.split()[0]) == total, f"du -b says {output!r}, not {total}")
    used = sum(path.lstat().st_blocks for path in files + directories) // 2
    output = site.run("du", "-sk", tree)
    check(abs(int(output.split()[0]) - used) <= 1, f"du says {output!r}, not {used}")
    site.run("find", tree, "-type", "f", "-name", "*.h", "-delete")
    check(not found("-name", "*.h"), "find -delete left files")
    site.run("rm", "-r", tree)
    check(not tree.exists(), "rm -r left the tree")
