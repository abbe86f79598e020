"""The stand-in kubelet behind the real API server: exec and logs."""

from __future__ import annotations

import pytest
from kube_api import Api
from kube_exec import V4, V5, executing
from kube_here import Kubernetes
from kube_pods import start
from kubelet_exec import STDERR, STDOUT


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


async def test_a_command_ends_with_its_container(
    kubernetes: Kubernetes, kube: Api, namespace: str
) -> None:
    pod = await start(kube, namespace)
    async with executing(kubernetes.admin, pod, "sh", "-c", "echo on; sleep 600") as command:
        await command.until("on")
        kubernetes.kubelet.crash(namespace, "one")
        await command.end()
        assert command.exit_code is None
