"""What is remembered and what is streamed changes no reply: each is held against a session that does neither."""

from __future__ import annotations

import base64
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import wire
from protocol.commands import COMMANDS
from protocol.errors import CommandError
from protocol.longtext import LongText
from protocol.remembered import MOST
from protocol.request import Known, Request
from protocol.session import HELD_LIMIT, OUTPUT_LIMIT, QUEUE_LIMIT, SYNC_PATIENCE, Session
from protocol.text import LONG

SYNC = b'\xff{"execute":"guest-sync-delimited","arguments":{"id":%d}}\n'


class State:
    frozen = False
    time = 0


def make(state: State | None = None, allowed: frozenset[str] | None = None) -> Session:
    state = state or State()
    return Session(
        allowed=frozenset(c.name for c in COMMANDS) if allowed is None else allowed,
        frozen=lambda: state.frozen,
        version="1",
        host_name=lambda: f"host{state.time}",
        clock_ns=lambda: state.time * 1000,
    )


def ask(session: Session, data: bytes) -> bytes:
    """The reply, the short way where there is one."""
    quick = session.quick(data)
    if quick is not None:
        return quick
    session.receive(data, 0.0)
    reply = bytes(session.output)
    session.written(len(reply), 0.0)
    return reply


REQUESTS = st.one_of(
    st.sampled_from(
        [
            b'{"execute":"guest-ping"}\n',
            b'{"execute":"guest-ping"}',
            b'{"execute":"guest-ping","arguments":{}}\n',
            b'{"execute":"guest-ping","arguments":{"x":1}}\n',
            b'{"execute":"guest-ping","id":7}\n',
            b'{"execute":"guest-info"}\n',
            b'{"execute":"guest-get-time"}\n',
            b'{"execute":"guest-get-host-name"}\n',
            b'{"execute":"guest-sync","arguments":{"id":"5"}}\n',
            b'{"arguments":{"id":5},"execute":"guest-sync"}\n',
            b'{"execute":"guest-sync","arguments":{"id":5},"id":6}\n',
            b'{"execute":"guest-ping"}{"execute":"guest-sync","arguments":{"id":3}}\n',
            b'{"execute":"no-such"}\n',
            b'{"execute":',
            b'"guest-ping"}\n',
            b"@@@\n",
            b"\xff",
            b"\n",
        ]
    ),
    st.builds(
        lambda lead, name, blank, number, tail: (
            lead + b'{"execute":"%s","arguments":{"id":%s%s}}' % (name, blank, number) + tail
        ),
        st.sampled_from([b"", b"\xff", b"\xff\xff", b" "]),
        st.sampled_from([b"guest-sync", b"guest-sync-delimited"]),
        st.sampled_from([b"", b" ", b"\t"]),
        st.one_of(
            st.integers(-(2**63), 2**64).map(lambda n: b"%d" % n),
            st.sampled_from([b"0", b"00", b"01", b"-0", b"1.0", b"1e3", b"true", b"", b"9" * 18, b"9" * 19]),
        ),
        st.sampled_from([b"\n", b"", b"\r\n", b"}\n"]),
    ),
)


@given(st.lists(REQUESTS, max_size=25))
def test_a_session_that_remembers_answers_like_one_that_does_not(requests: list[bytes]) -> None:
    remembering, plain = make(), make()
    plain._remember = lambda data, events: None  # type: ignore[method-assign]
    for request in requests:
        assert ask(remembering, request) == ask(plain, request)


def test_ping_and_sync_are_remembered() -> None:
    session = make()
    ask(session, b'{"execute":"guest-ping"}\n')
    assert session.quick(b'{"execute":"guest-ping"}\n') == b'{"return": {}}\n'
    first = ask(session, SYNC % 5)
    assert session.quick(SYNC % 123456789) == first.replace(b"5}", b"123456789}")


