#!/usr/bin/env python3
"""Compile the policy module, link it with the whole of Debian's policy, and check what comes out.

    build.py             all of it: what `make selinux` does
    build.py module      the module alone, build/selinux/privsep_ga.pp, as a package ships it

Linking is what makes secilc check each `neverallow`, ours and Debian's, against every rule of both.  `semodule -i` on a running
system does not (expand-check=0), so a module that breaks a promise would be loaded there without a word.

Debian's policy is fetched by apt-get and unpacked below build/, never installed: its package would switch a machine to it.
Everything is kept by a hash of what it was made of.
"""

from __future__ import annotations

import bz2
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "build" / "selinux"
NAME = "privsep_ga"
SOURCES = tuple(HERE / f"{NAME}.{kind}" for kind in ("te", "fc", "if"))
DEVEL = Path("/usr/share/selinux/devel/Makefile")
SYSTEM_PYTHON = "/usr/bin/python3"  # python3-setools is for the system's interpreter

# PROGRAM or FILE, package.
NEEDS = (
    ("checkmodule", "checkpolicy"),
    ("semodule_package", "semodule-utils"),
    ("secilc", "secilc"),
    ("m4", "m4"),
    ("make", "make"),
    ("gawk", "gawk"),
    (str(DEVEL), "selinux-policy-dev"),
    ("/usr/lib/python3/dist-packages/setools", "python3-setools"),
)
LINKING = ("secilc", "python3-setools")
# Fetched and unpacked: the policy, and the converter of its modules to CIL.
FETCHED = ("selinux-policy-default", "policycoreutils")


class BuildError(Exception):
    """The text says what failed, or what to install."""


def missing(*, module_only: bool = False) -> list[str]:
    """Packages that the build needs and this machine lacks."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return [
        package
        for need, package in NEEDS
        if not (module_only and package in LINKING)
        and not (Path(need).exists() if need.startswith("/") else shutil.which(need, path=path))
    ]


def install(lacking: list[str]) -> None:
    """Have the packages.  Raises BuildError when we may not install them."""
    if not lacking:
        return
    command = ["apt-get", "-o", "DPkg::Lock::Timeout=300", "install", "-y", "-q", "--no-install-recommends", *lacking]
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise BuildError(
            f"missing: {' '.join(lacking)}.  As root:  apt-get install {' '.join(lacking)}  (Debian's names)"
        )
    print(f"selinux: installing {' '.join(lacking)}", file=sys.stderr, flush=True)
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    if subprocess.run(command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL).returncode != 0:
        subprocess.run(["apt-get", "update", "-q"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        _run(command, env=environ, stdin=subprocess.DEVNULL)


def _run(command: list[str], **more: object) -> str:
    """Its output.  Raises BuildError with it."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)  # type: ignore[call-overload]
    if done.returncode != 0:
        raise BuildError(f"{Path(command[0]).name} failed:\n{done.stdout.strip()[-6000:]}")
    output: str = done.stdout
    return output


def digest(*parts: bytes) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "big") + part)
    return found.hexdigest()[:16]


def _made(place: Path, work: object) -> Path:
    """The folder, filled by `work` in a draft that is renamed when whole."""
    if not place.exists():
        OUT.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=OUT))
        try:
            work(draft)  # type: ignore[operator]
            try:
                draft.rename(place)
            except OSError:
                if not place.exists():  # another build was faster
                    raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return place


def debian() -> Path:
    """A folder with each module of Debian's policy in CIL, and the converter, `pp`."""

    def fetch(draft: Path) -> None:
        print("selinux: fetching and converting Debian's policy (once)", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as name:
            work = Path(name)
            work.chmod(0o777)  # apt-get drops to a user of its own for the download
            _run(["apt-get", "download", *FETCHED], cwd=work, stdin=subprocess.DEVNULL)
            for package in work.glob("*.deb"):
                _run(["dpkg", "-x", str(package), str(work / "tree")])
            shutil.copy(work / "tree/usr/libexec/selinux/hll/pp", draft / "pp")
            for module in sorted((work / "tree/usr/share/selinux/default").glob("*.pp.bz2")):
                stem = module.name.removesuffix(".pp.bz2")
                (work / "module.pp").write_bytes(bz2.decompress(module.read_bytes()))
                _run([str(draft / "pp"), str(work / "module.pp"), str(draft / f"{stem}.cil")])

    return _made(OUT / "debian", fetch)


def module() -> Path:
    """A folder with the compiled module, privsep_ga.pp."""

    def compile_it(draft: Path) -> None:
        for source in SOURCES:
            shutil.copy(source, draft)
        _run(["make", "-s", "-f", str(DEVEL), "NAME=default", f"{NAME}.pp"], cwd=draft)
        shutil.rmtree(draft / "tmp")

    return _made(OUT / f"module-{digest(*(s.read_bytes() for s in SOURCES), DEVEL.read_bytes())}", compile_it)


def link(more: str = "", *, neverallow: bool = True) -> Path:
    """The binary policy of Debian and us, with `more` in CIL beside.  Raises BuildError: a promise does not hold, for one."""
    base, ours = debian(), module()

    def build(draft: Path) -> None:
        cil = draft / f"{NAME}.cil"
        _run([str(base / "pp"), str(ours / f"{NAME}.pp"), str(cil)])
        (draft / "more.cil").write_text(more)
        parts = [*sorted(base.glob("*.cil")), cil, *([draft / "more.cil"] if more else [])]
        check = [] if neverallow else ["-N"]
        _run(["secilc", *check, "-o", str(draft / "policy"), "-f", str(draft / "contexts"), *map(str, parts)])

    parts = (ours.name.encode(), more.encode(), bytes([neverallow]), *(p.name.encode() for p in base.glob("*.cil")))
    return _made(OUT / f"linked-{digest(*parts)}", build) / "policy"


def check(policy: Path) -> str:
    """What `check.py` says of a linked policy.  Raises BuildError with it when it is not as declared."""
    return _run([SYSTEM_PYTHON, "-B", str(HERE / "check.py"), str(policy)])


def main() -> int:
    module_only = sys.argv[1:] == ["module"]
    os.environ["PATH"] = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    try:
        _run([sys.executable, "-B", str(HERE / "generate.py"), "--check"])
        install(missing(module_only=module_only))
        compiled = module() / f"{NAME}.pp"
        shutil.copy(compiled, OUT / f"{NAME}.pp")
        if module_only:
            print(OUT / f"{NAME}.pp")
            return 0
        policy = link()
        print(f"linked with Debian's policy, every neverallow holds: {policy}")
        print(check(policy), end="")
    except BuildError as e:
        print(f"selinux: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
