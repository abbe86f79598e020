"""What a user does with a container, from its creation to its end, through the API."""

from __future__ import annotations

from pathlib import Path

import pytest
from checks import ok, refused, wait_for
from podman_here import Here, User, fetch, left_of, processes_naming, running
from podman_shell import listening, listens, prints, shell

from control.compute.backend import LABEL_CLUSTER, LABEL_CONTAINER

#: Inside. A web server of one file, that outlives whoever started it.
SERVE = "mkdir -p /tmp/web; echo 'a page' > /tmp/web/index.html; busybox httpd -p 3000 -h /tmp/web"


@pytest.mark.smoke
async def test_the_whole_life_of_a_container(cloud: Here, user: User) -> None:
    async with listening(user) as reported:
        made = user.create(
            name="box; rm -rf / $(reboot) `id` \"'<&>",
            mount_paths=["/srv/data", "/root"],
            memory_mb=256,
            ssh_enabled=True,
        )
        assert await reported.statuses(made, "running") == ["pending", "initializing", "running"]
        info = user.get(made)
        used = wait_for(
            lambda: (found := user.get(made)).get("memory_used_mb") and found, "what it uses"
        )
        assert 0 <= used["storage_used_gb"] < 1

        async with shell(user, made) as terminal:
            await terminal.run("echo kept > /srv/data/file; echo gone > /opt/file")
            assert prints(await terminal.run("cat /srv/data/file"), "kept")

        assert user.ssh(made, "cat /srv/data/file; hostname; whoami") == f"kept\n{made}\nroot\n"
        host_key = user.known_hosts.read_text()
        assert host_key.count("\n") == 1

        port, address = 8123, reported.external_ips[made]
        assert fetch(address, port).returncode == 7  # nobody listens
        user.ssh(made, SERVE)
        ok(
            user.client.post(
                f"/compute/containers/{made}/ingress", json={"port": port, "target_port": 3000}
            )
        )
        page = wait_for(lambda: fetch(address, port).stdout, "page")
        assert page == "a page\n"
        ok(user.client.delete(f"/compute/containers/{made}/ingress/{port}"))
        wait_for(lambda: fetch(address, port).returncode == 7, "closed port")

        user.act(made, "stop")
        assert await reported.statuses(made, "stopped") == ["stopped"]
        refused(user.client.get(f"/compute/containers/{made}/terminal"), (400, 426))
        ssh_port = int(info["ssh_command"].split()[2])
        wait_for(lambda: not listens(ssh_port), "closed SSH port")

        assert user.act(made, "start")["status"] == "pending"
        assert await reported.statuses(made, "running") == ["pending", "initializing", "running"]
        assert user.get(made)["ssh_command"] == info["ssh_command"]
        assert user.ssh(made, "cat /srv/data/file; ls /opt; ls /tmp") == "kept\n"
        # Another key would have been refused, or added.
        assert user.known_hosts.read_text() == host_key

        ok(user.client.delete(f"/compute/containers/{made}"))
        await reported.deleted(made)
        refused(user.client.get(f"/compute/containers/{made}"), 404)
        wait_for(lambda: made not in cloud.recorded(), "end of the record")
        assert left_of(LABEL_CONTAINER, made) == []
        wait_for(lambda: not listens(ssh_port), "closed SSH port")
        wait_for(lambda: not processes_naming(made), "end of its processes")


async def test_a_deleted_key_lets_nobody_in_any_more(cloud: Here, user: User) -> None:
    made = user.run(ssh_enabled=True)
    assert user.ssh(made, "whoami") == "root\n"
    ok(user.client.delete(f"/compute/ssh-keys/{user.key_id}"))
    wait_for(lambda: user.try_ssh(made, "true").returncode == 255, "locked door")
    assert "Permission denied" in user.try_ssh(made, "true").stderr


@pytest.mark.usefixtures("containers_work")
def test_a_machine_without_room_says_so_and_makes_nothing(tmp_path: Path) -> None:
    settings = {"GFS_COMPUTE_MEMORY_MB_MAX": "1000", "GFS_COMPUTE_DISK_RESERVE_GB": "0"}
    with running(tmp_path / "here", **settings) as here:
        user = here.user()
        body = {"name": "test", "ssh_key_ids": [user.key_id]}
        for size, says in (
            ({"memory_mb": 1001}, "of 1000 MB of memory for containers 0 are taken"),
            ({"storage_gb": 1000}, "of disk for containers 0 are taken, and it needs 1000"),
        ):
            refused(user.client.post("/compute/containers", json=body | size), 503, says)
        assert here.recorded() == set()
        assert left_of(LABEL_CLUSTER, here.installation()) == []
        assert not list(here.control.glob("compute/disks/*"))
        user.delete(user.run(memory_mb=1000, storage_gb=1))
