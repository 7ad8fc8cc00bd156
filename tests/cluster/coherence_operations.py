"""Each operation of POSIX done on one node, and seen on another by the very next call."""

import contextlib
import errno
import mmap
import os
import socket
import stat

from acls import ACCESS, DEFAULT, get_acl, set_acl
from arrangement import CONTENT, OLD, look, operation, syscalls, wait_past
from harness import NOBODY, as_user, make, need_root, opened, outcome, read
from syscalls import KEEP_SIZE, PUNCH_HOLE, RENAME_EXCHANGE, RENAME_NOREPLACE, ZERO_RANGE

PAGE = mmap.PAGESIZE
SIZE = len(CONTENT)
MS_SYNC = 4
ACL = "u::rw,u:65534:rw,g::r,m::rw,o::-"
KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link",
         stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device"}


# What can be looked at


@look
def size(place, name="f"):
    return os.stat(place.path(name)).st_size


@look(late=False)
def held_size(place, name="f"):
    return os.fstat(place.held(name)).st_size


@look(late=False)
def end(place, name="f"):
    return os.lseek(place.held(name), 0, os.SEEK_END)


@look
def content(place, name="f"):
    return read(place.path(name))


@look(late=False)
def held_content(place, name="f"):
    return os.pread(place.held(name), 1 << 20, 0)


@look
def mapped_content(place, name="f"):
    with opened(place.path(name), os.O_RDONLY) as fd:
        if os.fstat(fd).st_size == 0:
            return b""
        with mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapping:
            return mapping[:]


@look
def segments(place, name="f"):
    """Where data is, by SEEK_DATA and SEEK_HOLE."""
    found, at = [], 0
    with opened(place.path(name), os.O_RDONLY) as fd:
        while (begin := outcome(os.lseek, fd, at, os.SEEK_DATA)) != "ENXIO":
            at = os.lseek(fd, begin, os.SEEK_HOLE)
            found.append((begin, at))
    return found


@look
def mode(place, name="f"):
    return stat.S_IMODE(os.stat(place.path(name)).st_mode)


@look(late=False)
def held_mode(place, name="f"):
    return stat.S_IMODE(os.fstat(place.held(name)).st_mode)


@look
def owner(place, name="f"):
    s = os.stat(place.path(name), follow_symlinks=False)
    return s.st_uid, s.st_gid


@look
def links(place, name="f"):
    return os.stat(place.path(name)).st_nlink


@look(late=False)
def held_links(place, name="f"):
    return os.fstat(place.held(name)).st_nlink


@look
def times(place, name="f"):
    s = os.stat(place.path(name), follow_symlinks=False)
    return s.st_atime_ns, s.st_mtime_ns


@look
def mtime_is_old(place, name="f"):
    return os.stat(place.path(name)).st_mtime == OLD


@look(late=False)
def held_mtime_is_old(place, name="f"):
    return os.fstat(place.held(name)).st_mtime == OLD


@look(late=False)
def ctime_moves(place, name="f"):
    """Since the first look."""
    now = os.stat(place.path(name), follow_symlinks=False).st_ctime_ns
    first = place.memory.setdefault("ctime", now)
    if now == first:
        wait_past(first)
    return now > first


@look(late=False)
def other_inode(place, name="f"):
    """Than at the first look."""
    now = os.stat(place.path(name)).st_ino
    return now != place.memory.setdefault("inode", now)


@look
def kind(place, name):
    return KINDS[stat.S_IFMT(os.lstat(place.path(name)).st_mode)]


@look
def listed(place, name):
    """As readdir sees it, with its type."""
    directory, base = os.path.split(place.path(name))
    with os.scandir(directory) as entries:
        found = [e for e in entries if e.name == base]
    return ["link" if e.is_symlink() else "directory" if e.is_dir() else "file"
            if e.is_file() else "special" for e in found]


@look(late=False)
def listed_by_held(place, name):
    """As readdir of a descriptor that stays open sees it."""
    return name in os.listdir(place.held("."))


@look
def target(place, name):
    return os.readlink(place.path(name))


@look
def attribute(place, key="user.key", name="f"):
    return os.getxattr(place.path(name), key)


@look
def attributes(place, name="f"):
    return sorted(os.listxattr(place.path(name)))


@look
def acl(place, which=ACCESS, name="f"):
    return get_acl(place.path(name), which)


@look
def nobody_may_write(place, name="f"):
    need_root()
    return as_user(NOBODY, os.access, place.path(name), os.W_OK)


