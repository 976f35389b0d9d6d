#!/usr/bin/env python3
"""Write the parts of the SELinux policy that say what `privsep/domains.py` says: types, entry points, transitions, capabilities,
sockets and descriptors between the processes, and the `neverallow` of each promise.

    generate.py            write privsep_ga.te and privsep_ga.fc anew between the marks
    generate.py --check    exit status 1 if that would change anything

Each process has two types.  SELinux asks the type of a process, not its history, whether it may use a capability; and a child
needs some after its exec, to drop all others, to become its user, to leave the network.  So the supervisor's exec of an
entry script leads to `privsep_ga_<row>_start_t`, and the child, once it has dropped what it does not keep, changes to
`privsep_ga_<row>_t` by itself (`privsep/sandbox/label.py`): no way leads back, and that type has the row's capabilities only.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from privsep.domains import BY_NAME, DOMAINS, SUPERVISOR_CAPS, Domain  # noqa: E402
from protocol.commands import COMMANDS  # noqa: E402

BEGIN = "# >>> from privsep/domains.py by selinux/generate.py: changes between these marks are lost"
END = "# <<< from privsep/domains.py"

SUPERVISOR = "privsep_ga_t"
# What a child does between its exec and the change to its own type: bounding set, user, groups.
START_CAPS = ("SETPCAP", "SETUID", "SETGID")


def start_caps(row: Domain) -> tuple[str, ...]:
    """Capabilities of the row's start type; an empty network namespace is made with SYS_ADMIN."""
    return START_CAPS + (("SYS_ADMIN",) if row.network == "none" else ())


def worker_caps(row: Domain) -> tuple[str, ...]:
    """Capabilities of the row's own type.

    A row with all of them holds them for the programs that it starts, which have a type of their own (`program_type`).  The
    worker itself ends them; exec starts them as the policy's user."""
    if "ALL" in row.caps:
        return ("KILL", *(("SETUID", "SETGID") if row.name == "exec" else ()))
    return tuple(row.caps)


# What is done to a file to change it, by permissions that all classes of files have.
CHANGES = "{ write append create setattr relabelfrom relabelto unlink link rename }"


def program_type(row: Domain) -> str:
    return f"privsep_ga_{row.name}_program_t"


def senders() -> list[Domain]:
    """Rows whose replies can be large: they pass the front a sealed memory file."""
    domains = {c.domain for c in COMMANDS if c.gives}
    return [row for row in DOMAINS if row.name in domains]


def unwalled() -> list[Domain]:
    """Rows whose programs are the administrator's or the host's own, and have a type without bounds."""
    return [row for row in DOMAINS if "ALL" in row.caps]


def holders(capability: str) -> set[str]:
    """Which types of ours may use it."""
    found = {row.selinux_type for row in DOMAINS if capability in worker_caps(row)}
    found |= {row.selinux_start_type for row in DOMAINS if capability in start_caps(row)}
    return found | ({SUPERVISOR} if capability in SUPERVISOR_CAPS else set())


def _set(names: Iterable[str]) -> str:
    found = list(names)
    return found[0] if len(found) == 1 else "{ " + " ".join(found) + " }"


def _caps(names: Iterable[str]) -> str:
    return _set(sorted(name.lower() for name in names))


def types() -> list[str]:
    """The types, and what each is for."""
    lines = [
        "# Every process of the agent; those before and after a child has dropped what it does not keep.",
        "attribute privsep_ga_process;",
        "attribute privsep_ga_start;",
        "attribute privsep_ga_row;",
        "",
    ]
    for row in DOMAINS:
        own, start, entry = row.selinux_type, row.selinux_start_type, row.selinux_entry_type
        lines += [
            f"# {row.name}: {row.why}",
            f"type {own}, privsep_ga_process, privsep_ga_row;",
            f"type {start}, privsep_ga_process, privsep_ga_start;",
            f"type {entry};",
            f"domain_type({own})",
            f"domain_type({start})",
            f"domain_entry_file({start}, {entry})",
            f"domain_dyntrans_type({start})",
            f"role system_r types {{ {own} {start} }};",
            "",
        ]
    for row in unwalled():
        lines += [
            f"# What {row.name} starts: unconfined, as its row says.",
            f"type {program_type(row)};",
            f"domain_type({program_type(row)})",
            f"role system_r types {program_type(row)};",
            "",
        ]
    return lines


