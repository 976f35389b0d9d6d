"""THE key table of policy files: every table and key that there is, what its value may be, and what it means.

`policy/read.py` accepts what stands here and nothing else, the JSON schema for editors (`policy/schema.py`) is made of it, and so
are documents.  Adding a key is one row here, and the line in `policy/read.py` or `policy/rules.py` that uses it.

A kind says what a value may be:

    text       printable characters
    word       an id: letters, digits, `-`, `_` and `.`
    flag       true or false
    number     an integer from `low` to `high`
    seconds    the same, in seconds
    size       bytes: an integer, or a string with K, M or G (powers of 1024), from `low` to `high`
    path       an absolute path as the kernel would write it: no `.`, `..`, `//`, nor a `/` at its end
    account    a user's or a group's name, or its number
    commands   a list of commands' names, patterns and @domains
    patterns   a list of strings in which `*` stands for any characters and `?` for one; a backslash takes the meaning away
    points     the same, each beginning with `/` or `*`
    paths      a list of paths
    accounts   a list of accounts
    uids       a list of numbers and of ranges like "1000-59999"
    choices    a list out of `choices`
    sink       one of `choices`, or file: and an absolute path
"""

from __future__ import annotations

from policy.builtin import COMMANDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final


class Key:
    """One key; `default` is what counts where it is absent, in words for a reader."""

    __slots__ = ("name", "kind", "doc", "default", "low", "high", "choices", "required")

    def __init__(
        self,
        name: str,
        kind: str,
        doc: str,
        *,
        default: str = "",
        low: int = 0,
        high: int = 0,
        choices: tuple[str, ...] = (),
        required: bool = False,
    ) -> None:
        self.name = name
        self.kind = kind
        self.doc = doc
        self.default = default
        self.low = low
        self.high = high
        self.choices = choices
        self.required = required


class Table:
    """One table; `many`: an array of tables, each of which is a rule.  `any_key`: keys are the administrator's, of that row's kind."""

    __slots__ = ("name", "doc", "keys", "many", "any_key")

    def __init__(self, name: str, doc: str, *keys: Key, many: bool = False, any_key: Key | None = None) -> None:
        self.name = name
        self.doc = doc
        self.keys: Mapping[str, Key] = {k.name: k for k in keys}
        self.many = many
        self.any_key = any_key


GIB: Final = 1 << 30
ACCESS: Final = ("read", "write", "create")
AUDIT_SINKS: Final = ("journal", "log", "none")
POWER_MODES: Final = ("powerdown", "halt", "reboot", "suspend-disk", "suspend-ram", "suspend-hybrid")
PRELOADED: Final = tuple(d for d in dict.fromkeys(COMMANDS.values()) if d != "front")
USER_PURPOSES: Final = ("password", "keys")

_ID: Final = Key(
    "id", "word", "the rule's name in errors, logs and audit records", default="the table's name and the rule's number"
)
_ONLY: Final = "superblocks that are mounted at one of these, and no others; without the key: all"
_NEVER: Final = (
    "superblocks that are mounted at one of these are left out, whatever else allows them; drop-ins add to it"
)

