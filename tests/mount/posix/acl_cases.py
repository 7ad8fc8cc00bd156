"""POSIX ACLs: encoding, enforcement, mask and mode, inheritance."""

import os
import shutil
import stat
import struct
import subprocess
import time
from errno import EACCES, EINVAL, ENODATA, ENOENT, EOPNOTSUPP, EPERM

from acls import ACCESS, DEFAULT, NO_ID, encode, get_acl, set_acl
from harness import (NOBODY, Skip, as_user, case, check, equal, expect, make, need_root, opened,
                     read)
from syscalls import AT_FDCWD, AT_SYMLINK_FOLLOW, linkat

USER, GROUP = 1000, 1234


def mode_of(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def may(path, flags):
    def attempt():
        os.close(os.open(path, flags))

    def answer(uid, groups=()):
        try:
            as_user(uid, attempt, groups=groups)
            return True
        except PermissionError:
            return False

    return answer


FULL = "u::rw,u:1000:r,g::r,g:1234:rw,m::rw,o::-"


@case
def round_trip(t):
    make("f")
    set_acl("f", FULL)
    equal(get_acl("f"), FULL)
    check(ACCESS in os.listxattr("f"), "not listed")


@case
def none_at_first(t):
    make("f")
    os.mkdir("d")
    expect(ENODATA, os.getxattr, "f", ACCESS)
    expect(ENODATA, os.getxattr, "d", DEFAULT)
    equal([n for n in os.listxattr("f") if n.startswith("system.")], [])


@case
def mask_shows_as_group_bits(t):
    make("f", b"", 0o644)
    set_acl("f", FULL)
    equal(mode_of("f"), 0o660, "mode")
    set_acl("f", "u::rwx,u:1000:rwx,g::-,m::x,o::r")
    equal(mode_of("f"), 0o714, "mode")


@case
def minimal_acl_is_the_mode(t):
    make("f", b"", 0o600)
    set_acl("f", "u::rwx,g::rx,o::x")
    equal(mode_of("f"), 0o751, "mode")
    expect(ENODATA, os.getxattr, "f", ACCESS)


@case
def minimal_acl_replaces_extended(t):
    make("f")
    set_acl("f", FULL)
    set_acl("f", "u::rw,g::r,o::r")
    expect(ENODATA, os.getxattr, "f", ACCESS)
    equal(mode_of("f"), 0o644, "mode")


@case
def chmod_changes_mask_not_group(t):
    make("f")
    set_acl("f", FULL)
    os.chmod("f", 0o741)
    equal(get_acl("f"), "u::rwx,u:1000:r,g::r,g:1234:rw,m::r,o::x")
    os.chmod("f", 0o600)
    equal(get_acl("f"), "u::rw,u:1000:r,g::r,g:1234:rw,m::-,o::-")


@case
def chmod_keeps_suid_bits_beside_acl(t):
    make("f")
    set_acl("f", FULL)
    os.chmod("f", 0o4750)
    equal((mode_of("f"), get_acl("f").split(",")[4]), (0o4750, "m::rx"))


@case
def enforced_for_named_user(t):
    make("f")
    set_acl("f", "u::rw,u:1000:rw,u:1001:-,g::r,m::rw,o::r")
    equal((may("f", os.O_RDWR)(1000), may("f", os.O_RDONLY)(1001), may("f", os.O_RDONLY)(1002)),
          (True, False, True))


@case
def enforced_for_groups(t):
    make("f")
    set_acl("f", "u::rw,g::-,g:1234:r,g:1235:w,m::rw,o::-")
    reads, writes, both = (may("f", flags) for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR))
    equal((reads(1000, [GROUP]), writes(1000, [GROUP]), reads(1000, [1235]),
           writes(1000, [1235]), reads(1000)), (True, False, False, True, False))
    equal(both(1000, [GROUP, 1235]), False, "two entries don't add up")


