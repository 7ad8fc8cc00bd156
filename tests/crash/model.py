"""The oracle of the crash test: what a tree may look like after a crash.

Each writer process owns the names below its directory and those with its prefix in the directory
`shared`, and runs one call at a time. So its log orders its operations, and a Model replays them.
Two promises are checked with the same code:

  exact    every operation that returned is there (after kill -9 of the daemon);
  durable  every operation up to the last sync that covers it is there (after power loss).

Names, modes, link counts and xattrs are metadata: each operation is atomic and they take effect in
order, so what is found must be the state after some prefix of the operations, and the prefix must
contain those that were synced. Data needs no order: each cell of a file holds the value that it had
at the file's last sync, or one written there since; behind the end that the file had then, any that
was ever written there. Never a byte of another file or place: every cell names its file, its place
and the operation that wrote it.
"""

import collections
import functools
import os
import pickle
import stat
import struct
import zlib

CELL = 256  # Less than a page: appends share pages, and pages share blocks.
ANY = -1  # Any value that an operation can have written.
ROOT, SHARED = 0, 1  # fids of the writer's directory and of the directory that all writers share.

METADATA = {"create", "tmpfile", "mkdir", "symlink", "link", "unlink", "rmdir", "rename",
            "exchange", "chmod", "setxattr", "removexattr"}
_HEAD = struct.Struct("<QII")


class Loss(Exception):
    """What was found is not what the returned calls allow."""


