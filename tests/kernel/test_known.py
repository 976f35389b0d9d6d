"""What the front remembers of a worker's replies is told again only when the worker says it again."""

from __future__ import annotations

import subprocess

import pytest

from privsep.sandbox.kernel import unshare_network
from tests.support.agent import Agent
from tests.support.namespace import isolated


@pytest.mark.root
@isolated
def test_a_large_answer_is_told_anew_when_it_has_changed() -> None:
    unshare_network()
    links = "".join(f"link add e{k} type veth peer name e{k + 1}\n" for k in range(0, 60, 2))
    subprocess.run(["ip", "-batch", "-"], input=links, text=True, check=True)
    with Agent("--policy", "qemu-ga") as agent:

        def told() -> dict[str, str]:
            rows = agent.call("guest-network-get-interfaces")
            return {row["name"]: row["hardware-address"] for row in rows}

        first = told()
        assert len(first) == 61
        for number in range(3):
            assert told() == told()
            subprocess.run(["ip", "link", "set", "e59", "address", f"02:00:00:00:00:0{number}"], check=True)
            assert told() == {**first, "e59": f"02:00:00:00:00:0{number}"}
