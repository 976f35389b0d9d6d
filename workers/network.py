"""guest-network-get-interfaces and guest-network-get-route, by a process without any privilege.

Everything is opened before the drop and kept: a netlink socket, and the two files of the routes.  An open file below
/proc/net belongs to the network namespace it was opened in, and is read anew from its start.

Interfaces are two netlink dumps and no further system call, so their cost grows with their number (qemu-ga asks for
each hardware address by an ioctl and searches /proc/net/dev for each address).  Shape and order are getifaddrs' as
qemu-ga shows them: links in the kernel's order, then labels (eth0:1) that are no link's name, in the order of the
addresses.  Unlike there, a link has its statistics even when it has no address.

Routes come from /proc/net/route and /proc/net/ipv6_route alone.  Netlink has no attribute for `refcnt`, `use` and, in
IPv6, `flags`, and in IPv4 `mtu`, `irtt` and `flags` are other numbers there; a line of the file is one route at one
moment, while two sources would have to be matched across changes.  Addresses and masks are text, as qemu-ga 10.2
converts them, prefix lengths strings of digits.  Metric and flags are the kernel's unsigned 32 bit numbers (qemu-ga
reads them as signed and shows metric -1 and flags above 2^63 for IPv6's local and reject routes).  Without IPv6 there
is no second file, and no IPv6 route; qemu-ga answers with an error then.
"""

from __future__ import annotations

import _socket
import os
import sys

from protocol.errors import CommandError
from workers import netlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

    from privsep.runtime import Context

_ROUTES: Final = ("/proc/net/route", "/proc/net/ipv6_route")
_CHUNK: Final = 65536
_REPEATS: Final = 3
_FAMILIES: Final = {int(_socket.AF_INET): "ipv4", int(_socket.AF_INET6): "ipv6"}


class Network:
    """Kept between requests: the socket, and the descriptors of the route files (or the errno of their open)."""

    __slots__ = ("netlink", "routes")

    def __init__(self, root: str) -> None:
        self.netlink = netlink.Netlink()
        self.routes = {path: _open(root + path) for path in _ROUTES}


