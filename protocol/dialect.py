"""QEMU's dialect of JSON as a stream: bytes in, values and parse errors out.  Sans-I/O.

Theory of operation
-------------------
A request is complete when its braces and brackets balance, not at a newline; so three things happen to the bytes.  The
*lexer* finds tokens and complains about bytes that fit none (`stray`; then it passes over what follows, up to a
promising byte).  The *counter* watches the balance and the limits.  On completion the text goes to the *tree*
(protocol/tree.py), which complains about the rest.  Lexer errors come at once and drop the request, tree errors come
when it is complete.  Lexer and counter are here (their models: qobject/json-lexer.c and json-streamer.c).

Byte by byte that would cost a microsecond each, so nobody walks bytes.  Between requests protocol/plain.py takes whole
plain requests out of what came; strings, white space and garbage are passed over by C functions on windows that grow;
in the middle of a large request protocol/bulk.py measures up to 64 KiB at once.  Each of these is a short cut through
the lexer and gives up when it cannot prove that the result is the same; none looks at a byte more than a few times,
whatever the input.

Where this is not the peer
--------------------------
* Floods.  Random bytes make the peer answer several errors a line, which nobody reads.  Here `PATIENCE` errors in a row
  are answered as the peer does.  After that each line (LF) is answered with one error; what follows in it is passed
  over in silence up to LF, or up to 0xFE or 0xFF, after which a request is always recognised.  The first object makes
  all as before.
* The text of a stray token is cut at `STRAY_LIMIT` bytes.

A parser belongs to the agent and outlives connections, as in the peer: half a request is continued by the next client.
"""

from __future__ import annotations

from protocol import bulk, plain
from protocol.lexis import (
    DIGITS,
    END,
    LETTERS,
    MARKS,
    NUMBERS,
    RECOVERY_STOPS,
    REPEATING,
    RESET,
    SPACE,
    STRAY,
    WINDOW,
    WINDOW_GROWS,
    WINDOW_MOST,
    find,
    mask,
    run,
    string_stop,
)
from protocol.longtext import Rope, stays
from protocol.plain import NESTING_LIMIT, SIZE_LIMIT, TOKEN_LIMIT
from protocol.text import LONG, ROPED, lenient
from protocol.tree import Malformed, value_of, word_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

PATIENCE: Final = 64  # errors in a row
STRAY_LIMIT: Final = 1 << 16  # no more than a string has in the text

# Where the lexer is; the order is that of _STEPS.
_BETWEEN: Final = 0  # two tokens
_STRING: Final = 1
_ESCAPE: Final = 2  # in a string, after a backslash
_NUMBER: Final = 3
_WORD: Final = 4
_RECOVERY: Final = 5  # after a stray byte
_FLOOD: Final = 6  # after too many errors

_LF, _OPEN, _ZERO = b"\n{0"
_RESETS: Final = bytes((RESET, RESET + 1))
_QUOTE, _APOSTROPHE = b"\"'"
_BRACES: Final = {0x7B: 1, 0x7D: -1}
_BRACKETS: Final = {0x5B: 1, 0x5D: -1}
_WORD_KEPT: Final = 2048  # a word this long is wrong, and the rest of it is not even in the message
_EXPECTING: Final = "JSON parse error, expecting value"
_LONE: Final = b",:]}"  # marks that no request begins with
_GOES_ON: Final = b".eE"  # a number, after digits
# What may matter after the errors that are answered: it may begin a request, or go on beyond its line.
_LASTING: Final = b"{[\"'-" + DIGITS + SPACE + _RESETS
_SCANNED: Final = 1 << 14  # bytes of a piece up to which the plain way is the quicker one whatever is in it
_ROPE_WINDOW: Final = 1 << 18  # bytes of a string that is in the rope to look at: as many as the channel gives
_STRINGS: Final = 64  # quotes to look at for the start of a long string, at most
_PLACE: Final = b"(here)"  # what stands for a long string; any text that has no quote and no backslash
_PLACE_TEXT: Final = _PLACE.decode()
_LINE: Final = 1 << 12  # bytes of a line to look at for plain requests when other lines are not plain


