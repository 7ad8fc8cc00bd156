"""Mounts over a directory, and trees on both sides of them: how they are made, described and compared."""

import contextlib
import os
import random
import stat

import harness
from harness import NOBODY, equal, make, read, run_checked

KEPT_BY_CFS = ".cfs"


@contextlib.contextmanager
def over(t, backend=None, mode="readonly", options=(), **kwargs):
    """A mount over a directory; what it is over is its `backend`."""
    if backend is None:
        backend = t.workspace.new_directory()
    options = ["--backend", backend, *(["--backend-mode", mode] if mode else []), *options]
    with t.new_mount(options=options, **kwargs) as mount:
        mount.backend = backend
        yield mount


def describe(path, contents):
    st = os.lstat(path)
    kind = stat.S_IFMT(st.st_mode)
    regular, directory = kind == stat.S_IFREG, kind == stat.S_IFDIR
    found = {
        "mode": oct(st.st_mode), "owner": (st.st_uid, st.st_gid), "rdev": st.st_rdev,
        "mtime": st.st_mtime_ns, "ctime": st.st_ctime_ns,
        "xattrs": {name: os.getxattr(path, name, follow_symlinks=False)
                   for name in os.listxattr(path, follow_symlinks=False)},
    }
    if not directory:
        found["links"] = st.st_nlink
    if regular:
        found["size"] = st.st_size
    if regular and contents:
        found["data"] = read(path)
        found["holes"] = holes(path)
    if kind == stat.S_IFLNK:
        found["target"] = os.readlink(path)
    return found


def holes(path):
    """Where data begins and ends."""
    edges, at = [], 0
    with harness.opened(path, os.O_RDONLY) as fd:
        while True:
            try:
                begin = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:
                return edges
            at = os.lseek(fd, begin, os.SEEK_HOLE)
            edges.append((begin, at))


def tree(root, contents=True):
    """All that can be seen below a directory, by name; bytes, for names are."""
    return {name: describe(path, contents) for name, path in walk(root)}


def walk(root):
    """Names relative to the directory, and paths, of all that is below it and not kept by cfs."""
    root = os.fsencode(root)
    for folder, folders, files in os.walk(root):
        if folder == root and KEPT_BY_CFS.encode() in folders:
            folders.remove(KEPT_BY_CFS.encode())
        for name in folders + files:
            path = os.path.join(folder, name)
            yield os.path.relpath(path, root), path


def check_equal(mount, contents=True):
    there, here = tree(mount.backend, contents), tree(mount.mnt, contents)
    equal(sorted(here), sorted(there), "names")
    for name, wanted in there.items():
        for what, value in wanted.items():
            equal(here[name][what], value, f"{what} of {name}")


def old(path, seconds=1_000_000_000):
    os.utime(path, (seconds, seconds), follow_symlinks=False)


def fill(root, files=60, seed=1, kept_by_cfs=True):
    """A tree with a bit of everything."""
    rng = random.Random(seed)
    folders = [""]
    for number in range(12):
        folders.append(os.path.join(rng.choice(folders), f"d{number}"))
        os.mkdir(f"{root}/{folders[-1]}")
    for number in range(files):
        path = f"{root}/{rng.choice(folders)}/f{number}"
        make(path, rng.randbytes(rng.choice((0, 1, 100, 4096, 70_000, 1_500_000))),
             rng.choice((0o644, 0o600, 0o755, 0o400, 0o4755, 0o000)))
        if number % 5 == 0:
            os.setxattr(path, "user.note", rng.randbytes(rng.randrange(100)))
        if number % 7 == 0:
            os.chown(path, NOBODY, 1234)
        if number % 4 == 0:
            old(path, 1_000_000_000 + number)
    with open(f"{root}/sparse", "wb") as f:
        f.truncate(20_000_000)
        for at in (3_000_000, 9_999_999):
            f.seek(at)
            f.write(b"data")
    os.symlink("nowhere/at/all", f"{root}/dangling")
    os.symlink("f1" * 1000, f"{root}/long")
    old(f"{root}/dangling")
    os.mkfifo(f"{root}/fifo", 0o640)
    os.mknod(f"{root}/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    make(f"{root}/{folders[1]}/one", b"of three names")
    for number, folder in enumerate(folders[2:4]):
        os.link(f"{root}/{folders[1]}/one", f"{root}/{folder}/other{number}")
    for name in (b"new\nline", b"\xff\xfe", b"n" * 255, b" ", b"-rf", b"a\\b", b"'\""):
        make(os.path.join(os.fsencode(root), name), name)
    run_checked("setfacl", "-m", "u:1234:rw,g:77:r", f"{root}/{folders[1]}/one")
    run_checked("setfacl", "-d", "-m", "u:1234:rwx", f"{root}/{folders[2]}")
    os.mkdir(f"{root}/empty")
    if kept_by_cfs:
        os.mkdir(f"{root}/{KEPT_BY_CFS}")
