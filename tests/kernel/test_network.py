"""Interfaces and routes of real network namespaces, against the tools of the system, pyroute2's own decoding and the peer.

Everything happens in a namespace with a name of this test's own; the handlers run in a process inside it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.root

PROJECT = Path(__file__).resolve().parents[2]

PREAMBLE = """
import json, os, sys, time
from types import SimpleNamespace
from workers import netlink, network
ctx = SimpleNamespace(root="", state=SimpleNamespace())
network.prepare(ctx)
def interfaces(): return list(network.guest_network_get_interfaces(ctx))
def routes(): return network.guest_network_get_route(ctx)
"""


class Space:
    """A network namespace."""

    def __init__(self, name: str) -> None:
        self.name = name

    def ip(self, *args: str | bytes) -> None:
        subprocess.run(["ip", "-n", self.name, *args], check=True)

    def batch(self, lines: list[str]) -> None:
        text = "\n".join(lines) + "\n"
        subprocess.run(["ip", "-n", self.name, "-batch", "-"], input=text.encode(), check=True)

    def text(self, *command: str) -> str:
        return subprocess.run(
            ["ip", "netns", "exec", self.name, *command], check=True, capture_output=True, text=True, errors="replace"
        ).stdout

    def python(self, code: str) -> Any:
        """What the code printed as its last line, as JSON; it runs inside, after PREAMBLE."""
        path = os.pathsep.join(p for p in (str(PROJECT), os.environ.get("PYTHONPATH", "")) if p)
        run = subprocess.run(
            ["ip", "netns", "exec", self.name, sys.executable, "-c", PREAMBLE + code],
            capture_output=True,
            cwd=PROJECT,
            env=dict(os.environ, PYTHONPATH=path),
        )
        assert run.returncode == 0, run.stderr.decode(errors="replace")
        return json.loads(run.stdout.splitlines()[-1])

    def interfaces(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.python("print(json.dumps(interfaces()))")
        return rows

    def routes(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.python("print(json.dumps(routes()))")
        return rows


@contextlib.contextmanager
def a_space() -> Iterator[Space]:
    name = f"privsep-ga-{os.getpid()}-{os.urandom(3).hex()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        yield Space(name)
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.fixture
def space() -> Iterator[Space]:
    with a_space() as it:
        yield it


def by_name(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    assert len({row["name"] for row in rows}) == len(rows)
    return {row["name"]: row for row in rows}


def pairs(space: Space, count: int) -> None:
    space.batch([f"link add v{n} type veth peer name w{n}" for n in range(count)])


def furnish(space: Space) -> None:
    """A bit of everything: labels, several addresses, a peer address, IPv6, odd names, links without address."""
    pairs(space, 2)
    space.batch(
        [
            "link set lo up",
            "link set v0 up",
            "link set w0 up",
            "addr add 10.1.2.3/24 dev v0",
            "addr add 10.1.2.4/24 dev v0 label v0:1",
            "addr add 10.1.2.5/32 dev v0 label v0:x.y",
            "addr add 10.9.0.1 peer 10.9.0.2/30 dev w0",
            "addr add 2001:db8::1/64 dev v0 nodad",
            "addr add 2001:db8:1::1 peer 2001:db8:1::2/126 dev w0 nodad",
            "addr add ::ffff:1.2.3.4/128 dev w0 nodad",
            "addr add 172.16.0.1/0 dev v1",
            "link add br0 type bridge",
        ]
    )
    for name in ("é€😀", 'q"\\{', "-dash", "a=b,c;d"):
        space.ip("link", "add", "name", name, "type", "veth", "peer", "name", name[:3] + "~")
    space.ip(b"link", b"add", b"name", b"\xff\xfebad", b"type", b"bridge")
    space.ip("tuntap", "add", "dev", "tun0", "mode", "tun")


def test_a_new_namespace_has_lo_with_zeros_and_statistics_and_no_address(space: Space) -> None:
    assert space.interfaces() == [
        {
            "name": "lo",
            "hardware-address": "00:00:00:00:00:00",
            "statistics": {
                f"{way}-{what}": 0 for way in ("rx", "tx") for what in ("bytes", "packets", "errs", "dropped")
            },
        }
    ]
    assert space.routes() == [] or all(row["version"] == 6 for row in space.routes())


def test_interfaces_addresses_and_labels_are_what_ip_shows(space: Space) -> None:
    furnish(space)
    rows = space.interfaces()
    ours = by_name(rows)
    links = json.loads(space.text("ip", "-j", "link"))
    names = [link["ifname"] for link in links if "\ufffd" not in link["ifname"]]
    labels = ["v0:x.y", "v0:1"]  # the kernel lists secondary addresses last
    assert [r["name"] for r in rows if r["name"] in names or r["name"] in labels] == names + labels
    assert "\udcff\udcfebad" in ours
    for link in links:
        if link["ifname"] in ours and link.get("link_type") in ("ether", "loopback"):
            assert ours[link["ifname"]]["hardware-address"] == link["address"]
    assert ours["tun0"]["hardware-address"] == "00:00:00:00:00:00"
    assert ours["v0"]["ip-addresses"][0] == {"ip-address": "10.1.2.3", "ip-address-type": "ipv4", "prefix": 24}
    assert {"ip-address": "2001:db8::1", "ip-address-type": "ipv6", "prefix": 64} in ours["v0"]["ip-addresses"]
    assert ours["v0:1"] == {
        "name": "v0:1",
        "hardware-address": ours["v0"]["hardware-address"],
        "ip-addresses": [{"ip-address": "10.1.2.4", "ip-address-type": "ipv4", "prefix": 24}],
    }
    # The near end of a point-to-point pair, with the prefix that the kernel keeps for it.
    assert {"ip-address": "10.9.0.1", "ip-address-type": "ipv4", "prefix": 30} in ours["w0"]["ip-addresses"]
    assert {"ip-address": "2001:db8:1::1", "ip-address-type": "ipv6", "prefix": 126} in ours["w0"]["ip-addresses"]
    assert {"ip-address": "::ffff:1.2.3.4", "ip-address-type": "ipv6", "prefix": 128} in ours["w0"]["ip-addresses"]
    assert ours["v1"]["ip-addresses"] == [{"ip-address": "172.16.0.1", "ip-address-type": "ipv4", "prefix": 0}]
    assert "ip-addresses" not in ours["br0"] and "statistics" in ours["br0"]


def test_statistics_are_those_of_proc_net_dev(space: Space) -> None:
    furnish(space)
    space.text("ping", "-c", "3", "-i", "0.2", "-q", "127.0.0.1") if os.access("/bin/ping", os.X_OK) else None
    code = """
