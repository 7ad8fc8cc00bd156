#!/usr/bin/env python3
"""Where new directories and files go: placement, full stores, clients without a store.

    placement.py [--mode MODE] [--store KIND] [--filter REGEX]

Goal: a directory goes where user.cfs.placement says, and a file to its creator. Method: real
clusters, of which `cfs stat` and `cfs nodes` say who has what.
"""

import contextlib
import os
import sys
import time
from errno import EEXIST, EINVAL, ENODATA, ENOSPC, ENOTDIR
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "mount"))
import harness  # noqa: E402  (It is where the path above says.)
from arrangement import OTHERS  # noqa: E402
from cluster import Cluster  # noqa: E402
from harness import (Child, check, equal, expect, make, outcome, read,  # noqa: E402
                     run_checked, wait_until)
from syscalls import AT_EMPTY_PATH, linkat  # noqa: E402

FACTOR = harness.TIME_FACTOR
PLACEMENT = "user.cfs.placement"


def case(function):
    return harness.case(function, timeout=60)


def new_cluster(t, nodes=3, **kwargs):
    kwargs.setdefault("store", t.store)
    return Cluster(t.workspace, nodes, t.mode, io_timeout=4 * FACTOR, **kwargs)


def place(path, value):
    os.setxattr(path, PLACEMENT, value.encode())


def id_of(node):
    return node.status()["node"]


def owner(node, path):
    return node.stat(f"{node.mnt}/{path}")["owner"]


def calls(node):
    return sum(peer["calls"] for peer in node.status()["peers"]["called"])


def check_attribute(root):
    """What can be done with it, wherever it is."""
    os.mkdir(f"{root}/d")
    make(f"{root}/f")
    expect(ENODATA, os.getxattr, f"{root}/d", PLACEMENT)
    expect(EINVAL, place, f"{root}/d", "elsewhere")
    expect(EINVAL, place, f"{root}/d", "")
    expect(ENOTDIR, place, f"{root}/f", "local")
    place(f"{root}/d", "local")
    os.mkdir(f"{root}/d/child")
    equal(os.getxattr(f"{root}/d/child", PLACEMENT), b"local", "inherited placement")
    equal(os.listxattr(f"{root}/d/child"), [PLACEMENT], "names of xattrs")
    place(f"{root}/d/child", "spread")
    os.mkdir(f"{root}/d/child/grandchild")
    equal(os.getxattr(f"{root}/d/child/grandchild", PLACEMENT), b"spread", "inherited placement")
    os.removexattr(f"{root}/d", PLACEMENT)
    os.mkdir(f"{root}/d/other")
    expect(ENODATA, os.getxattr, f"{root}/d/other", PLACEMENT)
    run_checked("cp", "-a", f"{root}/d", f"{root}/copy")
    equal(os.getxattr(f"{root}/copy/child", PLACEMENT), b"spread", "copied placement")


@case
def attribute_without_a_cluster(t):
    with t.new_mount() as mount:
        check_attribute(mount.mnt)
        mount.kill()
        mount.start()
        equal(os.getxattr(f"{mount.mnt}/d/child", PLACEMENT), b"spread", "after a restart")


@case
def attribute_in_a_cluster(t):
    with new_cluster(t) as cluster:
        cluster.wait_balanced()
        check_attribute(cluster.nodes[1].mnt)
        for root in cluster.roots:
            equal(os.getxattr(f"{root}/d/child", PLACEMENT), b"spread", f"placement in {root}")


@case
def local_directories(t):
    """Each node's directories are its own, and what is done in them needs nobody else."""
    with new_cluster(t) as cluster:
        cluster.wait_balanced()
        a = cluster.nodes[0]
        os.mkdir(f"{a.mnt}/jobs")
        place(f"{a.mnt}/jobs", "local")
        for node in cluster.nodes:
            me = id_of(node)
            for i in range(5):
                os.mkdir(f"{node.mnt}/jobs/{node.name}{i}")
                equal(owner(node, f"jobs/{node.name}{i}"), me, f"owner of {node.name}{i}")
            top = f"jobs/{node.name}0"
            # A path from the root would be looked up again, name by name, at its owners.
            with harness.opened(f"{node.mnt}/{top}", os.O_RDONLY | os.O_DIRECTORY) as fd:
                before = calls(node)
                for i in range(200):
                    os.mkdir(f"{i}", dir_fd=fd)
                    with harness.opened(f"f{i}", os.O_CREAT | os.O_EXCL | os.O_RDWR, dir_fd=fd) as f:
                        os.write(f, b"x")
                    os.unlink(f"f{i}", dir_fd=fd)
                done = calls(node) - before
            # A heartbeat a second, and what goes on anyway.
            check(done < 100, f"{done} calls to other nodes for what is local to {node.name}")
            equal({owner(node, f"{top}/{i}") for i in range(20)}, {me}, "owners of grandchildren")
        # As before for whoever says so.
        os.mkdir(f"{a.mnt}/jobs/spread")
        place(f"{a.mnt}/jobs/spread", "spread")
        for i in range(30):
            os.mkdir(f"{a.mnt}/jobs/spread/{i}")
        check(len({owner(a, f"jobs/spread/{i}") for i in range(30)}) == 3, "they are not spread")


