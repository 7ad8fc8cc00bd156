"""rename(2) and renameat2(2) in all their kinds."""

import os
import shutil
import stat
import time
from errno import (EACCES, EBUSY, EEXIST, EFAULT, EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENOENT,
                   ENOTDIR, ENOTEMPTY, EPERM, EXDEV)

from harness import (NOBODY, Child, as_user, case, check, equal, expect, in_child, make,
                     need_root, opened, outcome, read, run_checked, same_as_native)
from syscalls import (BAD_ADDRESS, RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, call,
                      rename2)


def nlink(path):
    return os.lstat(path).st_nlink


def parent_ino(path):
    return os.stat(f"{path}/..").st_ino


@case
def within_directory(t):
    make("a", b"x")
    ino = os.stat("a").st_ino
    os.rename("a", "b")
    expect(ENOENT, os.stat, "a")
    equal((read("b"), os.stat("b").st_ino, os.listdir(".")), (b"x", ino, ["b"]))


@case
def to_other_directory(t):
    os.makedirs("d/e")
    make("a", b"x")
    os.rename("a", "d/e/b")
    equal((read("d/e/b"), os.listdir("."), os.listdir("d/e")), (b"x", ["d"], ["b"]))


@case
def over_existing_file(t):
    make("a", b"new")
    make("b", b"old")
    with opened("b", os.O_RDONLY) as old:
        os.rename("a", "b")
        equal((read("b"), os.pread(old, 3, 0), os.fstat(old).st_nlink), (b"new", b"old", 0))
    equal(os.listdir("."), ["b"])


@case
def over_file_with_links(t):
    make("a", b"new")
    make("b", b"old")
    os.link("b", "c")
    os.rename("a", "b")
    equal((read("b"), read("c"), nlink("c")), (b"new", b"old", 1))


@case
def to_itself(t):
    make("a", b"x")
    os.rename("a", "a")
    os.mkdir("d")
    os.rename("d", "d")
    equal((read("a"), sorted(os.listdir("."))), (b"x", ["a", "d"]))


@case
def to_link_of_same_file(t):
    """POSIX: nothing happens, both names stay."""
    make("a", b"x")
    os.link("a", "b")
    os.rename("a", "b")
    equal((sorted(os.listdir(".")), nlink("a")), (["a", "b"], 2))


@case
def never_missing_in_between(t):
    """Somebody who looks while a name is replaced again and again always finds it."""
    make("f", b"0")

    def look():
        deadline = time.monotonic() + 0.7
        while time.monotonic() < deadline:
            equal(len(read("f")), 1, "length")

    children = [Child(look) for _ in range(2)]
    while any([child.running() for child in children]):
        make("new", b"1")
        os.rename("new", "f")
    for child in children:
        child.result()


@case
def symlink_itself(t):
    os.symlink("target", "s")
    os.rename("s", "r")
    equal(os.readlink("r"), "target")


@case
def over_symlink(t):
    make("f", b"x")
    make("target", b"t")
    os.symlink("target", "s")
    os.rename("f", "s")
    equal((read("s"), read("target")), (b"x", b"t"))
    check(not os.path.islink("s"), "still a symlink")


@case
def special_files(t):
    os.mkfifo("p")
    make("f")
    os.rename("p", "f")
    check(stat.S_ISFIFO(os.stat("f").st_mode), "no fifo")


@case
def directory(t):
    os.makedirs("a/b")
    make("a/b/f", b"x")
    os.rename("a", "c")
    equal(read("c/b/f"), b"x")
    expect(ENOENT, os.stat, "a/b/f")


@case
def directory_to_other_parent(t):
    os.makedirs("p/d")
    os.mkdir("q")
    make("p/d/f", b"x")
    os.rename("p/d", "q/e")
    equal((nlink("p"), nlink("q")), (2, 3), "nlink of the parents")
    equal(parent_ino("q/e"), os.stat("q").st_ino, "'..'")
    equal(read("q/e/f"), b"x")


@case
def directory_over_empty_directory(t):
    os.makedirs("p/d")
    os.makedirs("q/e")
    make("p/d/f", b"x")
    with opened("q/e", os.O_RDONLY) as replaced:
        os.rename("p/d", "q/e")
        equal(os.fstat(replaced).st_nlink, 0, "nlink of the replaced")
    equal((read("q/e/f"), nlink("p"), nlink("q")), (b"x", 2, 3))


