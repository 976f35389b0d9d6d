"""The ratios as a picture: one bar a row, to the right where ours is better, on a logarithmic scale."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

from tests.bench.rows import Row

_LINE, _LEFT, _WIDTH, _TOP = 22, 330, 560, 40
_DECADES = (-2.0, 2.5)  # of the advantage, powers of ten


def advantage(row: Row) -> float | None:
    """How many times better ours is; below 1: worse."""
    if not row.ratio:
        return None
    return row.ratio if row.more_is_better else 1 / row.ratio


def chart(measured: list[Row]) -> str:
    found = [(row, value) for row in measured if (value := advantage(row)) is not None]
    low, high = _DECADES
    scale = _WIDTH / (high - low)

    def x(value: float) -> float:
        return _LEFT + (min(max(math.log10(value), low), high) - low) * scale

    height = _TOP + _LINE * len(found) + 20
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 20}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_LEFT}" y="16">privsep-ga beside qemu-ga: how many times better (right) or worse (left)</text>',
    ]
    for power in range(math.ceil(low), math.floor(high) + 1):
        at = x(10.0**power)
        out.append(f'<line x1="{at:.0f}" y1="{_TOP - 6}" x2="{at:.0f}" y2="{height - 16}" stroke="#ccc"/>')
        label = f"{10**power}" if power >= 0 else f"1/{10**-power}"
        out.append(f'<text x="{at:.0f}" y="{_TOP - 10}" text-anchor="middle" fill="#666">{label}</text>')
    for number, (row, value) in enumerate(found):
        y = _TOP + number * _LINE
        start, end = sorted((x(1.0), x(value)))
        colour = "#c0392b" if row.kept is False else "#2e7d32" if value >= 1 else "#b8860b"
        out.append(f'<text x="{_LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(row.name)}</text>')
        out.append(f'<rect x="{start:.1f}" y="{y + 3}" width="{max(end - start, 1):.1f}" height="13" fill="{colour}"/>')
        out.append(f'<text x="{end + 4:.1f}" y="{y + 13}">{value:.2g}</text>')
    out.append("</svg>")
    return "\n".join(out) + "\n"