@look
def opens(place, name, flags=os.O_RDONLY):
    with opened(place.path(name), flags):
        return True


def data(before, after, name="f"):
    return {content(name): (before, after), held_content(name): (before, after),
            mapped_content(name): (before, after), size(name): (len(before), len(after)),
            held_size(name): (len(before), len(after)), end(name): (len(before), len(after))}


def appears(name, what="file", readdir=None):
    return {kind(name): ("ENOENT", what), listed(name): ([], [readdir or what]),
            listed_by_held(name): (False, True)}


def disappears(name, what="file"):
    return {look_: (after, before) for look_, (before, after) in appears(name, what).items()}


# What it is done to


def nothing(_):
    pass


def empty_file(place):
    make(place.path("f"))


def old_file(place):
    make(place.path("f"), CONTENT)
    os.utime(place.path("f"), (OLD, OLD))


def two_files(place):
    make(place.path("f"), b"first")
    make(place.path("g"), b"the second one")


def three_pages(place):
    make(place.path("f"), b"x" * 3 * PAGE)


def directory(place):
    os.mkdir(place.path("d"))


def directory_with_file(place):
    os.mkdir(place.path("d"))
    make(place.path("d/f"), b"inside")


def file_and_directory(place):
    file_with_two_names(place)
    os.mkdir(place.path("d"))


def two_directories(place):
    directory_with_file(place)
    os.mkdir(place.path("e"))


def two_full_directories(place):
    two_directories(place)
    make(place.path("e/g"), b"other")


def file_with_two_names(place):
    make(place.path("f"), CONTENT)
    os.link(place.path("f"), place.path("second"))


def file_with_attribute(place):
    make(place.path("f"), CONTENT)
    os.setxattr(place.path("f"), "user.key", b"old")


def file_with_acl(place):
    make(place.path("f"), CONTENT, 0o640)
    set_acl(place.path("f"), ACL)


def setuid_file(place):
    make(place.path("f"), CONTENT, 0o4777)
    os.chmod(place.directory, 0o777)


def symbolic_link(place):
    make(place.path("f"), CONTENT)
    os.symlink("f", place.path("s"))


# Making


@operation(appears("g") | {opens("g"): ("ENOENT", True), size("g"): ("ENOENT", 0)}, nothing)
def create(place):
    with opened(place.path("g"), os.O_CREAT | os.O_EXCL | os.O_WRONLY):
        pass


@operation({content("g"): ("ENOENT", CONTENT), size("g"): ("ENOENT", SIZE),
            mode("g"): ("ENOENT", 0o640)}, nothing)
def create_with_content(place):
    make(place.path("g"), CONTENT, 0o640)


@operation(appears("g") | {mtime_is_old("."): (True, False)},
           lambda place: os.utime(place.directory, (OLD, OLD)))
def create_touches_the_directory(place):
    make(place.path("g"))


@operation(appears("g", "directory") | {links("."): (2, 3)}, nothing)
def mkdir(place):
    os.mkdir(place.path("g"))


@operation(appears("g", "pipe", "special"), nothing)
def mkfifo(place):
    os.mkfifo(place.path("g"))


@operation(appears("g", "device", "special"), nothing)
def mknod(place):
    need_root()
    os.mknod(place.path("g"), stat.S_IFCHR | 0o600, os.makedev(1, 3))


@operation({kind("g"): ("ENOENT", "socket")}, nothing)
def bind_socket(place):
    with socket.socket(socket.AF_UNIX) as s, opened(place.directory, os.O_RDONLY) as fd:
        s.bind(f"/proc/self/fd/{fd}/g")  # The path itself may be too long.


@operation(appears("g", "link") | {target("g"): ("ENOENT", "some where")}, nothing)
def symlink(place):
    os.symlink("some where", place.path("g"))


@operation(appears("g") | {links(): (1, 2), held_links(): (1, 2), ctime_moves(): (False, True),
                           content("g"): ("ENOENT", CONTENT)})
def link(place):
    os.link(place.path("f"), place.path("g"))


@operation(appears("g") | {content("g"): ("ENOENT", b"secret")}, nothing)
def link_of_tmpfile(place):
    with opened(place.directory, os.O_TMPFILE | os.O_RDWR) as fd:
        os.write(fd, b"secret")
        syscalls.linkat(syscalls.AT_FDCWD, f"/proc/self/fd/{fd}", place.path("g"),
                        syscalls.AT_SYMLINK_FOLLOW)


