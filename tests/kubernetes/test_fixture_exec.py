"""The stand-in kubelet behind the real API server: exec and logs."""

from __future__ import annotations

import re

import pytest
import trio
from kube_api import Api
from kube_exec import V4, V5, executing
from kube_here import Kubernetes
from kube_pods import pods_in, start
from kubelet_exec import STDERR, STDOUT
from limits import HANG_SECONDS

STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z ")


async def until_idle(kubernetes: Kubernetes) -> None:
    await trio.to_thread.run_sync(kubernetes.kubelet.wait_until_idle)


async def test_a_terminal(kubernetes: Kubernetes, kube: Api, namespace: str) -> None:
    pod = await start(kube, namespace)
    async with executing(kubernetes.admin, pod, "sh", terminal=True) as shell:
        assert shell.protocol == V4
        await shell.resize(101, 37)
        # What is typed is echoed: only what the shell makes of it says that it did.
        await shell.send("PS1='rea''dy> '\n")
        await shell.until("ready> ")
        await shell.send("stty size\n")
        await shell.until("37 101")
        # It is interactive: it echoes, and Ctrl-C ends what runs in it, not itself.
        await shell.send("sed -u s/ping/pong/\n")
        await shell.send("ping!\n")
        await shell.until("pong!")
        await shell.send("\x03")
        await shell.until("ready> ")
        await shell.send("echo $((6*7))\n")
        await shell.until("42\r\n")
        await shell.send("exit 7\n")
        await shell.end()
        assert shell.exit_code == 7


@pytest.mark.parametrize("protocol", [V4, V5])
async def test_output_errors_and_exit_code(
    kubernetes: Kubernetes, kube: Api, namespace: str, protocol: str
) -> None:
    pod = await start(kube, namespace)
    script = "echo out; echo err >&2; exit 3"
    async with executing(kubernetes.admin, pod, "sh", "-c", script, protocol=protocol) as command:
        assert command.protocol == protocol
        await command.end()
    assert command.printed[STDOUT] == b"out\n"
    assert command.printed[STDERR] == b"err\n"
    assert command.exit_code == 3


async def test_input_ends_in_version_5(kubernetes: Kubernetes, kube: Api, namespace: str) -> None:
    pod = await start(kube, namespace)
    async with executing(kubernetes.admin, pod, "wc", "-c", protocol=V5) as command:
        await command.send("12345")
        await command.close_input()
        await command.end()
    assert command.output == "5\n"
    assert command.exit_code == 0


async def test_a_command_that_is_not_there(
    kubernetes: Kubernetes, kube: Api, namespace: str
) -> None:
    pod = await start(kube, namespace)
    async with executing(kubernetes.admin, pod, "no-such-command") as command:
        await command.end()
    assert command.exit_code not in (0, None)


async def test_a_command_ends_with_its_connection(
    kubernetes: Kubernetes, kube: Api, namespace: str
) -> None:
    pod = await start(kube, namespace)
    async with executing(kubernetes.admin, pod, "sh", "-c", "echo on; sleep 600") as command:
        await command.until("on")
        assert kubernetes.kubelet.executing
    await until_idle(kubernetes)


async def test_a_command_ends_with_its_container(
    kubernetes: Kubernetes, kube: Api, namespace: str
) -> None:
    pod = await start(kube, namespace)
    async with executing(kubernetes.admin, pod, "sh", "-c", "echo on; sleep 600") as command:
        await command.until("on")
        kubernetes.kubelet.crash(namespace, "one")
        await command.end()
        assert command.exit_code is None


async def test_a_client_that_does_not_read_stops_the_command(
    kubernetes: Kubernetes, kube: Api, namespace: str
) -> None:
    pod = await start(kube, namespace)
    script = (
        "for i in $(seq 32); do head -c 524288 /dev/zero;"
        ' echo $i > "$ROOT/new"; mv "$ROOT/new" "$ROOT/at"; done'
    )
    async with executing(kubernetes.admin, pod, "sh", "-c", script) as command:
        at = kubernetes.server.directory / "nodes/pods" / pod["metadata"]["uid"] / "at"
        before = ""
        # Until it stands still, as seen over a while that is long for the system.
        with trio.fail_after(HANG_SECONDS):
            while not at.exists() or at.read_text() != before:
                before = at.read_text() if at.exists() else ""
                await trio.sleep(0.5)
        assert int(before) < 32
        await command.end()
    assert len(command.printed[STDOUT]) == 32 * 524288
    assert command.exit_code == 0


async def test_volumes_outlive_a_pod_and_nothing_else_does(
    kubernetes: Kubernetes, kube: Api, namespace: str
) -> None:
    claims = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
    asked = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    await kube.create(claims, {"metadata": {"name": "disk"}, "spec": asked})
    volumes = [{"name": "disk", "persistentVolumeClaim": {"claimName": "disk"}}]
    mounts = [{"name": "disk", "mountPath": "/data", "subPath": "kept"}]
    spec = {
        "containers": [{"name": "main", "image": "debian", "volumeMounts": mounts}],
        "volumes": volumes,
    }
    pod = await start(kube, namespace, "first", **spec)
    script = 'echo yes > "$ROOT/data/a"; echo yes > "$ROOT/b"'
    async with executing(kubernetes.admin, pod, "sh", "-c", script) as command:
        await command.end()
    assert (kubernetes.kubelet.volume(namespace, "disk") / "kept/a").read_text() == "yes\n"
    await kube.delete(f"{pods_in(namespace)}/first")
    await kube.wait_gone(f"{pods_in(namespace)}/first")
    pod = await start(kube, namespace, "second", **spec)
    script = 'cat "$ROOT/data/a"; test ! -e "$ROOT/b"'
    async with executing(kubernetes.admin, pod, "sh", "-c", script) as command:
        await command.end()
    assert command.output == "yes\n"
    assert command.exit_code == 0


async def test_logs(kubernetes: Kubernetes, kube: Api, namespace: str) -> None:
    await start(kube, namespace)
    for line in ("one", "two", "three"):
        kubernetes.kubelet.write_log(namespace, "one", line)
    path = f"{pods_in(namespace)}/one/log"
    assert (await kube.text(path)).splitlines()[-3:] == ["one", "two", "three"]
    assert await kube.text(path, tailLines="2") == "two\nthree\n"
    stamped = await kube.text(path, tailLines="1", timestamps="true")
    assert STAMP.sub("", stamped) == "three\n"
    assert STAMP.match(stamped)


async def test_logs_are_followed_until_the_container_ends(
    kubernetes: Kubernetes, kube: Api, namespace: str
) -> None:
    await start(kube, namespace, restartPolicy="Never")
    kubernetes.kubelet.write_log(namespace, "one", "before")
    path = f"{pods_in(namespace)}/one/log"
    seen: list[str] = []
    with trio.fail_after(HANG_SECONDS):
        async for line in kube.lines(path, tailLines="1", follow="true"):
            seen.append(line)
            if line == "before":
                kubernetes.kubelet.write_log(namespace, "one", "after")
            else:
                kubernetes.kubelet.crash(namespace, "one", exit_code=1)
    assert seen == ["before", "after"]


async def test_streams_are_cut_with_their_node(
    kubernetes: Kubernetes, kube: Api, namespace: str
) -> None:
    pod = await start(kube, namespace)
    async with executing(kubernetes.admin, pod, "sh", "-c", "echo on; sleep 600") as command:
        await command.until("on")
        kubernetes.kubelet.drop_connections()
        await command.end()
        assert command.exit_code is None
    await until_idle(kubernetes)
