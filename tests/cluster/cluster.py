"""A cfs cluster on one machine: each node has a network namespace, a store, a mount and a log.

    with Cluster(t.workspace, nodes=3, io_timeout=4) as cluster:
        a, b, c = cluster.nodes
        ...a.mnt, b.stop(), b.start(), b.kill(), cluster.cut(a, b), cluster.heal()...

With nodes=1 there is no cluster: one ordinary mount poses as ROOTS nodes by bind mounts, which
tells a fault of a test from one of cfs. When all have ended, `cfs fsck` looks at the stores. An
ERROR line in the log of a node fails the test unless node.expect_error(regex) has announced it.
Everything is gone after the with block in any case.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import harness
from harness import BINARY, Failure, Mount, check, cfs, run, run_checked, wait_until
from network import Network

sys.path.append(str(Path(__file__).resolve().parents[1] / "crash"))
import stage  # noqa: E402  (It is where the path above says.)

ROOTS = 3
NAMES = "ABCDEFGH"
SLOTS = 65536


class Node(Mount):
    """One node. Its disk can lose power if the store is "loop-ext4" or "loop-xfs"."""

    def __init__(self, cluster, index, workspace, mode, store, options, serve_only):
        on_loop = store.startswith("loop-")
        super().__init__(workspace, mode, "disk" if on_loop else store, options)
        self.name, self.index, self.serve_only = NAMES[index], index, serve_only
        self.weight = self.expect = None  # For `cfs mount`; may be set before it is started.
        self._disk_kind = store.removeprefix("loop-") if on_loop else None
        self._cluster = cluster
        self.disk = None
        self._kept = []  # Problems from before its power was cut.

    def _begin(self):
        pass  # The cluster starts its nodes, in its order.

    def __exit__(self, kind, *_):
        try:
            super().__exit__(kind)
        except Failure as error:
            raise Failure(f"node {self.name}: {error}") from None

    def _check_store(self):
        pass  # The cluster does, all together.

    def _prepare(self):
        if self._disk_kind:
            folder = Path(self._workspace.new_directory())
            self.directories.append(str(folder))
            self._cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
            self.disk = stage.Disk(folder, self._disk_kind)
            self._cleanup.callback(self.disk.close)
            self._store_kind = str(self.disk.path)
        super()._prepare()

    def _command(self):
        verb = ["serve"] if self.serve_only else ["mount", self.mnt, *self._options]
        command = [BINARY, *verb, "--store", self.store, *self._cluster.options(self)]
        for option, value in (("--weight", self.weight), ("--expect", self.expect)):
            command += [option, str(value)] if value is not None else []
        return [*self._cluster.network.enter(self.index), *command, "--foreground"]

    def _ready(self):
        return ((self.serve_only or self.mounted())
                and cfs("status", "--store", self.store, "--json").returncode == 0)

    def status(self):
        return json.loads(run_checked(BINARY, "status", "--store", self.store, "--json"))

    def members(self):
        """What `cfs nodes` says here: a dict a node."""
        return json.loads(run_checked(BINARY, "nodes", "--store", self.store, "--json"))["nodes"]

    def stop(self):
        if not self.serve_only or self.pid is None:
            super().stop()
            return
        os.kill(self.pid, signal.SIGTERM)
        code = self._process.wait(60 * harness.TIME_FACTOR)
        check(code == 0, f"cfs serve ended with {code}: {self._tail(self._stderr)}")
        self.pid = None

    def power_off(self):
        """The power is cut; its process may have ended before."""
        self._kept += super().problems()
        self.disk.cut_power()
        if self.pid is not None:
            self.kill()
        super().problems()  # What it said of its disk in between was to be expected.

    def power_on(self):
        """The test has to close before what it had open on the node's mount."""
        stage.unmount(self.mnt)
        self.disk.reboot()

    def problems(self):
        kept, self._kept = self._kept, []
        return kept + super().problems()


class Poser(Mount):
    """One ordinary mount that looks like several."""

    name = NAMES[0]

    def _prepare(self):
        super()._prepare()
        self.roots = [self.mnt]
        for name in NAMES[1:ROOTS]:
            self.roots.append(f"{os.path.dirname(self.mnt)}/{name}")
            os.mkdir(self.roots[-1])
        self._cleanup.callback(self._unbind)

    def start(self):
        super().start()
        for root in self.roots[1:]:
            run_checked("mount", "--bind", self.mnt, root)

    def stop(self):
        self._unbind()
        super().stop()

    def kill(self):
        super().kill()
        self._unbind()

    def _unbind(self):
        for m in harness.mounts():
            if m.path in self.roots[1:]:
                run("umount", "-l", m.path)