@case
def directory_over_itself_in_same_parent_keeps_nlink(t):
    os.makedirs("p/a")
    os.makedirs("p/b")
    os.rename("p/a", "p/b")
    equal(nlink("p"), 3, "nlink")


@case
def directory_over_non_empty_directory(t):
    os.makedirs("a")
    os.makedirs("b/c")
    expect((ENOTEMPTY, EEXIST), os.rename, "a", "b")
    os.rmdir("b/c")
    make("b/f")
    expect((ENOTEMPTY, EEXIST), os.rename, "a", "b")


@case
def directory_over_file(t):
    os.mkdir("d")
    make("f")
    expect(ENOTDIR, os.rename, "d", "f")
    os.symlink("d", "s")
    expect(ENOTDIR, os.rename, "d", "s")


@case
def file_over_directory(t):
    os.mkdir("d")
    make("f")
    expect(EISDIR, os.rename, "f", "d")
    os.symlink("f", "s")
    expect(EISDIR, os.rename, "s", "d")


@case
def into_own_subtree(t):
    os.makedirs("a/b/c")
    expect(EINVAL, os.rename, "a", "a/x")
    expect(EINVAL, os.rename, "a", "a/b/c/x")
    expect(EINVAL, os.rename, "a/b", "a/b/c")


@case
def over_own_ancestor(t):
    os.makedirs("a/b/c")
    expect((ENOTEMPTY, EEXIST), os.rename, "a/b/c", "a/b")
    expect((ENOTEMPTY, EEXIST), os.rename, "a/b/c", "a")
    make("a/b/f")
    expect((ENOTEMPTY, EISDIR), os.rename, "a/b/f", "a/b")


@case
def subtree_check_follows_moves(t):
    os.makedirs("a")
    os.makedirs("b/c")
    os.rename("a", "b/c/a")
    expect(EINVAL, os.rename, "b", "b/c/a/b")
    os.rename("b/c/a", "a")
    os.rename("b", "a/b")
    check(os.path.isdir("a/b/c"), "tree is wrong")


@case
def dot_and_dot_dot(t):
    os.makedirs("d/e")
    for bad in ("d/.", "d/e/.."):
        expect((EBUSY, EINVAL), os.rename, bad, "x")
        expect((EBUSY, EINVAL, ENOTEMPTY, EEXIST), os.rename, "d", bad)


@case
def errors(t):
    make("f")
    os.mkdir("d")
    os.symlink("loop", "loop")
    expect(ENOENT, os.rename, "missing", "x")
    expect(ENOENT, os.rename, "f", "missing/x")
    expect(ENOENT, os.rename, "", "x")
    expect(ENOENT, os.rename, "f", "")
    expect(ENOTDIR, os.rename, "f/x", "y")
    expect(ENOTDIR, os.rename, "d", "f/y")
    expect(ENOTDIR, os.rename, "f/", "y")
    expect(ENOTDIR, os.rename, "f", "y/")
    expect(ELOOP, os.rename, "loop/x", "y")
    expect(ENAMETOOLONG, os.rename, "f", "n" * 256)
    expect(ENAMETOOLONG, os.rename, "n" * 256, "x")
    expect(EFAULT, call, "rename", BAD_ADDRESS, "x")
    expect(EXDEV, os.rename, "f", "/dev/cfs-test-never-made")
    equal(sorted(os.listdir(".")), ["d", "f", "loop"])


@case
def directory_with_trailing_slashes(t):
    os.mkdir("d")
    os.rename("d/", "e/")
    check(os.path.isdir("e"), "not renamed")


@case
def permissions(t):
    os.mkdir("open")
    os.chmod("open", 0o777)
    os.mkdir("closed")
    make("open/f", b"", 0o666)
    make("closed/f", b"", 0o666)
    expect(EACCES, as_user, NOBODY, os.rename, "closed/f", "open/x")
    expect(EACCES, as_user, NOBODY, os.rename, "open/f", "closed/x")
    expect(EACCES, as_user, NOBODY, os.rename, "open/f", "closed/f")
    as_user(NOBODY, os.rename, "open/f", "open/g")


