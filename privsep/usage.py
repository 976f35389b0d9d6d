"""What `privsep-ga --help` prints; a file of its own because no start needs it."""

from __future__ import annotations

from policy.builtin import PEER_LEVEL, PROFILES
from privsep.config import HOOK, PATHS, PID_FILE, STATE_DIR
from privsep.version import VERSION


def usage(program: str) -> str:
    profiles = ", ".join(PROFILES)
    return f"""\
Usage: {program} [-m <method> -p <path>] [<options>]
privsep-ga {VERSION}, a privilege-separated guest agent that speaks QEMU Guest Agent {PEER_LEVEL}

Channel:
  -m, --method       how the host is reached: virtio-serial (default), isa-serial,
                     unix-listen or vsock-listen
  -p, --path         device or socket; for vsock-listen <cid>:<port>. Defaults:
                     {PATHS["virtio-serial"]} (virtio-serial),
                     {PATHS["isa-serial"]} (isa-serial)
  -r, --retry-path   when the channel cannot be opened or is lost, try again
                     every five seconds

What the host may ask:
      --policy       a profile or a policy file. Profiles: {profiles}.
                     A file's name has a '/' or ends in .toml. Default:
                     /etc/privsep-ga/policy.toml, and without one "default"
  -b, --block-rpcs   comma-separated commands to refuse (no blanks;
                     "help" lists all commands)
      --blacklist    the old name of --block-rpcs
  -a, --allow-rpcs   comma-separated commands to allow, refusing all others
                     (no blanks; "help" lists all commands)

Freeze:
  -F, --fsfreeze-hook
                     call a hook at freeze and thaw. Its path must be attached:
                     -F/path or --fsfreeze-hook=/path
                     (default {HOOK})

Running:
  -c, --config       configuration file (default: the environment's QGA_CONF,
                     else /etc/qemu/qemu-ga.conf)
  -t, --statedir     folder for state (default {STATE_DIR})
  -l, --logfile      append the log there (default: standard error)
  -v, --verbose      log details
  -d, --daemonize    go to the background
  -f, --pidfile      with -d: the process's number is written there
                     (default {PID_FILE})

Telling:
  -D, --dump-conf    print the effective configuration and exit
  -V, --version      print the version of the peer that is matched and exit
  -h, --help         print this and exit

`privsep-gactl` shows what a running agent is and does.
"""
