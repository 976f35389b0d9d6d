#!/usr/bin/env python3
"""Write the man pages: docs/man/*.in with what tables decide put in its place.

    man.py --out build/man          # privsep-ga.8 privsep-gactl.1 privsep-ga.conf.5 privsep-ga-policy.5

Options come from what the parsers know, processes from the privilege table, keys from the policy's key table, commands from
the command table and the shipped profiles; prose is in the templates.  A line `@NAME@` of a template becomes what the
function of that name below returns.

Facts: man(7), man-pages(7), groff_man_style(7).
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from os import environ
from pathlib import Path

TREE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TREE))

from policy import keys as policy_keys  # noqa: E402
from policy.builtin import PROFILES  # noqa: E402
from policy.keys import TABLES, Key  # noqa: E402
from privsep import cli, ctl, usage  # noqa: E402
from privsep.domains import DOMAINS  # noqa: E402
from privsep.version import VERSION  # noqa: E402
from protocol.commands import COMMANDS  # noqa: E402

TEMPLATES = TREE / "docs" / "man"


def roff(text: str) -> str:
    """Plain text as it stands in a page: nothing of it is a request or an escape, and `-` can be copied into a shell."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("^", "\\(ha").replace("~", "\\(ti")
    return re.sub(r"(?m)^([.'])", r"\\&\1", text)


def item(head: str, *paragraphs: str) -> str:
    """A tagged paragraph; `head` is roff already.  What follows the first paragraph is indented with it."""
    first, *more = [p for p in paragraphs if p] or [""]
    return "\n".join([".TP", head, first, *(f".IP\n{p}" for p in more)])


def sentence(text: str) -> str:
    """As a sentence, in roff; a command's name stays as it is."""
    head = text[:1] if text.startswith("guest-") else text[:1].upper()
    return roff(f"{head}{text[1:].rstrip('.')}.")


def bold(text: str) -> str:
    return f"\\fB{roff(text)}\\fR"


def italic(text: str) -> str:
    return f"\\fI{roff(text)}\\fR"


# -- privsep-ga(8)


def described() -> Iterator[tuple[str, dict[str, str]]]:
    """The sections of `privsep-ga --help`: (title, {"-m, --method": text})."""
    title, found, names = "", dict[str, str](), ""
    for line in usage.usage("privsep-ga").splitlines():
        option = re.match(r"  (-\w, --[\w-]+|    --[\w-]+)(?:  +(.*))?$", line)
        if re.match(r"\w.*:$", line) and not line.startswith("Usage"):
            if found:
                yield title, found
            title, found, names = line[:-1], {}, ""
        elif option:
            names = option[1].strip()
            found[names] = option[2] or ""
        elif names and line.startswith(" " * 10):
            found[names] = f"{found[names]} {line.strip()}".strip()
    yield title, found


def options() -> str:
    """Every option of the command line, with what --help says of it."""
    kinds = {long: kind for long, _, kind in cli.OPTIONS}
    lines = []
    for title, found in described():
        lines.append(f".SS {title}")
        for names, text in found.items():
            long = names.rpartition("--")[2]
            if long not in kinds:
                raise SystemExit(f"--help names --{long}, which the parser does not know")
            argument = ("", "=" + italic(long.upper()), "[=" + italic("PATH") + "]")[kinds.pop(long)]
            head = ", ".join(bold(n) for n in names.split(", ")) + argument
            lines.append(item(head, sentence(text)))
    if kinds:
        raise SystemExit(f"--help says nothing about {', '.join(kinds)}")
    return "\n".join(lines)


def processes() -> str:
    def held(caps: object) -> str:
        names = [str(c) for c in caps]  # type: ignore[attr-defined]
        if names == ["ALL"]:
            return "every capability that the agent has"
        return ", ".join(f"CAP_{c}" for c in names) or "no capability"

    rows = [item(bold("supervisor"), "Starts, compares and ends the others, and decodes nothing. User root.")]
    rows += [item(bold(d.name), f"{sentence(d.why)} {sentence(f'User {d.user}; {held(d.caps)}')}") for d in DOMAINS]
    return "\n".join(rows)


# -- privsep-gactl(1)


def actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if not isinstance(action, (argparse._HelpAction, argparse._SubParsersAction)):
            yield action


def metavar(action: argparse.Action) -> str:
    name = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    return italic(name)


def synopsis(action: argparse.Action) -> str:
    if action.option_strings:
        text = bold(action.option_strings[-1]) + ("" if action.nargs == 0 else f" {metavar(action)}")
        return text if action.required else f"[{text}]"
    many = {"*": "[{}]...", "+": "{}...", "?": "[{}]"}.get(str(action.nargs), "{}")
    return many.format(metavar(action))


def leaves(parser: argparse.ArgumentParser, words: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    nested = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    for sub in nested:
        for name, child in sub.choices.items():
            yield from leaves(child, f"{words} {name}".strip())
    if not nested:
        yield words, parser


def subcommands() -> str:
    lines = []
    for words, parser in leaves(ctl.parser()):
        about = (parser.description or "").strip()
        lines.append(
            item(
                " ".join([bold(words), *(synopsis(a) for a in actions(parser))]),
                sentence(about),
            )
        )
        told = [a for a in actions(parser) if a.help]
        if told:
            lines.append(".RS")
            for a in told:
                head = bold(a.option_strings[-1]) if a.option_strings else metavar(a)
                if a.option_strings and a.nargs != 0:
                    head += f" {metavar(a)}"
                lines.append(item(head, roff(str(a.help))))
            lines.append(".RE")
    return "\n".join(lines)


# -- privsep-ga-policy(5)


def kinds() -> dict[str, str]:
    """What a value of each kind may be, in the words of the key table's header."""
    found = dict(re.findall(r"(?m)^    (\w+) +(.+)$", policy_keys.__doc__ or ""))
    for kind, words in found.items():
        if words.startswith("the same"):
            before = found[list(found)[list(found).index(kind) - 1]]
            found[kind] = before + words.removeprefix("the same")
    return found


def value(key: Key) -> str:
    """What a key's value may be, in words."""
    words = kinds()[key.kind].replace("`low`", str(key.low)).replace("`high`", str(key.high))
    return words.replace("`choices`", ", ".join(key.choices)).replace("`", "")


def described_key(key: Key) -> str:
    more = sentence(value(key))
    if key.required:
        more += " Required."
    elif key.default:
        more += f" {sentence(f'Default: {key.default}')}"
    name = italic("COMMAND") if key.name == "*" else bold(key.name)
    return item(name, sentence(key.doc), more)


def keys() -> str:
    lines = []
    for table in TABLES:
        name = ("[[{}]]" if table.many else "[{}]").format(table.name) if table.name else "The file as a whole"
        lines.append(f'.SS "{roff(name)}"')
        if table.name:
            lines.append(sentence(table.doc))
        lines += [described_key(key) for key in table.keys.values()]
        if table.any_key is not None:
            lines.append(described_key(table.any_key))
    return "\n".join(lines)


def profiles() -> str:
    return "\n".join(
        item(bold(name), f"{sentence(row[0])} Allows {len(row[1])} of {len(COMMANDS)} commands.")
        for name, row in PROFILES.items()
    )


def commands() -> str:
    """Every command, by domain: its arguments, since when there is one, and which profiles allow it."""
    lines = []
    for domain in dict.fromkeys(c.domain for c in COMMANDS):
        lines.append(f'.SS "@{domain}"')
        for command in (c for c in COMMANDS if c.domain == domain):
            arguments = " ".join(italic(a.name) if not a.optional else f"[{italic(a.name)}]" for a in command.args)
            allowed = [name for name, row in PROFILES.items() if command.name in row[1]]
            text = f"Since {command.since}. Profiles: {', '.join(allowed)}."
            if command.frozen:
                text += " Also while file systems are frozen."
            if not command.replies:
                text += " Not answered when it succeeds."
            lines.append(item(f"{bold(command.name)} {arguments}".rstrip(), roff(text)))
    return "\n".join(lines)


PARTS: dict[str, Callable[[], str]] = {
    "OPTIONS": options,
    "PROCESSES": processes,
    "SUBCOMMANDS": subcommands,
    "KEYS": keys,
    "PROFILES": profiles,
    "COMMANDS": commands,
    "VERSION": lambda: VERSION,
    "DATE": lambda: (
        datetime.fromtimestamp(int(environ.get("SOURCE_DATE_EPOCH", datetime.now(UTC).timestamp())), UTC)
        .date()
        .isoformat()
    ),
}


def page(template: str) -> str:
    """A template with its parts in place, lines of what the formatter fills at most 80 bytes.  KeyError for an unknown part."""
    lines: list[str] = []
    filled = True
    for line in re.sub(r"@([A-Z]+)@", lambda found: PARTS[found[1]](), template).splitlines():
        filled = line != ".EX" and (filled or line == ".EE")
        if filled and len(line) > 80 and not line.startswith(".") and lines[-1] != ".TP":
            # A line must not begin with what would make it a request.
            broken = textwrap.wrap(line, 79, break_long_words=False, break_on_hyphens=False)
            lines += [f"\\&{part}" if part[0] in ".'" else part for part in broken]
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    """File name -> text."""
    return {path.stem: page(path.read_text(encoding="utf-8")) for path in sorted(TEMPLATES.glob("*.in"))}


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the man pages of privsep-ga.")
    parser.add_argument("--out", required=True, help="the folder that they are written to")
    folder = Path(parser.parse_args(words).out)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
