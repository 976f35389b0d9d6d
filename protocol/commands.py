"""THE command table: every command of the protocol that exists on Linux, in qemu-ga's registration order.

What the agent can be asked is decided here and nowhere else: the front validates and routes by it, each worker builds
its dispatch table from it, guest-info, the frozen-time list, the policy's keys, the man page, the completion and the
audit fields derive from it.  Adding a command is one row here and one function of the same name (dashes become
underscores) in `workers/<domain>.py`.

Facts about arguments, results and versions are from QEMU's qga/qapi-schema.json, versions 7.2 and 10.2.
"""

from __future__ import annotations

from protocol import tally
from protocol.schema import Alternate, Arg, Enum, ListOf, Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# The release of the peer whose command set and words we match; guest-info's version starts with it.
PEER_LEVEL: Final = "10.2.2"

# Seconds after which a worker that has not answered is killed.  NEVER is for what must not be given up half way.
NEVER: Final = 0.0
QUICK: Final = 30.0


class Command:
    """One row.

    name      the verb on the wire
    domain    which worker executes it; "front" for what needs neither a privilege nor a file
    args      declared members of `arguments`, in schema order
    returns   the result's type, for documents and tests; None: an empty object
    since     the peer's version it came in
    frozen    allowed while file systems are frozen
    replies   sends a reply when it succeeds
    limit     seconds until a worker that does not answer is killed and the request fails; 0: never
    confirm   the worker is told when the reply was written to the host (it keeps state that hangs on it)
    polled    hosts ask it all the time: counted, not logged line by line
    secret    an argument is: nobody keeps a copy of such a request
    takes     the argument that is bulk data, "" if there is none
    gives     the members of the result that are bulk data
    flows     a reply may end early, since it says how much came (`count`) and whether that was all (`eof`)
    cell      where its counts begin on a page of counters (protocol/tally.py)
    """

    __slots__ = (
        "name", "domain", "args", "returns", "since", "frozen", "replies", "limit", "confirm", "polled", "takes", "gives", "secret",
        "flows", "cell",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        domain: str,
        *args: Arg,
        returns: object = None,
        since: str,
        frozen: bool = False,
        replies: bool = True,
        limit: float = QUICK,
        confirm: bool = False,
        polled: bool = False,
    ) -> None:
        self.name = name
        self.domain = domain
        self.args = args
        self.returns = returns
        self.since = since
        self.frozen = frozen
        self.replies = replies
        self.limit = limit
        self.confirm = confirm
        self.polled = polled
        self.secret = any(a.secret for a in args)
        self.takes = next((a.name for a in args if a.bulk), "")
        self.gives = tuple([m.name for m in returns.members if m.bulk]) if type(returns) is Struct else ()
        self.flows = bool(self.gives) and {"count", "eof"} <= {m.name for m in returns.members}  # type: ignore[attr-defined]
        self.cell = -1


def _opt(name: str, type: object) -> Arg:
    return Arg(name, type, optional=True)


