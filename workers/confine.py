"""What a program of a rule is kept from, put up in its process before it begins: the network, and writing elsewhere.

These walls are the program's and those of all that it starts.  Nothing of them is optional: where the kernel cannot put one up
the program does not run.

Facts: unshare(2) CLONE_NEWNET wants CAP_SYS_ADMIN, hence before the user is changed; a Landlock domain wants no_new_privs, which
this process has (privsep/sandbox/apply.py) and its children inherit.
"""

from __future__ import annotations

import os

from privsep.sandbox import kernel, landlock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from policy.rules import Rule
    from workers.launch import Account

# What every program may write to, besides what the rule says and the descriptors that it gets.
_SINKS: Final = ("/dev/null", "/dev/zero", "/dev/full")
_READ: Final = "lrx"
_WRITE: Final = "lrwxcdn"


class Confinement:
    """Made for one program, used in its process, closed here."""

    __slots__ = ("_account", "_network", "_rules")

    def __init__(self, rule: Rule, account: Account) -> None:
        """Raises OSError when it cannot be had."""
        self._account = account
        self._network = rule.one("network", "true") == "true"
        self._rules: landlock.Ruleset | None = None
        if not rule.has("writable"):
            return
        self._rules = landlock.Ruleset(network=True)
        if not self._rules.level:
            raise OSError(38, "this kernel has no Landlock")
        try:
            self._rules.allow("/", _READ)
            for path in _SINKS:
                self._rules.allow(path, "rw")
            for path in rule.all("writable"):
                self._allow(self._rules, path)
        except OSError:
            self.close()
            raise

    @staticmethod
    def _allow(rules: landlock.Ruleset, path: str) -> None:
        """What is not there needs no rule.  Raises OSError, also for a path that others than root could lead elsewhere."""
        from policy.trust import NotTrusted, walk  # only few rules need it

        try:
            fd = walk(path, folders=False)
        except (FileNotFoundError, NotADirectoryError):
            return
        except NotTrusted as e:
            raise OSError(1, str(e)) from None
        try:
            rules.allow_open(fd, _WRITE)
        finally:
            os.close(fd)

    def __call__(self) -> None:
        """In the program's process.  An exception here is the program's end, and told."""
        if not self._network:
            kernel.unshare_network()
        account = self._account
        os.setgroups(account.groups)
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
        if self._rules is not None:
            self._rules.enforce()

    def close(self) -> None:
        if self._rules is not None:
            self._rules.close()


def wanted(rule: Rule) -> bool:
    """Whether the rule keeps its program from anything."""
    return rule.has("writable") or rule.one("network") == "false"
