"""Extended attributes of all namespaces."""

import os
import subprocess
from errno import (E2BIG, EACCES, EEXIST, EFAULT, EINVAL, ENAMETOOLONG, ENODATA, ENOENT,
                   ENOTDIR, EOPNOTSUPP, EPERM, ERANGE)

from harness import (NOBODY, as_user, case, check, equal, expect, make, need_root, opened,
                     outcome)
from syscalls import BAD_ADDRESS, call, xattr_size

CREATE, REPLACE = os.XATTR_CREATE, os.XATTR_REPLACE


def names(path):
    """Leaves out what a security module adds by itself."""
    return sorted(n for n in os.listxattr(path) if n != "security.selinux")


@case
def set_get_list_remove(t):
    make("f")
    os.setxattr("f", "user.a", b"1")
    os.setxattr("f", "user.b", b"22")
    equal((os.getxattr("f", "user.a"), os.getxattr("f", "user.b")), (b"1", b"22"))
    equal(names("f"), ["user.a", "user.b"])
    os.removexattr("f", "user.a")
    equal(names("f"), ["user.b"])
    expect(ENODATA, os.getxattr, "f", "user.a")


@case
def none_at_first(t):
    make("f")
    equal(names("f"), [])
    expect(ENODATA, os.getxattr, "f", "user.a")
    expect(ENODATA, os.removexattr, "f", "user.a")


@case
def create_and_replace_flags(t):
    make("f")
    expect(ENODATA, os.setxattr, "f", "user.a", b"1", REPLACE)
    os.setxattr("f", "user.a", b"1", CREATE)
    expect(EEXIST, os.setxattr, "f", "user.a", b"2", CREATE)
    equal(os.getxattr("f", "user.a"), b"1")
    os.setxattr("f", "user.a", b"3", REPLACE)
    equal(os.getxattr("f", "user.a"), b"3")
    expect(EINVAL, os.setxattr, "f", "user.a", b"4", 8)


@case
def overwrite_with_other_sizes(t):
    make("f")
    for size in (0, 1, 1000, 3, 3000, 0, 100):
        os.setxattr("f", "user.a", b"v" * size)
        equal(os.getxattr("f", "user.a"), b"v" * size)


@case
def value_of_any_bytes(t):
    make("f")
    value = bytes(range(256))
    os.setxattr("f", "user.a", value)
    equal(os.getxattr("f", "user.a"), value)
    os.setxattr("f", "user.empty", b"")
    equal(os.getxattr("f", "user.empty"), b"")


@case
def name_of_any_bytes(t):
    make("f")
    for name in ("user." + "n" * 250, "user.\u00e4\u6f22", "user. blank", "user.a.b.c", "user.A"):
        os.setxattr("f", name, name.encode())
    for name in names("f"):
        equal(os.getxattr("f", name), name.encode())
    equal(len(names("f")), 5, "names")


@case
def name_errors(t):
    make("f")
    for function, *value in ((os.setxattr, b"1"), (os.getxattr,), (os.removexattr,)):
        expect((ERANGE, ENAMETOOLONG), function, "f", "user." + "n" * 251, *value)
        expect(EOPNOTSUPP, function, "f", "nospace", *value)
        expect(EOPNOTSUPP, function, "f", "unknown.a", *value)
        expect((EINVAL, EOPNOTSUPP), function, "f", "user.", *value)
        expect((ERANGE, EOPNOTSUPP), function, "f", "", *value)


@case
def value_of_64k(t):
    make("f")
    value = os.urandom(65536)
    if outcome(os.setxattr, "f", "user.a", value) == "ENOSPC" and not t.on_cfs:
        return  # ext4 keeps attributes in one block.
    equal(os.getxattr("f", "user.a") == value, True, "value")
    equal(xattr_size("getxattr", "f", "user.a", 0), 65536, "size")


@case
def value_too_big(t):
    make("f")
    expect(E2BIG, os.setxattr, "f", "user.a", bytes(65537))
    equal(names("f"), [])


@case
def several_large_values(t):
    make("f")
    values = {f"user.{n}": os.urandom(1000) for n in range(3)}
    for name, value in values.items():
        os.setxattr("f", name, value)
    equal({name: os.getxattr("f", name) for name in names("f")}, values)