_WHENCE: Final = Alternate("GuestFileWhence", "int", Enum("QGASeek", "set", "cur", "end"))
_CAPTURE: Final = Alternate(
    "GuestExecCaptureOutput",
    "bool",
    Enum("GuestExecCaptureOutputMode", "none", "stdout", "stderr", "separated", "merged"),
)
_VCPU: Final = Struct("GuestLogicalProcessor", Arg("logical-id", "int"), Arg("online", "bool"), _opt("can-offline", "bool"))
_MEMORY_BLOCK: Final = Struct("GuestMemoryBlock", Arg("phys-index", "uint64"), Arg("online", "bool"), _opt("can-offline", "bool"))
_MEMORY_BLOCK_RESPONSE: Final = Struct(
    "GuestMemoryBlockResponse",
    Arg("phys-index", "uint64"),
    Arg(
        "response",
        Enum("GuestMemoryBlockResponseType", "success", "not-found", "operation-not-supported", "operation-failed"),
    ),
    _opt("error-code", "int"),
)
_PCI: Final = Struct(
    "GuestPCIAddress", Arg("domain", "int"), Arg("bus", "int"), Arg("slot", "int"), Arg("function", "int")
)
_CCW: Final = Struct("GuestCCWAddress", Arg("cssid", "int"), Arg("ssid", "int"), Arg("subchno", "int"), Arg("devno", "int"))
_BUS_TYPE: Final = Enum(
    "GuestDiskBusType",
    *"ide fdc scsi virtio xen usb uml sata sd unknown ieee1394 ssa fibre raid iscsi sas mmc virtual".split(),
    "file-backed-virtual",
    "nvme",
)
_DISK_ADDRESS: Final = Struct(
    "GuestDiskAddress",
    Arg("pci-controller", _PCI),
    Arg("bus-type", _BUS_TYPE),
    Arg("bus", "int"),
    Arg("target", "int"),
    Arg("unit", "int"),
    _opt("serial", "str"),
    _opt("dev", "str"),
    _opt("ccw-address", _CCW),
)
_NVME_SMART: Final = Struct(
    "GuestNVMeSmart",
    Arg("type", Enum("GuestDiskBusType", "nvme")),
    *(
        Arg(n, "int")
        for n in "critical-warning temperature available-spare available-spare-threshold percentage-used".split()
    ),
    *(
        Arg(f"{n}-{half}", "uint64")
        for n in (
            "data-units-read data-units-written host-read-commands host-write-commands controller-busy-time power-cycles "
            "power-on-hours unsafe-shutdowns media-errors number-of-error-log-entries"
        ).split()
        for half in ("lo", "hi")
    ),
)
_DISK: Final = Struct(
    "GuestDiskInfo",
    Arg("name", "str"),
    Arg("partition", "bool"),
    _opt("dependencies", ListOf("str")),
    _opt("address", _DISK_ADDRESS),
    _opt("alias", "str"),
    _opt("smart", _NVME_SMART),
)
_FSINFO: Final = Struct(
    "GuestFilesystemInfo",
    Arg("name", "str"),
    Arg("mountpoint", "str"),
    Arg("type", "str"),
    _opt("used-bytes", "uint64"),
    _opt("total-bytes", "uint64"),
    _opt("total-bytes-privileged", "uint64"),
    Arg("disk", ListOf(_DISK_ADDRESS)),
)
_TRIM: Final = Struct(
    "GuestFilesystemTrimResponse",
    Arg(
        "paths",
        ListOf(
            Struct(
                "GuestFilesystemTrimResult",
                Arg("path", "str"),
                _opt("error", "str"),
                _opt("trimmed", "int"),
                _opt("minimum", "int"),
            )
        ),
    ),
)
_STATISTICS: Final = tuple(f"{way}-{what}" for way in ("rx", "tx") for what in ("bytes", "packets", "errs", "dropped"))
_INTERFACE: Final = Struct(
    "GuestNetworkInterface",
    Arg("name", "str"),
    _opt("hardware-address", "str"),
    _opt(
        "ip-addresses",
        ListOf(
            Struct(
                "GuestIpAddress",
                Arg("ip-address", "str"),
                Arg("ip-address-type", Enum("GuestIpAddressType", "ipv4", "ipv6")),
                Arg("prefix", "int"),
            )
        ),
    ),
    _opt("statistics", Struct("GuestNetworkInterfaceStat", *(Arg(n, "uint64") for n in _STATISTICS))),
)
_ROUTE: Final = Struct(
    "GuestNetworkRoute",
    Arg("iface", "str"),
    Arg("destination", "str"),
    Arg("metric", "int"),
    _opt("gateway", "str"),
    _opt("mask", "str"),
    _opt("irtt", "int"),
    _opt("flags", "uint64"),
    _opt("refcnt", "int"),
    _opt("use", "int"),
    _opt("window", "int"),
    _opt("mtu", "int"),
    _opt("desprefixlen", "str"),
    _opt("source", "str"),
    _opt("srcprefixlen", "str"),
    _opt("nexthop", "str"),
    Arg("version", "int"),
)
_DISKSTATS: Final = Struct(
    "GuestDiskStatsInfo",
    Arg("name", "str"),
    Arg("major", "uint64"),
    Arg("minor", "uint64"),
    Arg(
        "stats",
        Struct(
            "GuestDiskStats",
            *(
                _opt(n, "uint64")
                for n in (
                    "read-sectors read-ios read-merges write-sectors write-ios write-merges discard-sectors discard-ios "
                    "discard-merges flush-ios read-ticks write-ticks discard-ticks flush-ticks ios-pgr total-ticks "
                    "weight-ticks"
                ).split()
            ),
        ),
    ),
)
_CPUSTATS: Final = Struct(
    "GuestCpuStats",
    Arg("type", Enum("GuestCpuStatsType", "linux")),
    Arg("cpu", "int"),
    *(Arg(n, "uint64") for n in "user nice system idle".split()),
    *(_opt(n, "uint64") for n in "iowait irq softirq steal guest guestnice".split()),
)
_OSINFO: Final = Struct(
    "GuestOSInfo",
    *(
        _opt(n, "str")
        for n in (
            "kernel-release kernel-version machine id name pretty-name version version-id variant variant-id".split()
        )
    ),
)
_INFO: Final = Struct(
    "GuestAgentInfo",
    Arg("version", "str"),
    Arg(
        "supported_commands",
        ListOf(
            Struct(
                "GuestAgentCommandInfo", Arg("name", "str"), Arg("enabled", "bool"), Arg("success-response", "bool")
            )
        ),
    ),
)
_EXEC_STATUS: Final = Struct(
    "GuestExecStatus",
    Arg("exited", "bool"),
    _opt("exitcode", "int"),
    _opt("signal", "int"),
    Arg("out-data", "str", optional=True, bulk=True),
    Arg("err-data", "str", optional=True, bulk=True),
    _opt("out-truncated", "bool"),
    _opt("err-truncated", "bool"),
)

