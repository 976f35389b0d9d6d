"""Links and addresses from rtnetlink: two dumps on one socket, decoded no further than the answer needs.

**What pyroute2 gives and what it does not.**  The numbers of messages and flags and the layout of headers and of the
address message are pyroute2's.  Three things of it are left out, each for a measured reason (0.7.2 and 0.9.7,
Python 3.11, Debian 12):

* `import pyroute2` runs its package file, which imports all that the library can do: 180 to 210 ms and 24 MiB, ten
  times what the answer takes.  `_pyroute2` below imports the submodules only (23 ms, 2.8 MiB), behind a hollow parent package
  that is taken away again, and imports it the plain way if a release should not bear that.
* `pyroute2.netlink.rtnl.ifinfmsg` needs `pyroute2.config`, which imports multiprocessing and, up to the first 0.9
  releases, runs the programs `file` and `uname` (through platform).  A worker starts no program, so the three
  attributes of a link that we read, and the head of its counters, stand here; tests hold them against its classes.
* Its decoder makes objects of every attribute: 0.2 to 0.3 ms a link, more than a second for 5000.  The walk below
  touches an attribute's four bytes and passes on (0.01 ms), and of messages that are alike only the first is walked (`Shape`);
  tests compare what it finds with pyroute2's decoding of the same bytes.

Facts: rtnetlink(7), netlink(7), the kernel's uapi if_link.h and if_addr.h.  A dump's datagram never has more than
32 KiB unless one message needs more (af_netlink.c); a reader that is handed a shorter buffer than the datagram loses
the rest, so the real length is asked for with MSG_TRUNC and the dump repeated with a larger buffer.
"""

from __future__ import annotations

import _socket
import errno
import sys
from struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any, Final


def _modules() -> tuple[ModuleType, ModuleType, ModuleType]:
    from pyroute2 import netlink
    from pyroute2.netlink import rtnl
    from pyroute2.netlink.rtnl import ifaddrmsg

    return netlink, rtnl, ifaddrmsg


def _pyroute2() -> tuple[ModuleType, ModuleType, ModuleType]:
    """pyroute2's netlink, rtnl and ifaddrmsg, without what its package file imports if that has not been run yet."""
    from importlib.machinery import PathFinder

    spec = None if "pyroute2" in sys.modules else PathFinder.find_spec("pyroute2")
    if spec is None or spec.submodule_search_locations is None:
        return _modules()
    parent = type(sys)("pyroute2")
    parent.__path__ = list(spec.submodule_search_locations)
    sys.modules["pyroute2"] = parent
    try:
        return _modules()
    except Exception:  # a release whose submodules want more of their parent: pay for all of it
        _forget()
        return _modules()
    finally:
        if sys.modules.get("pyroute2") is parent:
            _forget()


def _forget() -> None:
    """Take the hollow package and its modules out of the table: whoever imports pyroute2 later gets the real one."""
    for name in [n for n in sys.modules if n == "pyroute2" or n.startswith("pyroute2.")]:
        del sys.modules[name]


def _layout(fields: Any) -> Struct:
    """A pyroute2 field table as one packed structure."""
    return Struct("=" + "".join(code for _, code in fields))


_netlink, _rtnl, _ifaddrmsg = _pyroute2()

HEADER: Final = _layout(_netlink.nlmsg.header)
ATTRIBUTE: Final = _layout(_netlink.nla.header)
ADDRESS: Final = _layout(_ifaddrmsg.ifaddrmsg.fields)
_IFA: Final = {row[0]: number for number, row in enumerate(_ifaddrmsg.ifaddrmsg.nla_map)}
IFA_ADDRESS: Final[int] = _IFA["IFA_ADDRESS"]
IFA_LOCAL: Final[int] = _IFA["IFA_LOCAL"]
IFA_LABEL: Final[int] = _IFA["IFA_LABEL"]
RTM_GETLINK: Final[int] = _rtnl.RTM_GETLINK
RTM_GETADDR: Final[int] = _rtnl.RTM_GETADDR
_DUMP: Final[int] = _netlink.NLM_F_REQUEST | _netlink.NLM_F_DUMP
_INTERRUPTED: Final[int] = _netlink.NLM_F_DUMP_INTR
_NOOP: Final[int] = _netlink.NLMSG_NOOP
_ERROR: Final[int] = _netlink.NLMSG_ERROR
_DONE: Final[int] = _netlink.NLMSG_DONE
# The two upper bits of an attribute's type say how to read it (NLA_F_NESTED, NLA_F_NET_BYTEORDER).
_TYPE: Final[int] = 0xFFFF & ~(_netlink.NLA_F_NESTED | _netlink.NLA_F_NET_BYTEORDER)
del _netlink, _rtnl, _ifaddrmsg