@operation({acl(ACCESS, "d/g"): ("ENOENT", "u::rw,u:65534:rw,g::r,m::r,o::-")},
           lambda place: (directory(place), set_acl(place.path("d"), ACL, DEFAULT)))
def create_inherits_acl(place):
    with opened(place.path("d/g"), os.O_CREAT | os.O_WRONLY, 0o640):
        pass


# Data


@operation(data(CONTENT, CONTENT + b"more"), held=True)
def append(place):
    with opened(place.path(), os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, b"more")


@operation(data(b"", CONTENT), empty_file, held=True)
def write(place):
    with opened(place.path(), os.O_WRONLY) as fd:
        os.write(fd, CONTENT)


@operation(data(CONTENT, CONTENT[:5000] + b"NEW" + CONTENT[5003:]), held=True)
def overwrite(place):
    with opened(place.path(), os.O_WRONLY) as fd:
        os.pwrite(fd, b"NEW", 5000)


@operation(data(CONTENT, CONTENT + bytes(9 * PAGE - SIZE) + b"far"), held=True)
def write_beyond_the_end(place):
    with opened(place.path(), os.O_WRONLY) as fd:
        os.pwrite(fd, b"far", 9 * PAGE)


@operation({content(): (CONTENT, b"seen" + CONTENT[4:])}, held=True)
def write_not_yet_closed(place):
    os.write(place.held("f", os.O_WRONLY), b"seen")


@operation({size(): (SIZE, SIZE + 4), end(): (SIZE, SIZE + 4), held_size(): (SIZE, SIZE + 4)},
           held=True)
def append_not_yet_closed(place):
    os.write(place.held("f", os.O_WRONLY | os.O_APPEND), b"more")


@operation(data(CONTENT, b"synced" + CONTENT[6:] + b"more"), held=True)
def write_and_fsync(place):
    fd = place.held("f", os.O_RDWR)
    os.pwrite(fd, b"synced", 0)
    os.pwrite(fd, b"more", SIZE)
    os.fsync(fd)


@operation({mtime_is_old(): (True, False), held_mtime_is_old(): (True, False),
            ctime_moves(): (False, True)}, old_file, held=True)
def write_touches_the_file(place):
    with opened(place.path(), os.O_WRONLY) as fd:
        os.pwrite(fd, b"x", 0)


@operation(data(CONTENT, CONTENT[:5000]), held=True)
def truncate_down(place):
    os.truncate(place.path(), 5000)


@operation(data(CONTENT, CONTENT + bytes(5000)), held=True)
def truncate_up(place):
    with opened(place.path(), os.O_WRONLY) as fd:
        os.ftruncate(fd, SIZE + 5000)


@operation({size(): (SIZE, 0), held_size(): (SIZE, 0), content(): (CONTENT, b""),
            held_content(): (CONTENT, b"")}, held=True)
def open_truncates(place):
    with opened(place.path(), os.O_WRONLY | os.O_TRUNC):
        pass


@operation({mtime_is_old(): (True, False), held_mtime_is_old(): (True, False)}, old_file,
           held=True)
def truncate_touches_the_file(place):
    os.truncate(place.path(), 5000)


@operation(data(CONTENT, CONTENT + bytes(3 * PAGE)), held=True)
def fallocate(place):
    with opened(place.path()) as fd:
        syscalls.fallocate(fd, 0, SIZE, 3 * PAGE)


@operation(data(b"x" * 3 * PAGE, b"x" * PAGE + bytes(PAGE) + b"x" * PAGE) |
           {segments(): ([(0, 3 * PAGE)], [(0, PAGE), (2 * PAGE, 3 * PAGE)])}, three_pages,
           held=True)
def punch_hole(place):
    with opened(place.path()) as fd:
        syscalls.fallocate(fd, PUNCH_HOLE | KEEP_SIZE, PAGE, PAGE)


@operation(data(b"x" * 3 * PAGE, b"x" * 10 + bytes(PAGE) + b"x" * (2 * PAGE - 10)), three_pages,
           held=True)
def zero_range(place):
    with opened(place.path()) as fd:
        syscalls.fallocate(fd, ZERO_RANGE, 10, PAGE)


@operation(data(CONTENT, CONTENT[:PAGE] + b"stored" + CONTENT[PAGE + 6:]), held=True)
def mapped_store(place):
    with opened(place.path()) as fd, mmap.mmap(fd, SIZE) as mapping:
        mapping[PAGE:PAGE + 6] = b"stored"
        mapping.flush()


