"""A stand-in for the nodes: pods come up, fail and go as a test says.

There are two nodes, one of each architecture, and one kubelet for both. It talks to
the real API server as a real kubelet does: it writes the nodes' status and heartbeat,
watches pods, writes their statuses, removes what is deleted, and serves what the API
server asks of it (exec and logs, see :mod:`kubelet_server`). Deciding is left to the
real scheduler and controllers. What a cloud would add (disks, addresses) is in
:mod:`kube_cloud`.

It runs no containers. A pod has a scratch directory, with a directory for each of its
volumes in its place, and a command that is executed in it runs there as an ordinary
process of this machine. A volume's directory is as lasting as its PersistentVolume.

It lives in a thread of its own with its own trio loop, so that a test that blocks or
cancels does not touch it. Its public methods may be called from any thread; they
return when the change is decided, not when the API server shows it: wait for that
with :meth:`kube_api.Api.wait`.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import kube_acts as acts
import trio
from apiserver import Server
from kube_acts import Act
from kube_api import Api, Object, insist
from kube_cloud import Cloud
from kubelet_server import KubeletServer, Pod
from limits import HANG_SECONDS

NODES = {"amd64": "node-amd64", "arm64": "node-arm64"}
HEARTBEAT_SECONDS = 10.0


class Kubelet:
    """See the module."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._directory = server.directory / "nodes"
        self._acts: dict[str, Act] = {}
        self._changed = trio.Event()  # An act was added or taken back.
        self._pods: dict[str, Pod] = {}
        self._addresses = (f"10.244.{i // 250 % 250}.{i % 250 + 1}" for i in itertools.count())
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="kubelet", daemon=True)

    # For tests, from any thread.

    def start(self) -> None:
        """Returns when both nodes are Ready."""
        self._thread.start()
        if not self._started.wait(HANG_SECONDS) or self._failure is not None:
            raise RuntimeError("the stand-in kubelet did not start") from self._failure

    def stop(self) -> None:
        """Returns when nothing of it runs any more, and no files of it are left."""
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._scope.cancel)
        self._thread.join(HANG_SECONDS)
        shutil.rmtree(self._directory, ignore_errors=True)

    def check(self) -> None:
        """Raises RuntimeError if it failed: then no pod will ever change again."""
        if self._failure is not None:
            raise RuntimeError("the stand-in kubelet failed") from self._failure

    @contextlib.contextmanager
    def acting(self, act: Act, namespace: str) -> Iterator[None]:
        """Within the block, pods of this namespace do as ``act`` says. One that runs already
        goes on."""
        self._do(lambda: self._acts.update({namespace: act}))
        try:
            yield
        finally:
            self._do(lambda: self._acts.pop(namespace))

    def crash(self, namespace: str, name: str) -> None:
        """A running pod's containers end; they run again."""
        self._do(lambda: self.find(namespace, name).crashed.set())

    def write_log(self, namespace: str, pod: str, line: str) -> None:
        """One more line of what its container prints."""
        self._do(lambda: self.find(namespace, pod).write(f"{acts.precise_now()} {line}"))

    def drop_connections(self) -> None:
        """Cut every exec and log stream, as a node does that dies."""
        self._do(self._serving.drop)

    def volume(self, namespace: str, claim: str) -> Path:
        """Where the files of a bound PersistentVolumeClaim are."""
        return self._cloud.volume(namespace, claim)

    @property
    def executing(self) -> int:
        """How many commands run for exec now."""
        return self._serving.executing

    def wait_until_idle(self) -> None:
        """Until no command runs for exec. Raises TimeoutError."""
        if not self._serving.idle.wait(HANG_SECONDS):
            raise TimeoutError(f"{self.executing} commands still run")

    # Inside.

    def find(self, namespace: str, name: str) -> Pod:
        """Raises LookupError."""
        for pod in self._pods.values():
            if pod.key == (namespace, name) and not pod.deleted.is_set():
                return pod
        raise LookupError(f"no pod {name} in {namespace} on any node")

    def _do(self, change: Callable[[], None]) -> None:
        """Run ``change`` on the loop, then let everybody look again. Its errors are the
        caller's."""

        done: Future[None] = Future()

        def run() -> None:
            try:
                change()
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(None)
            self._changed.set()
            self._changed = trio.Event()

        # Not trio's own way into another thread: that refuses callers with a loop.
        self._token.run_sync_soon(run)
        done.result(HANG_SECONDS)

    def _main(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as error:
            self._failure = error
            log = self._server.directory / "kubelet.log"
            log.write_text("".join(traceback.format_exception(error)))
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir()
        async with Api(self._server.parts) as api, trio.open_nursery() as nursery:
            self._scope = nursery.cancel_scope
            self._api = api
            self._nursery = nursery
            self._serving = KubeletServer(self.find)
            port = await nursery.start(self._serving.serve, self._server.tls)
            self._cloud = Cloud(api, self._directory / "volumes")
            await self._cloud.prepare()
            nursery.start_soon(self._cloud.run)
            for architecture, name in NODES.items():
                await api.create("/api/v1/nodes", acts.node(name, architecture))
                await nursery.start(self._heartbeat, architecture, port)
            nursery.start_soon(api.observe, "/api/v1/pods", self._look)
            self._started.set()

    async def _heartbeat(
        self, architecture: str, port: int, task_status: trio.TaskStatus[None]
    ) -> None:
        name = NODES[architecture]
        while True:
            status = acts.node_status(name, architecture, port)
            await self._patch(f"/api/v1/nodes/{name}/status", status)
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
            await trio.sleep(HEARTBEAT_SECONDS)

    def _look(self, present: dict[str, Object]) -> bool:
        """Compare what there is with what we know. Never done."""
        for uid, item in present.items():
            if item["spec"].get("nodeName") not in NODES.values():
                continue
            pod = self._pods.get(uid)
            if pod is None:
                pod = Pod(item, next(self._addresses), self._directory / "pods" / uid)
                self._pods[uid] = pod
                self._nursery.start_soon(self._keep, pod)
            pod.run.pod = item
            if item["metadata"].get("deletionTimestamp"):
                pod.deleted.set()
        for uid in self._pods.keys() - present.keys():
            self._pods[uid].gone.set()
        return False

    async def _keep(self, pod: Pod) -> None:
        """All of a pod's time on its node."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._until, pod.gone, nursery.cancel_scope)
            async with trio.open_nursery() as living:
                living.start_soon(self._until, pod.deleted, living.cancel_scope)
                await self._live(pod)
            pod.end_run()
            await self._remove(pod)
            await trio.sleep_forever()
        pod.end_run()
        pod.deleted.set()
        del self._pods[pod.run.uid]
        await trio.to_thread.run_sync(shutil.rmtree, pod.directory, True)

    async def _until(self, event: trio.Event, scope: trio.CancelScope) -> None:
        await event.wait()
        scope.cancel()

    def _act(self, pod: Pod) -> Act | None:
        return self._acts.get(pod.key[0])

    async def _live(self, pod: Pod) -> None:
        run = pod.run
        await self._write(pod)
        while isinstance(self._act(pod), acts.Held):
            await self._changed.wait()
        act = self._act(pod)
        if isinstance(act, acts.PullFails):
            await self._pull(pod, act)
        if run.pod["spec"].get("initContainers"):
            run.waits("PodInitializing")
            await self._write(pod)
            run.initialized = True
            await self._write(pod)
        await self._run(pod)

    async def _pull(self, pod: Pod, act: acts.PullFails) -> None:
        for reason in ("ErrImagePull", "ImagePullBackOff"):
            pod.run.waits(reason, act.message)
            await self._write(pod)
        while self._act(pod) == act:
            await self._changed.wait()

    async def _run(self, pod: Pod) -> None:
        """Containers run, until they crash."""
        run = pod.run
        while True:
            pod.over, pod.crashed = trio.Event(), trio.Event()
            await self._make_directory(pod)
            run.runs()
            pod.write(f"{acts.precise_now()} started {run.restarts}")
            await self._write(pod)
            await pod.crashed.wait()
            run.crashes(4)
            pod.end_run()

    async def _make_directory(self, pod: Pod) -> None:
        """A fresh file system, with what outlives it in its place."""
        mounts = await self._cloud.mounts(pod.run.pod)

        def make() -> None:
            shutil.rmtree(pod.directory, ignore_errors=True)
            pod.directory.mkdir(parents=True)
            for path, target in mounts:
                target.mkdir(parents=True, exist_ok=True)
                place = pod.directory / path.lstrip("/")
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(target)

        await trio.to_thread.run_sync(make)

    async def _write(self, pod: Pod) -> None:
        await self._patch(f"{pod.path}/status", pod.run.status(), uid=pod.run.uid)

    async def _patch(self, path: str, status: Object, *, uid: str = "") -> None:
        """Insists until it is done, or there is nothing to do it to."""
        body: Object = {"status": status}
        if uid:
            # Of a pod with the same name that came after, it must not be said.
            body["metadata"] = {"uid": uid}
        await insist(lambda: self._api.patch(path, body))

    async def _remove(self, pod: Pod) -> None:
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod.run.uid}}
        await insist(lambda: self._api.delete(pod.path, options))