def transitions() -> list[str]:
    """From the supervisor by the label of the entry script, and from there to the process's own type, once."""
    lines = []
    for row in DOMAINS:
        own, start, entry = row.selinux_type, row.selinux_start_type, row.selinux_entry_type
        lines += [
            f"type_transition {SUPERVISOR} {entry}:process {start};",
            f"allow {SUPERVISOR} {entry}:file {{ getattr open read execute map }};",
            f"allow {SUPERVISOR} {start}:process transition;",
            f"allow {SUPERVISOR} {start}:process2 {{ nnp_transition nosuid_transition }};",
            f"allow {start} {own}:process dyntransition;",
            f"allow {own} {start}:fd use;",
            f"allow {own} {start}:file read;",  # its own status, opened before
        ]
    return [*lines, ""]


def capabilities() -> list[str]:
    lines = [f"allow {SUPERVISOR} self:capability {_caps(SUPERVISOR_CAPS)};"]
    for row in DOMAINS:
        lines.append(f"allow {row.selinux_start_type} self:capability {_caps(start_caps(row))};")
        if worker_caps(row):
            lines.append(f"allow {row.selinux_type} self:capability {_caps(worker_caps(row))};")
    return [*lines, ""]


def talk() -> list[str]:
    """Who shares descriptors and sockets with whom.  All sockets between processes are pairs that the supervisor made."""
    lines = [
        f"allow privsep_ga_process {SUPERVISOR}:fd use;",
        f"allow privsep_ga_process {SUPERVISOR}:unix_stream_socket {{ read write getattr getopt }};",
        f"allow privsep_ga_process {SUPERVISOR}:process sigchld;",
        f"allow {SUPERVISOR} {{ privsep_ga_start privsep_ga_row }}:process {{ sigkill signal signull getattr }};",
        "# fs passes the thawer what it is about to freeze.",
        f"allow {BY_NAME['thawer'].selinux_type} {BY_NAME['fs'].selinux_type}:fd use;",
        "# Bulk data goes to the front in memory files.",
    ]
    front = BY_NAME["front"].selinux_type
    for row in senders():
        # Made before the drop and kept, or for one reply.
        for sender in (row.selinux_start_type, row.selinux_type):
            lines += [
                f"type_transition {sender} tmpfs_t:file privsep_ga_bulk_t;",
                f"allow {sender} privsep_ga_bulk_t:file {{ getattr read write map }};",
                f"allow {front} {sender}:fd use;",
            ]
    # The front only reads it, by a descriptor that the sender opened for writing too.
    return [*lines, f"allow {front} privsep_ga_bulk_t:file {{ getattr read write map }};", ""]


