"""Directory trees to copy, and manifests to compare them by."""

import errno
import hashlib
import os
import random
import socket
import stat
import subprocess
from pathlib import Path

from sites import check

NAMES_ODD = [
    b"-dash", b" leading and trailing ", b"new\nline", b"tab\tand\\backslash", b'quote\'"`$',
    b"*?[glob]", "grüße-日本語-🦊".encode(), b"latin1-\xe9\xff", b"x" * 255, b".hidden",
    b"con", b"a:b|c<d>", b"~", b"%s%n",
]

# (seconds, nanoseconds): before the epoch, at it, beyond 32 bits.
TIMES_ODD = [(-86_400, 5), (0, 0), (1, 999_999_999), (1_600_000_000, 123_456_789),
             (4_102_444_800, 1)]


def make_tree(root: Path, rng: random.Random, file_count: int) -> list[Path]:
    """Makes a tree like a source tree's: many small files, a few large, some text."""
    root.mkdir()
    directories = [root]
    for i in range(max(1, file_count // 20)):
        directory = rng.choice(directories) / f"d{i}"
        directory.mkdir()
        directories.append(directory)
    files = []
    for i in range(file_count):
        path = rng.choice(directories) / f'f{i}.{rng.choice(["c", "h", "txt", "bin"])}'
        path.write_bytes(make_content(rng))
        files.append(path)
    return files


def make_content(rng: random.Random) -> bytes:
    size = int(2 ** rng.uniform(0, 15)) - 1
    if rng.random() < 0.01:
        size = rng.randrange(1 << 20, 3 << 20)
    if rng.random() < 0.5:
        return rng.randbytes(size)
    line = f"{rng.random()} the same words in every line\n".encode()
    return (line * (size // len(line) + 1))[:size]


def make_odd_tree(root: Path, rng: random.Random) -> None:
    """Makes a tree with everything that a faithful copy has to keep."""
    root.mkdir()
    make_tree(root / "plain", rng, 50)
    base = os.fsencode(root)
    for i, name in enumerate(NAMES_ODD):
        directory = os.path.join(base, b"names", name)
        os.makedirs(directory)
        path = os.path.join(directory, name)
        Path(os.fsdecode(path)).write_bytes(rng.randbytes(i * 100))
        os.symlink(name, path[:-1] if len(name) > 100 else path + b".link")

    links = root / "links"
    links.mkdir()
    (links / "file").write_text("three names")
    for name in "second", "third":
        os.link(links / "file", links / name)
    os.link(links / "second", root / "plain" / "elsewhere")
    os.symlink("nowhere/at all", links / "dangling")
    os.symlink("y" * 1000, links / "long")
    os.link(links / "dangling", links / "dangling-too", follow_symlinks=False)
    os.mkfifo(links / "fifo", 0o620)
    os.link(links / "fifo", links / "fifo-too")

    special = root / "special"
    special.mkdir()
    os.mknod(special / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(special / "block", stat.S_IFBLK | 0o600, os.makedev(259, 1_000_000))
    # Through /proc, for the path of a socket may have no more than 107 bytes.
    with socket.socket(socket.AF_UNIX) as endpoint:
        directory = os.open(special, os.O_PATH)
        endpoint.bind(f"/proc/self/fd/{directory}/socket")
        os.close(directory)

    sparse = root / "sparse"
    sparse.mkdir()
    with open(sparse / "holes", "wb") as file:
        for offset in 1 << 20, 5 << 20, 9 << 20:
            file.seek(offset)
            file.write(rng.randbytes(70_000))
        file.truncate(64 << 20)
    with open(sparse / "only-hole", "wb") as file:
        file.truncate(1 << 27)

    modes = root / "modes"
    modes.mkdir()
    for mode in 0o0, 0o444, 0o4755, 0o2755, 0o6711, 0o1644, 0o777:
        (modes / f"{mode:o}").write_text("mode")
        os.chown(modes / f"{mode:o}", 1000 + mode, 2_000_000_000)
        (modes / f"{mode:o}").chmod(mode)
    for mode in 0o1777, 0o2775, 0o700:
        (modes / f"dir-{mode:o}").mkdir()
        (modes / f"dir-{mode:o}").chmod(mode)
    os.symlink("0", modes / "owned-link")
    os.lchown(modes / "owned-link", 7, 8)

    attributes = root / "attributes"
    attributes.mkdir()
    (attributes / "file").write_text("attributes")
    os.setxattr(attributes / "file", "user.empty", b"")
    os.setxattr(attributes / "file", "user.binary", bytes(range(256)))
    os.setxattr(attributes / "file", "user." + "n" * 200, rng.randbytes(1500))
    os.setxattr(attributes / "file", "trusted.root", b"only")
    os.setxattr(attributes, "user.directory", b"too")
    (attributes / "capable").write_text("program")
    subprocess.run(["setcap", "cap_net_raw+ep", attributes / "capable"], check=True)
    (attributes / "acl").write_text("acl")
    subprocess.run(["setfacl", "-m", "u:1234:rw,g:5678:r,m::rw", attributes / "acl"], check=True)
    (attributes / "acl-dir").mkdir()
    subprocess.run(["setfacl", "-m", "u:1234:rwx,d:u:4321:rx,d:g::-", attributes / "acl-dir"],
                   check=True)

    times = root / "times"
    times.mkdir()
    for i, (seconds, nanoseconds) in enumerate(TIMES_ODD):
        time_ns = seconds * 10**9 + nanoseconds
        (times / f"{i}").write_text("time")
        os.utime(times / f"{i}", ns=(time_ns, time_ns))
        os.symlink("target", times / f"{i}.link")
        os.utime(times / f"{i}.link", ns=(time_ns, time_ns), follow_symlinks=False)
        (times / f"{i}.dir").mkdir()
        os.utime(times / f"{i}.dir", ns=(time_ns, time_ns))


def manifest(root: Path, *, content_only: bool = False) -> dict:
    """Maps each relative name to all of it that a faithful copy keeps.

    content_only leaves what version control keeps: types, the x bit and bytes.
    """
    base = os.fsencode(root)
    entries, first_names = {}, {}

    def visit(path: bytes) -> None:
        name = os.path.relpath(path, base)
        info = os.lstat(path)
        kind = stat.S_IFMT(info.st_mode)
        entry = {"type": kind}
        if kind == stat.S_IFREG:
            entry["size"] = info.st_size
            entry["content"] = _digest(path, info)
        elif kind == stat.S_IFLNK:
            entry["target"] = os.readlink(path)
        if content_only:
            entry["executable"] = kind == stat.S_IFREG and bool(info.st_mode & 0o100)
        else:
            entry["mode"] = stat.S_IMODE(info.st_mode)
            entry["owner"] = info.st_uid, info.st_gid
            entry["mtime_ns"] = info.st_mtime_ns
            entry["device"] = info.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
            entry["xattrs"] = {key: os.getxattr(path, key, follow_symlinks=False)
                               for key in os.listxattr(path, follow_symlinks=False)}
            if info.st_size >= 1 << 20:
                entry["sparse"] = info.st_blocks * 512 < info.st_size // 2
            if kind != stat.S_IFDIR:
                entry["nlink"] = info.st_nlink
                entry["same as"] = first_names.setdefault((info.st_dev, info.st_ino), name)
        entries[name] = entry
        if kind == stat.S_IFDIR:
            for child in sorted(os.listdir(path)):
                if not (content_only and child == b".git"):
                    visit(os.path.join(path, child))

    visit(base)
    return entries


def _digest(path: bytes, info: os.stat_result) -> str:
    """Hashes a file; of a large one only what is not zero, by 1 MiB blocks."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb", buffering=0) as file:
        if info.st_size <= 1 << 26:
            digest.update(file.readall())
            return digest.hexdigest()
        offset = 0
        while True:
            try:
                offset = os.lseek(file.fileno(), offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:  # No data beyond.
                    raise
                return digest.hexdigest()
            offset &= -1 << 20  # File systems differ in where an extent begins.
            file.seek(offset)
            block = file.read(1 << 20)
            if block.strip(b"\0"):
                digest.update(b"%d" % offset + block)
            offset += 1 << 20


def compare(expected: dict, actual: dict, what: str) -> None:
    differences = []
    for name in sorted(expected.keys() | actual.keys()):
        if name not in actual or name not in expected:
            differences.append(f'{name!r} {"missing" if name in expected else "extra"}')
            continue
        for key, value in expected[name].items():
            if actual[name][key] != value:
                differences.append(f"{name!r} {key}: {value!r} became {actual[name][key]!r}")
    check(not differences,
          f'{what}: {len(differences)} differences, first {"; ".join(differences[:3])[:500]}')