LINK: Final = Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
IFLA_ADDRESS: Final = 1
IFLA_IFNAME: Final = 3
IFLA_STATS64: Final = 23
# The head of struct rtnl_link_stats64, up to rx_missed_errors: packets, bytes, errors, dropped (each rx, tx),
# multicast, collisions and, in rx, length, over, crc, frame, fifo, missed.
COUNTERS: Final = Struct("=16Q")

_FIRST_BUFFER: Final = 65536
_LARGEST_BUFFER: Final = 4 << 20
_TRIES: Final = 8
# What one answer may hold; beyond it the request fails instead of the worker's memory growing without end.
MOST: Final = 100_000

_NETLINK_ROUTE: Final = 0
_SO_RCVTIMEO: Final = 20  # asm-generic; the socket module has no name for it
_TIMEOUT: Final = Struct("@ll")


class Link:
    """One link: index, name, hardware address (b"" where there is none), counters in /proc/net/dev's terms or None.

    The counters are in the order of `COUNTERS`' head: packets, bytes, errors, dropped, each received then sent; drops
    for want of a buffer (rx_missed_errors) are counted as dropped, as the file does.
    """

    __slots__ = ("index", "name", "address", "counters")

    def __init__(self, index: int, name: bytes, address: bytes, counters: tuple[int, ...] | None) -> None:
        self.index = index
        self.name = name
        self.address = address
        self.counters = counters


class Address:
    """One address: the link's index, family, prefix length, packed address, label (b"" where there is none)."""

    __slots__ = ("index", "family", "prefix", "packed", "label")

    def __init__(self, index: int, family: int, prefix: int, packed: bytes, label: bytes) -> None:
        self.index = index
        self.family = family
        self.prefix = prefix
        self.packed = packed
        self.label = label


class Incomplete(Exception):
    """This dump must be repeated: it was interrupted, overrun or did not fit the buffer."""


class Netlink:
    """A socket kept for the worker's life, its receive buffer and its sequence number."""

    __slots__ = ("socket", "buffer", "sequence")

    def __init__(self) -> None:
        """Open it; the network namespace is that of now.  Raises OSError."""
        kind = _socket.SOCK_RAW | _socket.SOCK_CLOEXEC
        self.socket = _socket.socket(_socket.AF_NETLINK, kind, _NETLINK_ROUTE)
        self.socket.setsockopt(_socket.SOL_SOCKET, _SO_RCVTIMEO, _TIMEOUT.pack(5, 0))
        self.socket.bind((0, 0))
        self.buffer = bytearray(_FIRST_BUFFER)
        self.sequence = 0

    def close(self) -> None:
        self.socket.close()


def links(netlink: Netlink) -> list[Link]:
    """All links in the kernel's order.  Raises OSError."""
    return _dump(netlink, RTM_GETLINK, LINK.pack(0, 0, 0, 0, 0), take_link)


def addresses(netlink: Netlink) -> list[Address]:
    """All IPv4 and IPv6 addresses in the kernel's order, which is family by family.  Raises OSError."""
    return _dump(netlink, RTM_GETADDR, ADDRESS.pack(0, 0, 0, 0, 0), take_address)


class Shape:
    """Where everything stands in messages that are alike, which nearly all of a machine's links and addresses are.

    Headers of attributes say where the next one is, so a message with the same headers in the same places as one that
    was walked has its values in the same places too; that is two calls instead of a walk."""

    __slots__ = ("heads", "expected", "values")

    def __init__(self, data: bytearray | bytes, at: int, fixed: str, attributes: list[tuple[int, str]]) -> None:
        """Of the message body at `at`: a fixed part in this format, and then attributes (length, format; "" for one not wanted)."""
        heads, values = f"={Struct('=' + fixed).size}x", f"={fixed}"
        gap = 0
        for length, code in attributes:
            heads += f"I{(length + 3 & ~3) - 4}x"
            if code:
                values += f"{gap + 4}x{code}"
                gap = (length + 3 & ~3) - 4 - Struct("=" + code).size
            else:
                gap += length + 3 & ~3
        # A message may end without the last attribute's padding.
        self.heads = Struct(heads.rpartition("I")[0] + "I").unpack_from
        self.values = Struct(values).unpack_from
        self.expected = self.heads(data, at)


