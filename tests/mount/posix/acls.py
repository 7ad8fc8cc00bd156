"""POSIX ACLs as text, and as the values of the attributes that hold them."""

import os
import struct

from harness import equal

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
TAGS = {"u:": 0x01, "u": 0x02, "g:": 0x04, "g": 0x08, "m:": 0x10, "o:": 0x20}
NO_ID = 0xFFFFFFFF


def encode(text):
    """'u::rw,u:1000:r,g::r,m::rw,o::-' as the value of the attribute."""
    value = struct.pack("<I", 2)
    for entry in text.split(","):
        kind, who, permissions = entry.split(":")
        tag = TAGS[kind if who else f"{kind}:"]
        bits = sum({"r": 4, "w": 2, "x": 1, "-": 0}[c] for c in permissions)
        value += struct.pack("<HHI", tag, bits, int(who) if who else NO_ID)
    return value


def decode(value):
    equal(struct.unpack_from("<I", value)[0], 2, "version")
    entries = []
    for tag, bits, number in struct.iter_unpack("<HHI", value[4:]):
        kind = next(k for k, v in TAGS.items() if v == tag)
        permissions = "".join(c for c, b in zip("rwx", (4, 2, 1)) if bits & b) or "-"
        entries.append(f"{kind.rstrip(':')}:{'' if kind.endswith(':') else number}:{permissions}")
    return ",".join(entries)


def set_acl(path, text, kind=ACCESS):
    os.setxattr(path, kind, encode(text))


def get_acl(path, kind=ACCESS):
    return decode(os.getxattr(path, kind))
