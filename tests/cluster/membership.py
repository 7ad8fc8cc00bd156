#!/usr/bin/env python3
"""Clusters of real processes on loopback: all nodes come to the same map, whoever is killed."""

import base64
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cli"))
import suite  # noqa: E402
from suite import (Skip, case, cfs, check, equal, is_refusal, kill, mounts_at,  # noqa: E402
                   refused, running, snapshot, succeeds, wait_until)

USAGE, DATAERR, NOINPUT, UNAVAILABLE, NOPERM, CONFIG = 64, 65, 66, 69, 77, 78
SLOTS = 65536
os.environ.pop("CFS_TOKEN", None)


class Node:
    """A node, with what the cluster says of it."""

    def __init__(self, work, name, *options, mnt=None):
        self.store = work / name
        self.options = options
        self.mnt = mnt

    def start(self, *options):
        """Started again, it needs no option."""
        words = ("mount", self.mnt) if self.mnt else ("serve",)
        return succeeds(*words, "--store", self.store, *options)

    def first_start(self):
        return self.start(*self.options)

    @property
    def pid(self):
        return int((self.store / "cfs.pid").read_text())

    def signal(self, number):
        pid = self.pid
        os.kill(pid, number)
        wait_until(lambda: not running(pid), "end of the process")

    def kill(self):
        self.signal(signal.SIGKILL)

    def nodes(self):
        return json.loads(succeeds("nodes", "--store", self.store, "--json"))

    def node_id(self):
        return json.loads((self.store / "node.json").read_text())["node_id"]

    def log(self):
        return (self.store / "cfs.log").read_text()


def found(work, name="first", *options, mnt=None):
    node = Node(work, name, "--listen", "127.0.0.1", *options, mnt=mnt)
    said = node.first_start()
    check(re.fullmatch(r"others join with [^\n]*cfs token[^\n]*\n", said), f"stdout is {said!r}")
    (work / "token").write_text(succeeds("token", "--store", node.store))
    return node


def joiner(work, name, *options, mnt=None):
    node = Node(work, name, "--join", f"@{work}/token", *options, mnt=mnt)
    return node


def cluster(work, count):
    nodes = [found(work)]
    for number in range(2, count + 1):
        nodes.append(joiner(work, f"s{number}"))
        equal(nodes[-1].first_start(), "", "stdout of a joiner")
    return nodes


def agreed(nodes):
    """The map that all nodes have; None while they have not."""
    views = [node.nodes() for node in nodes]
    for view, node in zip(views, nodes):
        equal(view["self"], node.node_id(), "self")
        for entry in view["nodes"]:
            equal(entry.pop("self"), entry["id"] == view["self"], "self of an entry")
        del view["self"], view["keeper_answers"]
    return views[0] if all(view == views[0] for view in views) else None


def settled(nodes, states, seconds=30):
    """Waits until all of `nodes` have one map with these states, by node."""
    wanted = {node.node_id(): state for node, state in states.items()}
    seen = None

    def reached():
        nonlocal seen
        seen = agreed(nodes)
        return seen is not None and {n["id"]: n["state"] for n in seen["nodes"]} == wanted

    wait_until(reached, f"one map with {wanted}", seconds)
    equal(sum(entry["slots_owned"] for entry in seen["nodes"]), SLOTS, "slots")
    return seen


def all_up(nodes):
    return settled(nodes, {node: "up" for node in nodes})


def incarnations(view):
    return {entry["id"]: entry["incarnation"] for entry in view["nodes"]}


def need_mounts():
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise Skip("needs root and /dev/fuse")


def token_with(token, change):
    """The token with other bytes: 1 version, 16 cluster, 32 secret, ..., 4 checksum."""
    text = token.strip().removeprefix("cfs1-")
    body = bytearray(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))[:-4])
    change(body)
    body += hashlib.blake2b(bytes(body), digest_size=32).digest()[:4]
    return "cfs1-" + base64.urlsafe_b64encode(bytes(body)).decode().rstrip("=")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@case