def test_time_and_host_name_are_asked_each_time() -> None:
    state = State()
    session = make(state)
    for state.time in (1, 2, 3):
        assert ask(session, b'{"execute":"guest-get-time"}\n') == b'{"return": %d}\n' % (state.time * 1000)
        assert b"host%d" % state.time in ask(session, b'{"execute":"guest-get-host-name"}\n')


def test_a_freeze_and_the_policy_are_asked_each_time() -> None:
    state = State()
    session = make(state, frozenset(("guest-info",)))
    thawed = ask(session, b'{"execute":"guest-info"}\n')
    refused = ask(session, b'{"execute":"guest-ping"}\n')
    state.frozen = True
    assert ask(session, b'{"execute":"guest-info"}\n') != thawed
    assert ask(session, b'{"execute":"guest-ping"}\n') == b'{"return": {}}\n'
    state.frozen = False
    assert ask(session, b'{"execute":"guest-info"}\n') == thawed
    assert ask(session, b'{"execute":"guest-ping"}\n') == refused
    assert b"disabled" in refused


def test_what_is_remembered_is_bounded_and_has_no_secrets() -> None:
    session = make()
    for number in range(200):
        blanks = b" " * number
        ask(session, b'{"execute":%s"guest-ping"}' % blanks[:90])
        ask(session, b'{"execute":"guest-sync","arguments":{"id":%d}%s}' % (number, blanks[:60]))
        ask(session, b'{"execute":"guest-get-users","id":%d}' % number)
        session.answered(session.calls.pop(), [], 0.0)
        session.written(len(session.output), 0.0)
    password = b'{"execute":"guest-set-user-password","arguments":{"username":"a","password":"b","crypted":false}}'
    ask(session, password)
    remembered = session._remembered
    assert remembered.request(password) is None
    assert len(remembered._requests) <= MOST
    assert len(remembered._answers) + len(remembered._syncs) <= MOST


def test_a_request_behind_a_worker_is_not_answered_before_it() -> None:
    session = make()
    ask(session, b'{"execute":"guest-ping"}\n')
    session.receive(b'{"execute":"guest-get-users"}\n', 0.0)
    assert session.quick(b'{"execute":"guest-ping"}\n') is None
    session.answered(session.calls.pop(), [], 0.0)
    assert session.quick(b'{"execute":"guest-ping"}\n') is None  # the reply before it is not written
    session.written(len(session.output), 0.0)
    assert session.quick(b'{"execute":"guest-ping"}\n') == b'{"return": {}}\n'


class Memory:
    """Bulk data in this process."""

    def __init__(self, data: bytes, *, kept: bool = False) -> None:
        self.data = data
        self.size = len(data)
        self.kept = kept
        self.closed = 0

    def read(self, offset: int, count: int) -> bytes:
        return self.data[offset : offset + count]

    def close(self) -> None:
        self.closed += 1


def read_request(session: Session) -> Request:
    session.receive(b'{"execute":"guest-file-read","arguments":{"handle":1}}\n', 0.0)
    return session.calls.pop()