TABLES: Final = (
    Table(
        "",
        "the file as a whole",
        Key(
            "profile", "text", "the built-in profile to start from; first file only", default="none: nothing is allowed"
        ),
        Key("description", "text", "one line for `privsep-gactl profiles`"),
        Key(
            "lenient",
            "flag",
            "the peer's words, its leniency with lists, and uid 0 like any user: for the profile qemu-ga",
            default="false",
        ),
    ),
    Table(
        "commands",
        "which commands there are for the host; what is blocked anywhere stays blocked",
        Key("allow", "commands", "added to the profile's: names, patterns (* ? [ ]) or @domain"),
        Key("block", "commands", "taken away from them, in the same words"),
    ),
    Table(
        "fsfreeze",
        "limits of a freeze",
        Key(
            "auto-thaw",
            "seconds",
            "until a freeze that nobody ended is ended; 0: never",
            default="300",
            low=0,
            high=86400,
        ),
        Key(
            "auto-thaw-on-disconnect",
            "seconds",
            "the same from when the host has closed the channel, if that is sooner; 0: no such rule",
            default="0",
            low=0,
            high=86400,
        ),
        Key("hook-limit", "seconds", "for one call of the freeze hook", default="60", low=1, high=3600),
        Key("expedite-rcu", "flag", "shorten a freeze by expedited grace periods", default="true"),
        Key("only-mounts", "points", f"may be frozen: {_ONLY}; a freeze of all is refused where it would be narrowed"),
        Key("never-mounts", "points", f"may not be frozen: {_NEVER}; a freeze that means one of them is refused"),
    ),
    Table(
        "fstrim",
        "what guest-fstrim trims; a file system that is left out says so in the reply",
        Key("only-mounts", "points", f"may be trimmed: {_ONLY}"),
        Key("never-mounts", "points", f"may not be trimmed: {_NEVER}"),
    ),
    Table(
        "power",
        "guest-shutdown and the three guest-suspend commands",
        Key("modes", "choices", "only these", default="all that the commands allow", choices=POWER_MODES),
    ),
    Table(
        "ssh",
        "the guest-ssh commands",
        Key(
            "strict",
            "flag",
            "a key that is added must be one that sshd takes",
            default="true, in the profile qemu-ga false",
        ),
    ),
    Table(
        "sizes",
        "the most bytes at a time",
        Key("file-read", "size", "of one guest-file-read", default="48M", low=1, high=48 << 20),
        Key("file-write", "size", "of one guest-file-write", default="as many as a request has", low=1, high=GIB),
        Key(
            "file-buffer",
            "size",
            "of small writes to one file that wait for company; 0: none",
            default="0",
            high=1 << 20,
        ),
        Key("exec-input", "size", "of a program's input-data", default="as many as a request has", low=0, high=GIB),
        Key("exec-output", "size", "kept of each of a program's outputs", default="16M", low=0, high=16 << 20),
    ),
    Table(
        "workers",
        "the processes that execute commands; one is started by the first request for it and leaves when it has been idle",
        Key(
            "preload",
            "choices",
            "start these behind the start of the agent, and let them stay",
            default="none",
            choices=PRELOADED,
        ),
    ),
    Table(
        "audit",
        "where records of what was done and refused go",
        Key(
            "to",
            "sink",
            'the journal, the agent\'s log, nowhere, or "file:/PATH", a file with a line of JSON for each',
            default="the journal if there is one, else the log",
            choices=AUDIT_SINKS,
        ),
    ),
    Table(
        "rates",
        "how often a minute: each command that the name or pattern means, counted for itself; of several the smallest counts",
        any_key=Key("*", "number", "requests a minute; 0 is never", low=0, high=60000),
    ),
    Table(
        "file",
        "paths that guest-file-open may open; with one such rule, none but those of rules",
        _ID,
        Key("path", "path", "a folder with all below it, or one file", required=True),
        Key("access", "choices", "what for; create is for folders", default='["read"]', choices=ACCESS),
        Key("owner", "accounts", "only files that belong to one of these users", default="any user's"),
        Key("max-size", "size", "a larger file is not opened, and none is written beyond it", low=1, high=1 << 60),
        Key("hard-links", "flag", "files with several names too, some of which may be elsewhere", default="false"),
        many=True,
    ),
    Table(
        "exec",
        "programs that guest-exec may run; with one such rule, none but those of rules",
        _ID,
        Key("program", "path", "the program, as the host has to name it", required=True),
        Key(
            "args",
            "patterns",
            'one pattern for each argument; a last "..." stands for any number of more',
            default="[]: none",
        ),
        Key("env", "patterns", "names of the variables that the host may set", default="[]: none"),
        Key("input", "flag", "the host may give it standard input", default="false"),
        Key("user", "account", "who it runs as; root too has to be named", required=True),
        Key("group", "account", "its one group", default="the user's own"),
        Key("network", "flag", "false: an empty network namespace", default="true"),
        Key(
            "writable",
            "paths",
            "it may write to these files and folders and nowhere else",
            default="wherever the user may",
        ),
        Key("time-limit", "seconds", "until it is killed with its process group", default="none", low=1, high=86400),
        Key("output-limit", "size", "bytes kept of each output", default="[sizes] exec-output", high=16 << 20),
        Key("mask", "flag", "audit records do not show its arguments", default="false"),
        many=True,
    ),
    Table(
        "user",
        "accounts whose password and SSH keys the host may change; with one such rule, none but those of rules",
        _ID,
        Key("names", "patterns", 'names and patterns; of accounts with uid 0 only "root" itself'),
        Key("uids", "uids", "numbers and ranges; a range never means 0, only the number by itself"),
        Key("for", "choices", "what for", default='["password", "keys"]', choices=USER_PURPOSES),
        many=True,
    ),
)

BY_NAME: Final = {t.name: t for t in TABLES}
RULE_KINDS: Final = tuple(t.name for t in TABLES if t.many)


def bytes_of(text: str) -> int | None:
    """A size in words: "64K" is 65536; None for anything else."""
    digits, unit = (text[:-1], text[-1]) if text and text[-1] in "KMG" else (text, "")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 19):
        return None
    return int(digits) << {"": 0, "K": 10, "M": 20, "G": 30}[unit]
