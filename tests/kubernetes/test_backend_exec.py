"""Terminals and logs, through the real API server."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from contextlib import aclosing

import pytest
import trio
from kube_backend import SHELL, Running, made, name_of, spec, started
from kube_here import Kubernetes
from limits import HANG_SECONDS

from control.compute.backend import BackendUnavailable, Impossible, Spec, Terminal
from control.compute.kubernetes import Kubernetes as Backend
from control.compute.kubernetes.logs import LINE_BYTES_MAX, Lines

POD = "container-0"
V4, V5 = "v4.channel.k8s.io", "v5.channel.k8s.io"
MIB = 1024**2
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z ")


@pytest.fixture(scope="module")
def one(running_kubernetes: Kubernetes) -> Spec:
    """A container that runs, of the installation "terminals"."""
    return started(running_kubernetes.admin, "terminals")


@pytest.fixture
def backend(kubernetes: Kubernetes) -> Backend:
    """Without its watch, as in a process that does not drive."""
    return made(kubernetes.admin, "terminals")


async def rest_of(terminal: Terminal) -> bytes:
    """All it prints until it ends."""
    printed = bytearray()
    with trio.fail_after(HANG_SECONDS):
        while output := await terminal.receive():
            printed += output
    return bytes(printed)


async def until(terminal: Terminal, text: bytes) -> None:
    printed = b""
    with trio.fail_after(HANG_SECONDS):
        while text not in printed:
            output = await terminal.receive()
            assert output, f"it ended after {printed!r}"
            printed += output


async def settled(count: Callable[[], int]) -> int:
    """What something counts up to, once it stands still. It may be taken to stand still
    when it is only slow: what follows from that must be right all the same."""
    before, same = -1, 0
    with trio.fail_after(HANG_SECONDS):
        while same < 20:
            await trio.sleep(0.05)
            now = count()
            same = same + 1 if now == before else 0
            before = now
    return before


async def until_idle(kubernetes: Kubernetes) -> None:
    await trio.to_thread.run_sync(kubernetes.kubelet.wait_until_idle)


@pytest.mark.parametrize("protocols", [(V4,), (V5, V4)])
@pytest.mark.parametrize("code", [0, 1, 7, 255])
async def test_how_a_command_ended(
    kubernetes: Kubernetes,
    backend: Backend,
    one: Spec,
    monkeypatch: pytest.MonkeyPatch,
    protocols: tuple[str, ...],
    code: int,
) -> None:
    monkeypatch.setattr(kubernetes.kubelet._serving, "protocols", protocols)
    async with backend.exec(one, [*SHELL, f"echo said; exit {code}"]) as terminal:
        assert await rest_of(terminal) == b"said\r\n"
        assert terminal.exit_code == code
        assert await terminal.receive() == b""


async def test_arguments_arrive_as_they_are(backend: Backend, one: Spec) -> None:
    hostile = "a b&command=id #?%41+\"'\\$(id)\u20ac\U0001f600"
    async with backend.exec(one, ["printf", "%s|", hostile, "", "-x"]) as terminal:
        assert (await rest_of(terminal)).decode() == f"{hostile}||-x|"


@pytest.mark.parametrize("protocols", [(V4,), (V5, V4)])
async def test_a_shell_is_typed_into_and_resized(
    kubernetes: Kubernetes,
    backend: Backend,
    one: Spec,
    monkeypatch: pytest.MonkeyPatch,
    protocols: tuple[str, ...],
) -> None:
    monkeypatch.setattr(kubernetes.kubelet._serving, "protocols", protocols)
    async with backend.exec(one, ["sh"]) as shell:
        await shell.send(b"stty size; echo $((6*7))\n")
        await until(shell, b"24 80\r\n42\r\n")
        await shell.resize(132, 43)
        await shell.send(b"stty size; tty >/dev/null && echo has a terminal\n")
        await until(shell, b"43 132\r\nhas a terminal\r\n")
        await shell.send(b"exit 9\n")
        await rest_of(shell)
        assert shell.exit_code == 9
        await shell.send(b"too late")
        await shell.resize(1, 1)


async def test_leaving_a_terminal_ends_its_command(
    kubernetes: Kubernetes, backend: Backend, one: Spec
) -> None:
    async with backend.exec(one, [*SHELL, "echo begun; sleep 600"]) as terminal:
        await until(terminal, b"begun")
    await until_idle(kubernetes)


async def test_a_terminal_that_is_cancelled_ends_its_command(
    kubernetes: Kubernetes, backend: Backend, one: Spec
) -> None:
    with trio.CancelScope() as scope:
        async with backend.exec(one, [*SHELL, "echo begun; sleep 600"]) as terminal:
            await until(terminal, b"begun")
            scope.cancel()
            await terminal.receive()
    assert scope.cancelled_caught
    await until_idle(kubernetes)


async def test_what_its_user_raises_comes_out_of_a_terminal_as_it_is(
    backend: Backend, one: Spec
) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with backend.exec(one, ["sleep", "600"]):
            raise KeyError("mine")


async def test_a_slow_reader_stops_the_command(
    kubernetes: Kubernetes, backend: Backend, one: Spec
) -> None:
    """32 MiB: nobody between the command and its reader keeps them."""
    blocks, size = 64, MIB // 2
    script = (
        f'i=0; while [ $i -lt {blocks} ]; do head -c {size} /dev/zero | tr "\\0" x;'
        ' i=$((i+1)); echo $i > "$ROOT/progress.new"; mv "$ROOT/progress.new" "$ROOT/progress";'
        " done"
    )
    progress = kubernetes.kubelet.find(name_of(one), POD).directory / "progress"

    def printed() -> int:
        return int(progress.read_text()) * size if progress.exists() else 0

    async with backend.exec(one, [*SHELL, script]) as terminal:
        first = await terminal.receive()
        assert first.strip(b"x") == b""
        ahead = await settled(printed)
        assert ahead < 16 * MIB, "a command prints although nobody reads"
        rest = await rest_of(terminal)
        assert len(first) + len(rest) == blocks * size
        assert terminal.exit_code == 0


async def test_much_input_arrives_whole_and_waits_for_its_reader(
    kubernetes: Kubernetes, backend: Backend, one: Spec
) -> None:
    size = 32 * MIB
    data = bytes(range(256)) * 256
    taken = 0
    gate = kubernetes.kubelet.find(name_of(one), POD).directory / "gate"
    script = (
        f'stty raw -echo; echo ready; while [ ! -e "$ROOT/gate" ]; do sleep 0.05; done;'
        f" head -c {size} | sha256sum"
    )

    async def type_all(terminal: Terminal) -> None:
        nonlocal taken
        while taken < size:
            await terminal.send(data)
            taken += len(data)

    async with backend.exec(one, [*SHELL, script]) as terminal, trio.open_nursery() as nursery:
        await until(terminal, b"ready")
        nursery.start_soon(type_all, terminal)
        ahead = await settled(lambda: taken)
        assert ahead < size / 2, "input is taken although nobody reads it"
        gate.touch()
        expected = hashlib.sha256(data * (size // len(data))).hexdigest()
        assert expected.encode() in await rest_of(terminal)
        assert taken == size


async def test_many_terminals_at_once(kubernetes: Kubernetes, backend: Backend, one: Spec) -> None:
    async def ask(number: int) -> None:
        async with backend.exec(one, ["cat"]) as terminal:
            await terminal.send(f"number {number}\n".encode())
            await until(terminal, f"number {number}\r\nnumber {number}\r\n".encode())

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(ask, number)
    await until_idle(kubernetes)


async def test_a_terminal_of_what_does_not_run_is_refused(backend: Backend, one: Spec) -> None:
    with pytest.raises(Impossible, match="does not run"):
        async with backend.exec(spec(), ["true"]):
            pass


async def test_a_terminal_that_breaks_ends_without_a_code(
    kubernetes: Kubernetes, backend: Backend, one: Spec
) -> None:
    async with backend.exec(one, [*SHELL, "echo begun; sleep 600"]) as terminal:
        await until(terminal, b"begun")
        kubernetes.kubelet.drop_connections()
        assert await rest_of(terminal) == b""
        assert terminal.exit_code is None


async def test_logs_have_times_and_begin_where_they_are_asked_to(
    kubernetes: Kubernetes, backend: Backend, one: Spec
) -> None:
    kubelet = kubernetes.kubelet
    for number in range(5):
        kubelet.write_log(name_of(one), POD, f"line {number} \u20ac")
    lines = [line async for line in backend.logs(one, 3, follow=False)]
    assert [STAMP.sub("", line) for line in lines] == [f"line {n} \u20ac" for n in (2, 3, 4)]
    assert all(STAMP.match(line) for line in lines)


async def test_logs_are_followed(kubernetes: Kubernetes, backend: Backend, one: Spec) -> None:
    kubelet = kubernetes.kubelet
    kubelet.write_log(name_of(one), POD, "before")
    with trio.fail_after(HANG_SECONDS):
        async with aclosing(backend.logs(one, 1, follow=True)) as lines:
            assert (await anext(lines)).endswith(" before")
            for number in range(3):
                kubelet.write_log(name_of(one), POD, f"new {number}")
                assert (await anext(lines)).endswith(f" new {number}")


async def test_logs_that_are_followed_end_with_the_run(here: Running) -> None:
    one = spec()
    await here.start(one)
    with trio.fail_after(HANG_SECONDS):
        async with aclosing(here.backend.logs(one, 10, follow=True)) as lines:
            await anext(lines)
            await here.backend.stop(one)
            assert [line async for line in lines] == []


async def test_without_a_run_there_are_no_logs(backend: Backend) -> None:
    assert [line async for line in backend.logs(spec(), 10, follow=False)] == []


async def test_a_slow_reader_of_logs_gets_all_of_them(
    kubernetes: Kubernetes, backend: Backend, one: Spec
) -> None:
    for number in range(2000):
        kubernetes.kubelet.write_log(name_of(one), POD, f"{number} {'x' * 500}")
    seen = 0
    async for line in backend.logs(one, 2000, follow=False):
        assert f" {seen} xxx" in line
        seen += 1
    assert seen == 2000


async def test_logs_that_are_cut_off_say_so(
    kubernetes: Kubernetes, backend: Backend, one: Spec
) -> None:
    kubernetes.kubelet.write_log(name_of(one), POD, "before")
    with trio.fail_after(HANG_SECONDS):
        async with aclosing(backend.logs(one, 1, follow=True)) as lines:
            await anext(lines)
            await trio.to_thread.run_sync(kubernetes.server.kill)
            with pytest.raises(BackendUnavailable, match="broke"):
                await anext(lines)


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_lines_are_put_together_whatever_pieces_they_come_in(size: int) -> None:
    text = "one\r\n\ntw\u20aco\nthree"
    lines = Lines()
    data = text.encode()
    found = []
    for start in range(0, len(data), size):
        found += lines.feed(data[start : start + size])
    found += lines.end()
    assert found == ["one", "", "tw\u20aco", "three"]


def test_a_line_without_an_end_is_reported_in_pieces() -> None:
    lines = Lines()
    found = list(lines.feed(b"x" * (2 * LINE_BYTES_MAX + 5)))
    assert [len(line) for line in found] == [LINE_BYTES_MAX, LINE_BYTES_MAX]
    assert list(lines.feed(b"y\n")) == ["xxxxxy"]