@case
def directory_to_other_parent_needs_write_permission_on_it(t):
    """Because its '..' changes."""
    for name in ("p", "q"):
        os.mkdir(name)
        os.chmod(name, 0o777)
    os.mkdir("p/d")
    expect(EACCES, as_user, NOBODY, os.rename, "p/d", "q/d")
    as_user(NOBODY, os.rename, "p/d", "p/e")


@case
def sticky_source(t):
    for name, mode in (("sticky", 0o1777), ("open", 0o777)):
        os.mkdir(name)
        os.chmod(name, mode)
    make("sticky/root")
    as_user(1000, make, "sticky/mine")
    expect(EPERM, as_user, NOBODY, os.rename, "sticky/root", "open/x")
    expect(EPERM, as_user, NOBODY, os.rename, "sticky/mine", "sticky/x")
    as_user(1000, os.rename, "sticky/mine", "open/x")


@case
def sticky_target(t):
    for name, mode in (("sticky", 0o1777), ("open", 0o777)):
        os.mkdir(name)
        os.chmod(name, mode)
    make("sticky/f")
    as_user(NOBODY, make, "open/f")
    expect(EPERM, as_user, NOBODY, os.rename, "open/f", "sticky/f")
    as_user(NOBODY, os.rename, "open/f", "sticky/g")


@case
def mount_point(t):
    need_root()
    os.makedirs("d/m")
    os.mkdir("empty")

    def run():
        call("unshare", 0x20000)  # CLONE_NEWNS: the bind mount ends with this process.
        run_checked("mount", "--make-rprivate", "/")
        run_checked("mount", "--bind", "d", "d/m")
        expect(EBUSY, os.rename, "d/m", "x")
        expect(EBUSY, os.rename, "empty", "d/m")
        expect(EXDEV, os.rename, "empty", "d/m/x")

    in_child(run)


@case
def times(t):
    os.mkdir("p")
    os.mkdir("q")
    make("p/f")
    os.utime("p/f", ns=(10**9, 10**9))
    before = [os.stat(path) for path in ("p", "q", "p/f")]
    time.sleep(0.02)
    os.rename("p/f", "q/f")
    p, q, f = (os.stat(path) for path in ("p", "q", "q/f"))
    for name, old, new in (("p", before[0], p), ("q", before[1], q)):
        check(new.st_mtime_ns > old.st_mtime_ns, f"mtime of {name} is old")
        check(new.st_ctime_ns > old.st_ctime_ns, f"ctime of {name} is old")
    equal(f.st_mtime_ns, 10**9, "mtime of the file")
    check(f.st_ctime_ns > before[2].st_ctime_ns, "ctime of the file is old")


@case
def replaced_file_gets_new_ctime(t):
    make("a")
    make("b")
    os.link("b", "c")
    before = os.stat("c").st_ctime_ns
    time.sleep(0.02)
    os.rename("a", "b")
    check(os.stat("c").st_ctime_ns > before, "ctime is old")


@case
def names_are_found_afterwards(t):
    """Cached names, also negative ones, follow."""
    for number in range(20):
        expect(ENOENT, os.stat, f"new{number}")
        make(f"old{number}")
        os.rename(f"old{number}", f"new{number}")
        os.stat(f"new{number}")
        expect(ENOENT, os.stat, f"old{number}")


@case
def deep_path_after_moving_an_ancestor(t):
    os.makedirs("a/b/c/d")
    make("a/b/c/d/f", b"x")
    with opened("a/b/c", os.O_RDONLY) as fd:
        os.mkdir("z")
        os.rename("a/b", "z/b")
        equal(read("z/b/c/d/f"), b"x")
        with opened("d/f", os.O_RDONLY, dir_fd=fd) as f:
            equal(os.read(f, 1), b"x")
        equal(os.readlink(f"/proc/self/fd/{fd}"), os.path.abspath("z/b/c"))


@case
def working_directory_moves_along(t):
    here = os.getcwd()
    os.makedirs("a/b")
    os.mkdir("c")
    os.chdir("a/b")
    os.rename(f"{here}/a", f"{here}/c/a")
    equal(os.getcwd(), f"{here}/c/a/b")
    os.chdir("..")
    equal(os.listdir("."), ["b"])
    os.chdir(here)


@case
def long_names(t):
    make("n" * 255, b"x")
    os.rename("n" * 255, "m" * 255)
    equal(read("m" * 255), b"x")


