"""A number that differs when the two tables differ.

Verbs travel as indexes.  An upgrade replaces the files of a running agent, so a worker started on demand may be of
another version than the front; each side computes this from its own tables and they refuse each other when it differs.
"""

from __future__ import annotations

import binascii

from privsep.domains import DOMAINS
from protocol.commands import COMMANDS, PEER_LEVEL


def fingerprint() -> str:
    """Sixteen hexadecimal digits."""
    commands = ";".join(f"{c.name} {c.domain} {','.join(a.name for a in c.args)}" for c in COMMANDS)
    domains = ";".join(f"{d.name} {d.user} {','.join(d.caps)}" for d in DOMAINS)
    first = binascii.crc32(f"{PEER_LEVEL} {commands}".encode())
    return f"{first:08x}{binascii.crc32(domains.encode(), first):08x}"
