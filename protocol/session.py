"""What the host asked, in which order it is answered, and what is done with a request that takes long.  Sans-I/O.

Theory of operation
-------------------
`receive` takes bytes from the channel, `advance` the time; both work through the queue of requests and leave bytes in
`output` (for the channel) and calls in `calls` (for workers).  The owner hands each call to the worker of its domain
and comes back with `answered` or `failed`.  No clock, no sockets, no logging in here.

* Requests are answered strictly in order; one at a time is with a worker *and* holds up the queue.
* A `guest-sync` or `guest-sync-delimited` says that the host has given up whatever it asked before.  It waits
  `SYNC_PATIENCE` for the reply ahead of it (a reply that is nearly there should not be lost), then overtakes: every
  request before it is *muted*.  A muted request is still executed, in its turn, since the host was entitled to think that
  it would be; its reply is dropped.  So a host gets its sync whatever a worker does, and the next request (for another
  domain, or `guest-fsfreeze-status`, which waits in the fs worker's own queue) goes on.
* While frozen (the board says so) only the rows with `frozen` are allowed, whatever the policy says of them, as in
  qemu-ga: a blocked guest-ping works while frozen and is blocked again after.
* A reply with bulk data is written piece by piece, as `output` empties; nothing else is answered or overtakes meanwhile.
  One that is still being read meanwhile (`flows`) ends early when its worker dies, or does nothing while a sync waits: what
  came is right, and the reply says how much it is.
* A short request that came alone is remembered by its bytes (protocol/remembered.py): so is its reply where it hangs on nothing
  else (`quick`), and what is to be sent to a worker (`hop`).
* Replies that were written to the host are reported back for rows with `confirm`: `written` takes the number of bytes that
  the channel took and says which calls' replies are out.
* What is decided here is counted (`counts`, see protocol/tally.py); requests that are refused are left in `refused`, for the audit.

The parser's state belongs to the agent, not to a connection (a half-sent request is continued by the next client), so
`disconnected` forgets replies, not bytes.
"""

from __future__ import annotations

import time

from protocol import base64, tally, wire
from protocol.commands import BY_NAME, COMMANDS
from protocol.dialect import ParseError, Parser, Value
from protocol.errors import CommandError
from protocol.longtext import LongText, settle
from protocol.remembered import SHORT, Remembered
from protocol.request import Request
from protocol.schema import check_arguments, fits, has_floats

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, MutableSequence, Sequence
    from typing import Final, Protocol

    from protocol.commands import Command
    from protocol.wire import Payload

    class Flow(Protocol):
        """Bulk data that is still coming (privsep/blob.py: Stream)."""

        member: str
        total: int
        ended: bool
        rest: dict[str, object] | None

        @property
        def waiting(self) -> bool: ...
        def take(self, encode: Callable[[memoryview], bytes]) -> bytes | None: ...
        def end(self, rest: dict[str, object] | None) -> None: ...
        def close(self) -> None: ...


SYNC_PATIENCE: Final = 0.025  # seconds
# What was asked and is not done yet, whether anybody waits for the reply or not; beyond, nothing is read.
QUEUE_LIMIT: Final = 1024  # requests
HELD_LIMIT: Final = 128 << 20  # bytes of them: two of the largest, so that behind one that takes long a sync is read
OUTPUT_LIMIT: Final = 1 << 20  # bytes not yet taken by the channel; beyond, nothing is read or answered

FROZEN_REASON: Final = "the agent is in frozen state"
FROZEN: Final = "frozen"  # why a request was refused
POLICY: Final = "policy"
_RESULT: Final = {"": tally.ERROR, POLICY: tally.REFUSED, FROZEN: tally.FROZEN}
_SYNCS: Final = ("guest-sync", "guest-sync-delimited")

_LITTLE: Final = 1 << 10  # bytes in `output` that are quicker copied than written by themselves
_STREAM_AHEAD: Final = 1 << 18  # bytes of a bulk reply in `output` while more of it is to come