COMMANDS: Final = (
    # fmt: off
    Command("guest-sync-delimited", "front", Arg("id", "int"), returns="int", since="1.1", frozen=True, polled=True),
    Command("guest-sync", "front", Arg("id", "int"), returns="int", since="0.15", frozen=True, polled=True),
    Command("guest-ping", "front", since="0.15", frozen=True, polled=True),
    Command("guest-get-time", "front", returns="int", since="1.5", polled=True),
    Command("guest-set-time", "time", _opt("time", "int"), since="1.5"),
    Command("guest-info", "front", returns=_INFO, since="0.15", frozen=True, polled=True),
    Command("guest-shutdown", "power", _opt("mode", "str"), since="0.15", replies=False, limit=120.0),
    Command("guest-file-open", "file", Arg("path", "str"), _opt("mode", "str"), returns="int", since="0.15"),
    Command("guest-file-close", "file", Arg("handle", "int"), since="0.15", limit=120.0),
    Command("guest-file-read", "file", Arg("handle", "int"), _opt("count", "int"), since="0.15", limit=120.0, polled=True,
            returns=Struct("GuestFileRead", Arg("count", "int"), Arg("buf-b64", "str", secret=True, bulk=True), Arg("eof", "bool"))),
    Command("guest-file-write", "file", Arg("handle", "int"), Arg("buf-b64", "str", secret=True, bulk=True), _opt("count", "int"),
            returns=Struct("GuestFileWrite", Arg("count", "int"), Arg("eof", "bool")), since="0.15", limit=120.0,
            polled=True),
    Command("guest-file-seek", "file", Arg("handle", "int"), Arg("offset", "int"), Arg("whence", _WHENCE), since="0.15",
            returns=Struct("GuestFileSeek", Arg("position", "int"), Arg("eof", "bool"))),
    Command("guest-file-flush", "file", Arg("handle", "int"), since="0.15", limit=120.0),
    Command("guest-fsfreeze-status", "fs", returns=Enum("GuestFsfreezeStatus", "thawed", "frozen"), since="0.15",
            frozen=True, limit=NEVER, polled=True),
    Command("guest-fsfreeze-freeze", "fs", returns="int", since="0.15", limit=600.0, confirm=True),
    Command("guest-fsfreeze-freeze-list", "fs", _opt("mountpoints", ListOf("str")), returns="int", since="2.2",
            limit=600.0, confirm=True),
    Command("guest-fsfreeze-thaw", "fs", returns="int", since="0.15", frozen=True, limit=NEVER, confirm=True),
    Command("guest-fstrim", "trim", _opt("minimum", "int"), returns=_TRIM, since="1.2", limit=3600.0),
    Command("guest-suspend-disk", "power", since="1.1", replies=False, limit=120.0),
    Command("guest-suspend-ram", "power", since="1.1", replies=False, limit=120.0),
    Command("guest-suspend-hybrid", "power", since="1.1", replies=False, limit=120.0),
    Command("guest-network-get-interfaces", "network", returns=ListOf(_INTERFACE), since="1.1", polled=True),
    Command("guest-get-vcpus", "inventory", returns=ListOf(_VCPU), since="1.5", polled=True),
    Command("guest-set-vcpus", "hotplug", Arg("vcpus", ListOf(_VCPU)), returns="int", since="1.5", limit=120.0),
    Command("guest-get-disks", "inventory", returns=ListOf(_DISK), since="5.2", polled=True),
    Command("guest-get-fsinfo", "inventory", returns=ListOf(_FSINFO), since="2.2", polled=True),
    Command("guest-set-user-password", "user", Arg("username", "str"), Arg("password", "str", secret=True),
            Arg("crypted", "bool"), since="2.3"),
    Command("guest-get-memory-blocks", "inventory", returns=ListOf(_MEMORY_BLOCK), since="2.3", polled=True),
    Command("guest-set-memory-blocks", "hotplug", Arg("mem-blks", ListOf(_MEMORY_BLOCK)),
            returns=ListOf(_MEMORY_BLOCK_RESPONSE), since="2.3", limit=120.0),
    Command("guest-get-memory-block-info", "inventory", returns=Struct("GuestMemoryBlockInfo", Arg("size", "uint64")),
            since="2.3", polled=True),
    Command("guest-exec-status", "exec", Arg("pid", "int"), returns=_EXEC_STATUS, since="2.5", polled=True),
    Command("guest-exec", "exec", Arg("path", "str"), _opt("arg", ListOf("str")), Arg("env", ListOf("str"), optional=True, secret=True),
            Arg("input-data", "str", optional=True, secret=True, bulk=True), _opt("capture-output", _CAPTURE),
            returns=Struct("GuestExec", Arg("pid", "int")), since="2.5"),
    Command("guest-get-host-name", "front", returns=Struct("GuestHostName", Arg("host-name", "str")), since="2.10",
            polled=True),
    Command("guest-get-users", "inventory", since="2.10", polled=True,
            returns=ListOf(Struct("GuestUser", Arg("user", "str"), Arg("login-time", "number"), _opt("domain", "str")))),
    Command("guest-get-timezone", "inventory", since="2.10", polled=True,
            returns=Struct("GuestTimezone", _opt("zone", "str"), Arg("offset", "int"))),
    Command("guest-get-osinfo", "inventory", returns=_OSINFO, since="2.10", polled=True),
    Command("guest-ssh-get-authorized-keys", "ssh", Arg("username", "str"), since="5.2",
            returns=Struct("GuestAuthorizedKeys", Arg("keys", ListOf("str")))),
    Command("guest-ssh-add-authorized-keys", "ssh", Arg("username", "str"), Arg("keys", ListOf("str"), secret=True),
            _opt("reset", "bool"), since="5.2"),
    Command("guest-ssh-remove-authorized-keys", "ssh", Arg("username", "str"), Arg("keys", ListOf("str"), secret=True), since="5.2"),
    Command("guest-get-diskstats", "inventory", returns=ListOf(_DISKSTATS), since="7.1", polled=True),
    Command("guest-get-cpustats", "inventory", returns=ListOf(_CPUSTATS), since="7.1", polled=True),
    Command("guest-get-load", "inventory", since="10.0", polled=True,
            returns=Struct("GuestLoadAverage", Arg("load1m", "number"), Arg("load5m", "number"), Arg("load15m", "number"))),
    Command("guest-network-get-route", "network", returns=ListOf(_ROUTE), since="9.1", polled=True),
    # fmt: on
)

for _place, _command in enumerate(COMMANDS):
    _command.cell = tally.FIRST + tally.WIDTH * _place

BY_NAME: Final = {c.name: c for c in COMMANDS}


def verbs_of(domain: str) -> tuple[Command, ...]:
    """The commands of one domain in table order; a command's place in it is its verb index on the internal sockets."""
    return tuple(c for c in COMMANDS if c.domain == domain)