@case
def many_attributes(t):
    make("f")
    wanted = 100
    for number in range(wanted):
        os.setxattr("f", f"user.attribute{number}", b"%d" % number)
    equal(len(names("f")), wanted, "names")
    for number in range(0, wanted, 2):
        os.removexattr("f", f"user.attribute{number}")
    equal(names("f"), sorted(f"user.attribute{n}" for n in range(1, wanted, 2)))


@case
def list_longer_than_allowed(t):
    """More than 64 KiB of names: E2BIG from listxattr(2), never a cut list."""
    make("f")
    count = 0
    for count in range(300):
        if outcome(os.setxattr, "f", f"user.{count:03}" + "n" * 245, b"") is not None:
            break
    answer = outcome(os.listxattr, "f")
    check(answer == "E2BIG" or len(answer) >= count, "list is cut")


@case
def buffer_too_short(t):
    make("f")
    os.setxattr("f", "user.abc", b"0123456789")
    equal(xattr_size("getxattr", "f", "user.abc", 0), 10, "size asked for")
    equal(xattr_size("getxattr", "f", "user.abc", 10), 10, "exact buffer")
    expect(ERANGE, xattr_size, "getxattr", "f", "user.abc", 9)
    equal(xattr_size("listxattr", "f", 0), 9, "size of the list")
    expect(ERANGE, xattr_size, "listxattr", "f", 8)


@case
def bad_addresses(t):
    make("f")
    os.setxattr("f", "user.a", b"1")
    expect(EFAULT, call, "setxattr", "f", "user.a", BAD_ADDRESS, 10, 0)
    expect(EFAULT, call, "getxattr", "f", "user.a", BAD_ADDRESS, 10)
    expect(EFAULT, call, "listxattr", "f", BAD_ADDRESS, 100)
    expect(EFAULT, call, "getxattr", "f", BAD_ADDRESS, 0, 0)


@case
def path_errors(t):
    make("f")
    os.mkdir("closed", 0o700)
    for function, *arguments in ((os.setxattr, "user.a", b"1"), (os.getxattr, "user.a"),
                                 (os.listxattr,), (os.removexattr, "user.a")):
        expect(ENOENT, function, "missing", *arguments)
        expect(ENOTDIR, function, "f/x", *arguments)
        expect(ENAMETOOLONG, function, "n" * 256, *arguments)
        expect(EACCES, as_user, NOBODY, function, "closed/f", *arguments)


@case
def on_directories(t):
    os.mkdir("d")
    os.setxattr("d", "user.a", b"1")
    make("d/f")
    equal((os.getxattr("d", "user.a"), names("d/f")), (b"1", []))
    os.removexattr("d", "user.a")
    equal(names("d"), [])


@case
def by_descriptor(t):
    make("f")
    with opened("f", os.O_RDONLY) as fd:
        os.setxattr(fd, "user.a", b"1")
        os.unlink("f")
        equal((os.getxattr(fd, "user.a"), os.listxattr(fd)), (b"1", ["user.a"]))
        os.removexattr(fd, "user.a")
        equal(os.listxattr(fd), [])


@case
def user_namespace_is_for_files_and_directories(t):
    os.mkfifo("p")
    os.symlink("nowhere", "s")
    expect(EPERM, os.setxattr, "p", "user.a", b"1")
    expect(EPERM, os.setxattr, "s", "user.a", b"1", follow_symlinks=False)
    expect(ENODATA, os.getxattr, "p", "user.a")
    expect(ENODATA, os.getxattr, "s", "user.a", follow_symlinks=False)


@case
def trusted_on_symlinks_and_special_files(t):
    need_root()
    os.symlink("nowhere", "s")
    os.mkfifo("p")
    os.setxattr("s", "trusted.a", b"1", follow_symlinks=False)
    os.setxattr("p", "trusted.a", b"2")
    equal(os.getxattr("s", "trusted.a", follow_symlinks=False), b"1")
    equal(os.listxattr("s", follow_symlinks=False), ["trusted.a"])
    equal(os.getxattr("p", "trusted.a"), b"2")
    expect(ENOENT, os.getxattr, "s", "trusted.a")
    os.removexattr("s", "trusted.a", follow_symlinks=False)
    equal(os.listxattr("s", follow_symlinks=False), [])


