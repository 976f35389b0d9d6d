#!/usr/bin/env python3
"""Write the shells' completions of privsep-ga and privsep-gactl.

    completions.py --out build/completions      # bash/privsep-ga bash/privsep-gactl zsh/_privsep-ga ... fish/privsep-ga.fish ...

Made of the programs' own parsers (privsep/ctl.py, privsep/cli.py) and tables (commands, profiles, channel methods), so a new
option or command is in all three shells at once.  Each file stands by itself: none needs the shell's own completion library.

Facts: bash(1) "Programmable Completion" (COMP_WORDS is split at `=` and `:` too), zshcompsys(1) (_arguments), fish complete(1).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

TREE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TREE))

from policy.builtin import COMMANDS, PROFILES  # noqa: E402
from privsep import cli, ctl, getopt, usage  # noqa: E402
from privsep.channel import METHODS  # noqa: E402
from privsep.domains import DOMAINS  # noqa: E402

# What an argument may be.
NOTHING = "nothing"
FILES = "files"
FOLDERS = "folders"
LISTS = "lists"  # commands, separated by commas


class Option:
    """`names` with their dashes; `value` None: it takes none; else words, FILES, FOLDERS, LISTS or NOTHING known."""

    def __init__(
        self, names: list[str], value: str | tuple[str, ...] | None, text: str, *, attached: bool = False
    ) -> None:
        self.names = names
        self.value = value
        self.text = text
        self.attached = attached  # the value only after `=`, and it may be left out


class Words:
    """What may follow a command's words: `path` "" for the program itself."""

    def __init__(
        self, path: str, options: list[Option], children: dict[str, str], positional: list[str | tuple[str, ...]]
    ) -> None:
        self.path = path
        self.options = options
        self.children = children  # name -> what it is for
        self.positional = positional  # the last one again and again


# By what an argument is called in the parsers.
_KINDS: dict[str, str | tuple[str, ...]] = {
    "FILE": FILES,
    "PATH": FILES,
    "CASES": FILES,
    "DIR": FOLDERS,
    "NAME": tuple(COMMANDS),
    "REQUEST": tuple(COMMANDS),
    "NAME|FILE": (*PROFILES, FILES),
    "OLD": (*PROFILES, FILES),
    "NEW": (*PROFILES, FILES),
}


def kind(action: argparse.Action) -> str | tuple[str, ...]:
    if action.choices:
        return tuple(str(c) for c in action.choices)
    if action.dest == "domain":
        return tuple(d.name for d in DOMAINS)
    return _KINDS.get(str(action.metavar), NOTHING)


def gactl(parser: argparse.ArgumentParser, path: str = "") -> Iterator[Words]:
    """The parser's tree, each command before those below it."""
    options, positional = [], list[str | tuple[str, ...]]()
    children: dict[str, argparse.ArgumentParser] = {}
    texts: dict[str, str] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            children = dict(action.choices)
            texts = {str(a.dest): a.help or "" for a in action._choices_actions}
        elif action.option_strings:
            value = None if action.nargs == 0 else kind(action)
            options.append(Option(list(action.option_strings), value, action.help or ""))
        else:
            positional.append(kind(action))
    yield Words(path, options, {name: texts.get(name, "") for name in children}, positional)
    for name, child in children.items():
        yield from gactl(child, f"{path} {name}".strip())


_VALUES: dict[str, str | tuple[str, ...]] = {
    "method": METHODS,
    "path": FILES,
    "logfile": FILES,
    "pidfile": FILES,
    "fsfreeze-hook": FILES,
    "config": FILES,
    "statedir": FOLDERS,
    "policy": (*PROFILES, FILES),
    "block-rpcs": LISTS,
    "allow-rpcs": LISTS,
    "blacklist": LISTS,
}


def agent() -> Words:
    """privsep-ga has options only."""
    told = _help()
    options = []
    for long, code, argument in cli.OPTIONS:
        names = [f"-{code}"] * (len(code) == 1) + [f"--{long}"]
        value = None if argument == getopt.NONE else _VALUES[long]
        options.append(Option(names, value, told.get(long, ""), attached=argument == getopt.OPTIONAL))
    return Words("", options, {}, [])


def _help() -> dict[str, str]:
    """Long name -> the first line that --help has about it."""
    found = {}
    name = ""
    for line in usage.usage("privsep-ga").splitlines():
        head, _, text = line.strip().partition("  ")
        if head.startswith("-"):
            name = head.rpartition("--")[2]
        elif name and not found.get(name):
            text = line
        if name and not found.get(name):
            found[name] = text.strip()
    return found


# -- bash


