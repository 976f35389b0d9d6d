"""What each command's arguments must be for a rule to admit them.  Pure; `policy/decide.py` calls what `CHECKS` names.

A check says None where no rule of its kind speaks: then what allows the command allows this too.
"""

from __future__ import annotations

from policy.decision import Decision, refuse, refuse_by_all
from policy.patterns import beneath, is_pattern, matches

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Final

    from policy.rules import Rule, Scope

    # A user's number; None for one that does not exist.
    Uid = Callable[[str], int | None]

READ: Final = "read"
WRITE: Final = "write"
CREATE: Final = "create"

# What the modes of guest-file-open need; `create` is needed where there is no such file yet.
MODES: Final = {
    **dict.fromkeys(("r", "rb"), (READ,)),
    **dict.fromkeys(("w", "wb", "a", "ab"), (WRITE,)),
    **dict.fromkeys(("r+", "rb+", "r+b", "w+", "wb+", "w+b", "a+", "ab+", "a+b"), (READ, WRITE)),
}
_SUSPEND: Final = {
    "guest-suspend-disk": "suspend-disk",
    "guest-suspend-ram": "suspend-ram",
    "guest-suspend-hybrid": "suspend-hybrid",
}
_SHUTDOWN: Final = ("powerdown", "halt", "reboot")
_FREEZERS: Final = ("guest-fsfreeze-freeze", "guest-fsfreeze-freeze-list")
_SSH: Final = ("guest-ssh-get-authorized-keys", "guest-ssh-add-authorized-keys", "guest-ssh-remove-authorized-keys")
# What the loader, the C library, shells and interpreters obey: a pattern does not mean them, they have to be named.
_LOADER: Final = (
    "LD_",
    "GLIBC_",
    "MALLOC_",
    "GCONV_PATH",
    "LOCPATH",
    "NLSPATH",
    "BASH",
    "ENV",
    "IFS",
    "PATH",
    "PS4",
    "SHELLOPTS",
    "PYTHON",
    "PERL",
    "RUBY",
    "GEM_",
    "NODE_",
    "JAVA_",
    "JDK_",
    "_JAVA",
    "LUA_",
    "PHP",
    "GIT_",
    "OPENSSL_",
    "EDITOR",
    "VISUAL",
    "PAGER",
    "LESS",
    "TERMINFO",
    "HOSTALIASES",
    "RES_OPTIONS",
    "LOCALDOMAIN",
    "TMPDIR",
)
_DEFAULT_READ: Final = 4096  # bytes of a guest-file-read that does not say how many
MORE: Final = "..."  # as a program's last argument pattern: any number of further ones


# -- files


def path_rule(rules: Iterable[Rule], path: str, needs: Sequence[str], key: str = "path") -> Rule | None:
    """The rule that admits a path for all that is needed; of several the one with the longest path.

    `key`: a worker has the rules' paths as the kernel names them in "real"."""
    best: Rule | None = None
    for rule in rules:
        folder = rule.one(key)
        if not folder or not beneath(folder, path) or not all(n in rule.all("access") for n in needs):
            continue
        if best is None or len(folder) > len(best.one(key)):
            best = rule
    return best


def _file_open(
    scope: Scope, command: str, arguments: Mapping[str, object], uid: object, superblocks: object
) -> Decision | None:
    rules = scope.of("file")
    needs = MODES.get(str(arguments.get("mode", "r")))
    if not rules or needs is None:
        return None  # an unknown mode is the handler's to refuse, in the peer's words
    path = str(arguments["path"])
    if not path.startswith("/") or "\0" in path:
        return refuse_by_all(rules, "the path is not absolute")
    if ".." in path.split("/"):
        return refuse_by_all(rules, "the path has a '..' in it")
    plain = "/" + "/".join(p for p in path.split("/") if p not in ("", "."))
    rule = path_rule(rules, plain, needs)
    if rule is None:
        covering = path_rule(rules, plain, ())
        if covering is None:
            return refuse_by_all(rules, "no file rule has this path")
        return refuse(covering, f"this path may not be opened to {' and '.join(needs)}")
    conditions = ["what the path leads to is beneath the rule's path"]
    if rule.has("owner"):
        conditions.append(f"the file belongs to {' or '.join(rule.all('owner'))}")
    if rule.one("hard-links") != "true":
        conditions.append("the file has one name")
    if rule.has("max-size"):
        conditions.append(f"the file has at most {rule.one('max-size')} bytes")
    if WRITE in needs and CREATE not in rule.all("access"):
        conditions.append("the file exists")
    return Decision(True, rule.id, rule.origin, grant=rule, conditions=tuple(conditions))