def nodes_join(work):
    nodes = cluster(work, 3)
    view = all_up(nodes)
    equal(view["keeper"], nodes[0].node_id(), "keeper")
    by_id = {entry["id"]: entry for entry in view["nodes"]}
    first = by_id[nodes[0].node_id()]
    equal([first["keeper"], first["weight"]], [True, 100], "founder")

    def balanced():
        entries = nodes[1].nodes()["nodes"]
        return (sum(entry["slots_leaving"] for entry in entries) == 0
                and max(entry["slots_owned"] for entry in entries) <= 1.15 * SLOTS / 3)

    wait_until(balanced, "slots are handed over")
    view = nodes[1].nodes()
    text = succeeds("nodes", "--store", nodes[1].store)
    check(text.startswith(f"epoch {view['epoch']}\n"), f"the table begins with {text[:40]!r}")
    equal(len(text.splitlines()), 5, "lines of the table")
    for node in nodes:
        equal((node.store / "cluster.json").stat().st_mode & 0o777, 0o600, "mode of cluster.json")


@case
def nodes_join_at_once(work):
    first = found(work)
    others = [joiner(work, f"s{n}", "--expect", "5") for n in range(4)]
    before = first.nodes()["epoch"]
    starting = [subprocess.Popen([suite.BINARY, "serve", "--store", node.store, *node.options],
                                 stderr=subprocess.PIPE) for node in others]
    for process in starting:
        equal((process.communicate(timeout=suite.TIMEOUT)[1], process.returncode), (b"", 0),
              "outcome of a joiner")
    # Ready means that all five are up.
    for node in others:
        states = [entry["state"] for entry in node.nodes()["nodes"]]
        equal(states, ["up"] * 5, "states when a node that expects five is ready")
    all_up([first, *others])
    # The joins share one or two; the other epochs are of who is up, and of hand-overs.
    joined = {line.rsplit("epoch=", 1)[1] for line in first.log().splitlines()
              if "node joins" in line}
    check(0 < len(joined) <= 2, f"epochs of joins: {joined}")


@case
def thirty_two_nodes(work):
    """Each owns its share of the slots, and all know of all."""
    if any(mark in Path(suite.BINARY).read_bytes() for mark in (b"__asan_init", b"__tsan_init")):
        raise Skip("32 processes with a sanitizer take too much memory")
    def descriptors():
        return len(os.listdir(f"/proc/{first.pid}/fd"))

    first = found(work)
    alone = descriptors()
    others = [joiner(work, f"s{n}") for n in range(31)]
    starting = [subprocess.Popen([suite.BINARY, "serve", "--store", node.store, *node.options],
                                 stderr=subprocess.PIPE) for node in others]
    for process in starting:
        equal((process.communicate(timeout=suite.TIMEOUT)[1], process.returncode), (b"", 0),
              "outcome of a joiner")
    nodes = [first, *others]
    def balanced():
        entries = others[-1].nodes()["nodes"]
        return (len(entries) == 32 and {entry["state"] for entry in entries} == {"up"}
                and sum(entry["slots_leaving"] for entry in entries) == 0)

    wait_until(balanced, "slots are handed over", 60)
    owned = [json.loads(succeeds("status", "--store", node.store, "--json"))["slots"]["owned"]
             for node in nodes]
    equal(sum(owned), SLOTS, "slots with an owner")
    check(max(owned) <= 1.15 * SLOTS / 32, f"slots are not balanced: {owned}")
    wait_until(lambda: len({node.nodes()["epoch"] for node in nodes}) == 1, "all have one map")
    # The keeper has talked to all.
    each = (descriptors() - alone) / 31
    print(f"# descriptors: {alone}, and {each:.1f} for each peer", flush=True)
    check(0 < each <= 15, "1,000 peers do not fit in 20,000 descriptors")


@case
def each_is_killed_and_comes_back(work):
    nodes = cluster(work, 3)
    view = all_up(nodes)
    for victim in nodes:
        before, epoch = incarnations(view), view["epoch"]
        victim.kill()
        equal(victim.start(), "", "stdout of a node that comes back")
        view = all_up(nodes)
        changed = {node for node, value in incarnations(view).items() if value != before[node]}
        equal(changed, {victim.node_id()}, "nodes with a new incarnation")
        check(view["epoch"] > epoch, "a restart is no epoch")
        equal(view["keeper"], nodes[0].node_id(), "keeper")


