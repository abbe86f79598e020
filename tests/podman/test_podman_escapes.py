"""Each way out of a container is tried from inside, and fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from escapes import ESCAPES, PERMITTED, PUBLIC, Escape
from limits import HANG_SECONDS

from control.compute.podman import shapes
from control.compute.podman.network import fence

pytestmark = pytest.mark.usefixtures("containers_work")

PRISON = Path(__file__).parent / "prison.py"
GIB = 1024**3


@pytest.fixture(scope="module")
def story(containers_work: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What became of the prisoner."""
    directory = tmp_path_factory.mktemp("prison")
    command = [sys.executable, str(PRISON), str(directory)]
    # More than a hundred tries, one after the other.
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=2 * HANG_SECONDS, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stderr[-5000:]}"
    reported: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return reported


@pytest.mark.parametrize("escape", ESCAPES, ids=lambda each: each.name)
def test_there_is_no_way_out(story: dict[str, Any], escape: Escape) -> None:
    code, output = story["tried"][escape.name]
    assert code not in (0, None), f"{escape.command}: {output}"
    # It was tried: 127 says that there is no such command.
    assert code != 127, f"{escape.command}: {output}"


@pytest.mark.parametrize("thing", PERMITTED, ids=lambda each: each.name)
def test_what_a_tenant_needs_works(story: dict[str, Any], thing: Escape) -> None:
    code, output = story["tried"][thing.name]
    assert code == 0, f"{thing.command}: {output}"


def test_what_was_not_reached_was_there(story: dict[str, Any]) -> None:
    """This machine reaches it all, so a container would, if it was let."""
    assert [address for address, is_reached in story["reached"].items() if not is_reached] == []
    assert story["others"]


def test_ingress_at_an_address_of_the_machine_leaves_others_their_ports(
    story: dict[str, Any],
) -> None:
    address, reason, is_reached = story["public"]
    assert address == PUBLIC
    assert "port 80" in reason
    assert "another service of this machine" in reason
    assert "8098" not in reason
    assert is_reached


def test_a_container_cannot_use_up_the_connections_that_the_machine_follows(
    story: dict[str, Any],
) -> None:
    """Also across the minute's end, when the table of rules is put back."""
    others = 500
    for name in ("connections", "connections_later"):
        assert fence.CONNECTIONS_MAX / 2 < story[name] <= fence.CONNECTIONS_MAX + others


def test_the_other_tenant_and_the_machine_have_what_they_had(story: dict[str, Any]) -> None:
    assert story["file"] == "theirs\n"
    assert story["disk"] == story["disk_after"] == GIB


def test_a_container_cannot_use_up_what_the_kernel_counts_for_the_machine(
    story: dict[str, Any],
) -> None:
    flood = story["flood"]
    assert flood["taken"].strip() == "2500 instances"
    assert flood["other"].startswith("/dev/pts/")
    assert flood["machine"]
    assert f"none of its {shapes.PTYS} PTYs left" in flood["prisoner"]


def test_no_two_containers_have_a_user_in_common(story: dict[str, Any]) -> None:
    (_, first, count), (_, second, _) = story["users"]
    assert count == 65536
    assert abs(first - second) >= count
    assert min(first, second) >= 65536