def proc():
    rows = {}
    for line in open("/proc/net/dev", "rb").read().split(b"\\n")[2:]:
        name, colon, rest = line.strip().rpartition(b":")
        if colon:
            v = [int(x) for x in rest.split()]
            rows[os.fsdecode(name)] = v[0:4] + v[8:12]
    return rows
keys = [f"{way}-{what}" for way in ("rx", "tx") for what in ("bytes", "packets", "errs", "dropped")]
for _ in range(50):
    before = proc()
    ours = {r["name"]: [r["statistics"][k] for k in keys] for r in interfaces() if "statistics" in r}
    if before == proc():
        break
print(json.dumps([ours, before]))
"""
    ours, theirs = space.python(code)
    assert ours == theirs and len(ours) > 10


def test_two_hundred_pairs_are_all_there_once_in_the_kernels_order(space: Space) -> None:
    pairs(space, 200)
    space.batch([f"addr add 10.2.{n}.1/24 dev v{n}" for n in range(200)])
    rows = space.interfaces()
    assert len(rows) == 401
    assert [r["name"] for r in rows] == [link["ifname"] for link in json.loads(space.text("ip", "-j", "link"))]
    ours = by_name(rows)
    for n in range(200):
        assert ours[f"v{n}"]["ip-addresses"] == [{"ip-address": f"10.2.{n}.1", "ip-address-type": "ipv4", "prefix": 24}]


def test_the_cost_grows_with_the_number_of_interfaces_and_not_faster(space: Space) -> None:
    """Ten times as many take about ten times as long; the best of several runs, with room for a busy machine."""
    code = """
times = []
for _ in range(7):
    start = time.process_time()
    interfaces()
    times.append(time.process_time() - start)