@case
def a_dead_node_is_down(work):
    nodes = cluster(work, 3)
    all_up(nodes)
    nodes[2].kill()
    begin = time.monotonic()
    settled(nodes[:2], {nodes[0]: "up", nodes[1]: "up", nodes[2]: "down"})
    check(time.monotonic() - begin > 4, "a node was given up too early")
    # Ended in good order, it is down at once.
    begin = time.monotonic()
    nodes[1].signal(signal.SIGTERM)
    settled(nodes[:1], {nodes[0]: "up", nodes[1]: "down", nodes[2]: "down"})
    check(time.monotonic() - begin < 4, "the end of a node was not told")
    nodes[1].start()
    nodes[2].start()
    all_up(nodes)


@case
def all_are_killed(work):
    nodes = cluster(work, 3)
    view = all_up(nodes)
    for node in nodes:
        node.kill()
    # Without the keeper a member starts too, with what it remembers.
    nodes[1].start()
    alone = nodes[1].nodes()
    equal((alone["epoch"], alone["keeper_answers"]), (view["epoch"], False), "its map")
    nodes[0].start()
    nodes[2].start()
    all_up(nodes)


@case
def a_member_moves(work):
    nodes = cluster(work, 2)
    all_up(nodes)
    port = free_port()
    nodes[1].signal(signal.SIGTERM)
    nodes[1].start("--listen", f"127.0.0.1:{port}", "--weight", "7")
    view = all_up(nodes)
    entry = next(e for e in view["nodes"] if e["id"] == nodes[1].node_id())
    equal((entry["addresses"], entry["weight"]), ([f"127.0.0.1:{port}"], 7), "entry")
    # Also the keeper, while the other one runs.
    nodes[0].kill()
    port = free_port()
    nodes[0].start("--listen", f"127.0.0.1:{port}")
    view = all_up(nodes)
    entry = next(e for e in view["nodes"] if e["keeper"])
    equal(entry["addresses"], [f"127.0.0.1:{port}"], "address of the keeper")
    # The token is that of today.
    (work / "token").write_text(succeeds("token", "--store", nodes[1].store))
    third = joiner(work, "third")
    third.first_start()
    all_up([*nodes, third])


@case
def mounts_are_members(work):
    need_mounts()
    nodes = []
    for number in range(2):
        mnt = work / f"mnt{number}"
        mnt.mkdir()
        if number == 0:
            # A store with data, as a cluster of one, becomes the first of a cluster.
            alone = Node(work, "first", mnt=mnt)
            alone.first_start()
            (mnt / "file").write_text("mine")
            equal(json.loads(succeeds("status", mnt, "--json"))["cluster"].get("epoch"), None,
                  "epoch of a node that is alone")
            refused(CONFIG, ["no cluster", "--listen"], "nodes", "--store", alone.store)
            refused(CONFIG, ["no cluster"], "token", "--store", alone.store)
            succeeds("umount", mnt)
            nodes.append(found(work, mnt=mnt))
            equal((mnt / "file").read_text(), "mine", "content")
        else:
            nodes.append(joiner(work, "second", "--expect", "2", mnt=mnt))
            nodes[-1].first_start()
    all_up(nodes)
    status = json.loads(succeeds("status", nodes[1].mnt, "--json"))["cluster"]
    equal([status["self"], status["keeper"], len(status["nodes"])],
          [nodes[1].node_id(), nodes[0].node_id(), 2], "cluster in the status")
    text = succeeds("status", nodes[1].mnt)
    check(re.search(r"\n +nodes +2\n", text), f"the status is {text}")
    succeeds("umount", nodes[1].mnt)
    settled(nodes[:1], {nodes[0]: "up", nodes[1]: "down"}, seconds=4)
    nodes[1].start()
    all_up(nodes)
    nodes[0].kill()
    nodes[0].start()
    all_up(nodes)
    for node in nodes:
        equal(len(mounts_at(node.mnt)), 1, "mounts")
        succeeds("umount", node.mnt)