def _open(path: str) -> tuple[int, int]:
    """(descriptor, 0), or (-1, errno)."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC), 0
    except OSError as e:
        return -1, e.errno or 0


def prepare(ctx: Context) -> None:
    """Open what the worker lives on, as long as it may open anything."""
    ctx.state.network = Network(ctx.root)


def _network(ctx: Context) -> Network:
    network = ctx.state.network
    assert isinstance(network, Network)
    return network


def guest_network_get_interfaces(ctx: Context) -> Iterator[dict[str, object]]:
    """Each interface with its hardware address, addresses and counters."""
    socket = _network(ctx).netlink
    try:
        for _ in range(_REPEATS):
            links = netlink.links(socket)
            addresses = netlink.addresses(socket)
            # An address of a link that came between the two dumps has no name yet: look again.
            if {a.index for a in addresses} <= {link.index for link in links}:
                break
    except OSError as e:
        raise CommandError.from_errno("getifaddrs failed", e.errno or 0) from e
    return interfaces(links, addresses)


def interfaces(links: list[netlink.Link], addresses: list[netlink.Address]) -> Iterator[dict[str, object]]:
    """The rows of the answer, from what the kernel said."""
    names = {link.index: link.name for link in links}
    lists: dict[bytes, list[dict[str, object]]] = {}
    text_of = _socket.inet_ntop
    for address in addresses:
        name = address.label or names.get(address.index)
        if name is None:
            continue
        family = address.family
        one: dict[str, object] = {
            "ip-address": text_of(family, address.packed),
            "ip-address-type": _FAMILIES[family],
            "prefix": address.prefix,
        }
        listed = lists.get(name)
        if listed is None:
            lists[name] = [one]
        else:
            listed.append(one)
    hardware: dict[bytes, str] = {}
    for link in links:
        if link.name in hardware:  # a dump that was interrupted may have it twice
            continue
        hardware[link.name] = text = _hardware(link.address)
        row: dict[str, object] = {"name": os.fsdecode(link.name), "hardware-address": text}
        listed = lists.pop(link.name, None)
        if listed is not None:
            row["ip-addresses"] = listed
        if link.counters is not None:
            row["statistics"] = _statistics(link.counters)
        yield row
    for label, listed in lists.items():
        row = {"name": os.fsdecode(label)}
        # The kernel's ioctl for the hardware address cuts a label at its colon.
        base = hardware.get(label.partition(b":")[0])
        if base is not None:
            row["hardware-address"] = base
        row["ip-addresses"] = listed
        yield row


def _hardware(address: bytes) -> str:
    """Six bytes, as SIOCGIFHWADDR has them: longer addresses cut, shorter ones (tunnels) and none filled with zeros."""
    return address[:6].ljust(6, b"\0").hex(":")


def _statistics(counters: tuple[int, ...]) -> dict[str, object]:
    rx_packets, tx_packets, rx_bytes, tx_bytes, rx_errors, tx_errors, rx_dropped, tx_dropped = counters
    return {
        "rx-bytes": rx_bytes,
        "rx-packets": rx_packets,
        "rx-errs": rx_errors,
        "rx-dropped": rx_dropped,
        "tx-bytes": tx_bytes,
        "tx-packets": tx_packets,
        "tx-errs": tx_errors,
        "tx-dropped": tx_dropped,
    }


def guest_network_get_route(ctx: Context) -> list[dict[str, object]]:
    """The routes of both files, IPv4 first."""
    opened = _network(ctx).routes
    descriptor, number = opened[_ROUTES[0]]
    if descriptor < 0:
        raise CommandError.from_errno(f'open("{_ROUTES[0]}")', number)
    rows = ipv4_routes(_read(descriptor, _ROUTES[0]))
    descriptor, _ = opened[_ROUTES[1]]
    if descriptor >= 0:
        rows += ipv6_routes(_read(descriptor, _ROUTES[1]))
    return rows


def _read(descriptor: int, path: str) -> bytes:
    """The file from its start.  Raises CommandError, also for a table too large to be told in one answer."""
    parts = []
    lines = 0
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        while part := os.read(descriptor, _CHUNK):
            parts.append(part)
            lines += part.count(b"\n")
            if lines > netlink.MOST:
                raise CommandError(f"{path} has more than {netlink.MOST} routes")
    except OSError as e:
        raise CommandError.from_errno(f'read("{path}")', e.errno or 0) from e
    return b"".join(parts)


def ipv4_routes(text: bytes) -> list[dict[str, object]]:
    """The lines of /proc/net/route: a heading, then eleven columns, addresses as hexadecimal native numbers."""
    rows: list[dict[str, object]] = []
    for line in text.split(b"\n")[1:]:
        column = line.split()
        if len(column) < 11:
            continue
        rows.append(
            {
                "iface": os.fsdecode(column[0]),
                "destination": _ipv4(column[1]),
                "metric": int(column[6]) & 0xFFFFFFFF,
                "gateway": _ipv4(column[2]),
                "mask": _ipv4(column[7]),
                "irtt": int(column[10]),
                "flags": int(column[3], 16),
                "refcnt": int(column[4]),
                "use": int(column[5]),
                "window": int(column[9]),
                "mtu": int(column[8]),
                "version": 4,
            }
        )
    return rows


def ipv6_routes(text: bytes) -> list[dict[str, object]]:
    """The lines of /proc/net/ipv6_route: ten columns, all hexadecimal, addresses in network order."""
    rows: list[dict[str, object]] = []
    for line in text.split(b"\n"):
        column = line.split()
        if len(column) < 10:
            continue
        rows.append(
            {
                "iface": os.fsdecode(column[9]),
                "destination": _ipv6(column[0]),
                "metric": int(column[5], 16),
                "flags": int(column[8], 16),
                "refcnt": int(column[6], 16),
                "use": int(column[7], 16),
                "desprefixlen": str(int(column[1], 16)),
                "source": _ipv6(column[2]),
                "srcprefixlen": str(int(column[3], 16)),
                "nexthop": _ipv6(column[4]),
                "version": 6,
            }
        )
    return rows


def _ipv4(number: bytes) -> str:
    return _socket.inet_ntoa(int(number, 16).to_bytes(4, sys.byteorder))


def _ipv6(digits: bytes) -> str:
    return _socket.inet_ntop(_socket.AF_INET6, bytes.fromhex(digits.decode("ascii")))