def promises() -> list[str]:
    """What no other part of this policy, and no module that it is linked with, may add."""
    front = BY_NAME["front"].selinux_type
    lines = [
        "# The front: no capability, no socket, no program, no other process; no file but memory that workers pass it.",
        f"neverallow {front} self:{{ capability capability2 cap_userns cap2_userns }} *;",
        f"neverallow {front} ~{{ {front} privsep_ga_bulk_t }}:file {CHANGES};",
        f"neverallow {front} *:{{ dir lnk_file blk_file }} {CHANGES};",
        f"neverallow {front} *:{_set(SOCKETS)} {{ create bind listen connect }};",
        "# Debian's policy lets every domain make unix sockets for its label translation service; what they reach is left to us.",
        f"neverallow {front} ~setrans_t:unix_stream_socket connectto;",
        f"neverallow {front} ~{front}:process {{ sigkill sigstop signal }};",
        "",
        "# No row starts a program but those that say so; nobody changes type but as written above.",
        f"neverallow {_set(r.selinux_type for r in DOMAINS if not r.programs)} *:file execute_no_trans;",
        "neverallow privsep_ga_start *:file execute_no_trans;",
        f"neverallow {_set(r.selinux_type for r in DOMAINS if r not in unwalled())} *:process {{ transition dyntransition }};",
        "neverallow privsep_ga_start ~privsep_ga_row:process { transition dyntransition };",
        f"neverallow {SUPERVISOR} ~privsep_ga_start:process {{ transition dyntransition }};",
    ]
    for row in DOMAINS:
        others = f"{{ domain -{row.selinux_start_type} }}"
        lines.append(f"neverallow {others} {row.selinux_type}:process dyntransition;")
    lines += [
        "",
        "# Passwords are the user worker's.",
        f"neverallow {{ privsep_ga_process -{BY_NAME['user'].selinux_type} }} shadow_t:file *;",
        "",
        "# Nobody looks into another process, loads code into the kernel, mounts, or changes this policy.",
        "neverallow privsep_ga_process *:process ptrace;",
        f"neverallow {{ {SUPERVISOR} privsep_ga_row }} self:process setcurrent;",
        "neverallow privsep_ga_process *:system { module_load module_request };",
        "neverallow privsep_ga_process *:filesystem { mount remount unmount relabelfrom relabelto };",
        "neverallow privsep_ga_process *:security { load_policy setenforce setbool };",
        "neverallow privsep_ga_process *:{ bpf perf_event } *;",
        "neverallow privsep_ga_process { memory_device_t fixed_disk_device_t }:{ chr_file blk_file } { read write append };",
        "",
        "# Each capability is its rows'.",
    ]
    for name in ALL_CAPABILITIES:
        kept = " ".join(f"-{t}" for t in sorted(holders(name.upper())))
        who = f"{{ privsep_ga_process {kept} }}" if kept else "privsep_ga_process"
        lines.append(f"neverallow {who} self:capability {name};")
    lines.append("neverallow privsep_ga_process self:{ capability2 cap_userns cap2_userns } *;")
    return lines


# The class `capability` of the kernel (security/selinux/include/classmap.h): the first 32.
ALL_CAPABILITIES = (
    "chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service net_broadcast "
    "net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin sys_boot sys_nice "
    "sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap"
).split()

# The socket classes of Debian's policy (support/obj_perm_sets.spt), but for the one that it gives to every domain.
SOCKETS = (
    "tcp_socket udp_socket rawip_socket netlink_socket packet_socket unix_dgram_socket appletalk_socket netlink_route_socket "
    "netlink_tcpdiag_socket netlink_nflog_socket netlink_xfrm_socket netlink_selinux_socket netlink_audit_socket "
    "netlink_dnrt_socket netlink_kobject_uevent_socket tun_socket netlink_iscsi_socket netlink_fib_lookup_socket "
    "netlink_connector_socket netlink_netfilter_socket netlink_generic_socket netlink_scsitransport_socket "
    "netlink_rdma_socket netlink_crypto_socket sctp_socket icmp_socket ax25_socket ipx_socket netrom_socket atmpvc_socket "
    "x25_socket rose_socket decnet_socket atmsvc_socket rds_socket irda_socket pppox_socket llc_socket can_socket "
    "tipc_socket bluetooth_socket iucv_socket rxrpc_socket isdn_socket phonet_socket ieee802154_socket caif_socket "
    "alg_socket nfc_socket vsock_socket kcm_socket qipcrtr_socket smc_socket xdp_socket"
).split()


def labels() -> list[str]:
    """Lines of the .fc: where the entry scripts are installed."""
    lines = []
    for row in DOMAINS:
        path = f"/usr/libexec/privsep-ga/{row.name}"
        lines.append(f"{path:<40}--\tgen_context(system_u:object_r:{row.selinux_entry_type},s0)")
    return lines


def renew(text: str, lines: list[str]) -> str:
    """The text with these lines between the marks."""
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    return before + "\n".join([BEGIN, *lines, END]) + after


def wanted() -> dict[Path, str]:
    """What the two files should hold."""
    te, fc = HERE / "privsep_ga.te", HERE / "privsep_ga.fc"
    body = [*types(), *transitions(), *capabilities(), *talk(), *promises()]
    return {te: renew(te.read_text(), body), fc: renew(fc.read_text(), labels())}


def main() -> int:
    stale = [path for path, text in wanted().items() if path.read_text() != text]
    for path in stale:
        if "--check" in sys.argv[1:]:
            print(f"{path.name} is not what selinux/generate.py makes of privsep/domains.py: run it", file=sys.stderr)
        else:
            path.write_text(wanted()[path])
            print(f"wrote {path.name}")
    return int(bool(stale) and "--check" in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
