"""Who does it, who looks, whose file it is: the arrangements a coherence case runs in.

A case states what is done and what has to be seen once, and is registered for all of them:

    @operation({size(): (0, 3)}, prepare=empty_file)
    def write(place):                       # done on one node, and seen on another
        ...

    @arranged
    def unlink_while_open(home, actor, observer):      # three Places
        ...
"""

import argparse
import contextlib
import dataclasses
import itertools
import mmap
import os
import sys
import time
from pathlib import Path

import harness
from cluster import NAMES, ROOTS
from harness import check, equal, make, outcome

sys.path.append(str(Path(__file__).resolve().parents[1] / "mount" / "posix"))
import syscalls  # noqa: E402  (It is where the path above says.)

CONTENT = bytes(range(256)) * 44  # 2.75 pages.
OLD = 1_000_000_000  # A time, in seconds, that no clock of today shows.
CASE_SECONDS = 60
CLOCK_REALTIME_COARSE = 5


def parse_options():
    """--nodes and --long, and the rest of the command line for the harness."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--long", action="store_true")
    return parser.parse_known_args()


OPTIONS, OTHERS = parse_options()


def new_cluster(workspace, args):
    """With one node the mount is an ordinary one, which poses as several."""
    return harness.new_cluster(workspace, args, OPTIONS.nodes)


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """Indexes of roots. holder: what a process on the file's home does with it all the time."""

    actor: int
    observer: int
    home: int
    holder: str = ""

    def __str__(self):
        return " ".join(filter(None, (f"{NAMES[self.actor]}-{NAMES[self.observer]}",
                                      f"home-{NAMES[self.home]}", self.holder)))


TURNS = itertools.count()


def arrangements(holders=("",)):
    """In the short form each pair and each home once with each holder, in turn for each case.

    Then the founder of the cluster is one end of the pair, the other one, or none.
    """
    count = ROOTS if OPTIONS.nodes == 1 else OPTIONS.nodes
    pairs = list(itertools.permutations(range(count), 2))
    if not OPTIONS.long:
        pairs = [p for p in pairs if p in ((0, 1), (1, 0), (1, 2))]
    turn = next(TURNS)
    for (number, pair), home in itertools.product(enumerate(pairs), range(count)):
        for shift, holder in enumerate(holders):
            if OPTIONS.long or (number + home + shift + turn) % count == 0:
                yield Arrangement(*pair, home, holder)


class Place:
    """A case's directory as one node shows it. What it holds open is closed in the end."""

    def __init__(self, root, directory, stack):
        self.directory = f"{root}/{directory}"
        self.root = root
        self.memory = {}
        self._descriptors = {}
        self._stack = stack

    def path(self, name="f"):
        return f"{self.directory}/{name}"

    def held(self, name="f", flags=os.O_RDONLY):
        """A descriptor that is opened at the first call and stays open."""
        if (name, flags) not in self._descriptors:
            self._descriptors[name, flags] = os.open(self.path(name), flags)
            self._stack.callback(os.close, self._descriptors[name, flags])
        return self._descriptors[name, flags]


def places(t, where, stack, directory=""):
    """home, actor, observer."""
    directory = os.path.join(os.path.basename(os.getcwd()), directory)
    each = {index: Place(root, directory, stack) for index, root in enumerate(t.mount.roots)}
    return each[where.home], each[where.actor], each[where.observer]


# Looks. Before the operation they warm the caches that it has to make void.


@dataclasses.dataclass(frozen=True)
class Look:
    """late: a node that has not looked before the operation may also be asked."""

    name: str
    function: object = dataclasses.field(compare=False)
    late: bool = True

    def __call__(self, place):
        return outcome(self.function, place)


def look(function=None, *, late=True):
    """Makes a function(place, *arguments) one that takes the arguments and returns a Look."""

    def decorate(body):
        def factory(*arguments):
            text = " ".join(map(str, (body.__name__, *arguments)))
            return Look(text, lambda place: body(place, *arguments), late)

        return factory

    return decorate(function) if function else decorate


# Operations.


@dataclasses.dataclass(frozen=True)
class Operation:
    """act(place) turns what each look sees from its first value into its second."""

    name: str
    act: object
    prepare: object
    looks: dict

    def run(self, t, where):
        for number, (look_, (before, after)) in enumerate(self.looks.items()):
            with contextlib.ExitStack() as stack:
                home, actor, observer = places(t, where, stack, str(number))
                os.mkdir(home.directory)
                self.prepare(home)
                HOLDERS[where.holder](home)
                for place in (home, actor, observer) if look_.late else (observer,):
                    equal(look_(place), before, f"{look_.name} before, in {place.root}")
                self.act(actor)
                equal(look_(observer), after, look_.name)
                for place in (home, actor) if look_.late else ():
                    equal(look_(place), after, f"{look_.name} in {place.root}")


def holds_for_writing(place):
    """A writer that the daemon may not see write."""
    place.held("f", os.O_RDWR)


def holds_mapping(place):
    """A mapping that outlives its descriptor."""
    with harness.opened(place.path("f")) as fd:
        address = syscalls.map_pages(fd, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE,
                                     mmap.MAP_SHARED)
    # It ends with the process of the case.
    place.memory["mapping"] = address
    if os.stat(place.path("f")).st_size > 0:
        syscalls.peek(address, 1)


HOLDERS = {"": lambda place: None, "writer": holds_for_writing, "mapping": holds_mapping}


def file_with_content(place):
    make(place.path("f"), CONTENT)


def operation(looks, prepare=file_with_content, held=False):
    """Registers the decorated function(place) as an operation.

    held: it is one on the file f, which a process on its home may have in use meanwhile.
    """

    def register(act):
        check(any(before != after for before, after in looks.values()),
              f"{act.__name__} changes nothing")
        what = Operation(act.__name__, act, prepare,
                         {k: v for k, v in looks.items() if v[0] != v[1]})
        for where in arrangements(HOLDERS if held else ("",)):
            add(what.name, where, act, lambda t, where=where: what.run(t, where))
        return act

    return register


def arranged(function=None, *, holders=("",), when=lambda where: True):
    """Registers a function(home, actor, observer) for the arrangements for which `when` is true."""

    def register(body):
        for where in arrangements(holders):
            if when(where):
                add(body.__name__, where, body,
                    lambda t, where=where: run_arranged(body, t, where))
        return body

    return register(function) if function else register


def run_arranged(body, t, where):
    with contextlib.ExitStack() as stack:
        home, actor, observer = places(t, where, stack)
        body(home, actor, observer)


def add(name, where, body, function):
    function.__wrapped__ = body  # Where a failure is looked for.
    harness.CASES.append(harness.Case(f"{name} {where}", function,
                                      CASE_SECONDS * harness.TIME_FACTOR, None))


def wait_past(stamp):
    """Until the clock that stamps are taken from, which lags by a tick, is past that one."""
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) <= stamp:
        time.sleep(0.001)
