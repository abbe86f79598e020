"""A client of S3 that signs with the product's own functions, which the published examples
verify (``tests/unit/test_s3_signature.py``). It sends what other clients never would, too."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode, urlsplit
from xml.etree import ElementTree

import httpx
import trio
from auth_server import Server
from checks import PLAIN, ok
from cloud import Cloud
from limits import HANG_SECONDS

from control.api import Control
from control.identity.users import create
from control.s3.payload import SIGNED_CHUNKS
from control.s3.signature import ALGORITHM, UNSIGNED, Key, Signed, canonical, parse_query

EVERY = ("create", "read", "update", "delete")
XMLNS = "{http://s3.amazonaws.com/doc/2006-03-01/}"


class S3Client:
    def __init__(self, url: str, access_key_id: str = "", secret: str = "") -> None:
        """Without a key: anonymous."""
        self._id, self._secret = access_key_id, secret
        self.url = url
        self._host = urlsplit(url).netloc
        self._client = httpx.Client(base_url=url, timeout=HANG_SECONDS, **PLAIN)

    def __enter__(self) -> S3Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        age: float = 0.0,
        payload: str = "",
        unsigned: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """``path`` is BUCKET/KEY, not encoded: "\udcff" is a byte that is no UTF-8.
        ``unsigned``: headers that are sent besides."""
        # Dots that a client would resolve are encoded.
        parts = [
            part.replace(".", "%2E") if part in (".", "..") else _quoted(part)
            for part in path.split("/")
        ]
        raw = "/" + "/".join(parts)
        text = urlencode(query or {}, quote_via=quote)
        said = {name.lower(): value for name, value in (headers or {}).items()}
        if self._id:
            said |= self._signed(method, raw, text, said, body, age, payload)
        target = f"{raw}?{text}" if text else raw
        lines = {name: v.encode("latin-1") for name, v in {**said, **(unsigned or {})}.items()}
        request = self._client.build_request(method, target, content=body, headers=lines)
        return self._client.send(request)

    def _signed(
        self,
        method: str,
        raw: str,
        query: str,
        headers: Mapping[str, str],
        body: bytes,
        age: float,
        payload: str,
    ) -> dict[str, str]:
        date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() - age))
        scope = f"{date[:8]}/us-east-1/s3/aws4_request"
        digest = payload or hashlib.sha256(body).hexdigest()
        own = {
            "host": headers.get("host", self._host),
            "x-amz-content-sha256": digest,
            "x-amz-date": date,
        }
        signed_headers = sorted({**headers, **own}.items())
        names = tuple(name for name, _ in signed_headers)
        signed = Signed(self._id, scope, date, names, "", digest)
        form = canonical(method, raw.encode(), parse_query(query.encode()), signed_headers, signed)
        text = hashlib.sha256(form.encode("latin-1")).hexdigest()
        signature = Key(self._secret, scope).sign(ALGORITHM, date, text)
        authorization = (
            f"{ALGORITHM} Credential={self._id}/{scope}, SignedHeaders={';'.join(names)}, "
            f"Signature={signature}"
        )
        return {**own, "authorization": authorization}

    def presigned(
        self, method: str, path: str, query: Mapping[str, str], *, age: float = 0.0
    ) -> str:
        """The path of a URL that is valid for a minute, with this query besides."""
        date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() - age))
        scope = f"{date[:8]}/us-east-1/s3/aws4_request"
        said = {
            **query,
            "X-Amz-Algorithm": ALGORITHM,
            "X-Amz-Credential": f"{self._id}/{scope}",
            "X-Amz-Date": date,
            "X-Amz-Expires": "60",
            "X-Amz-SignedHeaders": "host",
        }
        signed = Signed(self._id, scope, date, ("host",), "", UNSIGNED, 60)
        pairs, host = list(said.items()), [("host", self._host)]
        form = canonical(method, f"/{path}".encode(), pairs, host, signed)
        text = hashlib.sha256(form.encode("latin-1")).hexdigest()
        signature = Key(self._secret, scope).sign(ALGORITHM, date, text)
        text = urlencode({**said, "X-Amz-Signature": signature}, quote_via=quote)
        return f"/{path}?{text}"

    def send_slowly(
        self, path: str, pieces: Iterator[bytes], size: int, query: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """Put what comes piece by piece, ``size`` bytes in all, not signed."""
        text = urlencode(query or {}, quote_via=quote)
        headers = self._signed("PUT", f"/{path}", text, {}, b"", 0.0, "UNSIGNED-PAYLOAD")
        headers["content-length"] = str(size)
        return self._client.put(f"/{path}?{text}", content=pieces, headers=headers)

    def head(
        self, method: str, path: str, query: Mapping[str, str], length: int,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:  # fmt: skip
        """The head of a request with a body of this length, which is not signed."""
        text = urlencode(query, quote_via=quote)
        more = dict(headers or {})
        said = more | self._signed(method, f"/{path}", text, more, b"", 0.0, "UNSIGNED-PAYLOAD")
        lines = [f"{name}: {value}" for name, value in said.items()]
        lines = [f"{method} /{path}?{text} HTTP/1.1", *lines, f"content-length: {length}"]
        return "\r\n".join([*lines, "", ""]).encode()

    def put_chunks(
        self,
        path: str,
        pieces: Sequence[bytes],
        change: Callable[[list[bytes]], list[bytes]] = lambda frames: frames,
        *,
        length: int | None = None,
        age: float = 0.0,
    ) -> httpx.Response:
        """Put the pieces as signed chunks, which ``change`` changes before they are sent.
        ``length``: what is said of the length of all."""
        size = sum(map(len, pieces)) if length is None else length
        said = {"x-amz-decoded-content-length": str(size), "content-encoding": "aws-chunked"}
        said |= self._signed("PUT", f"/{path}", "", said, b"", age, SIGNED_CHUNKS)
        previous = said["authorization"].rpartition("=")[2]
        date = said["x-amz-date"]
        key = Key(self._secret, f"{date[:8]}/us-east-1/s3/aws4_request")
        frames = []
        for piece in [*pieces, b""]:
            digests = hashlib.sha256(b"").hexdigest(), hashlib.sha256(piece).hexdigest()
            previous = key.sign("AWS4-HMAC-SHA256-PAYLOAD", date, previous, *digests)
            head = f"{len(piece):x};chunk-signature={previous}\r\n".encode()
            frames.append(head + piece + b"\r\n")
        return self._client.put(f"/{path}", content=b"".join(change(frames)), headers=said)

    # --- the usual calls --------------------------------------------------------------

    def put(self, path: str, body: bytes = b"", **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return done(self.call("PUT", path, body=body, headers=named))

    def get(self, path: str, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return done(self.call("GET", path, headers=named))

    def keys(self, bucket: str, **options: str) -> list[str]:
        """All keys and common prefixes, page by page."""
        found: list[str] = []
        query = {"list-type": "2", **{n.replace("_", "-"): v for n, v in options.items()}}
        while True:
            root = xml(done(self.call("GET", bucket, query)))
            found += [str(each.findtext(f"{XMLNS}Key")) for each in root.iter(f"{XMLNS}Contents")]
            found += [
                str(each.findtext(f"{XMLNS}Prefix")) for each in root.iter(f"{XMLNS}CommonPrefixes")
            ]
            token = root.findtext(f"{XMLNS}NextContinuationToken")
            if not token:
                return found
            query["continuation-token"] = token


def _quoted(text: str) -> str:
    return quote(text.encode("utf-8", "surrogateescape"), safe="~")


@asynccontextmanager
async def s3_of(server: Server) -> AsyncIterator[Callable[..., Awaitable[httpx.Response]]]:
    """:meth:`S3Client.call` with the administrator's key, at a server in this process, whose port
    is that of S3 from now on."""
    scopes = {f"storage.{server.admin['user_id']}": list(EVERY)}
    said = {"name": "k", "scopes": scopes, "expires_in": "30d"}
    key = ok(await server.call("POST", "/api/s3-keys", server.admin, **said))
    server.app.control.ports[server.http.base_url.port or 0] = "s3"
    url = str(server.http.base_url).rstrip("/")
    with S3Client(url, key["access_key_id"], key["secret_access_key"]) as client:
        yield lambda *words: trio.to_thread.run_sync(partial(client.call, *words))


def done(answer: httpx.Response) -> httpx.Response:
    assert 200 <= answer.status_code < 300, (answer.status_code, answer.text[:500])
    return answer


def xml(answer: httpx.Response) -> Any:
    assert answer.headers["content-type"] == "application/xml"
    return ElementTree.fromstring(answer.content)


def failed(answer: httpx.Response, code: str) -> str:
    """The message of an error with this code."""
    assert answer.status_code >= 300, answer.text[:300]
    root = xml(answer)
    found, message = root.findtext("Code"), root.findtext("Message")
    assert (root.tag, found) == ("Error", code), answer.text[:500]
    assert message
    return str(message)


def new_key(
    user: httpx.Client, user_id: str, actions: Sequence[str] = EVERY, name: str = "k"
) -> dict[str, str]:
    body = {"name": name, "scopes": {f"storage.{user_id}": actions}, "expires_in": "30d"}
    made: dict[str, str] = ok(user.post("/api/s3-keys", json=body))
    return made


def make_ada(control: Control) -> None:
    """A user of a control plane that serves nobody."""
    about = {"username": "ada", "display_name": "Ada", "password": "x"}
    control.records.write_at_start(lambda txn: create(txn, **about, is_admin=True, now=1))


def client_of(cloud: Cloud, key: dict[str, str] | None = None) -> S3Client:
    url = cloud.s3_url
    return S3Client(url, key["access_key_id"], key["secret_access_key"]) if key else S3Client(url)


def switch(s3: S3Client, bucket: str, status: str = "Enabled") -> None:
    """Switch the versions of a bucket on, or suspend them."""
    root = "VersioningConfiguration"
    body = f"<{root}><Status>{status}</Status></{root}>".encode()
    done(s3.call("PUT", bucket, {"versioning": ""}, body))


def deletion(*keys: str) -> bytes:
    objects = "".join(f"<Object><Key>{key}</Key></Object>" for key in keys)
    return f"<Delete>{objects}</Delete>".encode()


def access_list(*grants: tuple[str, str]) -> bytes:
    """Who, as an id or the URI of a group, may do what; the owner is the first."""
    who = [f"<URI>{each}</URI>" if "/" in each else f"<ID>{each}</ID>" for each, _ in grants]
    text = "".join(
        f"<Grant><Grantee>{each}</Grantee><Permission>{permission}</Permission></Grant>"
        for each, (_, permission) in zip(who, grants, strict=True)
    )
    text = f"<Owner>{who[0]}</Owner><AccessControlList>{text}</AccessControlList>"
    return f"<AccessControlPolicy>{text}</AccessControlPolicy>".encode()


def tagging(name: str, value: str) -> bytes:
    tag = f"<Tag><Key>{name}</Key><Value>{value}</Value></Tag>"
    return f"<Tagging><TagSet>{tag}</TagSet></Tagging>".encode()


def rule(prefix: str, ends: str, status: str = "Enabled") -> str:
    """Of a lifecycle."""
    return f"<Rule><Prefix>{prefix}</Prefix><Status>{status}</Status>{ends}</Rule>"


def put_below(cloud: Cloud, bucket: str, path: str, data: bytes) -> None:
    """Put a file into the bucket's directory with the file system's own client."""
    listed = cloud.cluster.gfs("ls", "/storage").stdout.decode().split()
    found = [each.strip("/").rpartition("/")[2] for each in listed]
    (directory,) = [each for each in found if each.rpartition(".")[0] == bucket]
    cloud.cluster.gfs("put", "--force", "-", f"/storage/{directory}/{path}", input=data)


def begin(s3: S3Client, path: str, **headers: str) -> str:
    """The id of a new multipart upload."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = done(s3.call("POST", path, {"uploads": ""}, headers=named))
    return str(xml(answer).findtext(f"{XMLNS}UploadId"))


def put_part(s3: S3Client, path: str, upload: str, number: int, data: bytes) -> str:
    """Its ETag."""
    query = {"uploadId": upload, "partNumber": str(number)}
    return str(done(s3.call("PUT", path, query, data)).headers["etag"])


def complete(s3: S3Client, path: str, upload: str, parts: list[tuple[int, str]]) -> httpx.Response:
    listed = "".join(f"<Part><PartNumber>{n}</PartNumber><ETag>{e}</ETag></Part>" for n, e in parts)
    body = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
    return s3.call("POST", path, {"uploadId": upload}, body)