def _length(value: object) -> int:
    """Bytes that a base64 text stands for, at most."""
    size = getattr(value, "size", None)
    characters = size if isinstance(size, int) else len(value)  # type: ignore[arg-type]
    return characters * 3 // 4


def _too_large(scope: Scope, key: str, size: int) -> Decision | None:
    for rule in scope.of("size"):
        if rule.one("key") == key and size > int(rule.one("limit")):
            return refuse(rule, f"{size} bytes at a time are more than {rule.one('limit')}")
    return None


def _file_read(
    scope: Scope, command: str, arguments: Mapping[str, object], uid: object, superblocks: object
) -> Decision | None:
    count = arguments.get("count", _DEFAULT_READ)
    return _too_large(scope, "file-read", count) if isinstance(count, int) else None


def _file_write(
    scope: Scope, command: str, arguments: Mapping[str, object], uid: object, superblocks: object
) -> Decision | None:
    return _too_large(scope, "file-write", _length(arguments["buf-b64"]))


# -- programs


def _arguments_fit(patterns: Sequence[str], given: Sequence[str]) -> bool:
    if patterns and patterns[-1] == MORE:
        patterns = patterns[:-1]
        if len(given) < len(patterns):
            return False
        given = given[: len(patterns)]
    return len(patterns) == len(given) and all(matches(p, g) for p, g in zip(patterns, given, strict=True))


def _variable_fits(patterns: Sequence[str], variable: str) -> bool:
    name, sign, _ = variable.partition("=")
    if not sign or not name:
        return False
    if name in patterns:
        return True
    # A shell takes a function out of a variable with another name than programs have.
    ordinary = name.isascii() and name.replace("_", "a").isalnum() and not name[0].isdigit()
    return ordinary and not name.startswith(_LOADER) and any(is_pattern(p) and matches(p, name) for p in patterns)


def _exec(
    scope: Scope, command: str, arguments: Mapping[str, object], uid: object, superblocks: object
) -> Decision | None:
    given = arguments.get("input-data")
    if given is not None:
        refused = _too_large(scope, "exec-input", _length(given))
        if refused is not None:
            return refused
    rules = scope.of("exec")
    if not rules:
        return None
    wanted: list[str] = arguments.get("arg") or []  # type: ignore[assignment]
    environment: list[str] = arguments.get("env") or []  # type: ignore[assignment]
    closest: Decision | None = None
    for rule in rules:
        if arguments["path"] != rule.one("program"):
            continue
        if not _arguments_fit(rule.all("args"), wanted):
            closest = closest or refuse(rule, "its arguments do not match")
        elif not all(_variable_fits(rule.all("env"), e) for e in environment):
            closest = refuse(rule, "its environment has a variable that the rule does not name")
        elif given is not None and rule.one("input") != "true":
            closest = refuse(rule, "it may not be given input")
        else:
            return Decision(True, rule.id, rule.origin, grant=rule)
    return closest or refuse_by_all(rules, "no exec rule has this program")


# -- users


def _in_ranges(ranges: Sequence[str], number: int) -> bool:
    for text in ranges:
        first, dash, last = text.partition("-")
        if not dash:
            if number == int(first):
                return True
        elif number != 0 and int(first) <= number <= int(last):
            return True
    return False


def _user_fits(rule: Rule, name: str, number: int | None) -> bool:
    if name in rule.all("names") and (number != 0 or name == "root"):
        return True
    if number != 0 and any(is_pattern(p) and matches(p, name) for p in rule.all("names")):
        return True
    return number is not None and _in_ranges(rule.all("uids"), number)


