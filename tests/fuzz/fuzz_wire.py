"""Invariant: any bytes in any pieces give the same events, each of which can be answered, and then a reset and a sync are
still understood.

    python tests/fuzz/fuzz_wire.py [SECONDS] [SEED]

runs for so long by itself; with atheris installed it is driven by coverage instead and takes libFuzzer's options
(`python tests/fuzz/fuzz_wire.py --atheris -max_total_time=600 corpus/`).  A failing input is printed as a bytes literal.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from protocol import wire
from protocol.dialect import ParseError, Parser, Value
from tests.wire.helpers import form

SYNC = b'\xff{"execute":"guest-sync-delimited","arguments":{"id":7}}\n'
SYNCED = {"execute": "guest-sync-delimited", "arguments": {"id": 7}}

ATOMS = [
    *(bytes((c,)) for c in range(256)),
    *b'{ } [ ] : , " \' \\ {" "} ": ", \\" \\\\ \\u00e9 \\ud83d\\ude00 \\ud83d \\u0000 \\n -0 01 1.5e3'.split(),
    b"1e400", b"NaN", b"true", b"nul",
    b'{"execute":"guest-ping"}\n', b'{"a":1,"a":2}', b"{'a':'b'}", b"18446744073709551616", b"\xc0\x80", b"\xe2\x82\xac",
    b"\xe2\x82", b"\xef\xbf\xbf", b"\xf0\x9f\xbf\xbe", b"\xed\xa0\x80",
    b"[" * 1030, b"{}" * 300, b'"k":1,' * 100, b" " * 700, b"}" * 70, b'"' + b"x" * 1100 + b'"', b"9" * 80, b"\n",
]  # fmt: skip


def check(data: bytes, cuts: list[int]) -> None:
    """The invariant."""
    parser = Parser()
    whole = parser.feed(data)
    (*_, last) = parser.feed(SYNC)
    assert isinstance(last, Value)
    assert last.value == SYNCED
    parser = Parser()
    places = [0, *sorted(min(c, len(data)) for c in cuts), len(data)]
    pieces = [event for a, b in zip(places, places[1:], strict=False) for event in parser.feed(data[a:b])]  # noqa: RUF007
    assert [form(e) for e in pieces] == [form(e) for e in whole]
    for event in whole:
        match event:
            case Value(value):
                line = wire.success(value, id=value)
            case ParseError(desc):
                line = wire.failure("GenericError", desc)
        assert line.isascii()
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1


def generate(chance: random.Random) -> bytes:
    data = b"".join(chance.choices(ATOMS, k=chance.choice((3, 10, 60))))
    match chance.randrange(4):
        case 0:
            data = b'{"a":[' + data * chance.randint(1, 30) + b"]}"
        case 1:
            data = chance.randbytes(chance.randint(0, 400))
        case 2:
            changed = bytearray(
                b'{"execute":"guest-exec","arguments":{"path":"/bin/x","arg":["\xc3\xa9\\n",{"b":[1,2.5,null]}]}}\n'
                * 12
            )
            for _ in range(chance.randint(1, 6)):
                changed[chance.randrange(len(changed))] = chance.randrange(256)
            data = bytes(changed)
    return data


def run(seconds: float, seed: int) -> int:
    """Inputs tried."""
    chance = random.Random(seed)
    end = time.monotonic() + seconds
    tried = 0
    while time.monotonic() < end:
        data = generate(chance)
        cuts = [chance.randint(0, len(data)) for _ in range(chance.choice((1, 3, 40)))]
        try:
            check(data, cuts)
        except BaseException:
            print(f"failing input: {data!r}\ncuts: {cuts}", file=sys.stderr)
            raise
        tried += 1
    return tried


def with_atheris() -> None:
    import atheris  # type: ignore[import-not-found, unused-ignore]

    def one(data: bytes) -> None:
        provider = atheris.FuzzedDataProvider(data)
        cuts = [provider.ConsumeIntInRange(0, 1 << 12) for _ in range(provider.ConsumeIntInRange(0, 8))]
        check(provider.ConsumeBytes(1 << 16), cuts)

    atheris.instrument_all()
    atheris.Setup([sys.argv[0], *sys.argv[2:]], one)
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--atheris"]:
        with_atheris()
    else:
        seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
        seed = int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns()
        print(f"seed {seed}, {run(seconds, seed)} inputs")
