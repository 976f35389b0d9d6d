"""Power handlers on a made-up root: which program is asked, in which order, and what the host is told.

The programs are scripts that write down how they were called; nothing of the machine's own is ever run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import CommandError
from tests.support.handlers import BareContext, confined
from workers import power

NOT_SUPPORTED = "the requested suspend mode is not supported by the guest"


class Machine:
    """A root folder with programs that record their calls."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ctx: Any = BareContext(root)
        self._calls = root / "calls"

    def program(self, path: str, body: str = "exit 0") -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f'#!/bin/sh\necho "{Path(path).name}" "$@" >> {self._calls}\n{body}\n')
        file.chmod(0o755)

    def state(self, text: str) -> Path:
        file = self.root / "sys/power/state"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    @property
    def calls(self) -> list[str]:
        return self._calls.read_text().splitlines() if self._calls.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("mode", "name", "flag"), [("powerdown", "poweroff", "-P"), ("halt", "halt", "-H"), ("reboot", "reboot", "-r")]
)
def test_shutdown_prefers_the_mode_s_own_program_then_shutdown(
    machine: Machine, mode: str, name: str, flag: str
) -> None:
    machine.program("sbin/shutdown")
    assert power.guest_shutdown(machine.ctx, mode=mode) == {}
    machine.program(f"sbin/{name}")
    assert power.guest_shutdown(machine.ctx, mode=mode) == {}
    assert machine.calls == [f"shutdown -h {flag} +0 hypervisor initiated shutdown", name]


def test_shutdown_without_a_mode_powers_down(machine: Machine) -> None:
    machine.program("sbin/poweroff")
    power.guest_shutdown(machine.ctx)
    assert machine.calls == ["poweroff"]


@pytest.mark.parametrize(
    "mode", ["", "Halt", "halt\n", "halt\0", " halt", "power-down", "reboot;reboot", "\u00e9", "x" * 100_000]
)
def test_a_bad_mode_runs_nothing(machine: Machine, mode: str) -> None:
    for name in ("shutdown", "poweroff", "halt", "reboot"):
        machine.program(f"sbin/{name}")
    with pytest.raises(CommandError) as e:
        power.guest_shutdown(machine.ctx, mode=mode)
    assert e.value.desc == "mode is invalid (valid values are: halt|powerdown|reboot"
    assert machine.calls == []


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("echo no way; exit 3", "child process has failed to shutdown: no way\n"),
        ("echo no way >&2; exit 3", "child process has failed to shutdown: no way\n"),
        ("exit 3", "child process has failed to shutdown: exit status 3"),
        ("kill -9 $$", "child process has terminated abnormally"),
    ],
)
def test_a_failed_shutdown_says_why(machine: Machine, body: str, words: str) -> None:
    machine.program("sbin/shutdown", body)
    with pytest.raises(CommandError) as e:
        power.guest_shutdown(machine.ctx)
    assert e.value.desc == words


def test_long_output_is_cut(machine: Machine) -> None:
    machine.program("sbin/shutdown", "head -c 1000000 /dev/zero | tr '\\0' x; exit 1")
    with pytest.raises(CommandError) as e:
        power.guest_shutdown(machine.ctx)
    assert len(e.value.desc) < 5000 and e.value.desc.endswith("[output truncated]")


def test_no_program_at_all(machine: Machine) -> None:
    with pytest.raises(CommandError) as e:
        power.guest_shutdown(machine.ctx)
    assert e.value.desc == "failed to create child process: /sbin/shutdown: No such file or directory"


def test_a_program_that_hangs_is_given_up(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "LIMIT", 0.3)
    machine.program("sbin/shutdown", "sleep 30")
    with pytest.raises(CommandError, match="did not end within"):
        power.guest_shutdown(machine.ctx)


SUSPEND = [
    (power.guest_suspend_disk, "systemd-hibernate", "hibernate", "--hibernate", "pm-hibernate", "disk"),
    (power.guest_suspend_ram, "systemd-suspend", "suspend", "--suspend", "pm-suspend", "mem"),
    (power.guest_suspend_hybrid, "systemd-hybrid-sleep", "hybrid-sleep", "--suspend-hybrid", "pm-suspend-hybrid", ""),
]
ways = pytest.mark.parametrize(("command", "unit", "verb", "question", "program", "word"), SUSPEND)


