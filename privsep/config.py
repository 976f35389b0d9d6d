"""The effective configuration: qemu-ga's options and its file qemu-ga.conf folded into one object.

Precedence as the peer's (10.2): options beat the file, the file beats the defaults, and the two lists add up, the file's
names first.  The file is that of `-c`, else of the environment's QGA_CONF, else /etc/qemu/qemu-ga.conf; only the first must
exist.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

    from policy.model import Policy

CONFIG_FILE: Final = "/etc/qemu/qemu-ga.conf"
SYSCONFIG: Final = "/etc/sysconfig/qemu-ga"
STATE_DIR: Final = "/var/run"
PID_FILE: Final = "/var/run/qemu-ga.pid"
HOOK: Final = "/etc/qemu/fsfreeze-hook"
PATHS: Final = {"virtio-serial": "/dev/virtio-ports/org.qemu.guest_agent.0", "isa-serial": "/dev/ttyS0"}

_GROUP: Final = "general"


class ConfigError(Exception):
    """The configuration cannot be followed; the text is for the administrator."""


class Config:
    """All effective values.  Strings that may be absent are None until `complete` has put the defaults in.

    hook    the freeze hook's path; None: there is none
    block   names of --block-rpcs, in the order in which the peer dumps them
    allow   names of --allow-rpcs, the same; empty: no such list
    origins ("block" or "allow", name) -> `file:line` of what was not listed on the command line
    dated   the command line is one for releases before 9.1
    policy  the profile's name or the policy file's path; None: the installed one
    """

    __slots__ = (
        "allow",
        "block",
        "daemonize",
        "dated",
        "hook",
        "logfile",
        "method",
        "origins",
        "path",
        "pidfile",
        "policy",
        "retry",
        "statedir",
        "verbose",
    )

    def __init__(self) -> None:
        self.method: str | None = None
        self.path: str | None = None
        self.logfile: str | None = None
        self.pidfile: str | None = None
        self.hook: str | None = None
        self.statedir: str | None = None
        self.policy: str | None = None
        self.verbose = False
        self.daemonize = False
        self.retry = False
        self.dated = False
        self.block: list[str] = []
        self.allow: list[str] = []
        self.origins: dict[tuple[str, str], str] = {}

    def load(self, path: str, *, required: bool) -> None:
        """Take the file's values.  A missing file is none, unless it is `required`.  Raises ConfigError."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError as e:
            if required:
                raise ConfigError(f"error loading configuration from path: {path}, {e.strerror}") from None
            return
        except OSError as e:
            raise ConfigError(f"error loading configuration from path: {path}, {e.strerror}") from None
        import stat

        from privsep.keyfile import KeyFile, KeyFileError  # most starts have no such file

        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise KeyFileError("Not a regular file")
            file = KeyFile(_read(fd))
            self.daemonize = file.get_bool(_GROUP, "daemon") or False
            self.method = file.get(_GROUP, "method")
            self.path = file.get(_GROUP, "path")
            self.logfile = file.get(_GROUP, "logfile")
            self.pidfile = file.get(_GROUP, "pidfile")
            self.hook = file.get(_GROUP, "fsfreeze-hook")
            self.statedir = file.get(_GROUP, "statedir")
            self.verbose = file.get_bool(_GROUP, "verbose") or False
            self.retry = file.get_bool(_GROUP, "retry-path") or False
            # `blacklist` is the key of releases before 9.1; distributions' files have it still.
            for key, kind in (("blacklist", "block"), ("block-rpcs", "block"), ("allow-rpcs", "allow")):
                self.add_list(kind, file.get(_GROUP, key) or "", f"{path}:{file.line(_GROUP, key)}")
        except KeyFileError as e:
            raise ConfigError(f"error loading configuration from path: {path}, {e}") from None
        except OSError as e:
            raise ConfigError(f"error loading configuration from path: {path}, {e.strerror}") from None
        finally:
            os.close(fd)

    def add_list(self, kind: str, text: str, origin: str = "") -> None:
        """The names of a comma list, to those that are to be blocked ("block") or to be all that is allowed ("allow")."""
        names = split_list(text)
        (self.allow if kind == "allow" else self.block).extend(names)
        if origin:
            self.origins.update(((kind, name), origin) for name in names)

    def load_sysconfig(self, path: str = SYSCONFIG) -> None:
        """Take the lists that the RHEL family keeps for its unit file.  Raises PolicyError."""
        if not os.path.lexists(path):
            return
        from privsep import sysconfig  # most systems have none

        for kind, text, origin in sysconfig.read(path):
            self.add_list(kind, text, origin)

    def complete(self) -> None:
        """Put the defaults in.  Raises ConfigError where there is none."""
        self.method = "virtio-serial" if self.method is None else self.method
        self.pidfile = PID_FILE if self.pidfile is None else self.pidfile
        self.statedir = STATE_DIR if self.statedir is None else self.statedir
        if self.path is None:
            self.path = PATHS.get(self.method)
            if self.path is None:
                raise ConfigError("must specify a path for this channel")

    def dump(self) -> str:
        """What --dump-conf prints: a file that gives the same configuration, member by member as the peer of 10.2 writes it;
        for a command line with --blacklist as 7.2, which has that option, knows no allow list and so writes none."""
        rows = [
            ("daemon", _word(self.daemonize)),
            ("method", self.method),
            ("path", self.path),
            ("logfile", self.logfile),
            ("pidfile", self.pidfile),
            ("fsfreeze-hook", self.hook),
            ("statedir", self.statedir),
            ("verbose", _word(self.verbose)),
            ("retry-path", _word(self.retry)),
            ("block-rpcs", ",".join(self.block)),
            ("allow-rpcs", None if self.dated and not self.allow else ",".join(self.allow)),
        ]
        return "".join(["[general]\n", *(f"{name}={_escape(value)}\n" for name, value in rows if value is not None)])

    def settings(self, policy: Policy) -> dict[str, str]:
        """What the processes are told, all of it; each gets its part (`policy/seal.py`)."""
        from policy.builtin import PEER_LEVEL
        from privsep.version import VERSION

        return {
            **policy.settings(),
            "verbose": _bit(self.verbose),
            "version": f"{PEER_LEVEL}+privsep-ga.{VERSION}",
            "statedir": self.statedir or STATE_DIR,
            "fsfreeze-hook": self.hook or "",
        }


def config_file(option: str | None, environ: Mapping[str, str]) -> tuple[str, bool]:
    """(path, whether it must exist) of the configuration file."""
    if option is not None:
        return option, True
    return environ.get("QGA_CONF") or CONFIG_FILE, False


def split_list(text: str) -> list[str]:
    """The names of one comma list, reversed as the peer keeps them; blanks belong to the name."""
    return text.split(",")[::-1] if text else []


def _word(value: bool) -> str:
    return "true" if value else "false"


def _bit(value: bool) -> str:
    return "1" if value else "0"


def _escape(value: str) -> str:
    """As a key file wants it: a leading blank, a backslash and control characters are escaped."""
    stripped = value.lstrip(" ")
    value = "\\s" * (len(value) - len(stripped)) + stripped.replace("\\", "\\\\")
    return value.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")


def _read(fd: int) -> bytes:
    data = bytearray()
    while part := os.read(fd, 1 << 16):
        data += part
        if len(data) > 1 << 20:
            raise OSError(27, "File too large")
    return bytes(data)