class Session:
    """See the module's text.

    allowed   names of the commands that policy allows
    frozen    says whether file systems are frozen now
    version   guest-info's version
    refusal   why a command that is not allowed is refused: what stands after "has been disabled: "
    host_name, clock_ns  what guest-get-host-name and guest-get-time answer
    counts    where to count

    `sync_at` is when `advance` should be called, None when nothing is due.
    """

    def __init__(
        self,
        *,
        allowed: frozenset[str],
        frozen: Callable[[], bool],
        version: str,
        refusal: str = "the command is not allowed",
        host_name: Callable[[], str],
        clock_ns: Callable[[], int] = time.time_ns,
        counts: MutableSequence[int] | memoryview | None = None,
    ) -> None:
        self.output = bytearray()
        self.calls: list[Request] = []
        self.refused: list[Request] = []
        self._counts: MutableSequence[int] | memoryview = [0] * tally.CELLS if counts is None else counts
        self.delivered: list[Request] = []
        self._allowed = allowed
        self._frozen = frozen
        self._version = version
        self._refusal = refusal
        self._host_name = host_name
        self._clock_ns = clock_ns
        self._parser = Parser(long_text=True)
        self._queue: list[Request] = []
        self.sync_at: float | None = None  # when the first sync in the queue may overtake
        # Writes these one after the other to the channel and says how much it took.
        self.sink: Callable[[Sequence[bytes | bytearray]], int] | None = None
        self._info: dict[bool, bytes] = {}
        self._unconfirmed: list[tuple[int, Request]] = []  # (position in the output stream, request)
        self._held = 0  # requests that are with a worker or wait
        self._held_before: int | None = None  # how many when file systems were found to be frozen
        self._weight = 0  # and their bytes
        self._coming = 0  # bytes that have come since the last request was complete
        self._position = 0  # bytes of output ever made, less those in `output`
        self._stream: list[bytes | Payload] = []  # what is still to be written of the first request's reply
        self._flow: Flow | None = None  # or the bulk data that is coming for it
        self._streamed = 0  # bytes of its first element that were
        self._resting = True  # the parser is between requests, as at the start
        self._remembered = Remembered()
        # What a reply to a command is, and whether it is simple to write (protocol/wire.py).
        self._declared: dict[str, tuple[Callable[[object], bool], bool]] = {}

    # -- what the owner calls

    def adopt(self, *, allowed: frozenset[str], refusal: str) -> None:
        """Another policy is in force: whatever has not been called yet is judged by it."""
        self._allowed = allowed
        self._refusal = refusal
        self._info.clear()
        self._remembered.forget_answers()

    def withdraw(self, request: Request, now: float) -> bool:
        """Refuse a request that was called, but that no worker has begun, if it is not allowed any more."""
        try:
            self._permit(request)
        except CommandError as e:
            self._count_refusal(request)
            self.failed(request, e, now)
            return True
        return False

    @property
    def full(self) -> bool:
        """The owner should not read from the channel now."""
        if len(self.output) >= OUTPUT_LIMIT:
            return True
        if self._frozen():
            # What waited before may wait for the thaw, which has to be read.
            if self._held_before is None:
                self._held_before = self._held
            return self._held - self._held_before >= QUEUE_LIMIT
        self._held_before = None
        return self._held >= QUEUE_LIMIT or self._weight >= HELD_LIMIT

    @property
    def resting(self) -> bool:
        """What comes next is the beginning of a request, or of something else."""
        return self._resting

    @property
    def pouring(self) -> bool:
        """A reply that flows is being written, and not all of it was taken."""
        return self._flow is not None

    @property
    def idle(self) -> bool:
        """Nothing is waiting to be answered or written."""
        return not self._queue and not self.output

    def quick(self, data: bytes) -> bytes | None:
        """The reply, if `data` is a request that was remembered and nothing stands before it; None: `receive` it.

        The caller writes it; what the channel does not take goes into `output`."""
        if len(data) > SHORT or self._queue or self.output or not self._resting or self._frozen():
            return None  # (of a long one not even the hash is cheap)
        found = self._remembered.answer(data)
        if found is None:
            return None
        line, cell = found
        self._counts[cell] += 1
        return line

    def hop(self, data: bytes) -> Request | None:
        """The request, in the queue and called, if `data` is one for a worker that was remembered and nothing stands before it.

        The caller gives it to its worker.  None: `receive` it."""
        if len(data) > SHORT or self._queue or self.output or not self._resting or self._frozen():
            return None
        seen = self._remembered.request(data)
        if seen is None or seen.known is None:
            return None
        command = seen.command
        assert command is not None
        if command.domain == "front" or command.name not in self._allowed:
            return None
        request = Request(seen)
        request.called = True
        self._hold(request, len(data))
        return request

    def receive(self, data: bytes, now: float) -> None:
        fresh = self._resting
        alone = fresh and not self._queue
        if alone and len(data) <= SHORT:
            seen = self._remembered.request(data)
            if seen is not None:
                self._hold(Request(seen), len(data))
                self.advance(now)
                return
        events = self._parser.feed(data)
        self._coming += len(data)
        share = 0
        if events:
            share, self._coming = self._coming // len(events), 0
        self._resting = self._parser.resting
        queue = self._queue
        for event in events:
            if isinstance(event, Value) and type(event.value) is dict:
                if not fresh or len(data) > SHORT:  # only then there may be long text
                    _settle(event.value)
                request = self._read(event.value)
                if queue or request.error is None:
                    self._hold(request, share)
                else:
                    self.output += self._failure(request, request.error)
                continue
            self._counts[tally.INVALID] += 1
            desc = event.desc if isinstance(event, ParseError) else wire.NO_OBJECT
            if queue:
                request = Request()
                request.error = CommandError(desc)
                self._hold(request, share)
            else:  # nothing stands before it
                self.output += wire.malformed(desc)
        if alone and self._resting and len(data) <= SHORT and self._queue:
            self._remember(data, events)
        self.advance(now)

    def advance(self, now: float) -> None:
        """Answer what can be answered, call what is to be called, let a sync overtake when its time has come."""
        if self._stream or (self._flow is not None and not self._cut(self._flow, now)):
            return
        queue = self._queue
        while queue:
            head = queue[0]
            if head.called:
                if not self._overtake(now):
                    return
                continue
            if len(self.output) >= OUTPUT_LIMIT:
                break  # `written` goes on
            del queue[0]
            self._start(head)
            if head.called:
                queue.insert(0, head)
            else:
                self._release(head)
        self.sync_at = None

    def answered(self, request: Request, value: object, now: float, reply: bytes | None = None) -> None:
        """The worker's answer, and for a remembered request the bytes that it came in (`Known`).  A muted request's is dropped.

        Raises TypeError or ValueError when the value is none that a reply to this command can have: the worker is broken
        or hostile."""
        command = request.command
        assert command is not None
        gives = command.gives
        if request.muted:
            if gives:
                _close_all(value)
            self._release(request)
            return
        check, simple = self._declaration(command)
        if not check(value):
            if gives:
                _close_all(value)
            raise ValueError("it is not what the command returns")
        if gives and type(value) is dict:
            try:
                pieces = wire.with_bulk(value, gives, *self._id_of(request))
            except (TypeError, ValueError):
                _close_all(value)
                raise
            if type(pieces) is list:
                if request.known is not None:
                    before, payload, end = pieces[0], pieces[1], pieces[-1]
                    assert isinstance(before, bytes) and isinstance(end, bytes) and not isinstance(payload, bytes)
                    again = reply if payload.kept and payload.size and len(pieces) == 3 else None
                    self._remembered.keep(request.known, again, before, payload.size, end)
                self._stream, self._streamed = pieces, 0
                self._pour(now)
                return
            line = pieces if type(pieces) is bytes else wire.success(value, *self._id_of(request))
        elif request.rows:
            request.rows.append(wire.elements(value, simple))
            line = wire.listed(request.rows, *self._id_of(request))
        elif command.replies:
            line = wire.success(value, *self._id_of(request), simple=simple)
        if command.replies:
            if request.known is not None:
                self._remembered.keep(request.known, reply, line)
            self._write(line)
        self._finished(request, now)

    def begun(self, request: Request, rows: object) -> None:
        """Some rows of an answer that is a long list; `answered` has the last of them.  What it raises, this does.

        They become JSON now, so that nothing else is kept of them, and while the worker makes the next."""
        command = request.command
        assert command is not None
        if request.muted:
            return
        check, simple = self._declaration(command)
        if type(rows) is not list or not rows or not check(rows):
            raise ValueError("it is not what the command returns")
        request.rows.append(wire.elements(rows, simple))

    def _declaration(self, command: Command) -> tuple[Callable[[object], bool], bool]:
        declared = self._declared.get(command.name)
        if declared is None:
            declared = self._declared[command.name] = fits(command.returns), not has_floats(command.returns)
        return declared

    def repeated(self, request: Request, now: float, bulk: Payload | None = None) -> None:
        """The worker's answer is, to the byte, the one that it gave to the same request last (`Known`); `bulk` comes with it."""
        known = request.known
        assert known is not None
        if request.muted:
            self._release(request)
        elif bulk is not None:
            self._stream, self._streamed = [known.line, bulk, known.end], 0
            self._pour(now)
        else:
            self._write(known.line)
            self._finished(request, now)

    def flows(self, request: Request, flow: Flow, now: float) -> None:
        """The worker's answer has begun, or there is more of it, or that was all."""
        if request.muted:
            flow.close()
            if flow.ended:
                self._release(request)
            return
        if self._flow is None:
            self._flow = flow
            self._write(wire.bulk_begun(flow.member))
        self._pour_flow(flow, now)

    def failed(self, request: Request, error: CommandError, now: float) -> None:
        if self._flow is not None and request is self._queue[0]:
            self._flow.end(None)
            self._pour_flow(self._flow, now)
        elif request.muted:
            self._release(request)
        else:
            self._write(self._failure(request, error))
            self._finished(request, now)

    def written(self, count: int, now: float | None = None) -> None:
        """The channel took so many bytes of `output`; `delivered` gets the requests whose replies are now out.

        What waited for room is answered, or in `calls`."""
        del self.output[:count]
        self._position += count
        if self._stream:
            self._pour(time.monotonic() if now is None else now)
        elif self._flow is not None:
            self._pour_flow(self._flow, time.monotonic() if now is None else now)
        while self._unconfirmed and self._unconfirmed[0][0] <= self._position:
            self.delivered.append(self._unconfirmed.pop(0)[1])
        if self._queue and not self._queue[0].called and len(self.output) < OUTPUT_LIMIT:
            self.advance(time.monotonic() if now is None else now)

    def unheard(self) -> None:
        """No host has the channel open: whoever opens it next may not know what the replies under way are to."""
        self._unconfirmed.clear()
        for request in self._queue:
            request.unheard = True

    def disconnected(self) -> None:
        """The client is gone for good: replies not written are lost, requests in the queue are executed unheard."""
        for request in self._queue:
            self._mute(request)
        if self._stream:  # its worker has answered
            self._release(self._queue[0])
        for piece in self._stream:
            if type(piece) is not bytes:
                piece.close()  # type: ignore[union-attr]
        self._stream = []
        if self._flow is not None:
            if self._flow.ended:
                self._release(self._queue[0])
            self._flow.close()
            self._flow = None
        self._queue.clear()
        self.sync_at = None
        self._position += len(self.output)
        self.output.clear()
        self._unconfirmed.clear()

    # -- inside

    def _pour(self, now: float) -> None:
        """Fill `output` up from the reply that is being written; at its end the first request is finished."""
        output, stream = self.output, self._stream
        while stream and len(output) < _STREAM_AHEAD:
            piece = stream[0]
            if type(piece) is bytes:
                output += piece
            else:
                part = piece.read(self._streamed, min(base64.PIECE, piece.size - self._streamed))  # type: ignore[union-attr]
                self._streamed += len(part)
                if self._streamed < piece.size:  # type: ignore[union-attr]
                    self._put(base64.encode(part))
                    continue
                piece.close()  # type: ignore[union-attr]
                self._streamed = 0
                end = stream.pop(1)  # text stands behind each payload
                assert type(end) is bytes
                self._put(base64.encode(part), end)
            del stream[0]
        if not stream:
            self._finished(self._queue[0], now)

    def _pour_flow(self, flow: Flow, now: float) -> None:
        """The same from the reply that is still coming."""
        while len(self.output) < _STREAM_AHEAD:
            text = flow.take(base64.encode)
            if text is None:
                break
            if not text:
                if self.sync_at is None and self._first_sync() is not None:
                    self.sync_at = now + SYNC_PATIENCE
                return
            self.sync_at = None  # a sync overtakes a worker that does nothing, not one that is at work
            self._put(text)
        else:
            return
        self._end_flow(flow)
        self._finished(self._queue[0], now)

    def _cut(self, flow: Flow, now: float) -> bool:
        """A sync that waits behind the reply that is coming goes first when nothing comes any more: the reply ends where it is."""
        place = self._first_sync()
        if place is None or flow.waiting:  # then it is the host that is slow, and `written` goes on
            self.sync_at = None
        elif self.sync_at is None:
            self.sync_at = now + SYNC_PATIENCE
        elif now >= self.sync_at:
            self._end_flow(flow)
            flow.close()
            self._queue.pop(0).muted = True
            self.sync_at = now
            return True
        return False

    def _end_flow(self, flow: Flow) -> None:
        """Write what stands behind the bulk data."""
        rest: dict[str, object] = {"count": flow.total, "eof": False} if flow.rest is None else flow.rest
        self._flow = None
        self._write(wire.bulk_ended(rest, *self._id_of(self._queue[0])))

    def _put(self, text: bytes, end: bytes = b"") -> None:
        """Write both straight to the channel, past one copy, if little stands before them."""
        output = self.output
        if self.sink is None or len(output) > _LITTLE:
            output += text
            output += end
            return
        parts = [part for part in (bytes(output), text, end) if part]
        output.clear()
        count = self.sink(parts)
        self._position += count
        for part in parts:
            if count < len(part):
                output += memoryview(part)[count:]
            count = max(0, count - len(part))

    def _remember(self, data: bytes, events: list[Value | ParseError]) -> None:
        """`data` came to an idle session and made these events; the last of them is the last in the queue.

        Keep the request, which the same bytes will make again, and the answer where it hangs on nothing else."""
        request, remembered = self._queue[-1], self._remembered
        command = request.command
        if command is None or request.error is not None or command.secret:
            return
        name = command.name
        if name not in _SYNCS:
            if len(events) != 1:
                return
            try:
                request.arguments = check_arguments(command.args, request.arguments)
            except CommandError:
                return
            request.checked = True
            remembered.add_request(data, request)
        if command.domain != "front" or request.has_id or not remembered.has_room or self._frozen():
            return
        if name not in self._allowed or any(isinstance(event, Value) for event in events[:-1]):
            return
        cell = command.cell + tally.OK
        if name in _SYNCS:
            if len(request.arguments) == 1:
                errors = b"".join(self._line(event) for event in events[:-1])
                remembered.add_sync(data, request.arguments.get("id"), errors, name == "guest-sync-delimited", cell)
        elif not request.arguments:
            if name in ("guest-ping", "guest-info"):
                remembered.add_answer(data, self._own(request), cell)
            elif name in ("guest-get-time", "guest-get-host-name"):
                remembered.add_answer(data, lambda: self._own(request), cell)

    def _read(self, value: object) -> Request:
        request = Request()
        try:
            name, arguments = wire.read_request(value, request)
            command = BY_NAME.get(name)
            if command is None:
                raise CommandError.not_found(name)
            request.command = command
            request.arguments = arguments
        except CommandError as e:
            request.error = e.with_traceback(None)  # many may wait, each with the frames that it has passed
            self._counts[tally.INVALID] += 1
        return request

    def _start(self, request: Request) -> None:
        """Answer it, or put it into `calls`."""
        if request.error is None:
            try:
                self._admit(request)
                assert request.command is not None
                if request.command.domain != "front":
                    request.called = True
                    self.calls.append(request)
                    return
                line = self._own(request)
                self._counts[request.command.cell + tally.OK] += 1
            except CommandError as e:
                request.error = e.with_traceback(None)
                self._count_refusal(request)
        if request.error is not None:
            line = self._failure(request, request.error)
        if not request.muted:
            self.output += line

    def _count_refusal(self, request: Request) -> None:
        assert request.command is not None
        self._counts[request.command.cell + _RESULT[request.reason]] += 1
        if request.reason:
            self.refused.append(request)

    def _admit(self, request: Request) -> None:
        self._permit(request)
        if not request.checked:
            assert request.command is not None
            request.arguments = check_arguments(request.command.args, request.arguments)

    def _permit(self, request: Request) -> None:
        command = request.command
        assert command is not None
        frozen = self._frozen()
        if frozen:
            if not command.frozen:
                request.reason = FROZEN
                raise CommandError.disabled(command.name, FROZEN_REASON)
        elif command.name not in self._allowed:
            request.reason = POLICY
            raise CommandError.disabled(command.name, self._refusal)

    def _own(self, request: Request) -> bytes:
        """The reply to a command that needs neither privilege nor file."""
        assert request.command is not None
        name = request.command.name
        if name == "guest-ping":
            value: object = {}
        elif name in _SYNCS:
            value = request.arguments["id"]
        elif name == "guest-get-time":
            value = self._clock_ns() // 1000 * 1000
        elif name == "guest-get-host-name":
            value = {"host-name": self._host_name()}
        else:
            return self._guest_info(request)
        line = wire.success(value, *self._id_of(request))
        return wire.delimited(line) if name == "guest-sync-delimited" else line

    def _guest_info(self, request: Request) -> bytes:
        frozen = self._frozen()
        if request.has_id or frozen not in self._info:
            value = {
                "version": self._version,
                "supported_commands": [
                    {
                        "enabled": c.frozen if frozen else c.name in self._allowed,
                        "name": c.name,
                        "success-response": c.replies,
                    }
                    for c in reversed(COMMANDS)
                ],
            }
            if request.has_id:
                return wire.success(value, *self._id_of(request))
            self._info[frozen] = wire.success(value)
        return self._info[frozen]

    def _first_sync(self) -> int | None:
        """Its place in the queue."""
        return next((i for i, r in enumerate(self._queue) if r.command is not None and r.command.name in _SYNCS), None)

    def _overtake(self, now: float) -> bool:
        """The head is with a worker: is there a sync behind it whose patience is over?  Then everything before it is muted
        and started, and the sync is the new head."""
        place = self._first_sync()
        if place is None:
            self.sync_at = None
            return False
        if self.sync_at is None:
            self.sync_at = now + SYNC_PATIENCE
        if now < self.sync_at:
            return False
        passed = self._queue[:place]
        del self._queue[:place]
        for request in passed:
            self._mute(request)
        self.sync_at = None
        return True

    def _finished(self, request: Request, now: float) -> None:
        """The head was answered."""
        assert self._queue and self._queue[0] is request
        del self._queue[0]
        self._release(request)
        if request.command is not None and request.command.confirm and not request.unheard:
            self._unconfirmed.append((self._position + len(self.output), request))
        self.sync_at = None
        self.advance(now)

    def _hold(self, request: Request, size: int) -> None:
        """It waits from now on."""
        request.weight = max(1, size)
        self._weight += request.weight
        self._held += 1
        self._queue.append(request)

    def _release(self, request: Request) -> None:
        """Nothing is to be done for it any more."""
        if request.weight:
            self._weight -= request.weight
            self._held -= 1
            request.weight = 0

    def _mute(self, request: Request) -> None:
        """Nobody waits for the reply any more; it is executed all the same."""
        request.muted = True
        if not request.called:
            self._start(request)
            if not request.called:
                self._release(request)

    def _write(self, line: bytes) -> None:
        self.output += line

    @staticmethod
    def _line(event: Value | ParseError) -> bytes:
        assert isinstance(event, ParseError)
        return wire.malformed(event.desc)

    def _failure(self, request: Request, error: CommandError) -> bytes:
        return wire.failure(error.kind, error.desc, *self._id_of(request))

    @staticmethod
    def _id_of(request: Request) -> tuple[object, ...]:
        return (request.id,) if request.has_id else ()


def _settle(value: object) -> None:
    """Long text stays as it is where bulk data may be, and only there."""
    keep = None
    if type(value) is dict:
        name, arguments = value.get("execute"), value.get("arguments")
        command = BY_NAME.get(name) if type(name) is str else None
        if command is not None and command.takes and type(arguments) is dict:
            found = arguments.get(command.takes)
            keep = found if type(found) is LongText else None
    settle(value, keep)


def _close_all(value: object) -> None:
    """What a reply that nobody wants has of bulk data."""
    if type(value) is dict:
        for member in value.values():
            if hasattr(member, "close"):
                member.close()