@pytest.mark.parametrize("size", [0, 1, 2, 3, 196607, 196608, 196609, 1_000_000])
@pytest.mark.parametrize("taken", [1000, 70_000, 1 << 20])
def test_a_bulk_reply_is_written_piece_by_piece_in_bounded_memory(size: int, taken: int) -> None:
    session = make()
    memory = Memory(bytes(i * 7 & 255 for i in range(1000)) * (size // 1000 + 1))
    memory.data = memory.data[:size]
    memory.size = size
    request = read_request(session)
    session.receive(b'{"execute":"guest-ping"}\n', 0.0)
    session.answered(request, {"count": size, "buf-b64": memory, "eof": False}, 0.0)
    out = b""
    while session.output:
        assert len(session.output) < 1 << 20
        part = bytes(session.output[:taken])
        out += part
        session.written(len(part), 0.0)
    text = base64.b64encode(memory.data).decode()
    assert out == wire.success({"count": size, "buf-b64": text, "eof": False}) + b'{"return": {}}\n'
    assert memory.closed == 1
    assert session.idle


def test_small_bulk_data_comes_as_bytes() -> None:
    session = make()
    request = read_request(session)
    session.answered(request, {"count": 3, "buf-b64": b"abc", "eof": True}, 0.0)
    assert bytes(session.output) == b'{"return": {"count": 3, "buf-b64": "YWJj", "eof": true}}\n'


def test_a_sync_does_not_overtake_a_reply_that_is_half_written() -> None:
    session = make()
    request = read_request(session)
    session.answered(request, {"count": 1_000_000, "buf-b64": Memory(bytes(1_000_000)), "eof": False}, 0.0)
    session.receive(SYNC % 1, 0.0)
    session.advance(10.0)
    out = b""
    while session.output:
        out += session.output
        session.written(len(session.output), 10.0)
    assert out.count(b"\n") == 3  # the reply, the error about the reset byte, the sync
    assert out.endswith(b'\xff{"return": 1}\n')


def test_bulk_data_that_nobody_wants_is_closed() -> None:
    session, memory = make(), Memory(bytes(1_000_000))
    request = read_request(session)
    session.answered(request, {"count": 1, "buf-b64": memory, "eof": False}, 0.0)
    session.disconnected()
    assert memory.closed == 1
    assert session.idle
    request = read_request(session)
    session.disconnected()
    late = Memory(b"x")
    session.answered(request, {"count": 1, "buf-b64": late, "eof": False}, 0.0)
    assert late.closed == 1


@pytest.mark.parametrize("member", ["YWJj", 3, None, [b"x"], 1.5])
def test_bulk_data_of_another_type_is_refused(member: object) -> None:
    session = make()
    request = read_request(session)
    with pytest.raises((TypeError, ValueError)):
        session.answered(request, {"count": 1, "buf-b64": member, "eof": False}, 0.0)
    assert not session.output


LONGEST = "A" * (LONG + 9)


@pytest.mark.parametrize("pieces", [1, 2, 7])
def test_long_text_stays_where_it_is_for_bulk_data_only(pieces: int) -> None:
    data = b'{"execute":"guest-file-write","arguments":{"handle":1,"buf-b64":"%s"}}\n' % LONGEST.encode()
    session = make()
    step = len(data) // pieces + 1
    for at in range(0, len(data), step):
        session.receive(data[at : at + step], 0.0)
    (request,) = session.calls
    text = request.arguments["buf-b64"]
    assert type(text) is (LongText if pieces > 1 or len(data) > 1 << 14 else str)
    assert str(text) == LONGEST


@pytest.mark.parametrize(
    "request_",
    [
        b'{"execute":"guest-ping","id":"%s"}\n',
        b'{"execute":"guest-ping","id":[{"a":["%s"]}]}\n',
        b'{"execute":"guest-file-open","arguments":{"path":"%s"}}\n',
        b'{"execute":"guest-file-write","arguments":{"handle":1,"buf-b64":"x"},"id":"%s"}\n',
        b'{"execute":"%s"}\n',
        b'["%s"]\n',
    ],
)
def test_long_text_elsewhere_is_text(request_: bytes) -> None:
    session = make()
    session.receive(request_ % LONGEST.encode(), 0.0)
    for call in session.calls:
        assert all(type(v) is not LongText for v in call.arguments.values())
        assert type(call.id) is not LongText
        session.answered(call, 1 if call.command.name == "guest-file-open" else {"count": 0, "eof": False}, 0.0)
    if b"guest-ping" in request_ or b'"id"' in request_:
        assert LONGEST.encode() in session.output
    assert session.output or session.calls


def test_what_is_asked_in_one_breath_is_answered_as_the_channel_takes_it() -> None:
    session = make()
    session.receive(
        b'{"execute":"guest-info"}' * 5000 + b'{"execute":"guest-get-osinfo"}' + b'{"execute":"guest-ping"}', 0.0
    )
    replies, most = 0, 0
    while session.output:
        most = max(most, len(session.output))
        replies += bytes(session.output[: 1 << 18]).count(b"\n")
        session.written(min(len(session.output), 1 << 18), 0.0)
    assert most < OUTPUT_LIMIT + (1 << 16)
    assert replies == 5000
    (request,) = session.calls
    assert request.command is not None and request.command.name == "guest-get-osinfo"
    session.failed(request, CommandError("x"), 0.0)
    assert bytes(session.output).count(b"\n") == 2


LONG_ONES = [
    (b'{"execute":"guest-ping","id":"%s"}', b'{"return": {}, "id": "%s"}\n'),
    (b'{"execute":"%s"}', b'{"error": {"class": "CommandNotFound", "desc": "The command %s has not been found"}}\n'),
    (b'{"%s":1,"execute":"guest-ping"}', None),
    (b'{"execute":"guest-file-seek","arguments":{"handle":1,"offset":0,"whence":"%s"}}', None),
    (b'{"execute":"guest-file-open","arguments":{"path":"%s"}}', None),
    (b'{"execute":"guest-file-read","arguments":{"handle":"%s"}}', None),
    (b'["%s"]', None),
    (b'"%s"', None),
]


@pytest.mark.parametrize("tail", [1, 2, 3, 50, 128, 129, 1000])
@pytest.mark.parametrize(("form", "reply"), LONG_ONES, ids=lambda x: x[:40] if x else "")
def test_long_text_is_text_however_short_the_last_piece_is(form: bytes, reply: bytes | None, tail: int) -> None:
    data = form % (b"A" * 200_000) + b"\n"
    pieces, whole = make(), make()
    pieces.receive(data[:-tail], 0.0)
    pieces.receive(data[-tail:], 0.0)
    whole.receive(data, 0.0)
    assert bytes(pieces.output) == bytes(whole.output)
    assert [r.arguments for r in pieces.calls] == [r.arguments for r in whole.calls]
    assert all(type(v) is not LongText for r in pieces.calls for v in r.arguments.values())
    if reply is not None:
        assert bytes(pieces.output) == reply % (b"A" * 200_000)


def nothing_held(session: Session) -> bool:
    return session._held == 0 and session._weight == 0


def test_what_syncs_have_passed_counts_as_long_as_it_is_not_done() -> None:
    session, now, asked = make(), 0.0, 0
    waiting: list[Request] = []
    session.receive(b'{"execute":"guest-fstrim"}\n', now)
    while not session.full:
        session.receive(b'{"execute":"guest-get-osinfo"}\n' * 100 + SYNC % asked, now)
        asked += 1
        now += 2 * SYNC_PATIENCE
        session.advance(now)
        waiting += session.calls
        session.calls.clear()
        session.written(len(session.output), now)
        assert asked < QUEUE_LIMIT
    assert asked > QUEUE_LIMIT // 200 and session.idle
    for request in waiting:
        session.answered(request, {"paths": []} if request.command.name == "guest-fstrim" else {}, now)  # type: ignore[union-attr]
    assert nothing_held(session) and not session.full


def test_large_requests_count_by_their_bytes() -> None:
    session = make()
    data = b'{"execute":"guest-file-write","arguments":{"handle":1,"buf-b64":"%s"}}\n' % (b"AAAA" * (1 << 20))
    count = 0
    while not session.full:
        for at in range(0, len(data), 1 << 18):
            session.receive(data[at : at + (1 << 18)], 0.0)
        count += 1
    assert HELD_LIMIT // len(data) <= count <= HELD_LIMIT // len(data) + 1
    while not session.idle:
        called, session.calls = session.calls, []
        for request in called:
            session.answered(request, {"count": 1, "eof": False}, 0.0)
        session.written(len(session.output), 0.0)
    assert nothing_held(session)


def test_a_thaw_is_read_whatever_waited_before_the_freeze() -> None:
    state = State()
    session, now = make(state), 0.0
    session.receive(b'{"execute":"guest-file-flush","arguments":{"handle":1}}\n' * 3000, now)
    session.receive(SYNC % 1, now)
    session.advance(now + 2 * SYNC_PATIENCE)
    assert session.full and len(session.calls) == 3000
    state.frozen = True
    assert not session.full
    session.receive(b'{"execute":"guest-fsfreeze-thaw"}\n', now)
    assert session.calls[-1].command is not None and session.calls[-1].command.name == "guest-fsfreeze-thaw"
    session.receive(b'{"execute":"guest-fsfreeze-status"}\n' * QUEUE_LIMIT, now)
    assert session.full
    state.frozen = False
    assert session.full


def test_a_reply_that_no_host_had_the_channel_open_for_confirms_nothing() -> None:
    for when in ("asked", "answered", "never"):
        session = make()
        session.receive(b'{"execute":"guest-fsfreeze-thaw"}\n', 0.0)
        (request,) = session.calls
        if when == "asked":
            session.unheard()
        session.answered(request, 2, 0.0)
        if when == "answered":
            session.unheard()
        session.written(len(session.output), 0.0)
        assert session.delivered == ([request] if when == "never" else [])


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), REQUESTS | st.sampled_from([
            b'{"execute":"guest-get-osinfo"}\n', b'{"execute":"guest-fstrim"}\n', b'{"execute":"guest-get-osinfo","id":1}\n',
            b'{"execute":"guest-file-read","arguments":{"handle":1}}\n', b'{"execute":"guest-get-users","arguments":{"x":1}}\n',
        ])),
        st.tuples(st.sampled_from(["answer", "fail", "later", "write", "leave", "hop"]), st.just(b"")),
    ),
    max_size=60,
)  # fmt: skip