def bash(program: str, tree: list[Words]) -> str:
    """Functions of the shell's own words only."""
    function = "_" + program.replace("-", "_")

    def shown(value: str | tuple[str, ...]) -> str:
        """The statements that complete such a value."""
        if type(value) is str:
            return {FILES: f"{function}_files", FOLDERS: f"{function}_folders", LISTS: f"{function}_list"}.get(
                value, ":"
            )
        words = [w for w in value if w != FILES]
        known = '"$commands"' if words == list(COMMANDS) else f'"{" ".join(words)}"'
        return f"{function}_words {known}" + (f"; {function}_files" if FILES in value else "")

    values, options, places = [], [], []
    for words in tree:
        for option in words.options:
            if option.value is not None:
                names = [f"{n}=" for n in option.names if n.startswith("--")] + option.names * (not option.attached)
                values.append(f"    {'|'.join(quoted(f'{words.path}:{n}') for n in names)}) {shown(option.value)} ;;")
        names = [n for o in words.options for n in o.names]
        options.append(f'    "{words.path}") options="{" ".join(names)}" ;;')
        if words.children:
            places.append(f'    "{words.path}":*) {function}_words "{" ".join(words.children)}" ;;')
        for number, value in enumerate(words.positional):
            last = number == len(words.positional) - 1
            places.append(f'    "{words.path}":{"*" if last else number}) {shown(value)} ;;')
    return _BASH.format(
        program=program,
        function=function,
        commands=" ".join(COMMANDS),
        known="|".join(quoted(w.path) for w in tree if w.path) or "//",
        values="\n".join(values),
        options="\n".join(options),
        places="\n".join(places),
    )


def quoted(text: str) -> str:
    return f'"{text}"'


_BASH = """# bash completion of {program}.  Written by packaging/completions.py; changes are lost.

{function}_words() {{ COMPREPLY+=($(compgen -W "$1" -- "$cur")); }}

{function}_files() {{
    local IFS=$'\\n'
    compopt -o filenames 2>/dev/null
    COMPREPLY+=($(compgen -f -- "$cur"))
}}

{function}_folders() {{
    local IFS=$'\\n'
    compopt -o filenames 2>/dev/null
    COMPREPLY+=($(compgen -d -- "$cur"))
}}

# Names with commas between them: the last one.
{function}_list() {{
    local before=""
    [[ $cur == *,* ]] && before="${{cur%,*}},"
    compopt -o nospace 2>/dev/null
    COMPREPLY+=($(compgen -P "$before" -W "$commands" -- "${{cur##*,}}"))
}}

# Completes the value of an option; fails where it takes none.
{function}_value() {{
    case "$1" in
{values}
    *) return 1 ;;
    esac
    return 0
}}

{function}() {{
    local commands="{commands}"
    local cur="${{COMP_WORDS[COMP_CWORD]}}" prev="${{COMP_WORDS[COMP_CWORD - 1]}}"
    local path="" number=0 options="" this last i
    # The shell splits --name=value into three words.
    if [[ $cur == "=" ]]; then
        cur="" prev="$prev="
    elif [[ $prev == "=" ]]; then
        prev="${{COMP_WORDS[COMP_CWORD - 2]}}="
    fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        this="${{COMP_WORDS[i]}}" last="${{COMP_WORDS[i - 1]}}"
        case "${{path:+$path }}$this" in
        {known})
            path="${{path:+$path }}$this" number=0
            continue
            ;;
        esac
        [[ $this == -* || $this == "=" || $last == "=" ]] && continue
        {function}_value "$path:$last" && continue
        number=$((number + 1))
    done
    COMPREPLY=()
    {function}_value "$path:$prev" && return
    if [[ $cur == -* ]]; then
        case "$path" in
{options}
        esac
        {function}_words "$options"
        return
    fi
    case "$path:$number" in
{places}
    esac
}}

complete -F {function} {program}
"""


# -- zsh


def _zsh_text(text: str) -> str:
    """Within single quotes, and without what _arguments reads."""
    return text.replace("'", "’").replace("[", "(").replace("]", ")").replace(":", " -").replace("\\", "")


def _zsh_action(value: str | tuple[str, ...]) -> str:
    if type(value) is str:
        return {FILES: "_files", FOLDERS: "_files -/", LISTS: "_sequence compadd - $commands"}.get(value, "")
    words = [w for w in value if w != FILES]
    known = "compadd -a commands" if words == list(COMMANDS) else f"({' '.join(words)})"
    return "_privsep_policies" if FILES in value else known


