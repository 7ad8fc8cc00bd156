"""A writer process of the crash test: random calls in its part of the tree.

Each is logged before and after, for the oracle, in a file outside the tree, a JSON value a line:
an operation before its call; [number, time, errno or 0, inode or null] after it. After the first
call that fails, a ghost goes on writing through what it still holds (descriptors, shared mappings
of closed files) until SIGTERM.
"""

import collections
import ctypes
import errno
import json
import mmap
import os
import random
import signal
import time

from model import CELL, ROOT, SHARED, cells

CELLS_MAX = 1024  # A file's size.
ENTRIES_MAX = 48
HANDLES_MAX = 6
MAPS_MAX = 3

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int,
                       ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.msync.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_MS_SYNC = 4
_PUNCH_HOLE_KEEP_SIZE = 3
_PR_SET_PDEATHSIG = 1

Handle = collections.namedtuple("Handle", "fd fid sync append")


def _check(result):
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


class Mapping:
    """A shared mapping; unlike mmap.mmap it keeps no descriptor of the file."""

    def __init__(self, fd, fid, length):
        self.fid, self.length = fid, length
        self.address = _libc.mmap(None, length, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED,
                                  fd, 0)
        if self.address == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "mmap failed")

    def store(self, offset, data):
        ctypes.memmove(self.address + offset, data, len(data))

    def sync(self, offset, length):
        start = offset // mmap.PAGESIZE * mmap.PAGESIZE
        _check(_libc.msync(self.address + start, offset + length - start, _MS_SYNC))

    def close(self):
        _check(_libc.munmap(self.address, self.length))


class Crashed(Exception):
    """A call failed, as it does after the crash."""

    def __init__(self, op):
        super().__init__(op)
        self.op = op