print(json.dumps(min(times)))
"""
    pairs(space, 100)
    few = space.python(code)
    space.batch([f"link add x{n} type veth peer name y{n}" for n in range(900)])
    many = space.python(code)
    assert few < 0.05
    assert many < few * 25


FULL = """
import pyroute2
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
kept = []
def keep(take):
    def both(data, at, end, found):
        take(data, at, end, found)
        kept.append((bytes(data[at - 16 : end]), found[-1] if found else None))
    return both
"""


def test_the_light_decoding_finds_what_pyroute2_finds_in_the_same_bytes(space: Space) -> None:
    """Also: the attribute numbers and structures that stand in our file are those of pyroute2's classes."""
    furnish(space)
    code = (
        FULL
        + """
socket = ctx.state.network.netlink
netlink._dump(socket, netlink.RTM_GETLINK, netlink.LINK.pack(0, 0, 0, 0, 0), keep(netlink.take_link))
links, kept = kept, []
netlink._dump(socket, netlink.RTM_GETADDR, netlink.ADDRESS.pack(0, 0, 0, 0, 0), keep(netlink.take_address))
for data, row in links:
    full = ifinfmsg(data); full.decode()
    assert row.index == full["index"], (row.index, full["index"])
    assert row.address.hex(":") == (full.get_attr("IFLA_ADDRESS") or ""), full.get_attr("IFLA_ADDRESS")
    name = full.get_attr("IFLA_IFNAME")
    if row.name.isascii():
        assert row.name.decode() == name, (row.name, name)
    s = full.get_attr("IFLA_STATS64")
    assert row.counters == (s["rx_packets"], s["tx_packets"], s["rx_bytes"], s["tx_bytes"], s["rx_errors"],
        s["tx_errors"], s["rx_dropped"] + s["rx_missed_errors"], s["tx_dropped"]), (row.counters, s)
for data, row in kept:
    full = ifaddrmsg(data); full.decode()
    local = full.get_attr("IFA_LOCAL") or full.get_attr("IFA_ADDRESS")
    assert (row.index, row.family, row.prefix) == (full["index"], full["family"], full["prefixlen"])
    assert __import__("socket").inet_ntop(row.family, row.packed) == local
    assert row.label.decode() == (full.get_attr("IFA_LABEL") or "")
numbers = {r[0]: n for n, r in enumerate(ifinfmsg.nla_map)}
assert numbers["IFLA_ADDRESS"] == netlink.IFLA_ADDRESS
assert numbers["IFLA_IFNAME"] == netlink.IFLA_IFNAME
assert numbers["IFLA_STATS64"] == netlink.IFLA_STATS64
assert netlink._layout(ifinfmsg.fields).format == netlink.LINK.format
names = [f[0] for f in ifinfmsg.ifstats64.fields]
assert names[:8] == ["rx_packets", "tx_packets", "rx_bytes", "tx_bytes", "rx_errors", "tx_errors", "rx_dropped",
    "tx_dropped"] and names[15] == "rx_missed_errors"
print(json.dumps([len(links), len(kept)]))
"""
    )
    links, addresses = space.python(code)
    assert links >= 13 and addresses >= 8


def test_the_light_import_answers_as_the_full_one_and_leaves_nothing_behind(space: Space) -> None:
    """With pyroute2 imported the plain way first, the same modules are used and the same answer is given."""
    furnish(space)
    space.ip("link", "set", "v0", "down")
    space.ip("link", "set", "w0", "down")
    light = space.python(
        """
assert not [n for n in sys.modules if n.split(".")[0] == "pyroute2"], "left behind"
assert "multiprocessing" not in sys.modules and "subprocess" not in sys.modules
answer = interfaces()
import pyroute2
assert pyroute2.IPRoute and pyroute2.netlink.nlmsg
print(json.dumps(answer))
"""
    )
    full = space.python(
        """
for name in ("workers.netlink", "workers.network"): del sys.modules[name]
import pyroute2
from workers import network
assert "pyroute2.iproute" in sys.modules
network.prepare(ctx)
print(json.dumps(interfaces()))
"""
    )
    assert light == full


