"""A guest by hand, and the images.

python -m tests.vm.harness build [IMAGE]...       make the images: bare, plain, selinux
python -m tests.vm.harness run [--image IMAGE] CMD  boot, run CMD as root in the guest, exit with its status
python -m tests.vm.harness up [--image IMAGE]       boot, say where the sockets are, stay until Ctrl-C
python -m tests.vm.harness sh CMD                 run CMD in the guest that `up` holds
python -m tests.vm.harness agent NAME [JSON]      ask its agent
python -m tests.vm.harness qmp NAME [JSON]        ask its QEMU
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tests.vm.harness import cache, images
from tests.vm.harness.cache import HarnessError
from tests.vm.harness.control import Control, Result
from tests.vm.harness.hostagent import HostAgent
from tests.vm.harness.machine import Guest
from tests.vm.harness.qmp import Qmp


def _show(result: Result) -> int:
    sys.stdout.write(result.out)
    sys.stderr.write(result.err)
    return 124 if result.status is None or result.late else result.status % 256


def _build(options: argparse.Namespace) -> int:
    for name in options.images or images.NAMES:
        print(f"{name}: {images.image(name)}")
    return 0


def _run(options: argparse.Namespace) -> int:
    with Guest(options.image) as guest:
        guest.wait_booted()
        return _show(guest.sh(options.command, options.limit))


def _up(options: argparse.Namespace) -> int:
    note = cache.folder() / "up"
    with Guest(options.image) as guest:
        # The sockets are for `sh`, `agent` and `qmp` in another terminal.
        guest.control.close()
        guest.qmp.close()
        note.write_text(str(guest.folder))
        print(
            f"up after {guest.boot_seconds:.1f} s in {guest.folder} (agent, qmp, control, console.log); Ctrl-C ends it"
        )
        try:
            guest.wait_exit(86400 * 7)
        except KeyboardInterrupt:
            pass
        finally:
            note.unlink()
    return 0


def _folder() -> Path:
    try:
        return Path((cache.folder() / "up").read_text())
    except FileNotFoundError:
        raise HarnessError("no guest is up: python -m tests.vm.harness up, in another terminal") from None


def _sh(options: argparse.Namespace) -> int:
    control = Control(_folder() / "control")
    return _show(control.finish(control.start(options.command, options.limit), options.limit + 20))


def _agent(options: argparse.Namespace) -> int:
    with HostAgent(_folder() / "agent") as agent:
        agent.sync()
        print(json.dumps(agent.call(options.name, **json.loads(options.arguments)), indent=1))
    return 0


def _qmp(options: argparse.Namespace) -> int:
    with Qmp(_folder() / "qmp") as qmp:
        print(json.dumps(qmp.call(options.name, **json.loads(options.arguments)), indent=1))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tests.vm.harness", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    sub = parser.add_subparsers(required=True, metavar="WHAT")
    build = sub.add_parser("build")
    build.add_argument("images", nargs="*", metavar="IMAGE")
    build.set_defaults(work=_build)
    run, up, sh = (sub.add_parser(name) for name in ("run", "up", "sh"))
    run.set_defaults(work=_run)
    up.set_defaults(work=_up)
    sh.set_defaults(work=_sh)
    for made in (run, up):
        made.add_argument("--image", choices=images.NAMES, default="plain")
    for made in (run, sh):
        made.add_argument("--limit", type=float, default=600.0, metavar="SECONDS")
        made.add_argument("command", metavar="CMD")
    for name, work in (("agent", _agent), ("qmp", _qmp)):
        made = sub.add_parser(name)
        made.add_argument("name")
        made.add_argument("arguments", nargs="?", default="{}", metavar="JSON")
        made.set_defaults(work=work)
    options = parser.parse_args()
    try:
        status: int = options.work(options)
        return status
    except HarnessError as e:
        print(f"tests.vm.harness: {e}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
