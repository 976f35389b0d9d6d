#!/usr/bin/env python3
"""Write the programs: bin/privsep-ga, bin/privsep-gactl and libexec/privsep-ga/<domain> for each row of the privilege table.

They are files of their own rather than `python -m` because a security module labels a process by the file that it
executes, and an isolated interpreter without `site` (-IS) starts in half the time and looks neither at the environment
nor at the current folder.  Each puts the module folder first and the folder of the libraries last on the module search path,
imports one module and calls its `main`.  What is on the way to the first answer imports without the garbage collector (2 ms of
the front's start) and by a finder of its own.  Nothing is written that is there already, so a second run is free.

Used by `make setup` for the source tree and by the packages with their own paths:

    launchers.py --prefix .venv                                            # this tree, the libraries of this interpreter
    launchers.py --prefix /usr --destdir debian/privsep-ga --python /usr/bin/python3 \\
                 --modules /usr/share/privsep-ga --libraries /usr/lib/python3/dist-packages --sbindir /usr/sbin

Facts: the kernel reads 256 bytes of a script's first line since 5.1 and 128 before (BINPRM_BUF_SIZE; execve(2)), and splits
it at the first blank: what is longer, or has a blank, goes through /bin/sh.
"""

from __future__ import annotations

import argparse
import os
import sys
import sysconfig
from pathlib import Path

TREE = Path(__file__).resolve().parents[1]
LONGEST_SHEBANG = 127
MARK = "# Written by packaging/launchers.py; changes are lost."


def shebang(python: str, options: str) -> str:
    """The first line, or the lines that reach the interpreter through the shell where one line cannot."""
    line = f"#!{python} {options}"
    if len(os.fsencode(line)) <= LONGEST_SHEBANG and not any(c.isspace() for c in python):
        return line + "\n"
    # The shell sees: ''exec PYTHON ...; Python sees a string that is nobody's.
    quoted = python.replace("'", "'\"'\"'")
    return f"#!/bin/sh\n'''exec' '{quoted}' {options} \"$0\" \"$@\"\n' '''\n"


def program(
    python: str, options: str, modules: str, libraries: str, module: str, call: str, *, hurry: bool = False
) -> str:
    """The text of one program.  `!a` keeps paths that are not ASCII or not UTF-8 right in any locale.

    `hurry`: it imports without the garbage collector, which `main` turns on when there will be garbage, and by `privsep/finder.py`."""
    lines = [MARK, *(["import gc"] if hurry else []), "import sys", "", *(["gc.disable()"] if hurry else [])]
    lines += ["sys.dont_write_bytecode = True", f"sys.path.insert(0, {modules!a})"]
    if libraries and libraries != modules:
        lines += [f"sys.path.append({libraries!a})"]
    if hurry:
        lines += ["", "from privsep import finder", "", f"finder.install({modules!a})"]
    lines += ["", f"from {module} import main", "", call]
    return shebang(python, options) + "\n".join(lines) + "\n"


def programs(python: str, modules: str, libraries: str, libexec: str) -> dict[tuple[str, str], str]:
    """(kind, name) -> text; kind is "sbin", "bin" or "libexec"."""
    sys.path.insert(0, str(TREE))
    from privsep.domains import DOMAINS

    def lean(module: str, call: str) -> str:
        return program(python, "-IS", modules, libraries, module, call, hurry=True)

    found = {
        ("sbin", "privsep-ga"): lean("privsep.cli", f"sys.exit(main(libexec={libexec!a}))"),
        # The administrator's tool runs seldom and needs no more isolation than any other program.
        ("bin", "privsep-gactl"): program(python, "-I", modules, libraries, "privsep.ctl", "sys.exit(main())"),
        ("libexec", "recover"): lean("privsep.recover", "sys.exit(main())"),
    }
    for row in DOMAINS:
        found["libexec", row.name] = lean("privsep.child", f"sys.exit(main({row.name!r}, {libexec + '/filters'!a}))")
    return found


def write(path: Path, text: str) -> bool:
    """Make path an executable file with this text.  False if it was one."""
    data = text.encode("ascii", "surrogateescape") if text.isascii() else os.fsencode(text)
    try:
        if path.read_bytes() == data and path.stat().st_mode & 0o777 == 0o755:
            return False
    except FileNotFoundError:
        pass
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(data)
    draft.chmod(0o755)
    draft.rename(path)
    return True


def remove_strangers(folder: Path, wanted: set[str]) -> list[Path]:
    """Programs of an earlier table whose row is gone."""
    gone = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in wanted and path.is_file() and MARK.encode() in path.read_bytes()[:1024]:
            path.unlink()
            gone.append(path)
    return gone


def interpreter() -> str:
    """The interpreter itself rather than the virtual environment's link to it: one lookup of pyvenv.cfg less at each start,
    and the file that a security policy knows."""
    return os.path.realpath(sys.executable)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the programs of privsep-ga.")
    parser.add_argument("--prefix", required=True, help="below it bin/ and libexec/privsep-ga/")
    parser.add_argument("--destdir", default="", help="put before every path that is written to")
    parser.add_argument("--python", default=interpreter(), help="the interpreter (default: this one)")
    parser.add_argument("--modules", default=str(TREE), help="where privsep, protocol, workers and policy are")
    parser.add_argument(
        "--libraries",
        default=sysconfig.get_path("platlib"),
        help="where python-prctl and msgpack are; empty: nowhere else",
    )
    parser.add_argument("--bindir", help="default: PREFIX/bin")
    parser.add_argument("--sbindir", help="of privsep-ga (default: as --bindir)")
    parser.add_argument("--libexecdir", help="default: PREFIX/libexec/privsep-ga")
    options = parser.parse_args(argv)

    prefix = Path(os.path.abspath(options.prefix))
    bindir = options.bindir or str(prefix / "bin")
    folders = {
        "bin": bindir,
        "sbin": options.sbindir or bindir,
        "libexec": options.libexecdir or str(prefix / "libexec" / "privsep-ga"),
    }
    places = {kind: Path(options.destdir + folder) for kind, folder in folders.items()}
    texts = programs(options.python, options.modules, options.libraries, folders["libexec"])
    written = [places[kind] / name for (kind, name), text in texts.items() if write(places[kind] / name, text)]
    gone = remove_strangers(places["libexec"], {name for kind, name in texts if kind == "libexec"})
    for path in written:
        print(f"wrote {path}")
    for path in gone:
        print(f"removed {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