def _user(
    scope: Scope, command: str, arguments: Mapping[str, object], uid: Uid | None, superblocks: object
) -> Decision | None:
    name = str(arguments["username"])
    number = uid(name) if uid is not None else None
    purpose = "keys" if command in _SSH else "password"
    rules = scope.of("user")
    for rule in rules:
        if purpose in rule.all("for") and _user_fits(rule, name, number):
            return Decision(True, rule.id, rule.origin, grant=rule)
    guards = scope.of("root-account")
    if guards and (number == 0 or name == "root"):
        return refuse(guards[0], "its uid is 0, and no user rule says root, or the number 0")
    return refuse_by_all(rules, "no user rule has this account") if rules else None


# -- power


def _power(
    scope: Scope, command: str, arguments: Mapping[str, object], uid: object, superblocks: object
) -> Decision | None:
    mode = _SUSPEND.get(command) or arguments.get("mode", _SHUTDOWN[0])
    for rule in scope.of("power"):
        if mode in rule.all("modes"):
            return Decision(True, rule.id, rule.origin, grant=rule)
        if command in _SUSPEND or mode in _SHUTDOWN:  # another is the handler's to refuse, in the peer's words
            return refuse(rule, f"the mode {mode} is not one of {', '.join(rule.all('modes')) or 'none'}")
    return None


# -- mount points


def mount_refusal(scope: Scope, purpose: str, points: Sequence[str]) -> Rule | None:
    """The rule by which a superblock that is mounted at these points is left out; None where none is.

    `purpose`: fsfreeze or fstrim.  One point that `never-mounts` has is enough, and so is one that `only-mounts` has."""
    for kind, wanted in (("never-mounts", False), ("only-mounts", True)):
        for rule in scope.rules:
            if rule.kind != kind or rule.one("for") != purpose:
                continue
            if any(p == point or matches(p, point) for p in rule.all("points") for point in points) != wanted:
                return rule
    return None


def decide_mounts(scope: Scope, command: str, superblocks: Sequence[Sequence[str]]) -> Decision | None:
    """The refusal of a freeze of these superblocks, each given by its mount points; None where no rule speaks against it.

    A freeze is never narrowed: one superblock that is left out refuses all of it."""
    for points in superblocks:
        rule = mount_refusal(scope, "fsfreeze", points)
        if rule is not None:
            what = "a freeze of everything would include it" if command == _FREEZERS[0] else "it was asked for"
            return refuse(rule, f"the file system at {points[0]} may not be frozen, and {what}")
    return None


def _freeze(
    scope: Scope,
    command: str,
    arguments: Mapping[str, object],
    uid: object,
    superblocks: Sequence[Sequence[str]] | None,
) -> Decision | None:
    rules = [r for r in scope.rules if r.kind in ("never-mounts", "only-mounts")]
    if not rules:
        return None
    if superblocks is not None:
        return decide_mounts(scope, command, superblocks)
    rule, origin = scope.about(command)
    conditions = tuple(f"no file system that it means is left out by {r.id} ({r.origin})" for r in rules)
    return Decision(True, rule, origin, conditions=conditions)


def _trim(
    scope: Scope, command: str, arguments: Mapping[str, object], uid: object, superblocks: object
) -> Decision | None:
    rule, origin = scope.about(command)
    rules = [r for r in scope.rules if r.kind in ("never-mounts", "only-mounts")]
    conditions = tuple(f"without the file systems that {r.id} ({r.origin}) leaves out" for r in rules)
    return Decision(True, rule, origin, conditions=conditions) if rules else None


CHECKS: Final = {
    "guest-fstrim": _trim,
    "guest-file-open": _file_open,
    "guest-file-read": _file_read,
    "guest-file-write": _file_write,
    "guest-exec": _exec,
    "guest-set-user-password": _user,
    **dict.fromkeys(_SSH, _user),
    "guest-shutdown": _power,
    **dict.fromkeys(_SUSPEND, _power),
    **dict.fromkeys(_FREEZERS, _freeze),
}
