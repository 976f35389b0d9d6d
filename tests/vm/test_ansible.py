"""Ansible over libvirt: its connection plugin works through guest-exec and the file commands.

The plugin asks a shell what `~` is.  A service has no HOME, and Debian's /bin/sh then says `~` again, so the folder for Ansible's
temporary files has to be given as an absolute path (with qemu-ga too).
"""

from __future__ import annotations

import time
from pathlib import Path

from tests.vm.harness import playbook
from tests.vm.harness.libvirt import Domain
from tests.vm.harness.seen import Seen
from tests.vm.harness.service import set_policy

PLAYBOOK = """
- hosts: all
  gather_facts: false
  tasks:
    - ping:
    - setup:
        gather_subset: [min]
    - copy:
        content: "{{ 'many bytes ' * 20000 }}"
        dest: /root/copied
        mode: "0640"
      register: copied
    - command: sha1sum /root/copied
      register: sum
      changed_when: false
    - assert:
        that: sum.stdout.split()[0] == copied.checksum
    - template:
        src: motd.j2
        dest: /etc/motd
    - command: cat /etc/motd
      register: shown
      changed_when: false
    - assert:
        that: shown.stdout == "Debian 12 of " + inventory_hostname
    - fetch:
        src: /root/copied
        dest: "{{ playbook_dir }}/fetched"
        flat: true
"""


def test_ansible(tmp_path: Path, tools: Path, image: str, seen: Seen) -> None:
    """Ansible's community.libvirt.libvirt_qemu under the profile ansible: ping, setup, copy, command, template, fetch"""
    with Domain(image) as domain:
        domain.wait_booted()
        set_policy(domain, "ansible", dropin="ansible")
        domain.wait_agent()
        (tmp_path / "play.yml").write_text(PLAYBOOK)
        (tmp_path / "motd.j2").write_text(
            "{{ ansible_distribution }} {{ ansible_distribution_major_version }} of {{ inventory_hostname }}"
        )
        begun = time.monotonic()
        done = playbook.run(tools, tmp_path, [domain], "play.yml")
        took = time.monotonic() - begun
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
        assert (tmp_path / "fetched").read_text() == "many bytes " * 20000
        counts = playbook.recap(done)[domain.name]
    told = ", ".join(f"{word} {counts[word]}" for word in ("ok", "changed", "failed"))
    seen(f"{playbook.version(tools, tmp_path)}: {told}, {took:.0f} s")
