"""The same guests as domains of a libvirtd that the tests start by hand.

libvirtd runs as root in a mount namespace where its folders in /etc, /var/lib and /run are ours, so nothing that a real one on this
machine keeps is touched, and without the helpers that a service manager would start for it.  `uri` is how to reach it.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self
from xml.sax.saxutils import escape

from tests.vm.harness import accel, cache, hosttools, images
from tests.vm.harness.cache import HarnessError
from tests.vm.harness.control import Control
from tests.vm.harness.guestctl import PORT as CONTROL_PORT
from tests.vm.harness.jsonlines import Silence
from tests.vm.harness.machine import AGENT_PORT, BOOT, MEMORY, PATIENCE, die_with_parent
from tests.vm.harness.shell import Shell

TOOLS = {"libvirtd": "libvirt-daemon", "virsh": "libvirt-clients"}
FILES = {"/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so": "libvirt-daemon-driver-qemu"}
FOLDERS = {"etc": "/etc/libvirt", "var": "/var/lib/libvirt", "cache": "/var/cache/libvirt", "run": "/run/libvirt"}

# A process namespace too: when its first process is killed, so are the guests, which libvirtd would leave behind.
UNSHARE = ("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc")

QEMU_CONF = """\
user = "root"
group = "root"
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
remember_owner = 0
"""
DAEMON_CONF = """\
auth_unix_rw = "none"
auth_unix_ro = "none"
unix_sock_group = "root"
log_level = 3
"""
DOMAIN = """\
<domain type='{kind}'>
  <name>{name}</name>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>2</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{image}/vmlinuz</kernel>
    <initrd>{image}/initrd</initrd>
    <cmdline>{words}</cmdline>
  </os>
  <features><acpi/></features>
  {cpu}
  <on_reboot>restart</on_reboot>
  <pm><suspend-to-mem enabled='yes'/></pm>
  <devices>
    {disks}
    <interface type='user'><mac address='52:54:00:5e:00:01'/><model type='virtio'/></interface>
    <serial type='file'><source path='{folder}/console.log'/><target port='0'/></serial>
    <channel type='unix'><target type='virtio' name='{agent}'/></channel>
    <channel type='unix'>
      <source mode='bind' path='{folder}/control'/><target type='virtio' name='{control}'/>
    </channel>
    <memballoon model='none'/>
  </devices>
</domain>
"""
DISK = """\
<disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='unsafe' discard='unmap'/>
      <source file='{path}'/><target dev='vd{letter}' bus='virtio'/><serial>{serial}</serial>
    </disk>
    """


class Domain(Shell):
    """A booted image as the domain `name`."""

    def __init__(self, image: str = "plain", name: str = "guest") -> None:
        self.image = image
        self.name = name
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            hosttools.need(TOOLS, FILES)
            image = images.image(self.image)
            stack.enter_context(cache.guest_slot())
            self.folder = Path(tempfile.mkdtemp(prefix="privsep-ga-vm-"))
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self._start_daemon(stack)
            self._boot(image)
            stack.callback(self._end)
            self.control = Control(self.folder / "control")
            stack.callback(self.control.close)
            self._wait_control()
            self._stack = stack.pop_all()
        self.is_up()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        with self._stack:
            self.ends(well=kind is None)

    def running(self) -> bool:
        return self.virsh_result("domstate", self.name).stdout.strip() == "running"

    def root_disk(self) -> Path:
        """The newest: an external snapshot makes another."""
        return max(self.folder.glob("root.*"), key=lambda path: path.stat().st_mtime)

    @property
    def uri(self) -> str:
        return f"qemu+unix:///system?socket={self.folder}/run/libvirt-sock"

    def _start_daemon(self, stack: ExitStack) -> None:
        lines = []
        for name, place in FOLDERS.items():
            (self.folder / name).mkdir()
            lines.append(f"mkdir -p {place} && mount --bind {self.folder / name} {place}")
        # Debian's build looks its own account up before it reads who is to be used instead.
        for name, row in (
            ("passwd", "libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin"),
            ("group", "libvirt-qemu:x:64055:"),
        ):
            (self.folder / name).write_text(Path(f"/etc/{name}").read_text() + row + "\n")
            lines.append(f"mount --bind {self.folder / name} /etc/{name}")
        (self.folder / "etc/qemu.conf").write_text(QEMU_CONF)
        (self.folder / "etc/libvirtd.conf").write_text(DAEMON_CONF)
        lines.append("libvirtd --config /etc/libvirt/libvirtd.conf --pid-file /run/libvirt/libvirtd.pid")
        # The shell stays, as the namespace's first process: it buries what libvirtd's guests leave when they end.
        script = " && ".join(lines) + "; exit $?"
        with open(self.folder / "libvirtd.log", "wb") as log:
            daemon = subprocess.Popen(
                [*UNSHARE, "sh", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        stack.callback(self._end_daemon, daemon)
        end = time.monotonic() + 60
        while self.virsh_result("version").returncode != 0:
            if daemon.poll() is not None or time.monotonic() > end:
                raise HarnessError(f"libvirtd: {(self.folder / 'libvirtd.log').read_text()[-1500:]}")
            time.sleep(0.3)

    @staticmethod
    def _end_daemon(daemon: subprocess.Popen[bytes]) -> None:
        daemon.terminate()
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def _boot(self, image: Path) -> None:
        disks = ""
        for letter, serial in zip("abc", ("root", "ext4", "xfs"), strict=True):
            base = image / "root.img" if serial == "root" else images.data_disk(serial)
            path = self.folder / f"{serial}.qcow2"
            words = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(base), str(path)]
            subprocess.run(words, check=True)
            disks += DISK.format(path=path, letter=letter, serial=serial)
        kvm = accel.name(image) == "kvm"
        cpu = (
            "<cpu mode='host-passthrough'/>" if kvm else "<cpu match='exact' check='none'><model>Nehalem</model></cpu>"
        )
        text = DOMAIN.format(
            kind="kvm" if kvm else "qemu",
            name=self.name,
            memory=MEMORY,
            image=image,
            words=escape(images.kernel_words(self.image)),
            cpu=cpu,
            disks=disks,
            folder=self.folder,
            agent=AGENT_PORT,
            control=CONTROL_PORT,
        )
        (self.folder / "domain.xml").write_text(text)
        self.virsh("create", str(self.folder / "domain.xml"), named=False)

    def _end(self) -> None:
        self.virsh_result("destroy", self.name)

    def _wait_control(self, limit: float = BOOT) -> None:
        end = time.monotonic() + limit
        while True:
            try:
                self.control.ping(PATIENCE)
                return
            except Silence:
                if time.monotonic() > end:
                    raise HarnessError(f"no guest after {limit:g} s") from None

    def virsh_result(self, *words: str, limit: float = 180.0) -> subprocess.CompletedProcess[str]:
        command = ["virsh", "-c", self.uri, *words]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit)

    def virsh(self, command: str, *words: str, named: bool = True) -> str:
        """A command about this domain; its output.  Raises HarnessError."""
        done = self.virsh_result(command, *((self.name,) if named else ()), *words)
        if done.returncode != 0:
            raise HarnessError(f"virsh {command} {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def wait_agent(self, limit: float = 120.0) -> None:
        """Until libvirt has an answer from the agent."""
        end = time.monotonic() + limit
        while True:
            done = self.virsh_result("qemu-agent-command", self.name, '{"execute": "guest-ping"}')
            if done.returncode == 0:
                return
            if time.monotonic() > end:
                raise HarnessError(f"libvirt and the agent: {done.stderr}")
            time.sleep(0.5)