@case
def a_client_has_no_share(work):
    first = found(work)
    client = joiner(work, "client", "--weight", "0")
    client.first_start()
    view = all_up([first, client])
    entry = next(e for e in view["nodes"] if e["id"] == client.node_id())
    equal([entry["weight"], entry["slots_owned"], entry["slots_coming"]], [0, 0, 0], "client")
    client.kill()
    client.start()
    view = all_up([first, client])
    equal(sorted(e["weight"] for e in view["nodes"]), [0, 100], "weights after a restart")
    refused(USAGE, ["--weight above 0"], "serve", "--store", work / "no", "--listen", "127.0.0.1",
            "--weight", "0")


@case
def a_token_is_kept_secret(work):
    first = found(work)
    token = (work / "token").read_text()
    check(re.fullmatch(r"cfs1-[\w-]+\n", token), f"the token is {token!r}")
    second = Node(work, "second", "--join", token.strip())
    second.first_start()
    third = Node(work, "third")
    succeeds("serve", "--store", third.store, env={**os.environ, "CFS_TOKEN": token})
    fourth = Node(work, "fourth")
    succeeds("serve", "--store", fourth.store,
             env={**os.environ, "CFS_TOKEN": f"@{work}/token"})
    nodes = [first, second, third, fourth]
    all_up(nodes)
    secret = token.strip().removeprefix("cfs1-")[30:60]
    for node in nodes:
        check(secret not in node.log(), f"{node.store}/cfs.log has the secret")
        command = Path(f"/proc/{node.pid}/cmdline").read_text()
        check(secret not in command, "the list of processes has the secret")
    # Any node gives a token with which one can join.
    (work / "token").write_text(succeeds("token", "--store", fourth.store))
    first.kill()
    first.start()
    fifth = joiner(work, "fifth")
    fifth.first_start()
    all_up([*nodes, fifth])


@case
def a_taken_number_is_changed(work):
    first = found(work)
    node_json = json.loads((first.store / "node.json").read_text())
    # A store that was made and never used, and has by chance the same number.
    twin = joiner(work, "twin")
    for part in ("meta", "data"):
        (twin.store / part).mkdir(parents=True)
    (twin.store / "node.json").write_text(json.dumps(node_json | {"store_id": "0" * 15 + "7"}))
    twin.first_start()
    check(twin.node_id() != first.node_id(), "the number is the same")
    all_up([first, twin])


@case
def tokens_refused(work):
    first = found(work)
    token = (work / "token").read_text().strip()
    store = work / "new"
    join = ("serve", "--store", store, "--join")
    refused(USAGE, ["cfs1-"], *join, "nonsense")
    refused(USAGE, ["damaged"], *join, token[:-3])
    refused(USAGE, ["damaged"], *join, "cfs1-" + "A" * 80)
    refused(NOINPUT, [work / "no"], *join, f"@{work}/no")
    refused(USAGE, ["CFS_TOKEN", "damaged"], "serve", "--store", store,
            env={**os.environ, "CFS_TOKEN": token[:-3]})
    check(not store.exists(), "a store was made")

    def other_secret(body):
        body[20] ^= 1

    def other_cluster(body):
        body[5] ^= 1

    begin = time.monotonic()
    refused(NOPERM, ["secret"], *join, token_with(token, other_secret))
    refused(CONFIG, ["another cluster"], *join, token_with(token, other_cluster))
    check(time.monotonic() - begin < 10, "a refusal took long")
    check(not (store / "cluster.json").exists(), "the store remembers a cluster")
    equal(len(first.nodes()["nodes"]), 1, "nodes")
    # Nothing of that is in the way of the right one.
    second = joiner(work, "new")
    second.first_start()
    all_up([first, second])


@case
def a_seed_that_is_not_there(work):
    found(work).kill()
    begin = time.monotonic()
    refused(UNAVAILABLE, ["127.0.0.1", "30 s"], "serve", "--store", work / "new", "--join",
            f"@{work}/token")
    check(25 < time.monotonic() - begin < 60, "how long it was tried")
    # Who asks for it to end need not wait.
    with subprocess.Popen([suite.BINARY, "serve", "--foreground", "--store", work / "new", "--join",
                           f"@{work}/token"], stderr=subprocess.PIPE) as process:
        wait_until(lambda: (work / "new" / "cluster.json").exists(), "the beginning of the join")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)