class Value:
    """A complete request: an object, as a rule, but it is whatever stood there."""

    __slots__ = ("value",)
    __match_args__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"Value({self.value!r})"


class ParseError:
    """`desc` is the text for the error object.  It may quote what the host sent: not for logs."""

    __slots__ = ("desc",)
    __match_args__ = ("desc",)

    def __init__(self, desc: str) -> None:
        self.desc = desc

    def __repr__(self) -> str:
        return f"ParseError({self.desc!r})"


class Parser:
    """`feed` it the host's bytes in whatever pieces they come; the events do not depend on the pieces.

    Holds about one copy of the unfinished request, at most some 64 MiB of tokens; two for the moment in which a long string turns out
    to be something else than base64."""

    __slots__ = (
        "_braces", "_brackets", "_events", "_left", "_number", "_quote", "_size", "_state", "_text", "_token",
        "_tokens", "_uncounted", "_walk_to", "_long_text", "_rope", "_whole",
    )  # fmt: skip

    def __init__(self, *, long_text: bool = False) -> None:
        """With `long_text` values may have a LongText (protocol/longtext.py) for a long string."""
        self._long_text = long_text
        self._events: list[Value | ParseError] = []
        self._left = PATIENCE  # errors that will still be answered
        self._state = _BETWEEN
        self._quote = _QUOTE  # of the string we are in
        self._number = STRAY  # the state of the number we are in
        self._walk_to = 0  # up to where in the current piece bulk was tried in vain
        self._reset()

    def _reset(self) -> None:
        """No request is open."""
        self._text = bytearray()  # its tokens; numbers and words are followed by a blank, a mark or a quote
        self._token = 0  # where in it the current token begins
        self._uncounted = 0  # bytes of the current token that are not kept there
        self._rope: Rope | None = None  # where those of one long string are
        self._whole = -1  # the place of a long string that cannot have one
        self._tokens = 0  # complete ones
        self._size = 0  # their bytes
        self._braces = self._brackets = 0  # open

    @property
    def resting(self) -> bool:
        """Between requests, and as patient as at the start: the same bytes will make the same events again."""
        return self._state == _BETWEEN and not self._text and self._left == PATIENCE

    def feed(self, data: bytes) -> list[Value | ParseError]:
        """What these bytes complete, in order."""
        events: list[Value | ParseError] = []
        self._events = events
        self._walk_to = pos = 0
        end = len(data)
        text: str | None = None
        looked_to = -1  # up to where plain requests were looked for, -1: nowhere yet
        while pos < end:
            if self._state == _BETWEEN and not self._text:
                if looked_to < 0:
                    looked_to = 0
                    if (end <= _SCANNED or data.find(b"\n", 0, _LINE) >= 0) and data.isascii():
                        text = plain.text_of(data)
                if text is not None:
                    pos = self._plain(text, pos)
                    if pos == end:
                        break
                elif pos >= looked_to and data[pos] == _OPEN:
                    after = self._around(data, pos) if self._long_text else pos
                    if after != pos:
                        pos = after
                        continue
                    # Not all of it is plain, but this line may be.
                    looked_to = data.find(b"\n", pos, pos + _LINE) + 1 or min(end, pos + _LINE)
                    line = plain.text_of(data[pos:looked_to])
                    if line is not None:
                        taken = self._plain(line, 0)
                        if taken:
                            pos += taken if line.isascii() else len(line[:taken].encode())
                            continue
                after = self._outside(data, pos, end)
                if after != pos:
                    pos = after
                    continue
            if data[pos] >= RESET:
                looked_to = min(looked_to, 0)  # a host that resets the parser sends a plain request next
            pos = _STEPS[self._state](self, data, pos, end)
        self._events = []
        return events

    def _plain(self, text: str, pos: int) -> int:
        """Take the plain requests at `pos`; the place of what is none."""
        end = len(text)
        scan = plain.scan
        add = self._events.append
        while pos < end:
            first = text[pos]
            if first == "{":
                got = scan(text, pos)
                if got is None:
                    return pos
                value, pos = got
                add(Value(value))
                self._left = PATIENCE
            elif first == "\n" and self._left and text[pos + 1 : pos + 2] in "{":
                pos += 1
            else:
                return pos
        return pos

    def _around(self, data: bytes, pos: int) -> int:
        """Take the request at `pos` if one of its arguments is long base64, and the rest is plain and short; the place after it, or
        `pos`.

        What is between two quotes and base64 is the value of a string if, with something short in its place, the rest
        is an object in which that is the value of a string."""
        start = data.find(_QUOTE, pos) + 1
        for _ in range(_STRINGS):
            stop = data.find(_QUOTE, start)
            if stop < 0:
                return pos
            if stop - start > LONG:
                break
            start = stop + 1
        else:
            return pos
        rest = data[pos:start] + _PLACE + data[stop : stop + _LINE]
        if len(rest) > 2 * _LINE or not rest.isascii() or rest.count(_PLACE) != 1:
            return pos
        text = plain.text_of(rest)
        got = None if text is None else plain.scan(text, 0)
        if got is None:
            return pos
        value, end = got
        arguments = value.get("arguments")
        if type(arguments) is not dict:
            return pos
        name = next((n for n, v in arguments.items() if v == _PLACE_TEXT), None)
        if name is None:
            return pos
        rope = Rope(0, data[start:stop])
        if not rope.decoded:
            return pos
        arguments[name] = rope.whole()
        self._events.append(Value(value))
        self._left = PATIENCE
        return pos + end - len(_PLACE) + stop - start

    # -- the lexer: each takes what it can of data[pos:end] and returns the place after it

    def _between(self, data: bytes, pos: int, end: int) -> int:
        c = data[pos]
        if c in SPACE:
            return run(data, pos, SPACE)
        if self._text and pos >= self._walk_to and end - pos >= bulk.LEAST:
            block = data[pos : pos + bulk.LARGEST]
            taken = 0 if bulk.is_string(block) else self._bulk(block)
            if taken:
                return pos + taken
            self._walk_to = pos + bulk.LARGEST
        self._token = len(self._text)
        if c in MARKS:
            self._text.append(c)
            self._braces += _BRACES.get(c, 0)
            self._brackets += _BRACKETS.get(c, 0)
            self._done(1)
            return pos + 1
        if c in (_QUOTE, _APOSTROPHE):
            self._state, self._quote = _STRING, c
        elif c in LETTERS:
            self._state = _WORD
        else:
            self._number = NUMBERS[0][c]
            if self._number == STRAY:
                return self._stray(data, pos)
            self._state = _NUMBER
        self._text.append(c)
        return pos + 1

    def _outside(self, data: bytes, pos: int, end: int) -> int:
        """Pass over what is no part of an object or a list: of a flood, that is most of it.

        Up to a byte that may begin one, or resets, or a token that is not of the simple ones; `pos` if it is one already."""
        while pos < end:
            c = data[pos]
            if c in SPACE:
                stop = run(data, pos, SPACE)
                if not self._left and data.find(b"\n", pos, stop) >= 0:
                    self._left = 1
                pos = stop
                continue
            if not self._left and c not in _LASTING:
                self._state = _FLOOD
                return pos + 1
            if c in _LONE:
                self._fail(_EXPECTING)
                pos += 1
                continue
            kinds = LETTERS if c in LETTERS else DIGITS
            if c not in kinds or c == _ZERO:
                return pos
            part = data[pos : pos + WINDOW]
            behind = part.lstrip(kinds)
            if not behind or (kinds is DIGITS and behind[0] in _GOES_ON):
                return pos
            token = part[: len(part) - len(behind)]
            pos += len(token)
            try:
                self._complete(plain.integer(token) if kinds is DIGITS else word_of(token))
            except Malformed as e:
                self._fail(e.desc)
            if self._state != _BETWEEN:
                break
        return pos

    def _string(self, data: bytes, pos: int, end: int) -> int:
        if end - pos > LONG and self._long_text and self._rope is None and len(self._text) - self._token == 1:
            pos += self._roped_at_once(data, pos, end)
        window = WINDOW
        while pos < end:
            roped = self._rope is not None and self._rope.at == self._token
            part = data[pos : pos + (_ROPE_WINDOW if roped else window)]
            if roped:
                hit = part.find(self._quote)
                taken = self._decoded(part if hit < 0 else part[:hit])
                pos += taken
                if taken and hit != taken:
                    continue
                part = part[taken:]
            masked = mask(part, self._quote)
            hit = string_stop(masked, self._quote)
            closed = hit >= 0 and part[hit] == self._quote
            pos += self._grow(part if hit < 0 else part[:hit])
            if self._state != _STRING:
                break  # it got too long
            if closed:
                pos += self._grow(part[hit : hit + 1], last=True)
                if self._state != _STRING:
                    break
                self._done(len(self._text) - self._token + self._uncounted)
                break
            if hit >= 0:
                return self._stray(data, pos)
            if masked.endswith(b"\\"):
                self._state = _ESCAPE
                break
            window = min(window * WINDOW_GROWS, WINDOW_MOST)
        return pos

    def _escape(self, data: bytes, pos: int, end: int) -> int:
        if data[pos] < 0x20 or data[pos] >= RESET:
            return self._stray(data, pos)
        self._state = _STRING
        return pos + self._grow(data[pos : pos + 1])

    def _digits(self, data: bytes, pos: int, end: int) -> int:
        after = NUMBERS[self._number][data[pos]]
        if after == STRAY:
            return self._stray(data, pos)
        if after == END:
            self._text += b" "
            self._done(len(self._text) - 1 - self._token)
            return pos
        self._number = after
        stop = run(data, pos + 1, DIGITS) if after in REPEATING else pos + 1
        return pos + self._grow(data[pos:stop])

    def _word(self, data: bytes, pos: int, end: int) -> int:
        stop = run(data, pos, LETTERS)
        if stop == pos:
            self._text += b" "
            self._done(len(self._text) - 1 - self._token + self._uncounted)
            return pos
        return pos + self._grow(data[pos:stop])

    def _recover(self, data: bytes, pos: int, end: int) -> int:
        pos = find(data, pos, end, RECOVERY_STOPS)
        if pos < end:
            self._state = _BETWEEN
        return pos

    def _skip(self, data: bytes, pos: int, end: int) -> int:
        while True:
            line = data.find(b"\n", pos)
            stop = end if line < 0 else line
            for c in (RESET, RESET + 1):
                reset = data.find(c, pos, stop)
                if reset >= 0:
                    stop, line = reset, -1
            if line < 0:
                if stop == end:
                    return end
                self._state = _RECOVERY
                return stop + 1
            self._left, self._state = 1, _BETWEEN
            pos = line + 1
            # Most lines of a flood are wrong from their first byte.
            if pos == end or data[pos] not in _LONE:
                return pos
            self._fail(_EXPECTING)
            pos += 1
            if pos == end or data[pos] in _LASTING:
                return pos
            self._state = _FLOOD

    # -- the counter

    def _bulk(self, block: bytes) -> int:
        """Take a large part of an open request at once: how many bytes, 0 if it is not that simple."""
        found = bulk.measure(block)
        if found is None:
            return 0
        size, tokens = self._size + found.size, self._tokens + found.tokens
        braces, brackets = self._braces + found.lowest[0], self._brackets + found.lowest[1]
        if (
            size + found.open_size >= SIZE_LIMIT
            or tokens > TOKEN_LIMIT
            or self._braces + self._brackets + found.highest > NESTING_LIMIT
            or braces < 0
            or brackets < 0
            or not (braces or brackets)  # the request may end in here
        ):
            return 0
        self._size, self._tokens = size, tokens
        self._braces += found.braces
        self._brackets += found.brackets
        self._text += found.text
        self._token = len(self._text) - found.open_size
        if found.open_size:
            self._state, self._quote = _STRING, _QUOTE
        return found.taken

    def _grow(self, part: bytes, *, last: bool = False) -> int:
        """The current token goes on with `part`, a string's `last` being its quote; how many bytes were taken.

        When the token gets too long it ends in an error, and what follows is lexed afresh."""
        length = len(self._text) - self._token + self._uncounted
        more = len(part)
        if length + more > SIZE_LIMIT:
            self._state = _BETWEEN
            self._fail("JSON token size limit exceeded")
            return SIZE_LIMIT + 1 - length
        if self._state == _WORD and length + more > _WORD_KEPT:
            kept = max(0, _WORD_KEPT - length)
            self._text += part[:kept]
            self._uncounted += more - kept
        elif length > ROPED and self._state == _STRING and not last and self._roped(part):
            self._uncounted += more
        else:
            self._text += part
        return more

    def _decoded(self, part: bytes) -> int:
        """The string in the rope goes on with `part`: how many bytes of it were taken, all if it is base64 and not too long."""
        rope = self._rope
        assert rope is not None
        if len(self._text) - self._token + self._uncounted + len(part) > SIZE_LIMIT or not rope.decode(part):
            return 0
        self._uncounted += len(part)
        return len(part)

    def _roped_at_once(self, data: bytes, pos: int, end: int) -> int:
        """A string has just begun: if it is already known to be long, and base64, put what is here of it into a rope."""
        stop = data.find(self._quote, pos)
        size = (end if stop < 0 else stop) - pos
        if not LONG < size < SIZE_LIMIT:
            return 0
        rope = Rope(self._token, data[pos : pos + size])
        if not rope.decoded:
            return 0
        self._rope = rope
        self._text += data[pos : pos + min(size, STRAY_LIMIT)]  # an error would quote it
        self._uncounted += max(0, size - STRAY_LIMIT)
        return size

    def _roped(self, part: bytes) -> bool:
        """Put a further part of a long string into the rope; False: it goes into the text.  A request has one rope."""
        rope = self._rope
        if rope is None:
            if not self._long_text or self._whole == self._token:
                return False
            fine = stays(self._text[self._token :])
        elif rope.at == self._token:
            fine = True
        else:
            return False
        if fine and stays(part):
            if rope is None:
                rope = self._rope = Rope(self._token, bytes(self._text[self._token + 1 :]))
            if not rope.decode(part):
                rope.add(part)
            return True
        # It has to be decoded, and so to be in one piece.
        self._whole = self._token
        if rope is not None:
            del self._text[self._token + 1 :]
            rope.pour(self._text)
            self._rope = None
            self._uncounted = 0
        return False

    def _done(self, length: int) -> None:
        """The current token, of so many bytes, is complete."""
        self._state = _BETWEEN
        self._uncounted = 0
        self._size += length
        self._tokens += 1
        braces, brackets = self._braces, self._brackets
        if self._size >= SIZE_LIMIT:
            self._fail("JSON token size limit exceeded")
        elif self._tokens > TOKEN_LIMIT:
            self._fail("JSON token count limit exceeded")
        elif braces + brackets > NESTING_LIMIT:
            self._fail("JSON nesting depth limit exceeded")
        elif braces < 0 or brackets < 0 or not (braces or brackets):
            text, tokens, rope = self._text, self._tokens, self._rope
            self._reset()
            try:
                value = value_of(text, tokens, self._long_text, rope)
            except Malformed as e:
                self._fail(e.desc)
            else:
                self._complete(value)

    def _complete(self, value: object) -> None:
        if type(value) is dict:
            self._left = PATIENCE
        elif self._left:
            self._left -= 1  # no request either
        else:
            self._state = _FLOOD
            return
        self._events.append(Value(value))

    def _stray(self, data: bytes, pos: int) -> int:
        """data[pos] fits no token: the request is dropped."""
        c = data[pos]
        answered = self._left > 0
        self._state = _RECOVERY
        if answered:
            token = self._text[self._token : self._token + STRAY_LIMIT] + data[pos : pos + 1]
            self._fail("JSON parse error, stray '" + lenient(bytes(token.partition(b"\0")[0])) + "'")
        else:
            self._fail("")
        if c >= RESET:
            self._state = _RECOVERY
            if not answered:
                return run(data, pos, _RESETS)
        elif c == _LF and not self._left:
            self._left, self._state = 1, _RECOVERY
        return pos + 1

    def _fail(self, desc: str) -> None:
        """The request is answered with an error, or passed over in silence when there were too many."""
        if self._text:
            self._reset()
        if self._left:
            self._left -= 1
            self._events.append(ParseError(desc))
        else:
            self._state = _FLOOD


_STEPS: Final = (
    Parser._between,
    Parser._string,
    Parser._escape,
    Parser._digits,
    Parser._word,
    Parser._recover,
    Parser._skip,
)