# renameat2


@case
def noreplace(t):
    make("a", b"a")
    make("b", b"b")
    expect(EEXIST, rename2, "a", "b", RENAME_NOREPLACE)
    expect(EEXIST, rename2, "a", "a", RENAME_NOREPLACE)
    equal((read("a"), read("b")), (b"a", b"b"))
    rename2("a", "c", RENAME_NOREPLACE)
    equal((read("c"), sorted(os.listdir("."))), (b"a", ["b", "c"]))


@case
def noreplace_directory_and_dangling_symlink(t):
    os.mkdir("d")
    os.mkdir("e")
    os.symlink("nowhere", "s")
    expect(EEXIST, rename2, "d", "e", RENAME_NOREPLACE)
    expect(EEXIST, rename2, "d", "s", RENAME_NOREPLACE)


@case
def exchange_files(t):
    make("a", b"a")
    make("b", b"b")
    ino = os.stat("a").st_ino
    rename2("a", "b", RENAME_EXCHANGE)
    equal((read("a"), read("b"), os.stat("b").st_ino), (b"b", b"a", ino))


@case
def exchange_directories_of_different_parents(t):
    os.makedirs("p/a/x")
    os.makedirs("q/b")
    make("q/b/f", b"f")
    rename2("p/a", "q/b", RENAME_EXCHANGE)
    equal((os.listdir("p/a"), os.listdir("q/b")), (["f"], ["x"]))
    equal(parent_ino("p/a"), os.stat("p").st_ino, "'..' of p/a")
    equal(parent_ino("q/b"), os.stat("q").st_ino, "'..' of q/b")
    equal((nlink("p"), nlink("q"), nlink("p/a"), nlink("q/b")), (3, 3, 2, 3), "nlink")


@case
def exchange_file_with_directory(t):
    """The directory's old parent loses a link, the new one gets it."""
    os.makedirs("p/d")
    os.mkdir("q")
    make("q/f", b"f")
    rename2("p/d", "q/f", RENAME_EXCHANGE)
    equal((read("p/d"), os.path.isdir("q/f")), (b"f", True))
    equal((nlink("p"), nlink("q")), (2, 3), "nlink")
    equal(parent_ino("q/f"), os.stat("q").st_ino, "'..'")


@case
def exchange_non_empty_directories_with_symlink(t):
    os.makedirs("d/e")
    os.symlink("target", "s")
    rename2("d", "s", RENAME_EXCHANGE)
    equal((os.readlink("d"), os.listdir("s")), ("target", ["e"]))


@case
def exchange_errors(t):
    os.makedirs("a/b/c")
    make("f")
    expect(ENOENT, rename2, "f", "missing", RENAME_EXCHANGE)
    expect(ENOENT, rename2, "missing", "f", RENAME_EXCHANGE)
    expect(EINVAL, rename2, "a", "a/b/c", RENAME_EXCHANGE)
    expect(EINVAL, rename2, "a/b/c", "a", RENAME_EXCHANGE)
    expect(EINVAL, rename2, "f", "a", RENAME_EXCHANGE | RENAME_NOREPLACE)
    expect(EINVAL, rename2, "f", "a", 64)
    equal(os.listdir("a/b"), ["c"])


@case
def exchange_with_itself_and_hard_link(t):
    make("a", b"x")
    os.link("a", "b")
    rename2("a", "a", RENAME_EXCHANGE)
    rename2("a", "b", RENAME_EXCHANGE)
    equal((read("a"), read("b"), nlink("a")), (b"x", b"x", 2))


@case
def exchange_changes_times(t):
    os.mkdir("p")
    os.mkdir("q")
    make("p/a")
    make("q/b")
    before = {path: os.stat(path).st_ctime_ns for path in ("p", "q")}
    inodes = os.stat("p/a").st_ctime_ns, os.stat("q/b").st_ctime_ns
    time.sleep(0.02)
    rename2("p/a", "q/b", RENAME_EXCHANGE)
    for path, old in before.items():
        check(os.stat(path).st_ctime_ns > old, f"ctime of {path} is old")
        check(os.stat(path).st_mtime_ns > old, f"mtime of {path} is old")
    check(os.stat("q/b").st_ctime_ns > inodes[0], "ctime of the first is old")
    check(os.stat("p/a").st_ctime_ns > inodes[1], "ctime of the second is old")


