"""The network answers' pure parts, and a dump whose kernel is a script: what a real one does too rarely to be tested."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers import netlink, network

DONE, ERROR, OVERRUN, NEWLINK, INTERRUPTED = 3, 2, 4, 16, 0x10


def attribute(kind: int, value: bytes) -> bytes:
    head = netlink.ATTRIBUTE.pack(4 + len(value), kind)
    return head + value + bytes(-len(value) % 4)


def link_body(index: int, name: bytes, address: bytes = b"\2\0\0\0\0\1") -> bytes:
    counters = netlink.COUNTERS.pack(*range(16)) + bytes(64)
    return (
        netlink.LINK.pack(0, 1, index, 0, 0)
        + attribute(netlink.IFLA_IFNAME, name + b"\0")
        + attribute(netlink.IFLA_ADDRESS, address)
        + attribute(netlink.IFLA_STATS64, counters)
    )


class Kernel:
    """Answers each request with the next list of datagrams; `None` in it is an ENOBUFS.  {seq} is filled in."""

    def __init__(self, *dumps: list[list[tuple[int, int, bytes]] | None]) -> None:
        self.dumps = list(dumps)
        self.queue: list[bytes | None] = []
        self.requests = 0
        self.sender = 0

    def send(self, data: bytes) -> int:
        self.requests += 1
        sequence = netlink.HEADER.unpack_from(data)[3]
        for datagram in self.dumps.pop(0):
            if datagram is None:
                self.queue.append(None)
                continue
            self.queue.append(
                b"".join(
                    netlink.HEADER.pack(16 + len(body), kind, flags, sequence, 7) + body + bytes(-len(body) % 4)
                    for kind, flags, body in datagram
                )
            )
        return len(data)

    def recvfrom_into(self, buffer: bytearray, size: int, flags: int) -> tuple[int, tuple[int, int]]:
        if not self.queue:
            raise BlockingIOError(errno.EAGAIN, "empty")
        data = self.queue.pop(0)
        if data is None:
            raise OSError(errno.ENOBUFS, "lost")
        buffer[: len(data)] = data[: len(buffer)]
        return len(data), (self.sender, 0)

    def recv_into(self, buffer: bytearray, size: int, flags: int) -> int:
        return self.recvfrom_into(buffer, size, flags)[0]


def talk(kernel: Kernel) -> netlink.Netlink:
    it = netlink.Netlink()
    it.close()
    it.socket = kernel  # type: ignore[assignment]
    return it


END = [(DONE, 0, bytes(4))]


def one(*names: bytes, flags: int = 0) -> list[tuple[int, int, bytes]]:
    return [(NEWLINK, flags, link_body(n + 1, name)) for n, name in enumerate(names)]


def test_an_interrupted_dump_is_repeated() -> None:
    kernel = Kernel([one(b"old"), one(b"older", flags=INTERRUPTED), END], [one(b"new"), END])
    assert [x.name for x in netlink.links(talk(kernel))] == [b"new"]
    assert kernel.requests == 2


def test_a_dump_that_is_interrupted_without_end_is_answered_by_the_last_one() -> None:
    dumps = [[one(b"n%d" % n), [(DONE, INTERRUPTED, bytes(4))]] for n in range(netlink._TRIES)]
    kernel = Kernel(*dumps)  # type: ignore[arg-type]
    assert [x.name for x in netlink.links(talk(kernel))] == [b"n%d" % (netlink._TRIES - 1)]
    assert kernel.requests == netlink._TRIES


def test_lost_messages_never_make_an_answer() -> None:
    kernel = Kernel([one(b"a"), None, END], [one(b"a"), [(OVERRUN, 0, b"")], END], [one(b"a"), one(b"b"), END])
    assert [x.name for x in netlink.links(talk(kernel))] == [b"a", b"b"]
    always = Kernel(*([one(b"a"), None, END] for _ in range(netlink._TRIES)))
    with pytest.raises(OSError) as caught:
        netlink.links(talk(always))
    assert caught.value.errno == errno.ENOBUFS


def test_a_datagram_longer_than_the_buffer_is_asked_for_again_with_room_for_it() -> None:
    long = one(*(b"n%d" % n for n in range(600)))
    kernel = Kernel([long, END], [long, END])
    it = talk(kernel)
    assert len(netlink.links(it)) == 600
    assert kernel.requests == 2 and len(it.buffer) > netlink._FIRST_BUFFER


@pytest.mark.parametrize("kind", [ERROR, DONE])
def test_the_kernels_refusal_is_an_os_error(kind: int) -> None:
    kernel = Kernel([[(kind, 0, (-errno.EPERM).to_bytes(4, "little", signed=True) + bytes(16))]])
    with pytest.raises(OSError) as caught:
        netlink.links(talk(kernel))
    assert caught.value.errno == errno.EPERM


def test_what_did_not_come_from_the_kernel_or_for_this_request_is_ignored() -> None:
    kernel = Kernel([one(b"a"), END])
    it = talk(kernel)
    kernel.queue.append(netlink.HEADER.pack(16 + 4, DONE, 0, 12345, 0) + bytes(4))
    assert [x.name for x in netlink.links(it)] == [b"a"]
    forged = Kernel([one(b"forged"), END])
    forged.sender = 4711
    with pytest.raises(OSError):
        netlink.links(talk(forged))


def test_a_table_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink, "MOST", 3)
    with pytest.raises(OSError) as caught:
        netlink.links(talk(Kernel([one(b"a", b"b", b"c", b"d"), END])))
    assert caught.value.errno == errno.E2BIG


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_an_error(data: bytes) -> None:
    """Nothing is read outside the message, nothing but these two happens."""
    body = netlink.LINK.pack(0, 0, 1, 0, 0) + data
    try:
        netlink.take_link(body, 0, len(body), [])
    except OSError as e:
        assert e.errno == errno.EBADMSG
    for family in (2, 10, 28):
        body = netlink.ADDRESS.pack(family, 0, 0, 0, 1) + data
        try:
            netlink.take_address(body, 0, len(body), [])
        except OSError as e:
            assert e.errno == errno.EBADMSG


def link(index: int, name: bytes, address: bytes = b"\2\0\0\0\0\1") -> netlink.Link:
    return netlink.Link(index, name, address, (1, 2, 3, 4, 5, 6, 7, 8))


def address(index: int, packed: bytes, label: bytes = b"", prefix: int = 24) -> netlink.Address:
    return netlink.Address(index, 2 if len(packed) == 4 else 10, prefix, packed, label)


def test_hardware_addresses_are_six_bytes_whatever_the_link_has() -> None:
    links = [link(1, b"none", b""), link(2, b"tunnel", b"\x0a\1\2\3"), link(3, b"ib", bytes(range(20)))]
    rows = network.interfaces(links, [])
    assert [r["hardware-address"] for r in rows] == ["00:00:00:00:00:00", "0a:01:02:03:00:00", "00:01:02:03:04:05"]


def test_statistics_are_named_and_unsigned() -> None:
    big = 2**64 - 1
    (row,) = network.interfaces([netlink.Link(1, b"a", b"", (big, 2, 3, 4, 5, 6, 7, big))], [])
    assert row["statistics"] == {
        "rx-packets": big, "tx-packets": 2, "rx-bytes": 3, "tx-bytes": 4,
        "rx-errs": 5, "tx-errs": 6, "rx-dropped": 7, "tx-dropped": big,
    }  # fmt: skip


def test_a_label_is_a_name_of_its_own_behind_the_links_unless_it_is_a_links_name() -> None:
    links = [link(1, b"a"), link(2, b"b", b"\4\0\0\0\0\2")]
    addresses = [
        address(1, bytes(4), b"a:7"),
        address(1, b"\1\0\0\0", b"b"),
        address(1, b"\2\0\0\0", b"stranger"),
        address(2, bytes(16), prefix=64),
        address(9, bytes(16)),
    ]
    rows = list(network.interfaces(links, addresses))
    assert [(r["name"], r.get("hardware-address"), "statistics" in r) for r in rows] == [
        ("a", "02:00:00:00:00:01", True),
        ("b", "04:00:00:00:00:02", True),
        ("a:7", "02:00:00:00:00:01", False),
        ("stranger", None, False),
    ]
    counts = [len(r.get("ip-addresses", [])) for r in rows]  # type: ignore[arg-type]
    assert counts == [0, 2, 1, 1]


def test_a_link_that_a_dump_has_twice_is_one() -> None:
    rows = list(network.interfaces([link(1, b"a"), link(2, b"b"), link(1, b"a")], [address(1, bytes(4))]))
    assert [(r["name"], len(r.get("ip-addresses", []))) for r in rows] == [("a", 1), ("b", 0)]  # type: ignore[arg-type]


def test_the_members_come_in_schema_order() -> None:
    (row,) = network.interfaces([link(1, b"a")], [address(1, bytes(4))])
    assert list(row) == ["name", "hardware-address", "ip-addresses", "statistics"]


def test_route_lines_that_are_none_are_left_out() -> None:
    assert network.ipv4_routes(b"Iface\tDestination\neth0\t0000\n\n") == []
    assert network.ipv6_routes(b"\nfe80 40\n") == []
    assert network.ipv4_routes(b"") == []
