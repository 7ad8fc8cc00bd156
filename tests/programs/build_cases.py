"""Builds of C projects with make and with meson and ninja.

Besides the result, what a build tool believes is checked: that after a build nothing
is left to do, and that a touched header rebuilds its dependents and nothing else.
"""

import os
from pathlib import Path

from harness import REPOSITORY
from sites import Site, check, program_case

MAKEFILE = """
OBJECTS := $(patsubst %.c,%.o,$(wildcard *.c))
CFLAGS := -O1 -pipe -MMD
program: $(OBJECTS)
\t$(CC) -o $@ $^
-include $(OBJECTS:.o=.d)
"""
MESON = """
project('generated', 'c')
sources = run_command('find', '.', '-maxdepth', '1', '-name', '*.c', check: true)
executable('program', sources.stdout().strip().split(), install: true)
"""


def make_project(root: Path, site: Site, unit_count: int) -> int:
    """Writes units that call each other; returns what the program prints."""
    root.mkdir()
    values = [site.rng.randrange(1000) for _ in range(unit_count)]
    for i, value in enumerate(values):
        (root / f"unit{i}.h").write_text(f"#define VALUE{i} {value}\nlong unit{i}(long);\n")
        body = "\n".join(f"static long helper{j}(long x) {{ return x * {j} + VALUE{i}; }}"
                         for j in range(30))
        calls = " + ".join(f"helper{j}(x)" for j in range(30))
        last = i + 1 == unit_count
        (root / f"unit{i}.c").write_text(
            f"#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n"
            f'#include "unit{i}.h"\n{body}\n'
            + ("" if last else f'#include "unit{i + 1}.h"\n')
            + f"long unit{i}(long x) {{ return ({calls} + "
            + ("0" if last else f"unit{i + 1}(x + 1)") + ") % 1000003; }\n")
    (root / "main.c").write_text(
        '#include <stdio.h>\n#include "unit0.h"\n'
        'int main(void) { printf("%ld\\n", unit0(1)); return 0; }\n')
    (root / "Makefile").write_text(MAKEFILE)
    (root / "meson.build").write_text(MESON)
    result = 0
    for i in reversed(range(unit_count)):
        own = sum((i + 1) * j + values[i] for j in range(30))
        result = (own + result) % 1_000_003
    return result


@program_case(needs=("make", "gcc"))
def make(site: Site) -> None:
    project = site.dir / "project"
    unit_count = site.pick(60, 600)
    expected = make_project(project, site, unit_count)
    (site.dir / "tmp").mkdir()
    environment = {"TMPDIR": str(site.dir / "tmp")}
    site.run("make", "-j2", "-C", project, env=environment)
    output = site.run(project / "program")
    check(int(output) == expected, f"the program says {output!r}, not {expected}")
    site.run("make", "-q", "-C", project)

    before = {path: path.stat().st_mtime_ns for path in project.glob("*.o")}
    middle = unit_count // 2
    (project / f"unit{middle}.h").touch()
    site.run("make", "-C", project, env=environment)
    rebuilt = {path.name for path, time_ns in before.items()
               if path.stat().st_mtime_ns != time_ns}
    check(rebuilt == {f"unit{middle - 1}.o", f"unit{middle}.o"}, f"rebuilt: {sorted(rebuilt)}")
    site.run("make", "-q", "-C", project)
    # Without -pipe the compiler works through temporary files.
    site.run("make", "-B", "-j2", "-C", project, "CFLAGS=-O0 -MMD -g", env=environment)
    check(int(site.run(project / "program")) == expected, "a rebuilt program differs")
    check(not os.listdir(site.dir / "tmp"), "the compiler left temporary files")


@program_case(timeout=120, needs=("meson", "ninja", "gcc", "tar"))
def meson(site: Site) -> None:
    """Builds libfuse, whose source this project's own build has unpacked, or else a
    generated project; it gets to the mount through tar."""
    source = next(iter(sorted(REPOSITORY.glob("subprojects/fuse-*/meson.build"))), None)
    project, build, root = site.dir / "project", site.dir / "build", site.dir / "root"
    if source:
        archive = site.outside / "source.tar"
        site.run("tar", "-cf", archive, "-C", source.parent, ".")
        project.mkdir()
        site.run("tar", "-xf", archive, "-C", project)
        site.run("meson", "setup", build, project, f"-Dexamples={site.pick('false', 'true')}",
                 "-Dtests=false", "-Duseroot=false", "-Dudevrulesdir=/udev", "-Dinitscriptdir=")
        program, arguments, expected = "fusermount3", ["-V"], "fusermount3 version"
    else:
        expected = f"{make_project(project, site, 60)}\n"
        site.run("meson", "setup", build, project)
        program, arguments = "program", []
    site.run("ninja", "-j2", "-C", build)
    check("no work to do" in site.run("ninja", "-C", build, "-n"), "ninja wants to work again")
    site.run("meson", "install", "-C", build, "--no-rebuild", env={"DESTDIR": str(root)})
    installed = [path for path in root.rglob(program) if path.is_file()]
    check(len(installed) == 1, f"{program} was not installed")
    output = site.run(installed[0], *arguments)
    check(output.startswith(expected), f"{program} says {output!r}")
    site.run("ninja", "-C", build, "clean")
