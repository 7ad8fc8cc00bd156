"""Names and paths: lengths, bytes, encodings."""

import os
import subprocess
import unicodedata
from errno import ENAMETOOLONG, ENOENT

from harness import case, equal, expect, make, read
from syscalls import rename2


@case
def of_255_bytes(t):
    make("n" * 255, b"x")
    equal((read("n" * 255), os.listdir(".")), (b"x", ["n" * 255]))
    os.mkdir("d" * 255)
    os.symlink("x", "s" * 255)
    os.mkfifo("p" * 255)
    os.link("n" * 255, "l" * 255)
    equal(len(os.listdir(".")), 5, "entries")


@case
def of_every_length(t):
    for length in range(1, 256):
        make("n" * length, b"%d" % length)
    for length in range(1, 256):
        equal(read("n" * length), b"%d" % length)
    equal(sorted(map(len, os.listdir("."))), list(range(1, 256)))


@case
def too_long(t):
    """Both just above our limit and above the kernel's own for FUSE."""
    make("f")
    for length in (256, 257, 1000, 1025, 4095):
        name = "n" * length
        for action in (lambda: os.open(name, os.O_CREAT | os.O_RDWR), lambda: os.mkdir(name),
                       lambda: os.stat(name), lambda: os.unlink(name), lambda: os.rmdir(name),
                       lambda: os.symlink("x", name), lambda: os.link("f", name),
                       lambda: os.rename("f", name), lambda: os.rename(name, "f"),
                       lambda: os.mkfifo(name), lambda: os.listdir(name),
                       lambda: rename2("f", name, 2), lambda: os.stat(f"{name}/x")):
            expect(ENAMETOOLONG, action)
    equal(os.listdir("."), ["f"])


@case
def utf8(t):
    wanted = ["\u00e4\u00f6\u00fc", "\u6f22\u5b57", "\U0001f600", "\u0430\u0431\u0432",
              "e\u0301", "\u00e9"]
    for name in wanted:
        make(name, name.encode())
    equal(sorted(os.listdir(".")), sorted(wanted))
    for name in wanted:
        equal(read(name), name.encode())


@case
def utf8_of_255_bytes(t):
    name = "\u6f22" * 85
    make(name, b"x")
    equal((read(name), os.listdir(".")), (b"x", [name]))
    expect(ENAMETOOLONG, os.mkdir, "\u6f22" * 85 + "x")


@case
def not_normalised_nor_folded(t):
    composed = "\u00e9"
    decomposed = unicodedata.normalize("NFD", composed)
    for name in (composed, decomposed, "a", "A", "ss", "\u00df"):
        make(name, name.encode())
    equal(len(os.listdir(".")), 6, "entries")
    equal(read(decomposed), decomposed.encode())


@case
def of_every_single_byte(t):
    wanted = [bytes([b]) for b in range(1, 256) if bytes([b]) not in (b"/", b".")]
    for name in wanted:
        make(name, name)
    equal(sorted(os.listdir(b".")), wanted)
    for name in wanted:
        equal(read(name), name)


@case
def of_invalid_utf8(t):
    for name in (b"\xff\xfe", b"\xc3", b"a\x80b", b"\xed\xa0\x80", b"\n\t\r", b"\x01\x7f"):
        os.mkdir(name)
        make(name + b"/" + name, name)
        equal((os.listdir(name), read(name + b"/" + name)), ([name], name))


@case
def odd_but_legal(t):
    wanted = ["...", "....", " ", "  x  ", "-", "--help", "*", "?", "a b", "\\", "'", '"', "~",
              "$HOME", ".hidden", "x.", "%s%n", "CON", "a:b", ";rm", "&&", "\n", "#",
              ".fuse_hidden"]
    for name in wanted:
        make(name, name.encode())
    equal(sorted(os.listdir(".")), sorted(wanted))
    for name in wanted:
        equal(read(name), name.encode())
        os.unlink(name)


@case
def common_prefixes(t):
    """Names that are each other's beginnings are different names."""
    for length in range(1, 100):
        os.mkdir("ab" * length)
    os.rmdir("ab" * 50)
    expect(ENOENT, os.stat, "ab" * 50)
    equal(len(os.listdir(".")), 98, "entries")


@case
def path_of_4095_bytes(t):
    """PATH_MAX counts the final null byte."""
    deep = "/".join(["d" * 200] * 19)
    os.makedirs(deep)
    name = "n" * (4095 - len(deep) - 1)
    while len(name) > 255:
        deep += "/" + "d" * 100
        os.mkdir(deep)
        name = "n" * (4095 - len(deep) - 1)
    path = f"{deep}/{name}"
    equal(len(path), 4095, "length")
    make(path, b"x")
    equal(read(path), b"x")
    expect(ENAMETOOLONG, os.open, path + "n", os.O_RDONLY)
    expect(ENAMETOOLONG, os.stat, "/" * 4096)


@case
def deeper_than_path_max(t):
    """Reached step by step; removed by a tool that walks by descriptor."""
    here = os.getcwd()
    for _ in range(30):
        os.mkdir("d" * 250)
        os.chdir("d" * 250)
    make("f", b"deep")
    equal(read("f"), b"deep")
    expect(ENAMETOOLONG, os.stat, f"{here}/" + "/".join(["d" * 250] * 30))
    os.chdir(here)
    subprocess.run(["rm", "-r", "d" * 250], check=True)


@case
def slashes(t):
    os.mkdir("d")
    make("d/f", b"x")
    equal([read(p) for p in ("d//f", ".//d/./f", "d/../d/f")], [b"x"] * 3)