_SHAPES: Final = 64  # kept of each kind; more are walked
_link_shapes: Final[dict[int, Shape]] = {}  # by the length of the message
_address_shapes: Final[dict[int, Shape]] = {}


def take_link(data: bytearray | bytes, at: int, end: int, found: list[Link]) -> None:
    """Add the link that the message body data[at:end] describes.

    The walk ends at the third of the three attributes; a kernel sends the longest ones after them.
    """
    size = end - at
    counters: tuple[int, ...] | None
    shape = _link_shapes.get(size)
    if shape is not None and shape.heads(data, at) == shape.expected:
        index, name, address, a, b, c, d, e, f, dropped, h, missed = shape.values(data, at)
        counters = (a, b, c, d, e, f, dropped + missed & 0xFFFFFFFFFFFFFFFF, h)
        found.append(Link(index, name.rstrip(b"\0"), address, counters))
        return
    start = at
    index = LINK.unpack_from(data, at)[2]
    at += LINK.size
    name = address = b""
    counters = None
    unpack = ATTRIBUTE.unpack_from
    attributes: list[tuple[int, str]] = []
    order: list[int] = []
    while at + 4 <= end:
        length, kind = unpack(data, at)
        if length < 4 or at + length > end:
            raise OSError(errno.EBADMSG, "attribute")
        code = ""
        if kind == IFLA_IFNAME:
            name = bytes(data[at + 4 : at + length]).rstrip(b"\0")
            code = f"{length - 4}s"
        elif kind == IFLA_ADDRESS:
            address = bytes(data[at + 4 : at + length])
            code = f"{length - 4}s"
        elif kind == IFLA_STATS64 and length >= 4 + COUNTERS.size:
            counters = _counters(COUNTERS.unpack_from(data, at + 4))
            code = "8Q56xQ"
        attributes.append((length, code))
        if code:
            order.append(kind)
            if counters is not None and address:
                break
        at += length + 3 & ~3
    found.append(Link(index, name, address, counters))
    if order == [IFLA_IFNAME, IFLA_ADDRESS, IFLA_STATS64] and len(_link_shapes) < _SHAPES:
        _link_shapes[size] = Shape(data, start, "4xi8x", attributes)


def _counters(every: tuple[int, ...]) -> tuple[int, ...]:
    return (*every[:6], every[6] + every[15] & 0xFFFFFFFFFFFFFFFF, every[7])


def take_address(data: bytearray | bytes, at: int, end: int, found: list[Address]) -> None:
    """Add the address that the message body data[at:end] describes, if its family is IPv4 or IPv6.

    On a point-to-point link IFA_ADDRESS is the other end's and IFA_LOCAL ours; without IFA_LOCAL the first is ours.
    """
    family, prefix, _, _, index = ADDRESS.unpack_from(data, at)
    if family == _socket.AF_INET:
        size = 4
    elif family == _socket.AF_INET6:
        size = 16
    else:
        return
    length = end - at
    shape = _address_shapes.get(length)
    if shape is not None and shape.heads(data, at) == shape.expected:
        values = shape.values(data, at)
        if len(values) == 1:
            packed, label = values[0], b""
        else:
            _, packed, label = values
        if len(packed) == size:
            found.append(Address(index, family, prefix, packed, label.rstrip(b"\0")))
        return
    start, total = at, length
    at += ADDRESS.size
    address = local = label = b""
    attributes: list[tuple[int, str]] = []
    order: list[int] = []
    while at + 4 <= end:
        length, kind = ATTRIBUTE.unpack_from(data, at)
        if length < 4 or at + length > end:
            raise OSError(errno.EBADMSG, "attribute")
        kind &= _TYPE
        wanted = True
        if kind == IFA_LOCAL:
            local = bytes(data[at + 4 : at + length])
        elif kind == IFA_ADDRESS:
            address = bytes(data[at + 4 : at + length])
        elif kind == IFA_LABEL:
            label = bytes(data[at + 4 : at + length]).rstrip(b"\0")
        else:
            wanted = False
        attributes.append((length, f"{length - 4}s" if wanted else ""))
        if wanted:
            order.append(kind)
        at += length + 3 & ~3
    packed = local or address
    if len(packed) == size:
        found.append(Address(index, family, prefix, packed, label))
    if order in ([IFA_ADDRESS], [IFA_ADDRESS, IFA_LOCAL, IFA_LABEL]) and len(_address_shapes) < _SHAPES:
        _address_shapes[total] = Shape(data, start, "8x", attributes)


