"""What the policy's file rules mean on this machine: their paths as the kernel names them, and what an opened file must be.

Three looks, because each sees what the others cannot:

1. The decision (policy/decide.py) is about the text that the host sent.
2. Landlock is about what is opened: the rules' paths, resolved before the walls were up, are all that the kernel lets this process
   open, whatever links, `..`, bind mounts, /proc/self/fd or races lead to.
3. The opened descriptor is asked for what neither knows: where the file really is (another rule may be the one that counts there),
   how many names it has (a hard link inside a folder to a file outside is nothing that Landlock would see), whose it is, its size.

A rule is for the folder or the file that was there when this worker started.  When another was put in its place, the worker has to
be started anew before it may open that; it says so, and leaves.
"""

from __future__ import annotations

import os
import pwd
import stat

from policy.checks import CREATE, READ, WRITE, path_rule
from policy.decision import refuse
from policy.rules import Rule
from policy.trust import NotTrusted, walk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Final

    from privsep.runtime import Context
    from protocol.errors import CommandError

_COMMAND: Final = "guest-file-open"
# What of Landlock's letters (privsep/domains.py) each access needs.
_LETTERS: Final = {READ: "r", WRITE: "w", CREATE: "c"}


class FileRules:
    """The rules with their paths as the kernel names them ("real"); `granted` is for Landlock."""

    __slots__ = ("rules", "granted", "_owners", "_known", "_root")

    def __init__(self, ctx: Context, rules: Iterable[Rule]) -> None:
        self.rules: list[Rule] = []
        self.granted: list[tuple[int, str]] = []
        self._owners: dict[str, frozenset[int]] = {}
        self._known: dict[str, tuple[int, int] | None] = {}  # rule id -> device and inode; None: there was nothing
        self._root = ctx.root
        for rule in rules:
            self._resolve(ctx, rule)

    def _resolve(self, ctx: Context, rule: Rule) -> None:
        path = rule.one("path")
        try:
            fd = walk(path, folders=False, root=self._root or "/")
        except NotTrusted as e:
            ctx.log.error(f"rule {rule.id} ({rule.origin}) allows nothing: {e}")
            return
        except OSError as e:
            ctx.log.warning(f"rule {rule.id} ({rule.origin}) allows nothing for now: {path}: {e.strerror}")
            self._known[rule.id] = None
            return
        found = os.fstat(fd)
        self._known[rule.id] = found.st_dev, found.st_ino
        real = self._real(fd)
        self.rules.append(Rule(rule.kind, rule.id, rule.origin, {**rule.values, "real": (real,)}))
        self.granted.append((fd, "".join(_LETTERS[a] for a in rule.all("access"))))
        if rule.has("owner"):
            self._owners[rule.id] = frozenset(_uids(ctx, rule))

    def _real(self, fd: int) -> str:
        """Where the opened file is, as the kernel says."""
        name = os.readlink(f"/proc/self/fd/{fd}")
        return name[len(self._root) :] or "/" if name.startswith(self._root) else name

    def replaced(self, rule: Rule) -> bool:
        """Whether what the rule's path leads to is something else by now."""
        if rule.id not in self._known:
            return False
        try:
            found = os.stat(self._root + rule.one("path"))
        except OSError:
            return False
        return (found.st_dev, found.st_ino) != self._known[rule.id]

    def check(self, ctx: Context, fd: int, needs: Sequence[str], grant: Rule, *, new: bool) -> Rule:
        """The rule that admits what was opened.  Raises CommandError, and the log tells rule and file."""
        found = os.fstat(fd)
        try:
            real = self._real(fd)
        except OSError:
            real = ""
        rule = path_rule(self.rules, real, (*needs, CREATE) if new else needs, key="real")
        reason = ""
        if rule is None:
            rule, reason = grant, "what the path leads to is not beneath the path of a rule that allows it"
        elif not stat.S_ISREG(found.st_mode):
            reason = "it is not a regular file"
        elif found.st_nlink != 1 and rule.one("hard-links") != "true":
            reason = f"the file has {found.st_nlink} names, and some may be elsewhere"
        elif rule.id in self._owners and not new and found.st_uid not in self._owners[rule.id]:
            reason = "the file belongs to a user whom the rule does not name"
        elif rule.has("max-size") and found.st_size > int(rule.one("max-size")):
            reason = f"the file is larger than {rule.one('max-size')} bytes"
        if reason:
            raise self.refusal(ctx, _COMMAND, rule, reason)
        return rule

    @staticmethod
    def refusal(ctx: Context, command: str, rule: Rule, reason: str) -> CommandError:
        return ctx.refusal(command, refuse(rule, reason))


def _uids(ctx: Context, rule: Rule) -> list[int]:
    found = []
    for name in rule.all("owner"):
        try:
            found.append(int(name) if name.isdigit() else pwd.getpwnam(name).pw_uid)
        except KeyError:
            ctx.log.warning(f"rule {rule.id} ({rule.origin}): there is no user '{name}'")
    return found