@case
def mask_limits_named_entries(t):
    make("f")
    set_acl("f", "u::rw,u:1000:rw,g::rw,g:1234:rw,m::r,o::rw")
    equal((may("f", os.O_RDONLY)(1000), may("f", os.O_WRONLY)(1000),
           may("f", os.O_WRONLY)(1001, [GROUP]), may("f", os.O_WRONLY)(1002)),
          (True, False, False, True))


@case
def chmod_takes_effect_through_mask(t):
    make("f")
    set_acl("f", "u::rw,u:1000:rw,g::r,m::rw,o::-")
    equal(may("f", os.O_RDWR)(USER), True)
    os.chmod("f", 0o600)
    equal(may("f", os.O_RDONLY)(USER), False)
    os.chmod("f", 0o660)
    equal(may("f", os.O_RDWR)(USER), True)


@case
def owner_entry_comes_first(t):
    make("f")
    os.chown("f", USER, USER)
    set_acl("f", "u::-,u:1000:rw,g::rw,m::rw,o::rw")
    equal(may("f", os.O_RDONLY)(USER), False)


@case
def enforced_on_directories(t):
    os.mkdir("d", 0o700)
    make("d/f")
    equal(may("d/f", os.O_RDONLY)(USER), False)
    set_acl("d", "u::rwx,u:1000:x,g::-,m::x,o::-")
    equal(may("d/f", os.O_RDONLY)(USER), True)
    expect(EACCES, as_user, USER, os.listdir, "d")
    set_acl("d", "u::rwx,u:1000:rwx,g::-,m::rwx,o::-")
    as_user(USER, make, "d/g")


@case
def removed_acl_leaves_the_mode(t):
    make("f")
    set_acl("f", FULL)
    os.removexattr("f", ACCESS)
    equal(mode_of("f"), 0o660, "mode")
    expect(ENODATA, os.getxattr, "f", ACCESS)
    equal(may("f", os.O_RDONLY)(USER), False)


@case
def change_counts_at_once(t):
    """Whatever the kernel has cached of the old ACL."""
    make("f", b"", 0o600)
    for _ in range(5):
        set_acl("f", "u::rw,u:1000:r,g::-,m::r,o::-")
        equal(may("f", os.O_RDONLY)(USER), True)
        set_acl("f", "u::rw,u:1000:-,g::-,m::r,o::-")
        equal(may("f", os.O_RDONLY)(USER), False)


@case
def ctime_changes(t):
    make("f")
    before = os.stat("f").st_ctime_ns
    time.sleep(0.02)
    set_acl("f", FULL)
    check(os.stat("f").st_ctime_ns > before, "ctime is old")


# Default ACLs


@case
def default_round_trip(t):
    os.mkdir("d")
    set_acl("d", FULL, DEFAULT)
    equal(get_acl("d", DEFAULT), FULL)
    equal(mode_of("d"), 0o755, "mode")
    expect(ENODATA, os.getxattr, "d", ACCESS)
    os.removexattr("d", DEFAULT)
    expect(ENODATA, os.getxattr, "d", DEFAULT)


@case
def default_is_inherited_by_files(t):
    os.mkdir("d")
    set_acl("d", "u::rwx,u:1000:rwx,g::rx,m::rwx,o::x", DEFAULT)
    os.close(os.open("d/f", os.O_CREAT | os.O_RDWR, 0o666))
    equal(get_acl("d/f"), "u::rw,u:1000:rwx,g::rx,m::rw,o::-")
    equal(mode_of("d/f"), 0o660, "mode")
    expect((ENODATA, EOPNOTSUPP), os.getxattr, "d/f", DEFAULT)