@operation({mtime_is_old(): (True, False)}, old_file, held=True)
def mapped_store_touches_the_file(place):
    with opened(place.path()) as fd, mmap.mmap(fd, SIZE) as mapping:
        mapping[0] = 0
        mapping.flush()


@operation({content("g"): (b"the second one", b"the firstd one")}, two_files)
def copy_file_range(place):
    with opened(place.path("f")) as source, opened(place.path("g")) as sink:
        os.copy_file_range(source, sink, 5, 0, 4)


# Attributes


@operation({mode(): (0o644, 0o600), held_mode(): (0o644, 0o600), ctime_moves(): (False, True)},
           held=True)
def chmod(place):
    os.chmod(place.path(), 0o600)


@operation({nobody_may_write(): (False, True), mode(): (0o644, 0o646)})
def fchmod(place):
    with opened(place.path(), os.O_RDONLY) as fd:
        os.fchmod(fd, 0o646)


@operation({mode("d"): (0o755, 0o700)}, directory)
def chmod_directory(place):
    os.chmod(place.path("d"), 0o700)


@operation({owner(): ((0, 0), (1000, 1234)), ctime_moves(): (False, True)}, held=True)
def chown(place):
    need_root()
    os.chown(place.path(), 1000, 1234)


@operation({owner("s"): ((0, 0), (1000, 1234))}, symbolic_link)
def chown_link(place):
    need_root()
    os.chown(place.path("s"), 1000, 1234, follow_symlinks=False)


@operation({mode(): (0o4777, 0o777), held_mode(): (0o4777, 0o777)}, setuid_file)
def write_drops_setuid(place):
    need_root()

    def overwrite_it():
        with opened(place.path(), os.O_WRONLY) as fd:
            os.write(fd, b"x")

    as_user(NOBODY, overwrite_it)


@operation({times(): ((OLD * 10**9, OLD * 10**9), (1_111_111_111, 1_222_222_222_333_444_555)),
            ctime_moves(): (False, True)}, old_file)
def utimens(place):
    os.utime(place.path(), ns=(1_111_111_111, 1_222_222_222_333_444_555))


@operation({mtime_is_old(): (False, True), held_mtime_is_old(): (False, True)}, held=True)
def utimens_of_file_in_use(place):
    os.utime(place.path(), (OLD, OLD))


@operation({times(): ((OLD * 10**9, OLD * 10**9), (OLD * 10**9, 7 * 10**9))}, old_file)
def utimens_of_mtime_only(place):
    syscalls.utimensat(place.path(), (0, syscalls.UTIME_OMIT), (7, 0))


@operation({times(): ((OLD * 10**9, OLD * 10**9), (7 * 10**9, OLD * 10**9))}, old_file)
def utimens_of_atime_only(place):
    syscalls.utimensat(place.path(), (7, 0), (0, syscalls.UTIME_OMIT))


@operation({mtime_is_old("."): (False, True)})
def utimens_of_directory(place):
    os.utime(place.directory, (OLD, OLD))


@operation({attribute(): ("ENODATA", b"new"), attributes(): ([], ["user.key"]),
            ctime_moves(): (False, True)}, held=True)
def setxattr(place):
    os.setxattr(place.path(), "user.key", b"new")


@operation({attribute(): (b"old", b"replaced")}, file_with_attribute)
def setxattr_over(place):
    os.setxattr(place.path(), "user.key", b"replaced")


@operation({attribute(): (b"old", "ENODATA"), attributes(): (["user.key"], [])},
           file_with_attribute)
def removexattr(place):
    os.removexattr(place.path(), "user.key")


@operation({acl(): ("ENODATA", ACL), mode(): (0o644, 0o660), nobody_may_write(): (False, True)})
def set_acl_of_file(place):
    set_acl(place.path(), ACL)


@operation({acl(): (ACL, "ENODATA"), nobody_may_write(): (True, False)}, file_with_acl)
def remove_acl(place):
    os.removexattr(place.path(), ACCESS)


# Names


@operation(disappears("f") | {opens("f"): (True, "ENOENT"), held_links(): (1, 0)})
def unlink(place):
    os.unlink(place.path())


@operation(disappears("second") | {links(): (2, 1), held_links(): (2, 1)}, file_with_two_names)
def unlink_one_of_two(place):
    os.unlink(place.path("second"))