@given(STEPS)
def test_whatever_happens_nothing_is_held_in_the_end(steps: list[tuple[str, bytes]]) -> None:
    session, now = make(), 0.0
    waiting: list[Request] = []

    def do(what: str, data: bytes) -> None:
        nonlocal now
        if what == "ask" and not session.full:
            hopped = session.hop(data)
            if hopped is not None:
                waiting.append(hopped)
            elif session.quick(data) is None:
                session.receive(data, now)
        elif what == "answer" and waiting:
            request = waiting.pop(0)
            assert request.command is not None
            value: object = {"buf-b64": b"x" * 5, "count": 5, "eof": False}
            if request.command.name != "guest-file-read":
                value = [] if request.command.name == "guest-get-users" else {}
            if request.command.name == "guest-fstrim":
                value = {"paths": []}
            session.answered(request, value, now)
        elif what == "fail" and waiting:
            session.failed(waiting.pop(0), CommandError("no"), now)
        elif what == "later":
            now += SYNC_PATIENCE
            session.advance(now)
        elif what == "write":
            session.written(len(session.output), now)
        elif what == "leave":
            session.disconnected()
        waiting.extend(session.calls)
        session.calls.clear()

    for step in steps:
        do(*step)
        alive = {id(r): r for r in [*session._queue, *waiting]}.values()
        assert session._held == len(alive)
        assert session._weight == sum(r.weight for r in alive)
    while waiting or not session.idle:
        do("answer", b"")
        do("write", b"")
    assert nothing_held(session)