def test_a_dump_that_was_given_up_does_not_spoil_the_next_one(space: Space) -> None:
    """A failure in the middle of a long dump leaves messages behind; the next request starts clean."""
    pairs(space, 200)
    rows = space.python(
        """
socket = ctx.state.network.netlink
def fail(*args): raise OSError(74, "attribute")
try:
    netlink._dump(socket, netlink.RTM_GETLINK, netlink.LINK.pack(0, 0, 0, 0, 0), fail)
except OSError as e:
    assert e.errno == 74
else:
    raise AssertionError
socket.buffer = bytearray(64)   # and a buffer that is too short is replaced
rows = interfaces()
assert len(socket.buffer) >= 4096
print(json.dumps(rows))
"""
    )
    assert len(rows) == 401


def test_changes_while_dumping_lose_no_standing_interface(space: Space) -> None:
    """Links come and go the whole time; those that stand are in each answer, none is there twice."""
    pairs(space, 60)
    space.batch([f"addr add 10.3.{n}.1/24 dev v{n}" for n in range(60)])
    toggle = ["link add t0 type veth peer name t1", "addr add 10.77.0.1/24 dev t0", "link del t0"] * 300
    disturber = subprocess.Popen(
        ["ip", "-n", space.name, "-batch", "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    assert disturber.stdin is not None
    try:
        disturber.stdin.write(("\n".join(toggle) + "\n").encode())
        disturber.stdin.close()
        code = """
wanted = {f"v{n}" for n in range(60)} | {f"w{n}" for n in range(60)} | {"lo"}
seen = 0
for _ in range(100):
    rows = interfaces()
    names = [r["name"] for r in rows]
    assert len(set(names)) == len(names), names
    assert wanted <= set(names), wanted - set(names)
    for r in rows:
        if r["name"][0] == "v":
            assert len(r["ip-addresses"]) == 1, r
    seen += "t0" in names
print(json.dumps(seen))
"""
        space.python(code)
    finally:
        disturber.kill()
        disturber.wait()


ROUTES = [
    "link set lo up",
    "link set v0 up",
    "link set w0 up",
    "addr add 10.1.2.3/24 dev v0",
    "addr add 2001:db8::1/64 dev v0 nodad",
    "route add default via 10.1.2.254 dev v0 metric 77",
    "route add 10.20.0.0/16 via 10.1.2.1 dev v0 window 12345 rtt 10ms advmss 1400",
    "route add 10.30.0.1/32 dev v0 metric 4294967295",
    "route add unreachable 10.40.0.0/24 metric 9",
    "route add blackhole 10.50.0.0/24",
    "route add default via 2001:db8::fe dev v0 metric 42",
    "route add 2001:db8:5::/48 dev v0 metric 4294967294",
    "route add unreachable 2001:db8:6::/48",
]


def ipv6_on() -> bool:
    return os.path.exists("/proc/net/if_inet6")


def test_routes_are_the_lines_of_the_proc_files(space: Space) -> None:
    pairs(space, 1)
    space.batch([line for line in ROUTES if ipv6_on() or ":" not in line])
    rows = space.routes()
    v4 = [row for row in rows if row["version"] == 4]
    v6 = [row for row in rows if row["version"] == 6]
    assert rows == v4 + v6
    default = next(row for row in v4 if row["destination"] == "0.0.0.0")
    assert default == {
        "iface": "v0",
        "destination": "0.0.0.0",
        "metric": 77,
        "gateway": "10.1.2.254",
        "mask": "0.0.0.0",
        "irtt": 0,
        "flags": 3,
        "refcnt": 0,
        "use": 0,
        "window": 0,
        "mtu": 0,
        "version": 4,
    }
    wide = next(row for row in v4 if row["destination"] == "10.20.0.0")
    assert wide["mask"] == "255.255.0.0" and wide["window"] == 12345 and wide["mtu"] == 1440 and wide["irtt"] == 10
    host = next(row for row in v4 if row["destination"] == "10.30.0.1")
    assert host["metric"] == 4294967295 and host["mask"] == "255.255.255.255" and host["gateway"] == "0.0.0.0"
    dead = next(row for row in v4 if row["destination"] == "10.40.0.0")
    assert dead["iface"] == "*" and dead["flags"] == 0x201
    if ipv6_on():
        default = next(row for row in v6 if row["metric"] == 42)
        assert (default["destination"], default["desprefixlen"], default["nexthop"]) == ("::", "0", "2001:db8::fe")
        assert (default["source"], default["srcprefixlen"], default["flags"] & 3) == ("::", "0", 3)
        assert any(row["metric"] == 4294967294 and row["desprefixlen"] == "48" for row in v6)
        local = next(row for row in v6 if row["destination"] == "2001:db8::1")
        assert local["desprefixlen"] == "128" and local["flags"] == 0x80200001
        assert any(row["destination"] == "ff00::" for row in v6)


def test_ipv4_routes_agree_with_pyroute2s_view_of_the_main_table(space: Space) -> None:
    """What both sources can tell: destination, mask, gateway, metric, interface, in the same order."""
    pairs(space, 1)
    space.batch([line for line in ROUTES if ":" not in line])
    code = """
import pyroute2
ip = pyroute2.IPRoute()
names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in ip.get_links()}
rows = []
for r in ip.get_routes(family=2, table=254):
    rows.append([r.get_attr("RTA_DST") or "0.0.0.0", r["dst_len"], r.get_attr("RTA_GATEWAY") or "0.0.0.0",
        r.get_attr("RTA_PRIORITY") or 0, names.get(r.get_attr("RTA_OIF"), "*")])
print(json.dumps([rows, [r for r in routes() if r["version"] == 4]]))
"""
    theirs, ours = space.python(code)
    assert len(ours) >= 6
    assert theirs == [
        [
            r["destination"],
            ipaddress.IPv4Network(f"0.0.0.0/{r['mask']}").prefixlen,
            r["gateway"],
            r["metric"],
            r["iface"],
        ]
        for r in ours
    ]


def test_without_ipv6_there_are_ipv4_routes_and_no_error(space: Space, tmp_path: Path) -> None:
    """A root whose /proc/net has no ipv6_route, as with ipv6.disable=1; the IPv4 file is the real one."""
    pairs(space, 1)
    space.batch(["link set v0 up", "addr add 10.1.2.3/24 dev v0"])
    (tmp_path / "proc/net").mkdir(parents=True)
    (tmp_path / "proc/net/route").symlink_to("/proc/net/route")
    code = f"""
ctx.root = {str(tmp_path)!r}
network.prepare(ctx)
print(json.dumps(routes()))
"""
    rows = space.python(code)
    assert [row["destination"] for row in rows] == ["10.1.2.0"]


def test_the_worker_needs_no_privilege_after_prepare(space: Space) -> None:
    """As nobody, in an empty root folder: what was opened before is enough."""
    furnish(space)
    code = """
import tempfile
os.chroot(tempfile.mkdtemp()); os.chdir("/")
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
print(json.dumps([len(interfaces()), len(routes()), len(interfaces()), len(routes())]))
"""
    first, routes, again, routes_again = space.python(code)
    assert first == again > 10 and routes == routes_again > 0


PEER = """
import socket, subprocess, tempfile
state = tempfile.mkdtemp()
peer = subprocess.Popen(["/usr/sbin/qemu-ga", "-m", "unix-listen", "-p", state + "/s", "-t", state, "-f", state + "/p"],
    stderr=subprocess.DEVNULL)
try:
    s = socket.socket(socket.AF_UNIX)
    for _ in range(300):
        try:
            s.connect(state + "/s"); break
        except OSError:
            time.sleep(0.02)
    s.settimeout(30)
    f = s.makefile("rb")
    for _ in range(50):
        before = interfaces()
        s.sendall(b'{"execute": "guest-network-get-interfaces"}\\n')
        theirs = json.loads(f.readline())["return"]
        if before == interfaces():
            break
finally:
    peer.kill(); peer.wait()
print(json.dumps([before, theirs]))
"""


@pytest.mark.peer
def test_the_answer_is_the_peers_plus_statistics_of_links_without_address(space: Space) -> None:
    furnish(space)
    ours, theirs = space.python(PEER)
    assert len(theirs) >= 15
    for row in ours:
        # What the wire makes of a name that is not UTF-8 is the runtime's work, not the handler's.
        row["name"] = os.fsencode(row["name"]).decode("utf-8", "replace")
        if "ip-addresses" not in row:
            del row["statistics"]
    assert ours == theirs
