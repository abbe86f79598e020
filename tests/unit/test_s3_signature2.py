"""Presigned URLs of version 2: the published example, and requests that were changed.

``tests/s3/test_s3_clients.py`` compares them with botocore's.
"""

from __future__ import annotations

import base64
import hmac
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.s3.errors import S3Error
from control.s3.signature import EXPIRES_MAX, SKEW_SECONDS
from control.s3.signature2 import SUBRESOURCES, Presigned, is_presigned, presigned

ID = "AKIAIOSFODNN7EXAMPLE"
SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
AT = 1175139620
RESOURCE = b"/johnsmith/photos/puppy.jpg"
SIGNATURE = "NpgCjnDzrM+WFzoENXmpNDUsSn8="

Headers = list[tuple[str, str]]


def sign(text: bytes) -> str:
    return base64.b64encode(hmac.digest(SECRET.encode(), text, "sha1")).decode()


def query_of(signature: str, *more: tuple[str, str]) -> bytes:
    named = {"AWSAccessKeyId": ID, "Signature": signature, "Expires": str(AT)}
    return urlencode([*more, *named.items()], quote_via=quote).encode()


def verified(method: str, resource: bytes, query: bytes, headers: Headers) -> Presigned:
    found = presigned(method, resource, query, headers)
    found.verify(SECRET)
    return found


def refused(method: str, resource: bytes, query: bytes, headers: Headers) -> S3Error:
    with pytest.raises(S3Error) as failed:
        verified(method, resource, query, headers)
    return failed.value


def test_the_published_example_is_verified_until_it_expires() -> None:
    query = query_of(SIGNATURE)
    found = verified("GET", RESOURCE, query, [("host", "johnsmith.s3.amazonaws.com")])
    assert found.access_key_id == ID
    found.check_time(AT)
    found.check_time(AT - EXPIRES_MAX)
    for at, word in ((AT + 1, "expired"), (AT - EXPIRES_MAX - SKEW_SECONDS - 1, "at most")):
        with pytest.raises(S3Error, match=word) as failed:
            found.check_time(at)
        assert failed.value.code == "AccessDenied"
    with pytest.raises(S3Error):
        found.verify(SECRET + "x")


#: What else is in the query or the headers of the example, and the error.
ADDED = [
    *(([(name, "x")], [], "AccessDenied") for name in ("prefix", "marker", "attributes", "Acl")),
    *(([(name, "x")], [], "AccessDenied") for name in ("retention", "policyStatus", "x-id")),
    *(([(name, "x")], [], "AccessDenied") for name in ("X-Amz-Acl", "x-amz-a:b", "token")),
    *(([(name, "x")], [], "SignatureDoesNotMatch") for name in SUBRESOURCES),
    *(([(name, "x")], [], "SignatureDoesNotMatch") for name in ("x-amz-acl", "content-type")),
    *(([], [(name, "x")], "SignatureDoesNotMatch") for name in ("x-amz-acl", "content-md5")),
    *(([(name, "x")] * 2, [], "InvalidArgument") for name in ("acl", "x-amz-acl", "Expires")),
    ([("x-amz-acl", "x")], [("x-amz-acl", "y")], "AccessDenied"),
    ([("x-amz-meta-a", "b\nx-amz-acl:c")], [], "InvalidArgument"),
    ([("response-content-type", "a&versionId=b")], [], "InvalidArgument"),
    ([("response-content-type", "a&acl")], [], "InvalidArgument"),
    ([], [("authorization", "AWS4-HMAC-SHA256 x")], "InvalidArgument"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "headers", "code"), ADDED)
def test_nothing_can_be_added(more: Headers, headers: Headers, code: str) -> None:
    assert refused("GET", RESOURCE, query_of(SIGNATURE, *more), headers).code == code


@pytest.mark.parametrize("method", ["DELETE", "POST", "PATCH"])
def test_a_url_is_for_reading_and_storing(method: str) -> None:
    text = b"%b\n\n\n%d\n%b" % (method.encode(), AT, RESOURCE)
    assert refused(method, RESOURCE, query_of(sign(text)), []).code == "InvalidRequest"


@pytest.mark.parametrize("expires", ["", "x", "-1", "1e9", "1175139620.0", "9" * 13, " 1175139620"])
def test_an_expiry_that_is_no_time(expires: str) -> None:
    text = f"GET\n\n\n{expires}\n{RESOURCE.decode()}".encode()
    query = query_of(sign(text)).replace(b"Expires=%d" % AT, b"Expires=" + quote(expires).encode())
    assert refused("GET", RESOURCE, query, []).code == "AccessDenied"
    assert is_presigned({"AWSAccessKeyId": ""})


VALUES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=12)
PARAMETERS = st.dictionaries(st.sampled_from(sorted(SUBRESOURCES)), VALUES, max_size=4)
AMZ = st.dictionaries(
    st.from_regex(r"x-amz-[a-z][a-z0-9-]{0,8}", fullmatch=True), VALUES, max_size=3
)


@given(PARAMETERS, AMZ, st.sampled_from(["", "text/plain", "a/b; c=d"]), st.data())
def test_what_is_signed_is_all_that_is_done(
    parameters: dict[str, str], amz: dict[str, str], kind: str, data: st.DataObject
) -> None:
    """And with one byte changed of the path, a value, or a header it is refused."""
    amz = {name: value.strip(" \t") for name, value in amz.items()}
    lines = "".join(f"{name}:{value}\n" for name, value in sorted(amz.items()))
    asked = "&".join(f"{name}={value}" for name, value in sorted(parameters.items()))
    resource = RESOURCE.decode() + "?" * bool(asked) + asked
    signature = sign(f"PUT\n\n{kind}\n{AT}\n{lines}{resource}".encode())
    # Headers may be sent as such or in the query, in any order.
    in_query = dict(data.draw(st.permutations(sorted(amz.items()))))
    sent = {name: in_query.pop(name) for name in list(in_query) if data.draw(st.booleans())}
    headers = [(name, value.encode().decode("latin-1")) for name, value in sent.items()]
    if kind:
        headers.append(("content-type", kind))
    pairs = data.draw(st.permutations([*parameters.items(), *in_query.items()]))
    query = query_of(signature, *pairs)
    found = verified("PUT", RESOURCE, query, headers)
    assert found.options == parameters
    assert {name: found.headers.get(name, value) for name, value in in_query.items()} == in_query

    place = data.draw(st.sampled_from(["path", "type", *(name for name, _ in pairs), *sent]))
    if place == "path":
        at = data.draw(st.integers(0, len(RESOURCE)))
        refused("PUT", RESOURCE[:at] + b"x" + RESOURCE[at:], query, headers)
    elif place == "type":
        others = [pair for pair in headers if pair[0] != "content-type"]
        refused("PUT", RESOURCE, query, [*others, ("content-type", kind + "x")])
    elif place in sent:
        changed = [(name, value + "x" * (name == place)) for name, value in headers]
        refused("PUT", RESOURCE, query, changed)
        refused("PUT", RESOURCE, query, [pair for pair in headers if pair[0] != place])
    else:
        changed = [(name, value + "x" * (name == place)) for name, value in pairs]
        refused("PUT", RESOURCE, query_of(signature, *changed), headers)
        changed = [pair for pair in pairs if pair[0] != place]
        refused("PUT", RESOURCE, query_of(signature, *changed), headers)