def _dump(netlink: Netlink, request: int, body: bytes, take: Callable[[Any, int, int, list[Any]], None]) -> list[Any]:
    """Everything that one request lists.

    A dump that was interrupted by a change, or whose messages did not all reach us, is repeated.  On a machine that
    changes without end the last interrupted one is the answer: what it says was true while it was made, each line for
    itself.  One that lost messages is not.
    """
    found: list[Any] = []
    for _ in range(_TRIES):
        found = []
        try:
            if _attempt(netlink, request, body, take, found):
                return found
        except Incomplete:
            found = []
            _drain(netlink)
        except BaseException:
            _drain(netlink)
            raise
    if not found:
        raise OSError(errno.ENOBUFS, "netlink dump")
    return found


def _attempt(
    netlink: Netlink, request: int, body: bytes, take: Callable[[Any, int, int, list[Any]], None], found: list[Any]
) -> bool:
    """One dump into `found`; false if the kernel says that the table changed meanwhile.

    Raises Incomplete where messages were lost, OSError where the kernel refuses or the bytes make no sense.
    """
    netlink.sequence = sequence = netlink.sequence + 1 & 0xFFFFFFFF
    netlink.socket.send(HEADER.pack(HEADER.size + len(body), request, _DUMP, sequence, 0) + body)
    wanted = request - 2  # RTM_NEW* of the same kind
    whole = True
    while True:
        size = _receive(netlink)
        data = netlink.buffer
        at = 0
        while at + HEADER.size <= size:
            length, kind, flags, number, _ = HEADER.unpack_from(data, at)
            if length < HEADER.size or at + length > size:
                raise OSError(errno.EBADMSG, "message")
            if number == sequence:
                if flags & _INTERRUPTED:
                    whole = False
                if kind == wanted:
                    take(data, at + HEADER.size, at + length, found)
                elif kind in (_DONE, _ERROR):
                    _check(data, at + HEADER.size, at + length)
                    return whole
                elif kind != _NOOP:
                    raise Incomplete  # NLMSG_OVERRUN, and whatever does not belong here
            at += length + 3 & ~3
        if len(found) > MOST:
            raise OSError(errno.E2BIG, "netlink dump")


def _receive(netlink: Netlink) -> int:
    """One datagram of the kernel's into the buffer; its length.  Raises Incomplete and OSError."""
    try:
        size, sender = netlink.socket.recvfrom_into(netlink.buffer, len(netlink.buffer), _socket.MSG_TRUNC)
    except OSError as e:
        if e.errno == errno.ENOBUFS:
            raise Incomplete from e
        raise
    if sender[0] != 0:
        return 0  # some process, not the kernel
    if size > len(netlink.buffer):
        if size <= _LARGEST_BUFFER:
            netlink.buffer = bytearray(size + 0xFFFF & ~0xFFFF)
        raise Incomplete
    return size


def _check(data: bytearray, at: int, end: int) -> None:
    """The result at the head of NLMSG_DONE and NLMSG_ERROR: zero, or a negated errno that is raised."""
    if end - at >= 4:
        result = int.from_bytes(data[at : at + 4], sys.byteorder, signed=True)
        if result < 0:
            raise OSError(-result, "netlink")


def _drain(netlink: Netlink) -> None:
    """Receive and forget the rest of a dump: while one is under way the kernel starts no other (EBUSY)."""
    for _ in range(1 << 16):
        try:
            netlink.socket.recv_into(netlink.buffer, len(netlink.buffer), _socket.MSG_DONTWAIT)
        except OSError as e:
            if e.errno != errno.ENOBUFS:
                return