@case
def following_symlinks(t):
    make("f")
    os.symlink("f", "s")
    os.setxattr("s", "user.a", b"1")
    equal((os.getxattr("f", "user.a"), os.listxattr("s", follow_symlinks=False)), (b"1", []))


@case
def trusted_needs_privilege(t):
    need_root()
    make("f", b"", 0o666)
    os.setxattr("f", "trusted.a", b"1")
    os.setxattr("f", "user.a", b"1")
    equal(names("f"), ["trusted.a", "user.a"])
    expect(ENODATA, as_user, NOBODY, os.getxattr, "f", "trusted.a")
    expect(EPERM, as_user, NOBODY, os.setxattr, "f", "trusted.b", b"1")
    expect(EPERM, as_user, NOBODY, os.removexattr, "f", "trusted.a")
    equal(as_user(NOBODY, names, "f"), ["user.a"], "what others see")


@case
def security_namespace(t):
    need_root()
    make("f")
    os.setxattr("f", "security.cfs-test", b"1")
    equal(os.getxattr("f", "security.cfs-test"), b"1")
    equal(as_user(NOBODY, os.getxattr, "f", "security.cfs-test"), b"1")
    expect(EPERM, as_user, NOBODY, os.setxattr, "f", "security.cfs-test", b"2")


@case
def user_namespace_permissions(t):
    make("secret", b"", 0o600)
    make("readable", b"", 0o644)
    make("writable", b"", 0o666)
    for name in ("secret", "readable", "writable"):
        os.setxattr(name, "user.a", b"1")
    expect(EACCES, as_user, NOBODY, os.getxattr, "secret", "user.a")
    equal(as_user(NOBODY, os.getxattr, "readable", "user.a"), b"1")
    expect(EACCES, as_user, NOBODY, os.setxattr, "readable", "user.a", b"2")
    expect(EACCES, as_user, NOBODY, os.removexattr, "readable", "user.a")
    as_user(NOBODY, os.setxattr, "writable", "user.a", b"2")
    equal(as_user(NOBODY, os.listxattr, "secret"), ["user.a"])


@case
def user_namespace_on_sticky_directory(t):
    os.mkdir("d")
    os.chmod("d", 0o1777)
    expect(EPERM, as_user, NOBODY, os.setxattr, "d", "user.a", b"1")
    os.setxattr("d", "user.a", b"1")


@case
def survive_rename_and_link(t):
    make("f")
    os.setxattr("f", "user.a", b"1")
    os.link("f", "g")
    os.rename("f", "h")
    os.setxattr("h", "user.a", b"2")
    equal(os.getxattr("g", "user.a"), b"2")


@case
def new_file_of_old_name_has_none(t):
    make("f")
    os.setxattr("f", "user.a", b"1")
    os.unlink("f")
    make("f")
    equal(names("f"), [])
    os.mkdir("d")
    os.setxattr("d", "user.a", b"1")
    os.rmdir("d")
    os.mkdir("d")
    equal(names("d"), [])


@case
def copied_by_tools(t):
    make("f", b"x")
    os.setxattr("f", "user.a", b"value")
    subprocess.run(["cp", "-a", "f", "g"], check=True)
    equal(os.getxattr("g", "user.a"), b"value")


@case
def no_space_is_an_error_not_a_cut(t):
    """Whatever does not fit is refused, and what was there stays."""
    make("f")
    kept = {}
    for number in range(40):
        value = os.urandom(4000)
        answer = outcome(os.setxattr, "f", f"user.{number}", value)
        if answer is not None:
            check(answer in ("ENOSPC", "E2BIG"), f"answer {answer}")
            break
        kept[f"user.{number}"] = value
    equal({name: os.getxattr("f", name) for name in names("f")} == kept, True, "attributes")
    check(not t.on_cfs or len(kept) == 40, "cfs has no such limit")
