"""The three ways in which a request can fail, and whose fault each is.

* `CommandError`: the command failed or was refused.  Its text goes to the host, in qemu-ga's own words where it has words.
* `ProtocolViolation`: the process at the other end of an internal socket is broken or hostile.  It is killed; the host
  gets an error for the request in flight and nothing else.
* `WorkerLost`: the worker died, was killed at its time limit or could not be started while a request was with it.
"""

from __future__ import annotations

import errno as _errno
import os


class CommandError(Exception):
    """A failure that the host is told about.

    `desc` is the text of the error object, `kind` its class: `GenericError` or `CommandNotFound`, the only two that
    qemu-ga uses.
    """

    __slots__ = ("desc", "kind")

    def __init__(self, desc: str, kind: str = "GenericError") -> None:
        super().__init__(desc)
        self.desc = desc
        self.kind = kind

    @classmethod
    def not_found(cls, name: str) -> CommandError:
        return cls(f"The command {name} has not been found", "CommandNotFound")

    @classmethod
    def disabled(cls, name: str, reason: str = "the command is not allowed") -> CommandError:
        return cls(f"Command {name} has been disabled: {reason}", "CommandNotFound")

    @classmethod
    def from_errno(cls, what: str, number: int) -> CommandError:
        """`what: STRERROR`, as qemu's error_setg_errno words it."""
        return cls(f"{what}: {strerror(number)}")


class Refused(CommandError):
    """The policy forbids it.  `rule` is the id of the rule, "" for the one about the command as such; `reason` is for the audit."""

    __slots__ = ("reason", "rule")

    def __init__(self, desc: str, kind: str = "GenericError", *, rule: str = "", reason: str = "") -> None:
        super().__init__(desc, kind)
        self.rule = rule
        self.reason = reason


class ProtocolViolation(Exception):
    """The peer on an internal socket broke the protocol: it is killed, not answered."""


class WorkerLost(CommandError):
    """The worker that had the request is gone; nothing is retried by itself."""


def strerror(number: int) -> str:
    """The C library's text for an errno; numbers it does not know come out as glibc words them."""
    if number in _errno.errorcode:
        return os.strerror(number)
    return f"Unknown error {number}"
