"""The calls of Kubernetes' API, with the ``kubernetes`` client.

The client blocks, so its calls run in threads, a limited number at once, each with a
deadline. A caller that is cancelled, or whose deadline has passed, goes on at once; its
thread is abandoned until the client's own timeouts end it, and counts until then. Whether
an abandoned call took effect is not known; all of them may be repeated.

Objects are sent as manifests, by server-side apply: the same call makes an object and
changes one, removes fields that are not desired any more, and keeps fields of others
(a Service's node ports, a controller's annotations). They are decoded from the answers'
bytes into :mod:`control.compute.kubernetes.shapes`: the client's own models would cost
ten times the time and memory.

Streams (exec, logs, watches) are in :mod:`control.compute.kubernetes.client.streams`.

All calls raise Refused if the answer is an error, and BackendUnavailable if there is no
answer.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

import msgspec
import trio

from control.compute.backend import BackendUnavailable
from control.compute.kubernetes.client.credentials import Source, authorization, load
from control.compute.kubernetes.client.refusals import Refused
from control.compute.kubernetes.manifests import Manifest, as_yaml
from control.compute.kubernetes.shapes import (
    AccessReview,
    Event,
    Namespace,
    Node,
    Page,
    Pod,
    PodMetrics,
    Rights,
    RulesReview,
    Service,
    Workload,
)

if TYPE_CHECKING:
    from kubernetes.client import Configuration

FIELD_MANAGER = "gfs-control"
APPLY = "application/apply-patch+yaml"
THREADS = 16
#: How long a call may take, including reading the credentials again.
SECONDS = 30.0
CONNECT_SECONDS = 10.0
#: How often refused credentials are read again.
RELOAD_SECONDS = 10.0
#: 500 pods are about 3 MiB.
PAGE_ITEMS = 500
ANSWER_BYTES_MAX = 64 * 1024 * 1024
EVENTS_MAX = 50

T = TypeVar("T")
ItemT = TypeVar("ItemT", Namespace, Node, Pod, Service)


class Endpoint(msgspec.Struct, frozen=True):
    """Where and how to open a stream."""

    host: str
    port: int
    #: A prefix of every path, for clusters behind a gateway.
    prefix: str
    #: None: without TLS.
    tls: ssl.SSLContext | None
    #: The host name that the certificate must have.
    server_name: str
    authorization: str
    #: The address of the proxy; "" for none.
    proxy: str
    #: The client that has these credentials, for ``Api.renew``.
    client: object


class _Client:
    """The parts of the ``kubernetes`` client that we use, with one set of credentials."""

    def __init__(self, configuration: Configuration) -> None:
        from kubernetes import client
        from urllib3 import make_headers

        # One attempt: our caller decides whether there is another.
        configuration.retries = 0
        configuration.connection_pool_maxsize = THREADS
        self.proxy = _proxy(configuration)
        if password := urlsplit(self.proxy).password:
            # The client does not read the user and password in the address.
            who = f"{unquote(urlsplit(self.proxy).username or '')}:{unquote(password)}"
            configuration.proxy_headers = make_headers(proxy_basic_auth=who)
        self.configuration = configuration
        self.connections = _connections(configuration)
        self.core: Any = client.CoreV1Api(self.connections)
        self.apps: Any = client.AppsV1Api(self.connections)
        self.networking: Any = client.NetworkingV1Api(self.connections)
        self.authorization: Any = client.AuthorizationV1Api(self.connections)
        self.custom: Any = client.CustomObjectsApi(self.connections)
        self.patches: dict[str, Callable[..., Any]] = {
            "Secret": self.core.patch_namespaced_secret,
            "PersistentVolumeClaim": self.core.patch_namespaced_persistent_volume_claim,
            "ResourceQuota": self.core.patch_namespaced_resource_quota,
            "Service": self.core.patch_namespaced_service,
            "StatefulSet": self.apps.patch_namespaced_stateful_set,
            "NetworkPolicy": self.networking.patch_namespaced_network_policy,
            "Ingress": self.networking.patch_namespaced_ingress,
        }
        self.lists: dict[type, Callable[..., Any]] = {
            Namespace: self.core.list_namespace,
            Node: self.core.list_node,
            Pod: self.core.list_pod_for_all_namespaces,
            Service: self.core.list_service_for_all_namespaces,
        }
        self.tls = _tls(configuration) if configuration.host.startswith("https:") else None

    def close(self) -> None:
        self.connections.close()


class Api:
    """The calls. The first one creates the client and reads the credentials."""

    def __init__(self, find: Callable[[], Source]) -> None:
        """``find`` returns where the credentials are; it is called again when they are refused."""
        self._find = find
        self._limiter = trio.CapacityLimiter(THREADS)
        self._connecting = trio.Lock()
        self._client: _Client | None = None
        self._loaded_at = 0.0

    def close(self) -> None:
        """Close the connections. Another call opens new ones."""
        if self._client is not None:
            self._client.close()
            self._client = None

    # --- rights -------------------------------------------------------------------------

    async def rights(self, namespace: str) -> Rights:
        """Our rights in a namespace, which need not exist, as far as the cluster can list
        them."""
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectRulesReview",
            "spec": {"namespace": namespace},
        }
        answer = await self._ask(
            lambda client: client.authorization.create_self_subject_rules_review(body, **_RAW)
        )
        return _decode(answer, RulesReview).status

    async def may(self, group: str, resource: str, verb: str) -> bool:
        """Whether we have a right in all namespaces. ``resource`` may be
        ``resource/subresource``."""
        name, _, subresource = resource.partition("/")
        asked = {"group": group, "resource": name, "subresource": subresource, "verb": verb}
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": asked},
        }
        answer = await self._ask(
            lambda client: client.authorization.create_self_subject_access_review(body, **_RAW)
        )
        return _decode(answer, AccessReview).status.allowed

    # --- namespaces ---------------------------------------------------------------------

    async def namespace(self, name: str) -> Namespace | None:
        with _or_none():
            answer = await self._ask(lambda client: client.core.read_namespace(name, **_RAW))
            return _decode(answer, Namespace)
        return None

    async def create_namespace(self, manifest: Manifest) -> Namespace:
        """Raises Refused with 409 if there is one of that name."""
        answer = await self._ask(
            lambda client: client.core.create_namespace(
                manifest, field_manager=FIELD_MANAGER, **_RAW
            )
        )
        return _decode(answer, Namespace)

    async def apply_namespace(self, manifest: Manifest) -> None:
        name = manifest["metadata"]["name"]
        await self._ask(lambda client: client.core.patch_namespace(name, manifest, **_APPLIED))

    async def delete_namespace(self, name: str, uid: str) -> None:
        """Begin to delete the namespace with this uid."""
        body = {"preconditions": {"uid": uid}}
        with _or_none():
            await self._ask(lambda client: client.core.delete_namespace(name, body=body, **_RAW))

    # --- objects ------------------------------------------------------------------------

    async def apply(self, manifest: Manifest) -> None:
        await self._apply(manifest)

    async def rehearse(self, workload: Manifest) -> Workload:
        """The workload that an apply would create, without creating it."""
        return _decode(await self._apply(workload, dry_run="All"), Workload)

    async def _apply(self, manifest: Manifest, **more: str) -> bytes:
        name, namespace = manifest["metadata"]["name"], manifest["metadata"]["namespace"]
        kind = manifest["kind"]
        return await self._ask(
            lambda client: client.patches[kind](name, namespace, manifest, **_APPLIED, **more)
        )

    async def delete_service(self, namespace: str, name: str) -> None:
        with _or_none():
            await self._ask(
                lambda client: client.core.delete_namespaced_service(name, namespace, **_RAW)
            )

    async def delete_ingress(self, namespace: str, name: str) -> None:
        with _or_none():
            await self._ask(
                lambda client: client.networking.delete_namespaced_ingress(name, namespace, **_RAW)
            )

    async def workload(self, namespace: str, name: str) -> Workload | None:
        with _or_none():
            answer = await self._ask(
                lambda client: client.apps.read_namespaced_stateful_set(name, namespace, **_RAW)
            )
            return _decode(answer, Workload)
        return None

    async def has_workload(self, namespace: str, name: str) -> bool:
        return await self.workload(namespace, name) is not None

    async def warnings(self, namespace: str) -> list[Event]:
        """Recent warnings of Kubernetes in a namespace."""
        answer = await self._ask(
            lambda client: client.core.list_namespaced_event(
                namespace, field_selector="type=Warning", limit=EVENTS_MAX, **_RAW
            )
        )
        return [_decode(item, Event) for item in _decode(answer, Page).items]

    async def metrics(self, namespace: str, pod: str) -> PodMetrics | None:
        """The metrics of a pod; None if there is no metrics server or it has none yet."""
        with _or_none():
            answer = await self._ask(
                lambda client: client.custom.get_namespaced_custom_object(
                    "metrics.k8s.io", "v1beta1", namespace, "pods", pod, **_RAW
                )
            )
            return _decode(answer, PodMetrics)
        return None

    async def list(
        self, kind: type[ItemT], labels: str, page_items: int = PAGE_ITEMS
    ) -> tuple[list[ItemT], str]:
        """All objects with these labels, page by page, and the version to watch from.

        Raises Refused with 410 if it took so long that the next page has expired.
        """
        found: list[ItemT] = []
        where: dict[str, Any] = {"label_selector": labels, "limit": page_items, **_RAW}
        while True:
            page = _decode(await self._ask(lambda client: client.lists[kind](**where)), Page)
            found += [_decode(item, kind) for item in page.items]
            if not page.metadata.continue_:
                return found, page.metadata.resource_version
            where["_continue"] = page.metadata.continue_

    # --- for streams --------------------------------------------------------------------

    async def endpoint(self) -> Endpoint:
        client = await self._connected()
        url = urlsplit(client.configuration.host)
        host = url.hostname or "localhost"
        token = await self._in_thread(lambda: authorization(client.configuration))
        return Endpoint(
            host=host,
            port=url.port or (80 if client.tls is None else 443),
            prefix=url.path.rstrip("/"),
            tls=client.tls,
            server_name=client.configuration.tls_server_name or host,
            authorization=token,
            proxy=client.proxy,
            client=client,
        )

    async def renew(self, refused: object) -> bool:
        """Read credentials again after those of ``refused`` (``Endpoint.client``) were refused.
        Returns False if that was done a moment ago."""
        async with self._connecting:
            if self._client is not refused:
                return True
            if trio.current_time() - self._loaded_at < RELOAD_SECONDS:
                return False
            await self._load()
            return True

    # --- sending ------------------------------------------------------------------------

    async def _ask(self, call: Callable[[_Client], Any]) -> bytes:
        try:
            with trio.fail_after(SECONDS):
                client = await self._connected()
                try:
                    return await self._in_thread(lambda: _answer(client, call))
                except Refused as refused:
                    if refused.status != 401 or not await self.renew(client):
                        raise
                client = await self._connected()
                return await self._in_thread(lambda: _answer(client, call))
        except trio.TooSlowError:
            raise BackendUnavailable(f"the cluster does not answer within {SECONDS:g} s") from None

    async def _connected(self) -> _Client:
        if self._client is None:
            async with self._connecting:
                if self._client is None:
                    await self._load()
        assert self._client is not None
        return self._client

    async def _load(self) -> None:
        """Read the credentials. The caller holds the lock; calls under way keep their client."""
        source = self._find()
        self._loaded_at = trio.current_time()
        client = await self._in_thread(lambda: _Client(load(source)))
        self.close()
        self._client = client

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._limiter, abandon_on_cancel=True)


#: The options that make the client return the bytes of an answer instead of a model.
_RAW: dict[str, Any] = {
    "_preload_content": False,
    "_request_timeout": (CONNECT_SECONDS, SECONDS),
}
_APPLIED: dict[str, Any] = {
    **_RAW,
    "field_manager": FIELD_MANAGER,
    "force": True,
    "_content_type": APPLY,
}


def _answer(client: _Client, call: Callable[[_Client], Any]) -> bytes:
    """The body of an answer. Runs in a thread."""
    import urllib3
    from kubernetes.client import ApiException

    host = client.configuration.host
    try:
        response = call(client)
        try:
            body: bytes = response.read(ANSWER_BYTES_MAX + 1)
        except BaseException:
            response.close()
            raise
        response.release_conn()
    except ApiException as error:
        if not error.status:
            raise BackendUnavailable(f"{host} does not answer: {_short(error.reason)}") from None
        raise Refused.of(error.status, error.body) from None
    except urllib3.exceptions.HTTPError as error:
        reason = getattr(error, "reason", None) or error
        raise BackendUnavailable(f"{host} does not answer: {_short(reason)}") from None
    if len(body) > ANSWER_BYTES_MAX:
        raise BackendUnavailable(f"{host} answers with more than {ANSWER_BYTES_MAX} bytes")
    return body


def _short(error: object) -> str:
    """The error without the objects that urllib3 puts before it."""
    text = " ".join(str(error).split())
    return text.rpartition("object at 0x")[2].partition(">: ")[2] or text


def _connections(configuration: Configuration) -> Any:
    from kubernetes import client

    class Connections(client.ApiClient):
        """Writes YAML where it is required; the client would write JSON, not all of which is
        YAML."""

        def call_api(
            self,
            method: str,
            url: str,
            header_params: Any = None,
            body: Any = None,
            *rest: Any,
            **more: Any,
        ) -> Any:
            if (header_params or {}).get("Content-Type") == APPLY:
                body = as_yaml(body)
            return super().call_api(method, url, header_params, body, *rest, **more)

    return Connections(configuration)


def _tls(configuration: Configuration) -> ssl.SSLContext:
    """The same TLS settings as those of the client's calls."""
    from urllib3.util.ssl_ import create_urllib3_context

    context = create_urllib3_context(
        cert_reqs=ssl.CERT_REQUIRED if configuration.verify_ssl else ssl.CERT_NONE
    )
    if configuration.assert_hostname is False:
        context.check_hostname = False
    if configuration.ssl_ca_cert or configuration.ca_cert_data:
        context.load_verify_locations(
            cafile=configuration.ssl_ca_cert, cadata=configuration.ca_cert_data
        )
    else:
        context.load_default_certs()
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    return context


def _proxy(configuration: Configuration) -> str:
    """The same proxy as that of the client's calls."""
    from kubernetes.client.rest import should_bypass_proxies

    if not configuration.proxy or should_bypass_proxies(
        configuration.host, configuration.no_proxy or ""
    ):
        return ""
    return str(configuration.proxy)


def _decode(raw: bytes | msgspec.Raw, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.DecodeError as error:
        raise BackendUnavailable(f"the cluster's answer cannot be read: {error}") from None


@contextlib.contextmanager
def _or_none() -> Iterator[None]:
    """Ignore the error that an object does not exist."""
    try:
        yield
    except Refused as refused:
        if refused.status != 404:
            raise