def test_of_large_replies_the_last_one_is_kept() -> None:
    session = make()
    asked = [b'{"execute":"guest-get-users"}\n', b'{"execute": "guest-get-users"}\n']

    def hop(data: bytes, users: int, reply: bytes | None) -> Known:
        request = session.hop(data)
        if request is None:
            session.receive(data, 0.0)
            request = session.calls.pop()
        value = [{"user": f"u{n}", "login-time": 1.0} for n in range(users)]
        session.answered(request, value, 0.0, reply)
        assert session.output.count(b'"user"') == users
        session.written(len(session.output), 0.0)
        assert request.known is not None
        return request.known

    small = hop(asked[0], 1, b"s")
    assert (small.reply, small.line.count(b'"user"')) == (b"s", 1)
    large = hop(asked[0], 200, b"l" * 5000)
    assert large is small
    assert (large.reply, large.line.count(b'"user"')) == (b"l" * 5000, 200)
    other = hop(asked[1], 300, b"o" * 5000)
    assert (large.reply, large.line) == (None, b"")
    assert (other.reply, other.line.count(b'"user"')) == (b"o" * 5000, 300)
    assert hop(asked[1], 300, None) is other
    assert (other.reply, other.line) == (None, b"")  # it came in several datagrams: too large to be kept