@case
def default_replaces_umask(t):
    os.mkdir("d")
    set_acl("d", "u::rwx,g::rwx,o::rwx", DEFAULT)
    os.umask(0o077)
    os.close(os.open("d/f", os.O_CREAT | os.O_RDWR, 0o666))
    os.mkdir("d/e")
    os.mkfifo("d/p")
    os.mknod("d/n", stat.S_IFREG | 0o644)
    equal([mode_of(f"d/{n}") for n in "fepn"], [0o666, 0o777, 0o666, 0o644], "modes")
    os.mkdir("plain")
    os.close(os.open("plain/f", os.O_CREAT | os.O_RDWR, 0o666))
    equal(mode_of("plain/f"), 0o600, "mode where umask counts")


@case
def default_is_inherited_by_directories_twice(t):
    os.mkdir("d")
    text = "u::rwx,u:1000:rwx,g::rx,m::rwx,o::-"
    set_acl("d", text, DEFAULT)
    os.makedirs("d/a/b")
    for path in ("d/a", "d/a/b"):
        equal(get_acl(path, DEFAULT), text, path)
        equal(get_acl(path), text, path)
        equal(mode_of(path), 0o770, path)


@case
def default_with_special_bits_of_mkdir(t):
    need_root()
    os.mkdir("d")
    os.chown("d", 0, GROUP)
    os.chmod("d", 0o2755)
    set_acl("d", "u::rwx,u:1000:rx,g::rx,m::rx,o::-", DEFAULT)
    os.mkdir("d/e")
    equal((mode_of("d/e"), os.stat("d/e").st_gid), (0o2750, GROUP))


@case
def default_is_not_inherited_by_symlinks_and_links(t):
    os.mkdir("d")
    make("f")
    set_acl("d", FULL, DEFAULT)
    os.symlink("../f", "d/s")
    os.link("f", "d/l")
    os.rename("f", "d/r")
    equal(stat.S_IMODE(os.lstat("d/s").st_mode), 0o777, "mode of the symlink")
    for name in ("l", "r"):
        expect(ENODATA, os.getxattr, f"d/{name}", ACCESS)


@case
def default_is_inherited_by_tmpfile(t):
    os.mkdir("d")
    set_acl("d", "u::rwx,u:1000:rw,g::r,m::rw,o::-", DEFAULT)
    with opened("d", os.O_TMPFILE | os.O_RDWR, 0o666) as fd:
        linkat(AT_FDCWD, f"/proc/self/fd/{fd}", "d/f", AT_SYMLINK_FOLLOW)
    equal(get_acl("d/f"), "u::rw,u:1000:rw,g::r,m::rw,o::-")


@case
def default_enforced_on_created_files(t):
    os.mkdir("d")
    set_acl("d", "u::rwx,u:1000:rw,g::-,m::rwx,o::-", DEFAULT)
    make_plain("d/f")
    equal((may("d/f", os.O_RDWR)(USER), may("d/f", os.O_RDONLY)(1001)), (True, False))


def make_plain(path):
    """Without the fchmod of make(): the mode is what inheritance gives."""
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o666))


@case
def default_change_affects_later_files_only(t):
    os.mkdir("d")
    set_acl("d", "u::rwx,g::-,o::-", DEFAULT)
    make_plain("d/a")
    set_acl("d", "u::rwx,g::r,o::r", DEFAULT)
    make_plain("d/b")
    os.removexattr("d", DEFAULT)
    make_plain("d/c")
    equal([mode_of(f"d/{n}") for n in "abc"], [0o600, 0o644, 0o644])


# Refusals


@case
def default_on_file(t):
    make("f")
    expect(EACCES, os.setxattr, "f", DEFAULT, encode("u::rw,g::r,o::r"))