class Cluster:
    """`nodes` nodes; the first founds the cluster and the others join it.

    store: of all nodes, or one of each. serve_only: indexes of nodes without a mount. io_timeout:
    seconds. late: how many, the last ones, start only when they are told to join(). one_owner: the
    founder keeps all but a few slots, so that it is known what needs which node. clients: indexes
    of nodes of weight 0. To cases that share it, it is a Mount too: that of node `shared`.
    """

    def __init__(self, workspace, nodes=3, mode="cluster", store="disk", serve_only=(), options=(),
                 io_timeout=None, shared=0, late=0, one_owner=False, clients=()):
        self._workspace = workspace
        self._options = []
        if io_timeout is not None:
            self._options = ["--io-timeout", str(io_timeout)]
        self.network = Network(workspace.namespace_prefix, nodes) if nodes > 1 else None
        if nodes == 1:
            self.nodes = [Poser(workspace, mode, store, options)]
        else:
            stores = [store] * nodes if isinstance(store, str) else store
            self.nodes = [Node(self, i, workspace, mode, stores[i], options, i in serve_only)
                          for i in range(nodes)]
        self._shared = self.nodes[shared]
        self._late = late
        self._one_owner = one_owner
        if one_owner:
            for node in self.nodes:
                node.weight = 10_000 if node.index == 0 else 1
        for index in clients:
            self.nodes[index].weight = 0
        self._token = None
        self._cleanup = contextlib.ExitStack()
        self.pid = None  # Becomes None again when the cluster can't be used any more.

    def __enter__(self):
        with self._cleanup:
            if self.network:
                self._cleanup.enter_context(self.network)
                folder = self._workspace.new_directory()
                self._cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
                self._token = f"{folder}/token"
            for node in self.nodes:
                self._cleanup.enter_context(node)
            if self.network:
                self._start()
            self.pid = self._shared.pid
            self._cleanup.push(self._end)
            self._cleanup = self._cleanup.pop_all()
        return self

    def _start(self):
        founder, *others = self.nodes
        founder.start()
        token = run_checked(BINARY, "token", "--store", founder.store)
        with open(os.open(self._token, os.O_CREAT | os.O_WRONLY, 0o600), "w",
                  encoding="ascii") as f:
            f.write(token)
        self.join(*others[:len(others) - self._late])
        if self._one_owner:
            self.wait_balanced()

    def join(self, *nodes):
        """They start, all at once."""
        for node in nodes:
            node.launch()
        for node in nodes:
            node.wait_ready()
        self.wait_members()

    def wait_balanced(self, timeout=30):
        """Returns when no slot is on its way, and each has the owner that the ring wants."""
        def balanced():
            stats = [node.status() for node in self.nodes if node.pid is not None]
            return (sum(s["slots"]["owned"] for s in stats) == SLOTS
                    and all(s["slots"]["leaving"] == 0 for s in stats))
        wait_until(balanced, timeout * harness.TIME_FACTOR, "all slots are where they belong")

    def __exit__(self, *exception):
        return self._cleanup.__exit__(*exception)

    def _end(self, kind, *_):
        """Before the nodes' stores are removed."""
        if kind is None and self.network:
            for node in reversed(self.nodes):
                node.stop()
            harness.check_stores(*(n.store for n in self.nodes if os.path.exists(n.store)))

    def options(self, node):
        """How a node is started, apart from its own directories."""
        words = ["--listen", self.network.address(node.index), "--transports", "tcp",
                 *self._options]
        return words if node.index == 0 else ["--join", f"@{self._token}", *words]

    def wait_members(self, timeout=20):
        """Returns when every running node knows all nodes."""
        started = [node for node in self.nodes if node.pid is not None]
        for node in started:
            wait_until(lambda node=node: len(node.members()) >= len(started),
                       timeout * harness.TIME_FACTOR, f"node {node.name} knows all nodes")

    @property
    def roots(self):
        """Where to see the one file system: a directory a node that mounts it."""
        if not self.network:
            return self.nodes[0].roots
        return [node.mnt for node in self.nodes if not node.serve_only]

    # Faults. What must be running to meet them has been checked by Mount.kill().

    def cut(self, a, b, one_way=False):
        """Cuts the cable between two nodes; with one_way, only from a to b."""
        self.network.cut(a.index, b.index, one_way)

    def reset(self, a, b):
        """Loses what a sends to b, and the connection that carries it."""
        self.network.reset(a.index, b.index)

    def isolate(self, node):
        """Cuts a node off from all others."""
        for other in self.nodes:
            if other is not node:
                self.cut(node, other)

    def heal(self):
        self.network.heal()

    def shape(self, rate):
        self.network.shape(rate)

    def power_loss(self, node):
        """The node stops without a word to anybody, and its disk loses what was not synced.

        node.start() boots it, heal() connects it again.
        """
        check(not node.ended(), f"node {node.name} ended before its power was cut")
        self.isolate(node)
        node.power_off()
        node.power_on()

    # What a Mount has, for the cases that share a cluster.

    @property
    def mnt(self):
        return self._shared.mnt

    @property
    def native(self):
        return self._shared.native

    @property
    def store(self):
        return self._shared.store

    @property
    def directories(self):
        return [d for node in self.nodes for d in node.directories]

    @property
    def namespaces(self):
        return self.network.names if self.network else []

    @property
    def pids(self):
        return [node.pid for node in self.nodes if node.pid is not None]

    def status(self):
        return self._shared.status()

    def stat(self, path):
        return self._shared.stat(path)

    def ended(self):
        return any(node.pid is not None and node.ended() for node in self.nodes)

    def problems(self):
        return [f"node {node.name}: {line}" for node in self.nodes for line in node.problems()]