@case
def placement_survives(t):
    """A hand-over and a kill: who owns the directory by then knows how its children are placed."""
    with new_cluster(t, 2, late=1) as cluster:
        a, b = cluster.nodes
        for i in range(20):
            os.mkdir(f"{a.mnt}/{i}")
            place(f"{a.mnt}/{i}", "local")
        cluster.join(b)
        cluster.wait_balanced()
        check({owner(a, f"{i}") for i in range(20)} == {id_of(a), id_of(b)},
              "empty pass: no directory was handed over")
        for _ in range(2):
            for node in cluster.nodes:
                for i in range(20):
                    path = f"{i}/{node.name}{len(os.listdir(f'{a.mnt}/{i}'))}"
                    os.mkdir(f"{node.mnt}/{path}")
                    equal(owner(node, path), id_of(node), f"owner of {path}")
            for node in cluster.nodes:
                node.kill()
            for node in cluster.nodes:
                node.start()
            cluster.wait_members()


def space(path):
    st = os.statvfs(path)
    return st.f_blocks * st.f_frsize, st.f_bavail * st.f_frsize


@case
def df_shows_all_nodes(t):
    """The sum of the stores; of a node that is gone soon nothing, and nobody waits for it."""
    with new_cluster(t) as cluster:
        a, _, c = cluster.nodes
        each = [space(node.store) for node in cluster.nodes]
        for node in cluster.nodes:
            total, free = space(node.mnt)
            equal(total, sum(t for t, _ in each), f"size of the file system on {node.name}")
            wanted = sum(f for _, f in each)
            check(abs(free - wanted) < wanted / 20, f"{free} free on {node.name}, not {wanted}")
        c.kill()
        start, slowest = time.monotonic(), 0
        while space(a.mnt)[0] != sum(t for t, _ in each[:2]):
            check(time.monotonic() - start < 10 * FACTOR, "a dead node is counted for long")
            began = time.monotonic()
            os.statvfs(a.mnt)
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.05)
        check(slowest < 0.3 * FACTOR, f"df waited {slowest:.1f} s for a dead node")
        c.start()
        wait_until(lambda: space(a.mnt)[0] == sum(t for t, _ in each), 10 * FACTOR,
                   "a node that is back is counted")


MIB = 1 << 20
PACE = 0.01  # Seconds: how full a store is, its node looks at ten times a second.


@contextlib.contextmanager
def small_stores(t, count, mib):
    """Directories, each on a file system of its own."""
    with contextlib.ExitStack() as stack:
        paths = []
        for _ in range(count):
            folder = t.workspace.new_directory()
            paths.append(f"{folder}/fs")
            harness.loop_file_system(f"{folder}/image", paths[-1], "ext4", size_mib=mib)
            stack.callback(harness.run, "umount", "-l", paths[-1])
        yield paths