@operation(disappears("d", "directory") | {links("."): (3, 2)}, directory)
def rmdir(place):
    os.rmdir(place.path("d"))


@operation({other_inode(): (False, True), content(): (CONTENT, b"again"), size(): (SIZE, 5)})
def unlink_and_create(place):
    os.unlink(place.path())
    make(place.path(), b"again")


@operation({kind("f"): ("file", "directory"), listed("f"): (["file"], ["directory"])})
def directory_instead_of_file(place):
    os.unlink(place.path())
    os.mkdir(place.path())


@operation(disappears("f") | appears("g") | {content("g"): ("ENOENT", CONTENT)})
def rename(place):
    os.rename(place.path(), place.path("g"))


@operation(disappears("f") | {content("g"): (b"the second one", b"first"),
                              other_inode("g"): (False, True), held_links("g"): (1, 0)}, two_files)
def rename_over(place):
    os.rename(place.path(), place.path("g"))


@operation(disappears("f") | appears("g") | {content("g"): ("ENOENT", CONTENT)})
def rename_noreplace(place):
    syscalls.rename2(place.path(), place.path("g"), RENAME_NOREPLACE)


@operation({content("f"): (b"first", b"the second one"),
            content("g"): (b"the second one", b"first"),
            size("f"): (5, 14), other_inode("g"): (False, True)}, two_files)
def exchange(place):
    syscalls.rename2(place.path(), place.path("g"), RENAME_EXCHANGE)


@operation({kind("f"): ("file", "directory"), kind("d"): ("directory", "file"),
            listed("d"): (["directory"], ["file"])}, file_and_directory)
def exchange_file_and_directory(place):
    syscalls.rename2(place.path(), place.path("d"), RENAME_EXCHANGE)


@operation(disappears("f") | {kind("d/g"): ("ENOENT", "file"), listed("d/g"): ([], ["file"]),
                              content("d/g"): ("ENOENT", CONTENT)}, file_and_directory)
def rename_into_directory(place):
    os.rename(place.path(), place.path("d/g"))


@operation(disappears("d", "directory") | appears("g", "directory") |
           {content("d/f"): (b"inside", "ENOENT"), content("g/f"): ("ENOENT", b"inside"),
            listed("g/f"): ("ENOENT", ["file"])}, directory_with_file)
def rename_directory(place):
    os.rename(place.path("d"), place.path("g"))


@operation({kind("d"): ("directory", "ENOENT"), content("e/f"): ("ENOENT", b"inside"),
            links("."): (4, 3), other_inode("e"): (False, True)}, two_directories)
def rename_directory_over(place):
    os.rename(place.path("d"), place.path("e"))


@operation({content("d/f"): (b"inside", "ENOENT"), content("e/d/f"): ("ENOENT", b"inside"),
            links("."): (4, 3), links("e"): (2, 3)}, two_directories)
def rename_directory_into_directory(place):
    os.rename(place.path("d"), place.path("e/d"))


@operation({content("d/f"): (b"inside", "ENOENT"), content("d/g"): ("ENOENT", b"other"),
            content("e/f"): ("ENOENT", b"inside"), listed("e/g"): (["file"], [])},
           two_full_directories)
def exchange_directories(place):
    syscalls.rename2(place.path("d"), place.path("e"), RENAME_EXCHANGE)


@operation({target("s"): ("f", "d"), content("s"): (CONTENT, "ENOENT")}, symbolic_link)
def replace_link(place):
    os.symlink("d", place.path("new"))
    os.rename(place.path("new"), place.path("s"))


@operation({kind("d/f"): ("file", "ENOENT"), kind("d"): ("directory", "ENOENT")},
           directory_with_file)
def remove_tree(place):
    os.unlink(place.path("d/f"))
    os.rmdir(place.path("d"))


# What fails changes nothing


@operation({content("g"): (b"the second one", b"the second one"), content("new"): ("ENOENT", b"")},
           two_files)
def refused_operations_change_nothing(place):
    for function, *arguments in ((os.mkdir, "g"), (os.symlink, "f", "g"), (os.link, "f", "g"),
                                 (os.rmdir, "g"), (os.mkfifo, "g")):
        with contextlib.suppress(FileExistsError, NotADirectoryError):
            function(*map(place.path, arguments))
            raise OSError(errno.EIO, f"{function.__name__} succeeded")
    make(place.path("new"))