@case
def addresses_refused(work):
    first = found(work)
    address = first.nodes()["nodes"][0]["addresses"][0]
    for words in (("--listen", "a b"), ("--listen", "host:port"), ("--listen", ":1"),
                  ("--weight", "-1"), ("--weight", "10001"), ("--expect", "0"),
                  ("--io-timeout", "0"), ("--io-timeout", "never")):
        refused(USAGE, [words[0]], "serve", "--store", work / "new", *words)
    check(not (work / "new").exists(), "a store was made")
    listen = ("serve", "--store", work / "new", "--listen")
    refused(UNAVAILABLE, [address, "in use", "--listen"], *listen, address)
    refused(USAGE, ["192.0.2.1", "this machine"], *listen, "192.0.2.1")
    refused(USAGE, ["0.0.0.0", "others reach"], *listen, "0.0.0.0")
    refused(UNAVAILABLE, ["no.such.host.invalid"], *listen, "no.such.host.invalid")
    refused(USAGE, ["--listen or --join"], "serve", "--store", work / "new")
    refused(USAGE, ["--listen or --join"], "serve", "--store", work / "new", "--weight", "5")
    # The number of a node that is down is no reason to give its address away.
    second = joiner(work, "second", "--listen", f"127.0.0.1:{free_port()}")
    second.first_start()
    address = second.nodes()["nodes"]
    second.signal(signal.SIGTERM)
    address = next(e for e in address if not e["keeper"])["addresses"][0]
    refused(CONFIG, [address, str(second.node_id())], "serve", "--store", work / "third",
            "--join", f"@{work}/token", "--listen", address)


@case
def stores_refused(work):
    first = found(work)
    second = joiner(work, "second")
    second.first_start()
    other = Node(work, "other", "--listen", "127.0.0.1")
    other.first_start()
    (work / "other-token").write_text(succeeds("token", "--store", other.store))
    for node in (second, first):
        node.signal(signal.SIGTERM)
        refused(CONFIG, [node.store, "another cluster"], "serve", "--store", node.store, "--join",
                f"@{work}/other-token")
        # The environment of a job is no exception.
        refused(CONFIG, [node.store, "another cluster"], "serve", "--store", node.store,
                env={**os.environ, "CFS_TOKEN": f"@{work}/other-token"})
    first.start()
    second.start("--join", f"@{work}/token")  # Said again, it is no harm.
    all_up([first, second])
    # A keeper's map is not to be lost.
    first.signal(signal.SIGTERM)
    (first.store / "cluster.map").rename(work / "map")
    refused(DATAERR, ["cluster.map", "missing"], "serve", "--store", first.store)
    (first.store / "cluster.map").write_bytes((work / "map").read_bytes()[:-1])
    refused(DATAERR, ["cluster.map", "checksum"], "serve", "--store", first.store)
    (work / "map").rename(first.store / "cluster.map")
    first.start()
    all_up([first, second])


@case
def a_store_with_data_does_not_join(work):
    need_mounts()
    first = found(work)
    mnt = work / "mnt"
    mnt.mkdir()
    succeeds("mount", mnt, "--store", work / "alone")
    succeeds("umount", mnt)
    before = snapshot(work / "alone" / "meta")
    refused(CONFIG, ["data of its own"], "mount", mnt, "--store", work / "alone", "--join",
            f"@{work}/token")
    equal(snapshot(work / "alone" / "meta"), before, "metadata afterwards")
    equal(len(first.nodes()["nodes"]), 1, "nodes")
    succeeds("mount", mnt, "--store", work / "alone")
    succeeds("umount", mnt)


@case
def a_copy_takes_the_place_of_a_node(work):
    """Two processes with one identity: the later one stays, the earlier one ends."""
    first, second = cluster(work, 2)
    all_up([first, second])
    (work / "copy").mkdir()
    for name in ("node.json", "cluster.json"):
        (work / "copy" / name).write_bytes((second.store / name).read_bytes())
    for part in ("meta", "data"):
        (work / "copy" / part).mkdir()
    pid = second.pid
    copy = Node(work, "copy")
    copy.start()
    wait_until(lambda: not running(pid), "end of the replaced process")
    check(" ERROR not in the cluster any more" in second.log(), "no ERROR in its log")
    all_up([first, copy])


if __name__ == "__main__":
    suite.main(__doc__)
