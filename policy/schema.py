"""The JSON schema of policy files, for editors (taplo, Even Better TOML): made of the key table.

    python -m policy.schema      prints it

`policy.build` writes it to `policy/policy.schema.json`, and a test proves that current.  It says what a value may be;
that names exist and fit together is said by `privsep-gactl policy check`.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Final

from policy.builtin import COMMANDS, PROFILES
from policy.keys import TABLES, Key, Table

_SIZE: Final = {"type": "string", "pattern": "^[0-9]+[KMG]?$"}
_PATH: Final = {"type": "string", "pattern": "^/"}
_UID: Final = {"type": "integer", "minimum": 0}


def _list(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


def _command() -> dict[str, Any]:
    """A command, a domain, or a pattern: the first two are offered by the editor."""
    known = [*COMMANDS, *(f"@{d}" for d in dict.fromkeys(COMMANDS.values()))]
    return {"anyOf": [{"enum": known}, {"type": "string", "pattern": r"[*?\[]"}]}


def _value(key: Key) -> dict[str, Any]:
    account = {"anyOf": [{"type": "string"}, _UID]}
    match key.kind:
        case "text" | "word":
            made: dict[str, Any] = {"type": "string"}
        case "flag":
            made = {"type": "boolean"}
        case "number" | "seconds":
            made = {"type": "integer", "minimum": key.low, "maximum": key.high}
        case "size":
            made = {"anyOf": [{"type": "integer", "minimum": key.low, "maximum": key.high}, _SIZE]}
        case "path":
            made = dict(_PATH)
        case "paths":
            made = _list(dict(_PATH))
        case "account":
            made = account
        case "accounts":
            made = _list(account)
        case "commands":
            made = _list(_command())
        case "patterns":
            made = _list({"type": "string"})
        case "points":
            made = _list({"type": "string", "pattern": "^[/*]"})
        case "uids":
            made = _list({"anyOf": [_UID, {"type": "string", "pattern": "^[0-9]+(-[0-9]+)?$"}]})
        case "choices":
            made = _list({"enum": list(key.choices)})
        case "sink":
            made = {"anyOf": [{"enum": list(key.choices)}, {"type": "string", "pattern": "^file:/"}]}
        case kind:
            raise AssertionError(f"the schema has no words for {kind}")
    made["description"] = f"{key.doc} (default: {key.default})" if key.default else key.doc
    if key.name == "profile":
        made["enum"] = list(PROFILES)
    return made


def _table(table: Table) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "object", "description": table.doc}
    if table.any_key is not None:
        made["additionalProperties"] = _value(table.any_key)
        made["propertyNames"] = _command()
        return made
    made["properties"] = {name: _value(key) for name, key in table.keys.items()}
    made["additionalProperties"] = False
    required = [k.name for k in table.keys.values() if k.required]
    if required:
        made["required"] = required
    return made


def schema() -> dict[str, Any]:
    """The whole schema (JSON Schema draft 7, which TOML editors know)."""
    made = _table(TABLES[0])
    for table in TABLES[1:]:
        one = _table(table)
        made["properties"][table.name] = _list(one) if table.many else one
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "privsep-ga policy", **made}


def render() -> str:
    return json.dumps(schema(), indent=2) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render())
