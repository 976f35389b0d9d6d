#!/usr/bin/env python3
"""Write what a service manager must know of the privilege table: users, capabilities, and the drop-ins for policies that need more.

    packaging/units.py              # rewrites the files in packaging/systemd; nothing that is as it should be is touched
    packaging/units.py --check      # exit status 1, naming the files that are not as the table says

Everything derives from `privsep/domains.py` and the shipped profiles.  Facts: systemd.exec(5), sysusers.d(5); an empty
assignment resets a list, "~" alone resets the bounding set to everything.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

TREE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TREE))

from policy.model import builtin  # noqa: E402
from privsep.domains import BY_NAME, DOMAINS, SUPERVISOR_CAPS  # noqa: E402
from privsep.granted import DROPINS  # noqa: E402
from privsep.orders import enabled_rows  # noqa: E402

FOLDER = TREE / "packaging" / "systemd"
UNIT = "privsep-ga.service"
DROP_INS = FOLDER / "drop-ins"  # not UNIT.d: tools of systemd would read all of them with the unit beside them
BEGIN = "# [written by packaging/units.py]\n"
END = "# [end]\n"
WIDTH = 120

# What of the unit stands in the way of programs that are the administrator's or the host's own, and how it is undone.
LIFT = (
    "CapabilityBoundingSet=~",
    "SystemCallArchitectures=",
    "SystemCallFilter=",
    "RestrictAddressFamilies=",
    "RestrictNamespaces=no",
    "RestrictRealtime=no",
    "RestrictSUIDSGID=no",
    "LockPersonality=no",
    "MemoryDenyWriteExecute=no",
    "KeyringMode=inherit",
    "IPAddressDeny=",
    "DevicePolicy=auto",
    "DeviceAllow=",
    "LimitCORE=infinity",
)


def capabilities(rows: Iterable[str]) -> set[str]:
    """What these rows and the supervisor need, without "ALL"."""
    return (set(SUPERVISOR_CAPS) | {c for name in rows for c in BY_NAME[name].caps}) - {"ALL"}


def default_rows() -> frozenset[str]:
    return enabled_rows(builtin("default"), hook=False)


def bounding(names: Iterable[str]) -> list[str]:
    """Directives, several where one would be a long line."""
    lines: list[str] = []
    for name in sorted(names):
        word = f"CAP_{name}"
        if lines and len(lines[-1]) + 1 + len(word) < WIDTH:
            lines[-1] += f" {word}"
        else:
            lines.append(f"CapabilityBoundingSet={word}")
    return lines


def unit(text: str) -> str:
    """The service with the table's part in its place."""
    head, _, rest = text.partition(BEGIN)
    _, mark, tail = rest.partition(END)
    if not mark:
        raise SystemExit(f"{UNIT}: the marks around what is written by this program are gone")
    return head + BEGIN + "".join(f"{line}\n" for line in bounding(capabilities(default_rows()))) + END + tail


def dropin(name: str) -> str:
    rows, why = DROPINS[name]
    lines = [
        f"# For {why}.",
        f"#     install -D -m 644 {name}.conf /etc/systemd/system/{UNIT}.d/{name}.conf && systemctl daemon-reload",
        "# Written by packaging/units.py from the privilege table.",
        "[Service]",
    ]
    for row in sorted(rows, key=[d.name for d in DOMAINS].index):
        for cap, reason in BY_NAME[row].caps.items():
            lines.append(f"# {row}{'' if cap == 'ALL' else f', CAP_{cap}'}: {reason}")
    if any("ALL" in BY_NAME[row].caps for row in rows):
        lines.append("# Programs inherit whatever the service has, so it has nothing that would stand in their way.")
        lines += LIFT
    else:
        lines += bounding(capabilities(rows) - capabilities(default_rows()))
    return "".join(f"{line}\n" for line in lines)


def sysusers() -> str:
    lines = ["# A user for each process; privsep/domains.py has the reasons.  Written by packaging/units.py."]
    for row in DOMAINS:
        if row.user != "root":
            lines.append(f'u {row.user} - "Guest agent ({row.name})" / /usr/sbin/nologin')
    return "".join(f"{line}\n" for line in lines)


def files() -> dict[Path, str]:
    """Path -> what it should say."""
    found = {FOLDER / UNIT: unit((FOLDER / UNIT).read_text()), FOLDER / "privsep-ga.sysusers": sysusers()}
    for name in DROPINS:
        found[DROP_INS / f"{name}.conf"] = dropin(name)
    return found


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write what a service manager must know of the privilege table.")
    parser.add_argument("--check", action="store_true", help="say what is out of date, write nothing")
    options = parser.parse_args(words)
    wanted = files()
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    stale += [path for path in DROP_INS.glob("*.conf") if path not in wanted]
    for path in stale:
        print(f"{path.relative_to(TREE)} {'is out of date' if options.check else 'written'}")
        if options.check:
            continue
        if path in wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path])
        else:
            path.unlink()
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