@case
def invalid_values(t):
    make("f")
    bad = {
        "no mask": encode("u::rw,u:1000:r,g::r,o::r"),
        "no owner": encode("g::r,o::r"),
        "no others": encode("u::rw,g::r"),
        "two owners": encode("u::rw,u::r,g::r,o::r"),
        "wrong order": encode("u::rw,o::r,g::r"),
        "short": encode("u::rw,g::r,o::r")[:-3],
        "unknown tag": struct.pack("<IHHI", 2, 0x40, 7, NO_ID),
        "bad permission": encode("u::rw,g::r,o::r")[:6] + b"\x77\x00" + encode(
            "u::rw,g::r,o::r")[8:],
    }
    for name, value in bad.items():
        expect(EINVAL, os.setxattr, "f", ACCESS, value)
        equal(mode_of("f"), 0o644, f"mode after: {name}")
    expect(EOPNOTSUPP, os.setxattr, "f", ACCESS, struct.pack("<I", 99) + encode(FULL)[4:])


@case
def only_the_owner_may(t):
    make("f", b"", 0o666)
    expect(EPERM, as_user, NOBODY, set_acl, "f", FULL)
    expect(EPERM, as_user, NOBODY, os.removexattr, "f", ACCESS)
    os.chown("f", NOBODY, NOBODY)
    as_user(NOBODY, set_acl, "f", FULL)
    equal(get_acl("f"), FULL)


@case
def stranger_reads_acl(t):
    make("f", b"", 0o600)
    set_acl("f", "u::rw,u:1000:r,g::-,m::r,o::-")
    equal(as_user(NOBODY, get_acl, "f"), "u::rw,u:1000:r,g::-,m::r,o::-")


@case
def on_symlink(t):
    make("f")
    os.symlink("f", "s")
    expect(EOPNOTSUPP, os.setxattr, "s", ACCESS, encode(FULL), follow_symlinks=False)
    set_acl("s", FULL)
    equal(get_acl("f"), FULL)


@case
def on_missing_file(t):
    expect(ENOENT, os.setxattr, "f", ACCESS, encode(FULL))


@case
def sgid_goes_when_a_stranger_to_the_group_sets_it(t):
    make("f")
    os.chown("f", NOBODY, GROUP)
    os.chmod("f", 0o2755)
    as_user(NOBODY, set_acl, "f", "u::rwx,u:1000:r,g::rx,m::rx,o::-")
    equal(mode_of("f"), 0o750, "mode")
    os.chmod("f", 0o2755)
    as_user(NOBODY, set_acl, "f", "u::rwx,u:1000:r,g::rx,m::rx,o::r", groups=[GROUP])
    equal(mode_of("f"), 0o2754, "mode set by a member")


@case
def long_list(t):
    make("f")
    users = ",".join(f"u:{uid}:rw" for uid in range(2000, 2100))
    text = f"u::rw,{users},g::r,m::rw,o::-"
    set_acl("f", text)
    equal(get_acl("f"), text)
    equal((may("f", os.O_RDWR)(2099), may("f", os.O_RDONLY)(2100)), (True, False))


@case
def flags_create_and_replace(t):
    """The kernel doesn't look at them for ACLs: nothing may fail or double."""
    make("f")
    for flags in (0, os.XATTR_REPLACE):
        os.setxattr("f", ACCESS, encode(FULL), flags)
    equal([n for n in os.listxattr("f") if n == ACCESS], [ACCESS])


@case
def tools(t):
    if not shutil.which("setfacl"):
        raise Skip("setfacl is missing")
    make("f", b"x")
    os.mkdir("d")
    subprocess.run(["setfacl", "-m", "u:1000:rw,g:1234:r", "f"], check=True)
    subprocess.run(["setfacl", "-d", "-m", "u:1000:rwx", "d"], check=True)
    subprocess.run(["cp", "-a", "f", "g"], check=True)
    text = subprocess.run(["getfacl", "-cn", "g"], check=True, capture_output=True, text=True)
    equal(text.stdout.split(), ["user::rw-", "user:1000:rw-", "group::r--", "group:1234:r--",
                                "mask::rw-", "other::r--"])
    text = subprocess.run(["getfacl", "-cn", "d"], check=True, capture_output=True, text=True)
    check("default:user:1000:rwx" in text.stdout.split(), "no default entry")
    equal(read("g"), b"x")
