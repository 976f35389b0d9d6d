"""A guest as a context manager: a throw-away overlay over an image, QEMU, and the ways to talk to both.

    with Guest("plain") as guest:
        guest.check("systemctl is-active privsep-ga")     # as root in the guest; raises when the status is not 0
        with guest.agent() as agent:
            agent.call("guest-fsfreeze-freeze")
        guest.qmp.call("system_powerdown")

The agent's port is the socket `agent_path`, for any other client.  One guest at a time runs on a machine: a lock in the cache.
"""

from __future__ import annotations

import ctypes
import itertools
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.vm.harness import accel, cache, images, saved
from tests.vm.harness.cache import HarnessError
from tests.vm.harness.control import Control
from tests.vm.harness.guestctl import PORT as CONTROL_PORT
from tests.vm.harness.hostagent import HostAgent
from tests.vm.harness.jsonlines import Silence
from tests.vm.harness.qmp import Qmp
from tests.vm.harness.shell import Shell

AGENT_PORT = "org.qemu.guest_agent.0"
MEMORY = 768  # MiB
BOOT = 600.0  # seconds; some 15 on an idle machine, even without KVM
PATIENCE = 5.0  # between two questions to a guest that boots: nobody reads them yet, and the socket holds some 200
PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """In a child before its exec: it ends when this program does, however that ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Guest(Shell):
    """One booted image.

    image    "plain" or "selinux" (enforcing), both with the agent installed, or "bare": without it
    cpus     at boot; two more can be plugged
    blank    MiB of an empty disk more, /dev/disk/by-id/virtio-blank
    append   more words for the kernel
    devices  more options for QEMU
    boot     from the kernel's first word on; else, where nothing of the above was asked for, the guest goes on from where one that
             had booted was saved (saved.py), which spares a translated processor most of a minute
    """

    def __init__(
        self,
        image: str = "plain",
        *,
        cpus: int = 2,
        memory: int = MEMORY,
        blank: int = 512,
        append: str = "",
        devices: tuple[str, ...] = (),
        boot: bool = False,
    ) -> None:
        self.image = image
        self._cpus = cpus
        self._memory = memory
        self._blank = blank
        self._append = append
        self._devices = devices
        self._boot = boot or (cpus, memory, blank, append, devices) != (2, MEMORY, 512, "", ())
        self._saved: Path | None = None
        self._stack = ExitStack()
        self._dimms = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self.boot_seconds = 0.0

    # -- life

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._stack = stack
            folder = images.image(self.image)
            if not self._boot:
                self._saved = saved.state(self.image, folder)
            stack.enter_context(cache.guest_slot())
            self.folder = Path(tempfile.mkdtemp(prefix="privsep-ga-vm-"))
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self._overlays(folder)
            stack.callback(self._end)
            with open(self.folder / "qemu.log", "wb") as log:
                self._process = subprocess.Popen(
                    self._command(folder),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=die_with_parent,  # a killed test run leaves no guest behind
                )
            self._started = time.monotonic()
            try:
                self.qmp = Qmp(self.folder / "qmp")
            except HarnessError as e:
                text = (self.folder / "qemu.log").read_text(errors="replace")[-800:]
                raise HarnessError(f"QEMU did not start ({e}): {text}") from None
            stack.callback(self.qmp.close)
            self.control = Control(self.folder / "control")
            stack.callback(self.control.close)
            if self._saved is not None:
                saved.go_on(self.qmp)
            self.wait_control()
            if self._saved is not None:  # its clock stood still meanwhile
                self.check(f"date -s @{time.time():.3f}")
            self.boot_seconds = time.monotonic() - self._started
            self._stack = stack.pop_all()
        self.is_up()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        with self._stack:
            self.ends(well=kind is None)

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def root_disk(self) -> Path:
        return self.disk("root")

    def _overlays(self, folder: Path) -> None:
        for disk in ("root", "ext4", "xfs"):
            if self._saved is not None:
                base, kind = self._saved / f"{disk}.qcow2", "qcow2"
            else:
                base, kind = folder / "root.img" if disk == "root" else images.data_disk(disk), "raw"
            options = ["-f", "qcow2", "-F", kind, "-b", str(base)]
            subprocess.run(["qemu-img", "create", "-q", *options, str(self.disk(disk))], check=True)
        with open(self.disk("blank"), "wb") as file:
            file.truncate(self._blank << 20)

    def disk(self, name: str) -> Path:
        """The file behind a disk: root, ext4, xfs or blank."""
        return self.folder / (f"{name}.raw" if name == "blank" else f"{name}.qcow2")

    def _command(self, folder: Path) -> list[str]:
        here = self.folder
        words = ["qemu-system-x86_64", "-name", "privsep-ga-test", *accel.options(folder)]
        words += ["-machine", "q35,usb=off", "-smp", f"{self._cpus},maxcpus={self._cpus + 2}"]
        words += ["-m", f"{self._memory}M,slots=4,maxmem={self._memory + 1280}M"]
        words += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        words += ["-global", "ICH9-LPC.disable_s3=0"]
        words += ["-kernel", str(folder / "vmlinuz"), "-initrd", str(folder / "initrd")]
        words += ["-append", images.kernel_words(self.image, self._append)]
        words += ["-qmp", f"unix:{here}/qmp,server=on,wait=off"]
        words += ["-chardev", f"file,id=console,path={here}/console.log", "-serial", "chardev:console"]
        words += ["-device", "virtio-serial-pci,id=ports"]
        for number, (chardev, name) in enumerate((("agent", AGENT_PORT), ("control", CONTROL_PORT)), 1):
            words += ["-chardev", f"socket,id={chardev},path={here}/{chardev},server=on,wait=off"]
            words += ["-device", f"virtserialport,bus=ports.0,nr={number},chardev={chardev},id={chardev},name={name}"]
        # An Ethernet card with nobody behind it.
        words += [
            "-netdev",
            "user,id=net,restrict=on",
            "-device",
            "virtio-net-pci,netdev=net,mac=52:54:00:5e:00:01,romfile=",
        ]
        for disk in ("root", "ext4", "xfs", "blank"):
            kind = "raw" if disk == "blank" else "qcow2"
            words += ["-drive", f"if=none,id={disk},file={self.disk(disk)},format={kind},cache=unsafe,discard=unmap"]
            words += ["-device", f"virtio-blk-pci,drive={disk},serial={disk}"]
        if self._saved is not None:
            words += ["-incoming", f"exec:cat {self._saved / 'state'}"]
        return [*words, *self._devices]

    def _end(self) -> None:
        """The overlay goes away, so QEMU is simply told to quit."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        try:
            self.qmp.send_json({"execute": "quit"})
            process.wait(10)
        except (AttributeError, OSError, HarnessError, subprocess.TimeoutExpired):
            process.kill()
            process.wait()

    def wait_control(self, limit: float = BOOT) -> None:
        """Until the guest answers."""
        end = time.monotonic() + limit
        while True:
            if self._process is not None and self._process.poll() is not None:
                raise HarnessError(f"QEMU ended ({self._process.returncode}): {self.console()[-1500:]}")
            try:
                self.control.ping(PATIENCE)
                return
            except Silence:
                if time.monotonic() > end:
                    raise HarnessError(f"no guest after {limit:g} s: {self.console()[-1500:]}") from None

    def wait_exit(self, limit: float = 120.0) -> int:
        """QEMU's exit status.  Raises Silence."""
        assert self._process is not None
        try:
            return self._process.wait(limit)
        except subprocess.TimeoutExpired:
            raise Silence(f"QEMU still runs after {limit:g} s") from None

    def console(self) -> str:
        return (self.folder / "console.log").read_text(errors="replace")

    # -- the agent's port

    @property
    def agent_path(self) -> Path:
        return self.folder / "agent"

    def agent(self, limit: float = 120.0) -> HostAgent:
        """A client of its own that has synced: close it, the port takes one at a time."""
        agent = HostAgent(self.agent_path)
        try:
            agent.sync(limit)
        except BaseException:
            agent.close()
            raise
        return agent

    # -- hardware

    def plug_cpu(self) -> str:
        """One processor more; its device's name."""
        for slot in self.qmp.call("query-hotpluggable-cpus"):
            if "qom-path" not in slot:
                props: dict[str, Any] = slot["props"]
                name = "cpu-" + "-".join(str(v) for v in props.values())
                self.qmp.call("device_add", driver=slot["type"], id=name, **props)
                return name
        raise HarnessError("no processor is left to plug")

    def plug_memory(self, mib: int = 256) -> None:
        number = next(self._dimms)
        self.qmp.call("object-add", qom_type="memory-backend-ram", id=f"memory{number}", size=mib << 20)
        self.qmp.call("device_add", driver="pc-dimm", id=f"dimm{number}", memdev=f"memory{number}")