def test_of_large_replies_with_bulk_data_the_last_one_is_kept() -> None:
    session = make()
    knowns = []
    for pid in range(3):
        data = b'{"execute":"guest-exec-status","arguments":{"pid":%d}}\n' % pid
        session.receive(data, 0.0)
        session.answered(session.calls.pop(), {"exited": False}, 0.0)
        session.written(len(session.output), 0.0)
        request = session.hop(data)
        assert request is not None and request.known is not None
        value = {"exited": True, "out-data": Memory(b"x" * 9, kept=True), "err-data": b"e" * 9000}
        session.answered(request, value, 0.0, b"r" * 5000)
        session.written(len(session.output), 0.0)
        knowns.append(request.known)
    assert [(known.size, len(known.end) > 9000) for known in knowns] == [(0, False), (0, False), (9, True)]


def knowing(session: Session, data: bytes) -> Request:
    """A request whose reply is known, which its worker has now."""
    session.receive(data, 0.0)
    for value in ({"exited": False}, {"exited": True, "out-data": Memory(b"x" * 900, kept=True)}):
        session.answered(session.calls.pop() if session.calls else hop(session, data), value, 0.0, b"reply")
        session.written(len(session.output), 0.0)
    return hop(session, data)


def hop(session: Session, data: bytes) -> Request:
    request = session.hop(data)
    assert request is not None
    return request


def test_bulk_data_that_comes_again_for_nobody_is_dropped() -> None:
    session = make()
    request = knowing(session, b'{"execute":"guest-exec-status","arguments":{"pid":7}}\n')
    session.disconnected()
    session.repeated(request, 0.0, Memory(b"y" * 900))
    assert not session.output and not session._stream and nothing_held(session)


def test_a_host_that_goes_while_bulk_data_is_told_again_leaves_nothing() -> None:
    session = make()
    session.sink = lambda parts: 0
    request = knowing(session, b'{"execute":"guest-exec-status","arguments":{"pid":7}}\n')
    memory = Memory(b"y" * 3_000_000)
    session.repeated(request, 0.0, memory)
    assert session._stream and len(session.output) < 1_000_000
    session.disconnected()
    assert memory.closed == 1 and not session._stream and not session.output and nothing_held(session)