def zsh(program: str, tree: list[Words]) -> str:
    function = "_" + program.replace("-", "_")
    by_path = {w.path: w for w in tree}
    lines = [f"#compdef {program}", f"# Written by packaging/completions.py for {program}; changes are lost.", ""]
    lines += [
        "_privsep_policies() {",
        f"    local -a names=({' '.join(PROFILES)})",
        "    compadd -a names",
        "    _files",
        "}",
        "",
    ]

    def body(words: Words) -> None:
        name = "_".join([function, *words.path.replace("-", "_").split()])
        lines.extend([f"{name}() {{", f"    local -a commands=({' '.join(COMMANDS)})"])
        specs = []
        for option in words.options:
            short = "[" + _zsh_text(option.text) + "]"
            names = " ".join(option.names)
            for each in option.names:
                group = f"({names})" if len(option.names) > 1 else ""
                if option.value is None:
                    specs.append(f"'{group}{each}{short}'")
                else:
                    sign = "=-" if option.attached and each.startswith("--") else "-" if option.attached else "="
                    sign = sign if each.startswith("--") or option.attached else "+"
                    specs.append(
                        f"'{group}{each}{sign}{short}:{'' if not option.attached else ':'}value:{_zsh_action(option.value)}'"
                    )
        if words.children:
            names = "\n".join(f"        '{n}:{_zsh_text(t)}'" for n, t in words.children.items())
            lines.extend(["    local -a children=(", names, "    )", "    local curcontext=$curcontext state line"])
            specs += ["'1: :->child'", "'*:: :->rest'"]
        for number, value in enumerate(words.positional):
            last = number == len(words.positional) - 1
            specs.append(f"'{'*' if last else number + 1}:argument:{_zsh_action(value)}'")
        joined = " \\\n        ".join(specs)
        lines.append(f"    _arguments -C -s -S \\\n        {joined}" if specs else "    :")
        if words.children:
            lines.extend(
                [
                    "    case $state in",
                    "    child) _describe command children ;;",
                    "    rest)",
                    "        case $words[1] in",
                ]
            )
            for child in words.children:
                inner = "_".join([name, child.replace("-", "_")])
                lines.append(f"        {child}) {inner} ;;")
            lines.extend(["        esac", "        ;;", "    esac"])
        lines.extend(["}", ""])
        for child in words.children:
            body(by_path[f"{words.path} {child}".strip()])

    body(by_path[""])
    lines.append(f'{function} "$@"')
    return "\n".join(lines) + "\n"


# -- fish


def _fish_text(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def fish(program: str, tree: list[Words]) -> str:
    lines = [f"# fish completion of {program}.  Written by packaging/completions.py; changes are lost.", ""]
    lines += [f"complete -c {program} -f", ""]
    function = "__fish_" + program.replace("-", "_") + "_at"
    paths = " ".join(_fish_text(w.path) for w in tree if w.path)
    # The words that are commands so far, compared with those asked for.
    lines += [
        f"function {function} --description 'whether these are the words of the command so far'",
        '    set -l path ""',
        "    for word in (commandline -opc)[2..-1]",
        '        set -l next (string trim -- "$path $word")',
        f"        contains -- $next {paths}; and set path $next",
        "    end",
        '    test "$path" = "$argv"',
        "end",
        "",
    ]
    for words in tree:
        start = f"complete -c {program} -n '{function} {words.path}'"
        for name, text in words.children.items():
            lines.append(f"{start} -a {name} -d {_fish_text(text)}")
        for option in words.options:
            parts = [f"-s {n[1:]}" if not n.startswith("--") else f"-l {n[2:]}" for n in option.names]
            if option.value is not None and not option.attached:
                parts.append("-r")
            parts += _fish_values(option.value) if option.value is not None else []
            lines.append(f"{start} {' '.join(parts)} -d {_fish_text(option.text)}")
        for value in dict.fromkeys(words.positional):
            parts = _fish_values(value)
            if parts:
                lines.append(f"{start} {' '.join(parts)}")
    return "\n".join(lines) + "\n"


def _fish_values(value: str | tuple[str, ...]) -> list[str]:
    if type(value) is str:
        if value == LISTS:
            return [f"-a '(__fish_append , {' '.join(COMMANDS)})'"]
        return {FILES: ["-F"], FOLDERS: ["-a '(__fish_complete_directories)'"]}.get(value, [])
    words = [w for w in value if w != FILES]
    return [f"-a '{' '.join(words)}'"] + ["-F"] * (FILES in value)


SHELLS = {"bash": (bash, "{}"), "zsh": (zsh, "_{}"), "fish": (fish, "{}.fish")}


def files() -> dict[str, str]:
    """Path below the output folder -> text."""
    trees = {"privsep-ga": [agent()], "privsep-gactl": list(gactl(ctl.parser()))}
    return {
        f"{shell}/{name.format(program)}": make(program, tree)
        for shell, (make, name) in SHELLS.items()
        for program, tree in trees.items()
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the shells' completions.")
    parser.add_argument("--out", required=True, help="the folder to write them to")
    options = parser.parse_args(argv)
    for name, text in files().items():
        path = Path(options.out) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
