"""An Ethernet segment of network namespaces, one a host, whose cables can be cut and slowed.

The host's own network is not touched: bridge and cables are in namespaces too. What a cut
loses, the receiver drops (nftables): as with a real cable, the sender is told nothing.
"""

import contextlib
import ctypes
import itertools
import json
import os
import re
import shutil
import socket
from pathlib import Path

from harness import NAMESPACES, Skip, namespaces, need_root, run, run_checked

RULES = """
table inet cable {
  set cut { type ipv4_addr; }
  counter lost { }
  chain input {
    type filter hook input priority 0;
    ip saddr @cut counter name lost drop
  }
}
"""
RESETS = """
table inet resets {
  set reset_by { type ipv4_addr; }
  chain input {
    type filter hook input priority 1;
    meta l4proto tcp ip saddr @reset_by reject with tcp reset
  }
}
"""
NUMBERS = itertools.count()
CLONE_NEWNET = 0x40000000


class Network:
    """`hosts` namespaces on one bridge; gone, with all that is in them, after the with block."""

    def __init__(self, prefix, hosts):
        # The case's process and a number: more than one network may be up at once.
        name = f"{prefix}{os.getpid()}-{next(NUMBERS)}"
        self._bridge = f"{name}-bridge"
        self.hosts = [f"{name}-{host}" for host in range(hosts)]
        self._cuts = set()  # (from, to, set of addresses)
        self._cleanup = contextlib.ExitStack()

    @property
    def names(self):
        return [self._bridge, *self.hosts]

    def __enter__(self):
        need_root()
        for tool in ("ip", "nft", "tc", "nsenter"):
            if not shutil.which(tool):
                raise Skip(f"{tool} is missing")
        remove_stale()
        with self._cleanup:
            for name in self.names:
                if run("ip", "netns", "add", name).returncode != 0:
                    raise Skip("network namespaces can't be made here")
                self._cleanup.callback(run, "ip", "netns", "delete", name)
            self._lay_cables()
            for name in self.hosts:
                run_checked(*enter(name), "nft", "-f", "-", input=RULES)
            self._cleanup = self._cleanup.pop_all()
        return self

    def __exit__(self, *_):
        self._cleanup.close()

    def _lay_cables(self):
        lines = ["link add br0 type bridge", "link set br0 up"]
        for host, name in enumerate(self.hosts):
            lines += [f"link add port{host} type veth peer name eth0 netns {name}",
                      f"link set port{host} master br0 up"]
        self._ip(self._bridge, lines)
        for host, name in enumerate(self.hosts):
            self._ip(name, [f"address add {self.address(host)}/24 dev eth0",
                            "link set eth0 up", "link set lo up"])

    @staticmethod
    def _ip(name, lines):
        run_checked("ip", "-n", name, "-batch", "-", input="\n".join(lines) + "\n")

    @staticmethod
    def address(host):
        return f"10.77.0.{host + 1}"

    def enter(self, host):
        """The beginning of a command that is to run on that host."""
        return enter(self.hosts[host])

    def cut(self, a, b, one_way=False):
        """Nothing reaches b from a any more, and, unless one_way, nothing a from b."""
        for source, target in [(a, b)] if one_way else [(a, b), (b, a)]:
            self._add(source, target, "cable cut")

    def reset(self, a, b):
        """Each TCP segment that comes from a to b is lost, and its connection with it."""
        if run(*self.enter(b), "nft", "list", "table", "inet", "resets").returncode != 0:
            run_checked(*self.enter(b), "nft", "-f", "-", input=RESETS)
        self._add(a, b, "resets reset_by")

    def _add(self, source, target, addresses):
        if (source, target, addresses) not in self._cuts:
            self._change("add", source, target, addresses)
            self._cuts.add((source, target, addresses))

    def heal(self):
        """Mends all cables."""
        for cut in self._cuts:
            self._change("delete", *cut)
        self._cuts.clear()

    def _change(self, what, source, target, addresses):
        run_checked(*self.enter(target), "nft", what, "element", "inet", *addresses.split(),
                    f"{{ {self.address(source)} }}")

    def lost(self, host):
        """How many packets to this host cuts have swallowed."""
        listing = json.loads(run_checked(*self.enter(host), "nft", "-j", "list", "counter", "inet",
                                         "cable", "lost"))
        return next(e["counter"]["packets"] for e in listing["nftables"] if "counter" in e)

    def shape(self, rate):
        """Limits what each host sends, such as "10mbit"; None: no limit."""
        for host, _ in enumerate(self.hosts):
            tc = [*self.enter(host), "tc", "qdisc"]
            if rate:
                run_checked(*tc, "replace", "dev", "eth0", "root", "tbf", "rate", rate,
                            "burst", "256k", "latency", "200ms")
            else:
                run_checked(*tc, "delete", "dev", "eth0", "root")

    def socket(self, host, kind):
        """A socket of that host, bound to its address."""
        # A socket belongs to the namespace that its thread was in when it made it.
        with open("/proc/thread-self/ns/net", "rb") as own:
            with open(f"{NAMESPACES}/{self.hosts[host]}", "rb") as there:
                set_namespace(there)
            try:
                new = socket.socket(socket.AF_INET, kind)
            finally:
                set_namespace(own)
        new.bind((self.address(host), 0))
        return new

    def receives(self, source, target):
        """Whether a datagram from one host comes to the other."""
        with self.socket(source, socket.SOCK_DGRAM) as here, \
                self.socket(target, socket.SOCK_DGRAM) as there:
            there.settimeout(0.3)
            here.sendto(b"x", there.getsockname())
            try:
                return there.recv(1) == b"x"
            except TimeoutError:
                return False


def set_namespace(file):
    if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def enter(name):
    # Not `ip netns exec`, which would hide a mount made in it.
    return ["nsenter", f"--net={NAMESPACES}/{name}"]


def remove_stale():
    """Removes the namespaces of runs that were killed."""
    for name in namespaces("cfs"):
        owner = re.match(r"cfs(\d+)-\d+-", name)
        if owner and not Path(f"/proc/{owner[1]}").exists():
            run("ip", "netns", "delete", name)