@case
def exchange_sticky(t):
    os.mkdir("sticky")
    os.chmod("sticky", 0o1777)
    make("sticky/root")
    as_user(NOBODY, make, "sticky/mine")
    expect(EPERM, as_user, NOBODY, rename2, "sticky/mine", "sticky/root", RENAME_EXCHANGE)
    expect(EPERM, as_user, NOBODY, rename2, "sticky/root", "sticky/mine", RENAME_EXCHANGE)


@case
def whiteout_is_done_or_refused(t):
    """Refused as a whole (EINVAL), or a whiteout is left; never something in between."""
    need_root()
    make("a", b"x")
    answer = outcome(rename2, "a", "b", RENAME_WHITEOUT)
    if answer == "EINVAL":
        equal((os.listdir("."), read("a")), (["a"], b"x"))
    else:
        left = os.lstat("a")
        equal((answer, stat.S_ISCHR(left.st_mode), left.st_rdev, read("b")), (None, True, 0, b"x"))
    expect(EINVAL, rename2, "a", "c", RENAME_WHITEOUT | RENAME_EXCHANGE)


@case
def whiteout_unprivileged(t):
    os.mkdir("d")
    os.chmod("d", 0o777)

    def run():
        make("d/a")
        return outcome(rename2, "d/a", "d/b", RENAME_WHITEOUT)

    check(as_user(NOBODY, run) in ("EPERM", "EINVAL", None), "unexpected answer")
    equal(len([n for n in os.listdir("d") if not stat.S_ISCHR(os.lstat(f"d/{n}").st_mode)]), 1,
          "names of the file")


@case
def racing_renames_keep_one_file(t):
    """Four processes push two directories' only file to and fro: it never doubles or goes."""
    os.mkdir("a")
    os.mkdir("b")
    make("a/f", b"x")

    def push():
        moved = 0
        for _ in range(300):
            for source, target in (("a/f", "b/f"), ("b/f", "a/f")):
                try:
                    os.rename(source, target)
                    moved += 1
                except FileNotFoundError:
                    pass
        return moved

    children = [Child(push) for _ in range(4)]
    check(sum(child.result() for child in children) > 300, "hardly any rename succeeded")
    equal(os.listdir("a") + os.listdir("b"), ["f"])


@case
def racing_directory_moves_make_no_cycle(t):
    """a into b, and b into a, at once: one of them has to be refused, always."""
    os.mkdir("x")

    def push(source, target):
        for _ in range(150):
            outcome(os.rename, source, f"{target}/{os.path.basename(source)}")
            outcome(os.rename, f"{target}/{os.path.basename(source)}", source)

    os.mkdir("x/a")
    os.mkdir("x/b")
    for child in [Child(push, "x/a", "x/b"), Child(push, "x/b", "x/a")]:
        child.result()
    found = sum(len(names) for _, names, _ in os.walk("x"))
    equal(found, 2, "directories reachable")


MAKERS = {
    "missing": lambda name: None,
    "file": make,
    "empty directory": os.mkdir,
    "full directory": lambda name: os.makedirs(f"{name}/x"),
    "link to file": lambda name: os.symlink("file", name),
    "link to directory": lambda name: os.symlink("directory", name),
    "dangling link": lambda name: os.symlink("nowhere", name),
    "fifo": os.mkfifo,
}


@case
def answers_like_native(t):
    """A table: every kind of object over every other one, with every flag."""

    def run(directory):
        here = os.getcwd()
        answers = {}
        for flags in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            for source, make_source in MAKERS.items():
                for target, make_target in MAKERS.items():
                    os.mkdir(f"{directory}/case")
                    os.chdir(f"{directory}/case")
                    make_source("s")
                    make_target("t")
                    answer = outcome(rename2, "s", "t", flags)
                    if answer == "EEXIST" and not flags:
                        answer = "ENOTEMPTY"  # POSIX allows both.
                    tree = [(path, sorted(names), sorted(files), os.stat(path).st_nlink)
                            for path, names, files in os.walk(".")]
                    answers[source, target, flags] = answer, sorted(tree)
                    os.chdir(here)
                    shutil.rmtree(f"{directory}/case")
        return answers

    same_as_native(t, run)