class Writer:
    """One writer.

    syncs        the ways to sync that it uses;
    ghost        whether it goes on after the crash;
    sync_stores  a store is only done with its msync (the daemon does the I/O);
    lie          it skips every sync, but logs it as done.
    """

    def __init__(self, top, model, log_path, seed, number, syncs, ghost, sync_stores, lie):
        self.top, self.model, self.rng = top, model, random.Random(seed)
        self.log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.number, self.syncs, self.lie = number, syncs, lie
        self.ghost, self.sync_stores = ghost, sync_stores
        self.handles, self.maps, self.stopped = [], [], False

    @property
    def entries(self):
        return self.model.names.entries

    def run(self):
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.umask(0)
        signal.signal(signal.SIGTERM, self._stop)
        actions, weights = list(ACTIONS), list(ACTIONS.values())
        try:
            self._begin()
            while True:
                action = self.rng.choices(actions, weights)[0]
                if len(self.entries) > ENTRIES_MAX:
                    action = Writer.unlink
                action(self)
        except Crashed as crash:
            if self.ghost:
                self._haunt(crash.op)

    def _stop(self, *_):
        self.stopped = True

    def _begin(self):
        """Opens and maps what a ghost needs: from now on there is always one of each."""
        for mapped in (True, False):
            handle = self._create(0)
            self._write(handle, 0, 16)
            if mapped:
                self._map(handle)
                self._close(handle)

    def _haunt(self, failed):
        def usable(held):  # The size of a file that may have been truncated is not known.
            return held.fid != failed["fid"] or failed["op"] not in ("truncate", "open")

        while not self.stopped:
            for handle in filter(usable, self.handles):
                self._write_some(handle)
            for mapping in filter(usable, self.maps):
                self._store(mapping)
            time.sleep(0.02)

    # One call each.

    def _do(self, op, fid, call, **fields):
        self.number += 1
        record = {"n": self.number, "op": op, "fid": fid, **fields}
        self._log(record)
        error, ino, result = 0, None, None
        try:
            result = call()
            if op in ("create", "tmpfile"):
                ino = os.fstat(result).st_ino
            elif op == "mkdir":
                ino = os.stat(self._path(fields["dir"], fields["name"])).st_ino
        except OSError as failure:
            error = failure.errno
        self._log([self.number, time.monotonic(), error, ino])
        if error:
            raise Crashed(record)
        self.model.apply(record)
        return result

    def _sync(self, op, fid, call, **fields):
        if op in self.syncs:
            self._do(op, fid, (lambda: None) if self.lie else call, **fields)

    def _log(self, value):
        os.write(self.log, json.dumps(value, separators=(",", ":")).encode() + b"\n")

    def _create(self, flags):
        place, fid = self._free_place(), self._new_fid()
        mode = self.rng.choice((0o600, 0o644, 0o755))
        sync, real = self._flags(flags | os.O_CREAT | os.O_EXCL)
        fd = self._do("create", fid, lambda: os.open(self._path(**place), real, mode),
                      **place, mode=mode, sync=sync)
        return self._keep(Handle(fd, fid, sync, bool(flags & os.O_APPEND)))

    def _open(self, place, flags):
        fid = self.entries[place]
        sync, real = self._flags(flags)
        fd = self._do("open", fid, lambda: os.open(self._path(*place), real),
                      sync=sync, trunc=bool(flags & os.O_TRUNC))
        return self._keep(Handle(fd, fid, sync, bool(flags & os.O_APPEND)))

    def _flags(self, flags):
        """Whether the descriptor is to sync, and what to open it with. O_SYNC contains O_DSYNC."""
        sync = bool(flags & os.O_DSYNC) and "O_DSYNC" in self.syncs
        return sync, os.O_RDWR | (flags if sync and not self.lie else flags & ~os.O_SYNC)

    def _keep(self, handle):
        self.handles.append(handle)
        if len(self.handles) > HANDLES_MAX:
            self._close(self.handles[0])
        return handle

    def _close(self, handle):
        self.handles.remove(handle)
        self._do("close", handle.fid, lambda: os.close(handle.fd))

    def _write(self, handle, at, count):
        number = self.number + 1

        def call():
            data = cells(handle.fid, at, count, number)
            if handle.append:
                written = os.write(handle.fd, data)
            else:
                written = os.pwrite(handle.fd, data, at * CELL)
            if written != len(data):
                raise OSError(errno.EIO, "short write")

        self._do("write", handle.fid, call, at=at, cells=count, sync=handle.sync)

    def _map(self, handle):
        size = self._size(handle.fid)
        if size:
            mapping = self._do("map", handle.fid,
                               lambda: Mapping(handle.fd, handle.fid, size * CELL))
            self.maps.append(mapping)
            if len(self.maps) > MAPS_MAX:
                mapping = self.maps.pop(0)
                self._do("munmap", mapping.fid, mapping.close)

    def _store(self, mapping):
        # A store beyond the end of the file is a SIGBUS.
        size = min(self._size(mapping.fid), mapping.length // CELL)
        if not size:
            return
        at = self.rng.randrange(size)
        count = min(self.rng.choice((1, 2, 9)), size - at)
        number = self.number + 1

        def call():
            mapping.store(at * CELL, cells(mapping.fid, at, count, number))
            if self.sync_stores:
                mapping.sync(at * CELL, count * CELL)

        self._do("store", mapping.fid, call, at=at, cells=count)
        if self.rng.random() < .3 and not self.stopped:
            self._sync("msync", mapping.fid, lambda: mapping.sync(at * CELL, count * CELL),
                       at=at, cells=count)

    def _rename(self, place, target):
        over = {"over": self.entries[target]} if target in self.entries else {}
        self._do("rename", self.entries[place],
                 lambda: os.rename(self._path(*place), self._path(*target)),
                 dir=place[0], name=place[1], dir2=target[0], name2=target[1], **over)

    # Actions: what the random choice is made from.

    def create(self):
        flags = self.rng.choice((0, 0, os.O_APPEND, os.O_DSYNC, os.O_SYNC))
        handle = self._create(flags)
        for _ in range(self.rng.randrange(3)):
            self._write_some(handle)
        if self.rng.random() < .5:
            self._sync("fsync", handle.fid, lambda: os.fsync(handle.fd))
        if self.rng.random() < .7:
            self._close(handle)

    def write(self):
        self._write_some(self._handle())

    def reopen(self):
        place = self._pick("file")
        if place:
            self._open(place, self.rng.choice((0, os.O_APPEND, os.O_DSYNC, os.O_SYNC, os.O_TRUNC)))

    def fsync(self):
        handle = self._handle()
        self._sync("fsync", handle.fid, lambda: os.fsync(handle.fd))

    def fdatasync(self):
        handle = self._handle()
        self._sync("fdatasync", handle.fid, lambda: os.fdatasync(handle.fd))

    def fsyncdir(self):
        fid = self.rng.choice(self._dirs())

        def call():
            fd = os.open(self._path(fid), os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

        self._sync("fsyncdir", fid, call)

    def replace(self):
        """Write a new file, sync it mostly, rename it over another."""
        target = self._pick("file")
        handle = self._create(0)
        self._write_some(handle)
        if self.rng.random() < .8:
            self._sync("fsync", handle.fid, lambda: os.fsync(handle.fd))
        place = next(place for place, fid in self.entries.items() if fid == handle.fid)
        self._close(handle)
        if target and target != place:
            self._rename(place, target)

    def rename(self):
        place = self._pick("file", "link", "dir")
        if place and self._kind(place) == "dir":
            inside = self._under(self.entries[place])
            outside = set(self._dirs()) - inside - {SHARED}
            self._rename(place, tuple(self._free_place(outside).values()))
        elif place:
            self._rename(place, tuple(self._free_place().values()))

    def exchange(self):
        one, two = self._pick("file", "link", "dir"), self._pick("file", "link", "dir")
        if not one or not two or one == two:
            return
        for place, other in ((one, two), (two, one)):
            # A directory may not get into itself, and `shared` has no subdirectories.
            if self._kind(place) == "dir" and (
                    other[0] == SHARED or other[0] in self._under(self.entries[place])):
                return
        paths = [os.fsencode(self._path(*place)) for place in (one, two)]
        self._do("exchange", self.entries[one],
                 lambda: _check(_libc.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1],
                                                _RENAME_EXCHANGE)),
                 over=self.entries[two], dir=one[0], name=one[1], dir2=two[0], name2=two[1])

    def link(self):
        place = self._pick("file")
        if place:
            new = self._free_place()
            self._do("link", self.entries[place],
                     lambda: os.link(self._path(*place), self._path(**new)), **new)

    def unlink(self):
        place = self._pick("file", "link")
        if place:
            self._unlink(place)

    def _unlink(self, place):
        self._do("unlink", self.entries[place], lambda: os.unlink(self._path(*place)),
                 dir=place[0], name=place[1])

    def unlink_open(self):
        """Unlink a file that is open, and go on writing to it."""
        handle = self._handle()
        for place in [place for place, fid in self.entries.items() if fid == handle.fid]:
            self._unlink(place)
        self._write_some(handle)

    def tmpfile(self):
        directory, fid = self.rng.choice(self._dirs()), self._new_fid()
        fd = self._do("tmpfile", fid,
                      lambda: os.open(self._path(directory), os.O_TMPFILE | os.O_RDWR, 0o640),
                      mode=0o640)
        handle = self._keep(Handle(fd, fid, False, False))
        self._write_some(handle)
        if self.rng.random() < .5:
            self._sync("fsync", fid, lambda: os.fsync(fd))
        if self.rng.random() < .8:
            new = self._free_place()
            # With a directory descriptor, unused for the path is absolute, os.link() is linkat(),
            # which can follow /proc's link.
            self._do("link", fid, lambda: os.link(f"/proc/self/fd/{fd}", self._path(**new),
                                                  dst_dir_fd=self.log, follow_symlinks=True), **new)

    def mkdir(self):
        if len(self._dirs()) < 8:
            place, fid = self._free_place(set(self._dirs()) - {SHARED}), self._new_fid()
            self._do("mkdir", fid, lambda: os.mkdir(self._path(**place), 0o750),
                     **place, mode=0o750)

    def rmdir(self):
        above = {place[0] for place in self.entries if self._kind(place) == "dir"}
        place = self._pick("dir", where=lambda fid: fid not in above)
        if place:
            for inside in [inside for inside in self.entries if inside[0] == self.entries[place]]:
                self._unlink(inside)
            self._do("rmdir", self.entries[place], lambda: os.rmdir(self._path(*place)),
                     dir=place[0], name=place[1])

    def symlink(self):
        place, fid = self._free_place(), self._new_fid()
        target = f"nowhere/{fid:x}"
        self._do("symlink", fid, lambda: os.symlink(target, self._path(**place)),
                 **place, mode=0o777, target=target)

    def truncate(self):
        place = self._pick("file")
        if place:
            fid = self.entries[place]
            size = self.rng.randrange(min(self._size(fid) + 20, CELLS_MAX) + 1)
            self._do("truncate", fid, lambda: os.truncate(self._path(*place), size * CELL),
                     size=size)

    def ftruncate(self):
        handle = self._handle()
        size = self.rng.randrange(self._size(handle.fid) + 1)
        self._do("truncate", handle.fid, lambda: os.ftruncate(handle.fd, size * CELL), size=size)

    def punch(self):
        handle = self._handle()
        size = self._size(handle.fid)
        if size:
            at = self.rng.randrange(size)
            count = self.rng.randint(1, size - at)
            self._do("punch", handle.fid,
                     lambda: _check(_libc.fallocate(handle.fd, _PUNCH_HOLE_KEEP_SIZE, at * CELL,
                                                    count * CELL)),
                     at=at, cells=count)

    def chmod(self):
        place = self._pick("file", "dir")
        if place:
            mode = self.rng.choice((0o600, 0o640, 0o700, 0o711, 0o777, 0o1755))
            self._do("chmod", self.entries[place], lambda: os.chmod(self._path(*place), mode),
                     mode=mode)

    def xattr(self):
        place = self._pick("file", "dir")
        if not place:
            return
        fid, key = self.entries[place], f"user.k{self.rng.randrange(3)}"
        if key in self.model.names.nodes[fid].xattrs:
            self._do("removexattr", fid, lambda: os.removexattr(self._path(*place), key), key=key)
        else:
            value = f"{self.number:x}" * self.rng.choice((1, 30))
            self._do("setxattr", fid,
                     lambda: os.setxattr(self._path(*place), key, value.encode()),
                     key=key, value=value)

    def utimens(self):
        place = self._pick("file")
        if place:
            mtime = self.rng.randrange(10**9, 2 * 10**18)
            self._do("utimens", self.entries[place],
                     lambda: os.utime(self._path(*place), ns=(mtime, mtime)), mtime=mtime)

    def map_and_store(self):
        handle = self._handle()
        self._map(handle)
        if self.rng.random() < .5:
            self._close(handle)
        if self.maps:
            self._store(self.maps[-1])

    def store(self):
        self._store(self.rng.choice(self.maps))

    # Choices.

    def _write_some(self, handle):
        size = self._size(handle.fid)
        count = self.rng.choice((1, 1, 2, 3, 5, 16, 17, 64, 200))
        at = size
        if not handle.append:
            at = self.rng.choice((size, size + 3, self.rng.randrange(size + 1)))
        if at + count <= CELLS_MAX:
            self._write(handle, at, count)
        elif not handle.append:
            self._write(handle, 0, count)

    def _handle(self):
        if self.handles and self.rng.random() < .7:
            return self.rng.choice(self.handles)
        place = self._pick("file")
        if not place:
            return self._create(0)
        return self._open(place, self.rng.choice((0, os.O_APPEND, os.O_DSYNC)))

    def _pick(self, *kinds, where=lambda fid: True):
        places = [place for place, fid in self.entries.items()
                  if self._kind(place) in kinds and where(fid)]
        return self.rng.choice(places) if places else None

    def _kind(self, place):
        return self.model.names.nodes[self.entries[place]].kind

    def _dirs(self):
        """All directories that can be reached."""
        return [ROOT, SHARED] + [fid for place, fid in self.entries.items()
                                 if self._kind(place) == "dir"]

    def _under(self, top):
        """The directory `top` and all below it."""
        found = {top}
        while more := {fid for place, fid in self.entries.items()
                       if place[0] in found and fid not in found and self._kind(place) == "dir"}:
            found |= more
        return found

    def _free_place(self, directories=None):
        directory = self.rng.choice(sorted(directories) if directories else self._dirs())
        while True:
            name = self.rng.choice("abcdefgh") + str(self.rng.randrange(9))
            if directory == SHARED:
                name = f"{self._root()}-{name}"
            if (directory, name) not in self.entries:
                return {"dir": directory, "name": name}

    def _new_fid(self):
        """Unique over writers and rounds: the number of the coming operation, and whose it is."""
        return self.number + 1 << 8 | int(self._root()[1:]) + 1

    def _size(self, fid):
        return len(self.model.data[fid].cells)

    def _root(self):
        return self.model.root

    def _path(self, dir, name=None):
        path = self.model.names.path(dir, self._root())
        return os.path.join(self.top, path, name) if name else os.path.join(self.top, path)


SYNCS = ("fsync", "fdatasync", "fsyncdir", "msync", "O_DSYNC")
OPERATIONS = ("create", "open", "close", "write", "fsync", "fdatasync", "fsyncdir", "map", "munmap",
              "store", "msync", "punch", "truncate", "utimens", "chmod", "setxattr", "removexattr",
              "rename", "exchange", "link", "unlink", "tmpfile", "mkdir", "rmdir", "symlink")
ACTIONS = {  # With their weights.
    Writer.create: 8, Writer.write: 12, Writer.reopen: 3, Writer.fsync: 5, Writer.fdatasync: 2,
    Writer.fsyncdir: 2, Writer.replace: 4, Writer.rename: 4, Writer.exchange: 2, Writer.link: 3,
    Writer.unlink: 5, Writer.unlink_open: 1, Writer.tmpfile: 2, Writer.mkdir: 2, Writer.rmdir: 1,
    Writer.symlink: 1, Writer.truncate: 2, Writer.ftruncate: 1, Writer.punch: 1, Writer.chmod: 2,
    Writer.xattr: 3, Writer.utimens: 1, Writer.map_and_store: 2, Writer.store: 3,
}