@ways
@pytest.mark.parametrize("status", [1, 2, 3])
def test_systemd_is_the_first_way(
    machine: Machine, command: Any, unit: str, verb: str, question: str, program: str, word: str, status: int
) -> None:
    machine.program("usr/bin/systemctl", f'[ "$1" = status ] && exit {status}; exit 0')
    machine.program("usr/sbin/pm-is-supported")
    machine.program(f"usr/sbin/{program}")
    state = machine.state("freeze mem disk\n")
    assert command(machine.ctx) == {}
    assert machine.calls == [f"systemctl status {unit}", f"systemctl {verb}"]
    assert state.read_text() == "freeze mem disk\n"


@ways
@pytest.mark.parametrize("status", [0, 4, 127])
def test_pm_utils_are_the_second_way(
    machine: Machine, command: Any, unit: str, verb: str, question: str, program: str, word: str, status: int
) -> None:
    machine.program("bin/systemctl", f"exit {status}")
    machine.program("usr/bin/pm-is-supported")
    machine.program(f"usr/sbin/{program}")
    machine.state("freeze mem disk\n")
    assert command(machine.ctx) == {}
    assert machine.calls == [f"systemctl status {unit}", f"pm-is-supported {question}", program]


@ways
def test_the_kernel_is_the_last_way_and_not_for_hybrid(
    machine: Machine, command: Any, unit: str, verb: str, question: str, program: str, word: str
) -> None:
    state = machine.state("freeze mem disk\n")
    if word:
        assert command(machine.ctx) == {}
        assert state.read_text().startswith(word)
    else:
        with pytest.raises(CommandError) as e:
            command(machine.ctx)
        assert e.value.desc == NOT_SUPPORTED
        assert state.read_text() == "freeze mem disk\n"


@ways
def test_nothing_available_is_not_supported(
    machine: Machine, command: Any, unit: str, verb: str, question: str, program: str, word: str
) -> None:
    machine.program("usr/bin/systemctl", "exit 4")
    machine.program("usr/bin/pm-is-supported", "exit 1")
    machine.state("freeze\n")
    with pytest.raises(CommandError) as e:
        command(machine.ctx)
    assert e.value.desc == NOT_SUPPORTED
    assert all(c.startswith(("systemctl status", "pm-is-supported")) for c in machine.calls)


@ways
def test_the_last_available_way_s_error_is_told(
    machine: Machine, command: Any, unit: str, verb: str, question: str, program: str, word: str
) -> None:
    machine.program("usr/bin/systemctl", '[ "$1" = status ] && exit 3; echo locked >&2; exit 5')
    with pytest.raises(CommandError) as e:
        command(machine.ctx)
    name = f"the helper program 'systemctl {verb}'"
    assert e.value.desc == f"{name} returned an unexpected exit status code (5): locked\n"

    machine.program("usr/bin/pm-is-supported")
    with pytest.raises(CommandError) as e:
        command(machine.ctx)
    assert e.value.desc == f"the helper program '{program}' was not found"

    machine.program(f"usr/bin/{program}", "exit 9")
    with pytest.raises(CommandError) as e:
        command(machine.ctx)
    assert e.value.desc == f"the helper program '{program}' returned an unexpected exit status code (9)"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0")
def test_a_state_file_that_cannot_be_written(machine: Machine) -> None:
    state = machine.state("mem disk\n")
    os.chown(state, 65534, 65534)
    state.chmod(0o444)
    answer = confined("power", lambda: power.guest_suspend_ram(machine.ctx), walls=False)
    assert isinstance(answer, CommandError)
    assert answer.desc == "suspend: cannot write to '/sys/power/state': Permission denied"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0")
def test_uid_0_without_any_capability_is_enough(machine: Machine) -> None:
    machine.program("sbin/poweroff", 'exit "$(grep -c "^Cap...:.*[1-9a-f]" /proc/self/status)"')
    assert confined("power", lambda: power.guest_shutdown(machine.ctx), walls=False) == {}
    assert machine.calls == ["poweroff"]
    state = machine.state("mem\n")
    assert confined("power", lambda: power.guest_suspend_ram(machine.ctx), walls=False) == {}
    assert state.read_text() == "mem\n"