def content(name, size=MIB):
    return (name.encode() * (size // len(name) + 1))[:size]


def fill(root, first, count, size=MIB):
    """Makes so many files, or until one can't be made; returns the names of those that were."""
    names = []
    for i in range(first, first + count):
        try:
            make(f"{root}/{i}", content(f"{i}", size))
        except OSError as error:
            equal(error.errno, ENOSPC, f"errno for file {i}")
            # What has been made and not written.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{root}/{i}")
            return names
        names.append(f"{i}")
        time.sleep(PACE)
    return names


def check_files(cluster, directory, names, size=MIB):
    for node in cluster.nodes:
        equal(sorted(os.listdir(f"{node.mnt}/{directory}")), sorted(names), "names")
        for name in names:
            check(read(f"{node.mnt}/{directory}/{name}") == content(name, size),
                  f"other content in {name} on {node.name}")


def homes(node, paths):
    return [node.stat(f"{node.mnt}/{path}")["home"] for path in paths]


@case
def creates_spill_when_a_store_is_full(t):
    """They all succeed as long as any node has room; what is there stays where it is."""
    with (small_stores(t, 3, 128) as stores,
          new_cluster(t, store=stores) as cluster):
        cluster.wait_balanced()
        a = cluster.nodes[0]
        os.mkdir(f"{a.mnt}/d")
        names = fill(f"{a.mnt}/d", 0, 180)
        equal(len(names), 180, "files made")
        where = homes(a, [f"d/{name}" for name in names])
        me = id_of(a)
        check(all(home == me for home in where[:60]), "they leave while there is room")
        check(me not in where[-40:], "the last ones are on the full node")
        equal(len(set(where)), 3, "nodes that have some")
        check_files(cluster, "d", names)
        for root in cluster.roots:
            os.unlink(f"{root}/d/{names.pop()}")
        with harness.opened(f"{a.mnt}/d/175", os.O_RDWR | os.O_APPEND) as fd:
            os.write(fd, b"more")
            os.fsync(fd)
        equal(os.stat(f"{cluster.nodes[1].mnt}/d/175").st_size, MIB + 4, "size after an append")
        os.truncate(f"{cluster.nodes[2].mnt}/d/175", MIB)
        check_files(cluster, "d", names)


@case
def all_stores_full(t):
    """Then it is ENOSPC; with room again, creates go on, and are local again."""
    with (small_stores(t, 2, 128) as stores,
          new_cluster(t, 2, store=stores) as cluster):
        cluster.wait_balanced()
        a = cluster.nodes[0]
        os.mkdir(f"{a.mnt}/d")
        names = fill(f"{a.mnt}/d", 0, 1000)
        check(len(names) > 170, f"full after {len(names)} MiB")
        check(len(names) < 1000, "empty pass: never full")
        check_files(cluster, "d", names)
        for name in names:
            os.unlink(f"{a.mnt}/d/{name}")

        def at_home():
            if outcome(make, f"{a.mnt}/d/again", b"x") == "ENOSPC":
                return False
            home = homes(a, ["d/again"])
            os.unlink(f"{a.mnt}/d/again")
            return home == [id_of(a)]

        wait_until(at_home, 10 * FACTOR, "a create is local again")


def temporary(root):
    """A file without a name that gets one."""
    with harness.opened(f"{root}/d", os.O_TMPFILE | os.O_RDWR) as fd:
        os.write(fd, b"temporary")
        linkat(fd, "", f"{root}/d/temporary", AT_EMPTY_PATH)


@case
def client_stores_nothing(t):
    """A node of weight 0 has neither names nor data; what it was told outlives it."""
    with new_cluster(t, clients=(2,)) as cluster:
        cluster.wait_balanced()
        a, b, client = cluster.nodes
        servers = {id_of(a), id_of(b)}
        os.mkdir(f"{client.mnt}/d")
        place(f"{client.mnt}/d", "local")
        for i in range(20):
            os.mkdir(f"{client.mnt}/d/dir{i}")
            make(f"{client.mnt}/d/dir{i}/f", content(f"{i}", 5000))
        temporary(client.mnt)
        with harness.opened(f"{client.mnt}/d/sync", os.O_CREAT | os.O_RDWR | os.O_SYNC) as fd:
            os.write(fd, b"synced")
        os.mknod(f"{client.mnt}/d/node")
        expect(EEXIST, os.open, f"{client.mnt}/d/sync", os.O_CREAT | os.O_EXCL | os.O_RDWR)
        files = [f"d/dir{i}/f" for i in range(20)] + ["d/temporary", "d/sync", "d/node"]
        equal(set(homes(a, files)), servers, "homes")
        equal({owner(a, f"d/dir{i}") for i in range(20)}, servers, "owners of directories")
        equal(client.status()["slots"]["owned"], 0, "slots of the client")
        equal([names for _, _, names in os.walk(f"{client.store}/data") if names], [],
              "files in the client's store")
        equal(space(client.mnt)[0], 2 * space(a.store)[0], "size of the file system")
        equal(space(a.mnt)[0], 2 * space(a.store)[0], "size of the file system on a node")
        with harness.opened(f"{client.mnt}/d/dir0/f", os.O_RDWR) as fd:
            os.write(fd, b"last")
            os.fsync(fd)
        client.kill()
        for node in (a, b):
            equal(read(f"{node.mnt}/d/dir0/f"), b"last" + content("0", 5000)[4:], "after the kill")
            for i in range(1, 20):
                equal(read(f"{node.mnt}/d/dir{i}/f"), content(f"{i}", 5000), "after the kill")
            equal(read(f"{node.mnt}/d/temporary"), b"temporary", "a file that was linked")
            equal(read(f"{node.mnt}/d/sync"), b"synced", "a synced file")
        client.start()
        # With the nodes that it needs away for a moment, it waits.
        b.stop()
        child = Child(make, f"{client.mnt}/d/dir0/late", b"late")
        b.start()
        child.result()
        equal(read(f"{a.mnt}/d/dir0/late"), b"late", "a file made meanwhile")


@case
def homes_that_are_away_are_left_out(t):
    """What a client makes while one of two nodes is dead goes to the other."""
    with new_cluster(t, clients=(2,)) as cluster:
        cluster.wait_balanced()
        a, b, client = cluster.nodes
        for i in range(20):
            os.mkdir(f"{client.mnt}/{i}")
        of_a = next(i for i in range(20) if owner(a, f"{i}") == id_of(a))
        with harness.opened(f"{client.mnt}/{of_a}", os.O_RDONLY | os.O_DIRECTORY) as fd:

            def create(name):
                with harness.opened(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, dir_fd=fd) as f:
                    os.write(f, name.encode())

            for i in range(20):
                create(f"before{i}")
            b.kill()
            for i in range(20):
                create(f"after{i}")
            b.start()
        where = homes(a, [f"{of_a}/after{i}" for i in range(20)])
        equal(set(where), {id_of(a)}, "homes of files made meanwhile")
        for i in range(20):
            equal(read(f"{b.mnt}/{of_a}/after{i}"), f"after{i}".encode(), "content")


if __name__ == "__main__":
    sys.exit(harness.main(__doc__, shared_mount=False, argv=OTHERS))