@functools.lru_cache(1 << 16)
def cell(fid, index, value):
    """The bytes of a cell.

    Its value is the number of the operation that wrote it, 0 if none did, or the bytes if torn.
    """
    if value == 0:
        return bytes(CELL)
    if isinstance(value, bytes):
        return value
    head = _HEAD.pack(fid, index, value)
    head += struct.pack("<I", zlib.crc32(head))
    return (head * (CELL // len(head) + 1))[:CELL]


def cells(fid, at, count, value):
    return b"".join(cell(fid, index, value) for index in range(at, at + count))


def clone(thing):
    return pickle.loads(pickle.dumps(thing, pickle.HIGHEST_PROTOCOL))


class Data:
    """One file's cells and mtime: what they are now, and what else a crash may leave of them."""

    def __init__(self):
        self.cells = []
        self.old = {}  # Index -> other values that the cell may have.
        self.low = self.high = 0  # Bounds of the size, in cells.
        self.mtime = None  # None: the kernel chose it.
        self.old_mtimes = set()

    def write(self, at, values):
        self._extend(at + len(values))
        for index, value in enumerate(values, at):
            self._was(index, self.cells[index])
            self.cells[index] = value
        self.set_mtime(None)

    def maybe_write(self, at, values):
        for index, value in enumerate(values, at):
            self._was(index, value)
        self.high = max(self.high, at + len(values))
        self.old_mtimes.add(None)

    def truncate(self, size):
        for index in range(size, len(self.cells)):
            self._was(index, self.cells[index])
        del self.cells[size:]
        self.low = min(self.low, size)
        self._extend(size)
        self.set_mtime(None)

    def maybe_truncate(self, size):
        self.low, self.high = min(self.low, size), max(self.high, size)
        self.old_mtimes.add(None)

    def set_mtime(self, mtime):
        self.old_mtimes.add(self.mtime)
        self.mtime = mtime

    def sync(self, mtime_too=True):
        self.old.clear()
        self.low = self.high = len(self.cells)
        if mtime_too:
            self.old_mtimes.clear()

    def sync_range(self, at, count):
        end = min(at + count, len(self.cells))
        for index in range(at, end):
            self.old.pop(index, None)
        self.low = max(self.low, end)

    def problem(self, fid, content):
        """None if `content` is allowed, else what is wrong with it."""
        size, rest = divmod(len(content), CELL)
        if rest or not self.low <= size <= self.high:
            return f"size {len(content)}, not {self.low * CELL}..{self.high * CELL}"
        for index in range(size):
            if self._identify(fid, index, content) is None:
                return (f"byte {index * CELL}: {self._describe(fid, index, content)}, "
                        f"not of {sorted(self._allowed(index), key=str)}")
        return None

    def mtime_problem(self, mtime):
        allowed = self.old_mtimes | {self.mtime}
        if None in allowed or mtime in allowed:
            return None
        return f"mtime {mtime}, not of {sorted(allowed)}"

    def adopt(self, fid, content, mtime):
        """Goes on from `content`, which has no problem. Returns how many cells were torn."""
        found = [self._identify(fid, index, content) for index in range(len(content) // CELL)]
        self._extend(len(found))
        for index, value in enumerate(self.cells):
            if index >= len(found) or found[index] != value:
                self._was(index, value)
        self.low = min(self.low, len(found))
        self.cells = found
        self.set_mtime(mtime)
        return sum(isinstance(value, bytes) for value in found)

    def _was(self, index, value):
        self.old.setdefault(index, set()).add(value)

    def _extend(self, size):
        for index in range(len(self.cells), size):
            self._was(index, 0)
            self._was(index, ANY)  # ext4 may keep in the last block what was once beyond its end.
            self.cells.append(0)
        self.high = max(self.high, len(self.cells))

    def _allowed(self, index):
        return self.old.get(index, set()) | {self.cells[index] if index < len(self.cells) else 0}

    def _identify(self, fid, index, content):
        """The allowed value that the cell has; its bytes if they are a mix of such; else None."""
        chunk = content[index * CELL:(index + 1) * CELL]
        if index < len(self.cells) and chunk == cell(fid, index, self.cells[index]):
            return self.cells[index]
        values = self._allowed(index)
        allowed = {value: cell(fid, index, value) for value in values - {ANY}}
        for value, expected in allowed.items():
            if chunk == expected:
                return value
        value = _HEAD.unpack_from(chunk)[2]
        if ANY in values and chunk == cell(fid, index, value):
            return value
        # A page may be written back while a call fills it: what no sync covers may be torn.
        torn = all(byte in column for byte, *column in zip(chunk, *allowed.values()))
        return chunk if torn else None

    @staticmethod
    def _describe(fid, index, content):
        chunk = content[index * CELL:(index + 1) * CELL]
        found = _HEAD.unpack_from(chunk)
        if found == (0, 0, 0):
            return "zeros" if not any(chunk) else "torn zeros"
        if chunk != cell(*found):
            return "garbage " + chunk[:24].hex()
        if found[:2] != (fid, index):
            return f"FOREIGN: file {found[0]:x} cell {found[1]} operation {found[2]}"
        return f"operation {found[2]}"


class Node:
    def __init__(self, kind, mode, target=None):
        self.kind, self.mode, self.target = kind, mode, target
        self.xattrs = {}

    def detail(self):
        return self.target if self.kind == "link" else tuple(sorted(self.xattrs.items()))


class Names:
    """The metadata state of one writer."""

    def __init__(self):
        self.nodes = {ROOT: Node("dir", 0o755), SHARED: Node("dir", 0o755)}
        self.entries = {}  # (directory fid, name) -> fid
        self.parents = {}  # Directory fid -> its (directory fid, name)

    def apply(self, op):
        kind, fid = op["op"], op["fid"]
        place = (op.get("dir"), op.get("name"))
        if kind in ("create", "tmpfile", "mkdir", "symlink"):
            made = {"mkdir": "dir", "symlink": "link"}.get(kind, "file")
            self.nodes[fid] = Node(made, op["mode"], op.get("target"))
        if kind in ("create", "mkdir", "symlink", "link"):
            self._put(place, fid)
        elif kind in ("unlink", "rmdir"):
            del self.entries[place]
        elif kind == "rename":
            del self.entries[place]
            self._put((op["dir2"], op["name2"]), fid)
        elif kind == "exchange":
            self._put((op["dir2"], op["name2"]), fid)
            self._put(place, op["over"])
        elif kind == "chmod":
            self.nodes[fid].mode = op["mode"]
        elif kind == "setxattr":
            self.nodes[fid].xattrs[op["key"]] = op["value"]
        elif kind == "removexattr":
            del self.nodes[fid].xattrs[op["key"]]

    def _put(self, place, fid):
        self.entries[place] = fid
        if self.nodes[fid].kind == "dir":
            self.parents[fid] = place

    def path(self, fid, root):
        if fid == ROOT:
            return root
        if fid == SHARED:
            return "shared"
        parent, name = self.parents[fid]
        return self.path(parent, root) + "/" + name

    def view(self, root):
        """path -> (fid, what stat, readlink and the xattrs say)"""
        links = collections.Counter(self.entries.values())
        subdirs = collections.Counter(parent for (parent, _), fid in self.entries.items()
                                      if self.nodes[fid].kind == "dir")
        found = {root: (ROOT, ("dir", 0o755, 2 + subdirs[ROOT], ()))}
        for (parent, name), fid in self.entries.items():
            node = self.nodes[fid]
            count = 2 + subdirs[fid] if node.kind == "dir" else links[fid]
            shape = (node.kind, node.mode, count, node.detail())
            found[self.path(parent, root) + "/" + name] = (fid, shape)
        return found


class Model:
    """What one writer has done and, under one of the two promises, what a crash may leave of it.

    `opens_sync`: opening a file with O_DSYNC or O_SYNC makes its metadata durable.
    """

    def __init__(self, root, exact, opens_sync):
        self.root, self.exact, self.opens_sync = root, exact, opens_sync
        self.names = Names()
        self.base = Names()  # The durable state,
        self.ops = []  # and the metadata operations since,
        self.first = 0  # after so many that are in it.
        self.touched = {}  # fid -> number of the last operation that changed it or its entries.
        self.data = {}
        self.inos = {}

    def apply(self, op, certain=True):
        """Takes in an operation that returned, or one that may have happened or not."""
        kind, fid = op["op"], op["fid"]
        if kind in ("create", "tmpfile"):
            self.data[fid] = Data()
        if kind in METADATA:
            self._apply_metadata(op, certain)
        elif kind in ("write", "store", "punch"):
            values = [op["n"] if kind != "punch" else 0] * op["cells"]
            if certain:
                gap = min(op["at"], len(self.data[fid].cells))
                self.data[fid].write(op["at"], values)
                if self.exact:
                    self.data[fid].sync_range(gap, op["at"] + op["cells"] - gap)
                elif op.get("sync"):
                    self.data[fid].sync_range(op["at"], op["cells"])
            else:
                self.data[fid].maybe_write(op["at"], values)
        elif kind == "truncate" or op.get("trunc"):
            if certain:
                self.data[fid].truncate(op.get("size", 0))
            else:
                self.data[fid].maybe_truncate(op.get("size", 0))
        elif kind == "utimens":
            if certain:
                self.data[fid].set_mtime(op["mtime"])
            else:
                self.data[fid].old_mtimes.add(op["mtime"])
        elif kind == "msync" and certain:
            self.data[fid].sync_range(op["at"], op["cells"])
        elif kind in ("fsync", "fdatasync") and certain:
            self.data[fid].sync(mtime_too=kind == "fsync")
        if not certain:
            return
        opened_sync = self.opens_sync and kind in ("create", "open") and op.get("sync")
        if kind in ("fsync", "fsyncdir") or opened_sync:
            self._harden(self.touched.get(fid, 0))
        if self.exact and kind in ("truncate", "open", "utimens"):
            self.data[fid].sync()

    def _apply_metadata(self, op, certain):
        self.ops.append(op)
        for key in ("fid", "over", "dir", "dir2"):
            if key in op:
                self.touched[op[key]] = self.first + len(self.ops)
        if certain:
            self.names.apply(op)
            if self.exact:
                self._harden(self.first + len(self.ops))

    def _harden(self, number):
        count = max(0, number - self.first)
        for op in self.ops[:count]:
            self.base.apply(op)
        del self.ops[:count]
        self.first += count

    def match(self, seen):
        """How many operations after the durable state lead to `seen`; Loss if no number does."""
        mine = seen.of(self.root)
        shape = {path: entry.shape for path, entry in mine.items()}
        state, fitting = clone(self.base), []
        for count in range(len(self.ops) + 1):
            if count:
                state.apply(self.ops[count - 1])
            if len(state.entries) + 1 == len(mine):
                view = state.view(self.root)
                if all(shape.get(path) == expected for path, (_, expected) in view.items()):
                    fitting.append((count, view))
        if not fitting:
            raise Loss(self._difference(shape))
        for count, view in reversed(fitting):
            problems = self._data_problems(view, mine)
            if not problems:
                return count
        raise Loss("; ".join(problems[:5]))

    def _data_problems(self, view, mine):
        problems, owners = [], {}
        for path, (fid, _) in view.items():
            entry = mine[path]
            was = self.inos.get(fid, entry.ino)
            if owners.setdefault(entry.ino, fid) != fid or was != entry.ino:
                problems.append(f"{path}: inode {entry.ino} is another file's")
            if entry.kind == "file":
                data = self.data[fid]
                if wrong := data.problem(fid, entry.content) or data.mtime_problem(entry.mtime):
                    problems.append(f"{path} (file {fid:x}): {wrong}")
        return problems

    def _difference(self, shape):
        lines = []
        for label, state in (("returned", self.names), ("synced", self.base)):
            wanted = {path: expected for path, (_, expected) in state.view(self.root).items()}
            different = sorted(path for path in shape.keys() | wanted.keys()
                               if shape.get(path) != wanted.get(path))
            lines += [f"{path} is {shape.get(path)}, was {wanted.get(path)} after the last {label} "
                      "call" for path in different[:4]]
        return f"names are as after no prefix of the calls: {'; '.join(lines)}"

    def adopt(self, seen, durable):
        """Goes on from `seen`. Returns the number of torn cells.

        `durable`: it was read from the disk, so that it can't be lost any more.
        """
        count = self.match(seen)
        names, torn = clone(self.base), 0
        for op in self.ops[:count]:
            names.apply(op)
        del self.ops[count:]
        self.names = names
        mine = seen.of(self.root)
        for path, (fid, (kind, *_)) in names.view(self.root).items():
            self.inos[fid] = mine[path].ino
            if kind == "file":
                torn += self.data[fid].adopt(fid, mine[path].content, mine[path].mtime)
                if durable:
                    self.data[fid].sync()
        if durable:
            self._harden(self.first + len(self.ops))
        # No process is left, so a file is needed if a name leads to it, or would if power failed.
        alive = {ROOT, SHARED} | set(self.base.entries.values()) | {op["fid"] for op in self.ops}
        for names in (self.names, self.base):
            names.nodes = {fid: node for fid, node in names.nodes.items() if fid in alive}
        for table in (self.data, self.inos, self.touched):
            for fid in table.keys() - alive:
                del table[fid]
        return torn


class Entry:
    def __init__(self, path, live):
        info = os.lstat(path)
        self.ino, self.mtime, self.content = info.st_ino, info.st_mtime_ns, None
        kinds = {stat.S_IFDIR: "dir", stat.S_IFREG: "file", stat.S_IFLNK: "link"}
        self.kind = kinds[stat.S_IFMT(info.st_mode)]
        mode = 0o777 if self.kind == "link" else stat.S_IMODE(info.st_mode)
        if self.kind == "link":
            detail = os.readlink(path)
        else:
            keys = [key for key in os.listxattr(path) if key.startswith("user.")]
            detail = tuple(sorted((key, os.getxattr(path, key).decode()) for key in keys))
        if self.kind == "file":
            with open(path, "rb", buffering=0) as file:
                self.content = file.read()
            if not live and len(self.content) != info.st_size:
                raise Loss(f"{path}: {info.st_size} bytes by stat, {len(self.content)} by read")
        self.shape = (self.kind, mode, info.st_nlink, detail)


class Seen:
    """Everything in a tree, read once, and consistent in itself.

    `live`: somebody is still writing data.
    """

    def __init__(self, top, live=False):
        self.entries = {}
        self._walk(top, "", live)

    def _walk(self, top, path, live):
        subdirs = 0
        try:
            with os.scandir(os.path.join(top, path)) as found:
                found = list(found)
        except OSError as error:
            raise Loss(f"{path}: can't be listed: {error.strerror}") from error
        if len({item.name for item in found}) != len(found):
            raise Loss(f"{path}: readdir names an entry twice")
        for item in found:
            child = os.path.join(path, item.name)
            try:
                entry = self.entries[child] = Entry(item.path, live)
            except OSError as error:
                raise Loss(f"{child}: can't be read: {error.strerror}") from error
            told = "link" if item.is_symlink() else "dir" if item.is_dir() else "file"
            if (item.inode(), told) != (entry.ino, entry.kind):
                raise Loss(f"{child}: inode {item.inode()}, {told} by readdir; "
                           f"{entry.ino}, {entry.kind} by stat")
            if entry.kind == "dir":
                subdirs += 1
                self._walk(top, child, live)
        if path and self.entries[path].shape[2] != 2 + subdirs:
            raise Loss(f"{path}: {self.entries[path].shape[2]} links, but {subdirs} subdirectories")

    def of(self, root):
        """The entries of the writer whose directory is `root`."""
        mine = (root + "/", f"shared/{root}-")
        return {path: entry for path, entry in self.entries.items()
                if path == root or path.startswith(mine)}

    def files(self):
        """The number of regular inodes."""
        return len({entry.ino for entry in self.entries.values() if entry.kind == "file"})