@pytest.mark.parametrize(("out", "err", "again"), [
    (Memory(b"x" * 9, kept=True), None, True), (Memory(b"x" * 9), None, False), (Memory(b"", kept=True), None, False),
    (Memory(b"x" * 9, kept=True), Memory(b"x" * 9, kept=True), False), (b"xxx", None, False),
])  # fmt: skip
def test_bulk_data_in_the_same_place_is_remembered(out: Memory | bytes, err: Memory | None, again: bool) -> None:
    session = make()
    data = b'{"execute":"guest-exec-status","arguments":{"pid":7}}\n'
    value: dict[str, object] = {"exited": True, "exitcode": 0, "out-data": out}
    if err is not None:
        value["err-data"] = err
    session.receive(data, 0.0)
    request = session.calls.pop()
    session.answered(request, value, 0.0)
    for _ in range(2):
        session.written(len(session.output), 0.0)
        hopped = session.hop(data)
        assert hopped is not None and hopped.known is not None
        session.answered(hopped, value, 0.0, b"reply")
        line = bytes(session.output)
    known = hopped.known
    assert (known.size > 0) == again
    assert (known.reply is not None) == (again or type(out) is bytes)
    if again:
        session.written(len(session.output), 0.0)
        repeated = session.hop(data)
        assert repeated is not None
        session.repeated(repeated, 0.0, Memory(b"x" * known.size))
        assert session.output == line
        session.written(len(session.output), 0.0)
        assert nothing_held(session)


@pytest.mark.parametrize("end", [b"}", b',"id":[1,"a"]}'])
@given(
    names=st.lists(st.text(max_size=5), min_size=1, max_size=12),
    cuts=st.lists(st.integers(min_value=1, max_value=11), max_size=4, unique=True),
)
def test_a_list_in_parts_is_the_line_that_it_is_in_one(end: bytes, names: list[str], cuts: list[int]) -> None:
    data = b'{"execute":"guest-network-get-interfaces"' + end + b"\n"
    rows: list[object] = [{"name": name} for name in names]
    whole, parted = make(), make()
    whole.receive(data, 0.0)
    whole.answered(whole.calls.pop(), rows, 0.0)
    for _ in range(2):  # nothing of one is in the next
        parted.receive(data, 0.0)
        request = parted.calls.pop()
        edges = [0, *sorted(c for c in cuts if c < len(rows)), len(rows)]
        parts = [rows[a:b] for a, b in itertools.pairwise(edges)]
        for part in parts[:-1]:
            parted.begun(request, part)
            assert not parted.output
        parted.answered(request, parts[-1], 0.0)
        assert parted.output == whole.output
        parted.written(len(parted.output), 0.0)


def test_of_a_list_that_breaks_off_nothing_is_told_but_the_error() -> None:
    session = make()
    data = b'{"execute":"guest-network-get-interfaces"}\n'
    session.receive(data, 0.0)
    request = session.calls.pop()
    session.begun(request, [{"name": "a"}])
    session.failed(request, CommandError("it broke"), 0.0)
    session.receive(data, 0.0)
    session.answered(session.calls.pop(), [{"name": "b"}], 0.0)
    assert [json.loads(line) for line in session.output.splitlines()] == [
        {"error": {"class": "GenericError", "desc": "it broke"}},
        {"return": [{"name": "b"}]},
    ]


def test_parts_of_a_list_that_a_sync_has_overtaken_are_dropped() -> None:
    session = make()
    session.receive(b'{"execute":"guest-network-get-interfaces"}\n' + SYNC % 1, 0.0)
    request = session.calls.pop()
    session.begun(request, [{"name": "a"}])
    session.advance(SYNC_PATIENCE)
    session.begun(request, [{"name": "b"}])
    session.answered(request, [{"name": "c"}], SYNC_PATIENCE)
    assert session.output.endswith(b'\xff{"return": 1}\n') and b"name" not in session.output


@pytest.mark.parametrize("rows", [[], {}, [{"name": 1}], [{}], [[]], None, [{"name": "a", "more": 1}]])
def test_parts_that_are_none_are_refused(rows: object) -> None:
    session = make()
    session.receive(b'{"execute":"guest-network-get-interfaces"}\n', 0.0)
    with pytest.raises(ValueError, match="not what the command returns"):
        session.begun(session.calls.pop(), rows)


def test_a_reply_that_is_no_list_has_no_parts() -> None:
    session = make()
    session.receive(b'{"execute":"guest-get-osinfo"}\n', 0.0)
    with pytest.raises(ValueError, match="not what the command returns"):
        session.begun(session.calls.pop(), [{}])
