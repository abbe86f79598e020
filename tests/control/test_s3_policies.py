"""Policies of buckets, and blocks of public access: who may do what, at each request."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from checks import ok, unique
from cloud import Cloud
from s3_client import (
    XMLNS,
    S3Client,
    access_list,
    begin,
    client_of,
    complete,
    deletion,
    done,
    failed,
    new_key,
    put_part,
    switch,
    tagging,
    xml,
)
from storage_people import Who

ARN = "arn:aws:s3:::"
Policy = Callable[..., None]


@pytest.fixture(scope="module")
def guest(cloud: Cloud) -> Who:
    return cloud.make_user()


@pytest.fixture(scope="module")
def other(cloud: Cloud, guest: Who) -> Iterator[S3Client]:
    with client_of(cloud, new_key(*guest)) as made:
        yield made


@pytest.fixture(scope="module")
def nobody(cloud: Cloud) -> Iterator[S3Client]:
    with client_of(cloud) as made:
        yield made


@pytest.fixture
def bucket(s3: S3Client) -> str:
    name = unique("bucket")
    s3.put(name)
    for key in ("public/a", "private/a"):
        s3.put(f"{name}/{key}", key.encode(), x_amz_tagging=f"kind={key.partition('/')[0]}")
    return name


def statement(bucket: str, action: Any = "s3:GetObject", below: str = "/*", **more: Any) -> Any:
    return {
        "Effect": "Allow",
        "Principal": "*",
        "Action": action,
        "Resource": f"{ARN}{bucket}{below}",
        **more,
    }


def set_policy(s3: S3Client, bucket: str, *statements: Any) -> str:
    text = json.dumps({"Version": "2012-10-17", "Statement": list(statements)})
    assert done(s3.call("PUT", bucket, {"policy": ""}, text.encode())).status_code == 204
    return text


def is_public(s3: S3Client, bucket: str) -> bool:
    root = xml(done(s3.call("GET", bucket, {"policyStatus": ""})))
    return bool(root.findtext(f"{XMLNS}IsPublic") == "true")


def test_a_policy_is_stored_sent_back_and_removed(
    s3: S3Client, other: S3Client, bucket: str
) -> None:
    failed(s3.call("GET", bucket, {"policy": ""}), "NoSuchBucketPolicy")
    assert not is_public(s3, bucket)
    text = set_policy(s3, bucket, statement(bucket))
    answer = done(s3.call("GET", bucket, {"policy": ""}))
    assert (answer.text, answer.headers["content-type"]) == (text, "application/json")
    assert is_public(s3, bucket)
    for method, body in (("GET", b""), ("PUT", text.encode()), ("DELETE", b"")):
        failed(other.call(method, bucket, {"policy": ""}, body), "AccessDenied")
    bad: list[tuple[bytes, str]] = [
        (b"", "MalformedPolicy"),
        (b"\xff", "MalformedPolicy"),
        (b'{"Statement":' + b"[" * 10_000, "MalformedPolicy"),
        (b" " * 20_481, "MalformedPolicy"),
        (text.replace("GetObject", "x y").encode(), "MalformedPolicy"),
        (text.replace('"Action"', '"NotAction"').encode(), "NotImplemented"),
    ]
    for body, code in bad:
        failed(s3.call("PUT", bucket, {"policy": ""}, body), code)
    assert s3.call("GET", bucket, {"policy": ""}).text == text
    failed(s3.call("PUT", "default", {"policy": ""}, text.encode()), "AccessDenied")
    assert done(s3.call("DELETE", bucket, {"policy": ""})).status_code == 204
    failed(other.call("GET", f"{bucket}/public/a"), "AccessDenied")


def test_what_a_policy_allows_others_and_nothing_else(
    s3: S3Client, other: S3Client, nobody: S3Client, bucket: str, guest: Who
) -> None:
    for client in (other, nobody):
        failed(client.call("GET", f"{bucket}/public/a"), "AccessDenied")
    set_policy(s3, bucket, statement(bucket, below="/public/*"))
    for client in (other, nobody):
        assert client.get(f"{bucket}/public/a").content == b"public/a"
        failed(client.call("GET", f"{bucket}/private/a"), "AccessDenied")
        failed(client.call("GET", f"{bucket}/private/x"), "AccessDenied")
        failed(client.call("GET", bucket), "AccessDenied")
        failed(client.call("PUT", f"{bucket}/public/a", body=b"x"), "AccessDenied")
        failed(client.call("DELETE", f"{bucket}/public/a"), "AccessDenied")
        failed(client.call("GET", f"{bucket}/public/a", {"tagging": ""}), "AccessDenied")
        failed(client.call("GET", bucket, {"policy": ""}), "AccessDenied")
    set_policy(s3, bucket, statement(bucket, Principal={"AWS": guest[1]}))
    assert other.get(f"{bucket}/public/a").content == b"public/a"
    failed(nobody.call("GET", f"{bucket}/public/a"), "AccessDenied")
    # Over REST the owner and the visibility decide.
    assert guest[0].get(f"/storage/{bucket}/public/a").status_code == 403


def test_what_others_write_is_the_owners(
    s3: S3Client, other: S3Client, nobody: S3Client, bucket: str, owner: Who, guest: Who
) -> None:
    actions = ["s3:PutObject", "s3:DeleteObject", "s3:ListMultipartUploadParts"]
    set_policy(s3, bucket, statement(bucket, actions, below="/up/*"))
    before = ok(owner[0].get("/api/quota"))["bytes"]["used"]
    for number, client in enumerate((other, nobody)):
        path = f"{bucket}/up/{number}"
        client.put(path, b"12345")
        failed(client.call("GET", path), "AccessDenied")
        failed(client.call("PUT", f"{bucket}/{number}", body=b"x"), "AccessDenied")
        assert s3.get(path).content == b"12345"
        upload = begin(client, f"{path}.parts")
        parts = [(1, put_part(client, f"{path}.parts", upload, 1, b"part"))]
        done(client.call("GET", f"{path}.parts", {"uploadId": upload}))
        done(complete(client, f"{path}.parts", upload, parts))
        assert s3.get(f"{path}.parts").content == b"part"
    assert ok(owner[0].get("/api/quota"))["bytes"]["used"] == before + 18
    assert ok(guest[0].get("/api/quota"))["bytes"]["used"] == 0
    keys = ["up/0", "up/0.parts", "public/a"]
    for client in (nobody, other):
        root = xml(done(client.call("POST", bucket, {"delete": ""}, deletion(*keys))))
        assert [e.text for e in root.iter(f"{XMLNS}Key")] == keys
        assert [e.text for e in root.iter(f"{XMLNS}Code")] == ["AccessDenied"]
    assert s3.keys(bucket) == ["private/a", "public/a", "up/1", "up/1.parts"]


def test_a_denial_wins_and_the_owner_can_always_change_the_policy(
    s3: S3Client, other: S3Client, bucket: str
) -> None:
    set_policy(
        s3, bucket, statement(bucket, "*"),
        statement(bucket, "*", "/private/*", Effect="Deny"),
        statement(bucket, "s3:*", "", Effect="Deny"),
    )  # fmt: skip
    for client in (s3, other):
        assert client.get(f"{bucket}/public/a").content == b"public/a"
        failed(client.call("GET", f"{bucket}/private/a"), "AccessDenied")
        failed(client.call("GET", bucket), "AccessDenied")
        failed(client.call("DELETE", f"{bucket}/private/a"), "AccessDenied")
        failed(client.call("GET", bucket, {"cors": ""}), "AccessDenied")
        headers = {"x-amz-copy-source": f"{bucket}/private/a"}
        failed(client.call("PUT", f"{bucket}/b", headers=headers), "AccessDenied")
        headers = {"x-amz-copy-source": f"{bucket}/public/a"}
        done(client.call("PUT", f"{bucket}/b", headers=headers))
    root = xml(done(s3.call("POST", bucket, {"delete": ""}, deletion("private/a", "b"))))
    assert [each.text for each in root.iter(f"{XMLNS}Code")] == ["AccessDenied"]
    failed(other.call("DELETE", bucket, {"policy": ""}), "AccessDenied")
    done(s3.call("GET", bucket, {"policy": ""}))
    done(s3.call("DELETE", bucket, {"policy": ""}))
    assert s3.keys(bucket) == ["private/a", "public/a"]


def test_conditions(s3: S3Client, other: S3Client, nobody: S3Client, bucket: str) -> None:
    tagged = {"StringEquals": {"s3:ExistingObjectTag/kind": "public"}}
    listed = {"StringLike": {"s3:prefix": "public/*"}}
    sent = {"StringEquals": {"s3:RequestObjectTag/kind": "public"}}
    copied = {"StringLike": {"s3:x-amz-copy-source": f"{bucket}/public/*"}}
    far = {"NotIpAddress": {"aws:SourceIp": "127.0.0.0/8"}}
    set_policy(
        s3, bucket, statement(bucket, ["s3:GetObject", "s3:GetObjectTagging"], Condition=tagged),
        statement(bucket, "s3:ListBucket", "", Condition=listed),
        statement(bucket, ["s3:PutObject", "s3:PutObjectTagging"], "/new/*", Condition=sent),
        statement(bucket, ["s3:PutObject", "s3:PutObjectTagging"], "/copy/*", Condition=copied),
        statement(bucket, "s3:DeleteObject", Condition=far),
    )  # fmt: skip
    for client in (other, nobody):
        for query in ({}, {"tagging": ""}):
            done(client.call("GET", f"{bucket}/public/a", query))
            failed(client.call("GET", f"{bucket}/private/a", query), "AccessDenied")
        assert client.keys(bucket, prefix="public/") == ["public/a"]
        failed(client.call("GET", bucket, {"prefix": "p"}), "AccessDenied")
        failed(client.call("GET", f"{bucket}/public/none"), "NoSuchKey")
        failed(client.call("GET", f"{bucket}/private/none"), "AccessDenied")
        client.put(f"{bucket}/new/a", b"", x_amz_tagging="kind=public")
        failed(client.call("PUT", f"{bucket}/new/b"), "AccessDenied")
        for kind, code in (("public", ""), ("private", "AccessDenied")):
            body = tagging("kind", kind)
            answer = client.call("PUT", f"{bucket}/new/a", {"tagging": ""}, body)
            assert failed(answer, code) if code else done(answer)
        for source, code in (("public/a", ""), ("%70ublic/a", ""), ("private/a", "AccessDenied")):
            headers = {"x-amz-copy-source": f"/{bucket}/{source}"}
            answer = client.call("PUT", f"{bucket}/copy/a", headers=headers)
            assert failed(answer, code) if code else done(answer)
        failed(client.call("DELETE", f"{bucket}/new/a"), "AccessDenied")


def test_a_key_can_do_no_more_than_its_user_has_let_it(
    cloud: Cloud, s3: S3Client, bucket: str, guest: Who
) -> None:
    set_policy(s3, bucket, statement(bucket, ["s3:GetObject", "s3:PutObject"]))
    with client_of(cloud, new_key(*guest, ["read"])) as reader:
        assert reader.get(f"{bucket}/public/a").content == b"public/a"
        failed(reader.call("PUT", f"{bucket}/public/b", body=b"x"), "AccessDenied")


def block(s3: S3Client, bucket: str, *names: str) -> httpx.Response:
    text = "".join(f"<{name}>true</{name}>" for name in names)
    root = "PublicAccessBlockConfiguration"
    return s3.call("PUT", bucket, {"publicAccessBlock": ""}, f"<{root}>{text}</{root}>".encode())


def test_blocks_of_public_access(
    s3: S3Client, other: S3Client, nobody: S3Client, bucket: str, guest: Who
) -> None:
    query = {"publicAccessBlock": ""}
    failed(s3.call("GET", bucket, query), "NoSuchPublicAccessBlockConfiguration")
    failed(block(s3, bucket, "BlockAll"), "MalformedXML")
    failed(block(other, bucket, "BlockPublicAcls"), "AccessDenied")

    done(block(s3, bucket, "BlockPublicAcls", "BlockPublicPolicy"))
    assert "<BlockPublicAcls>true<" in done(s3.call("GET", bucket, query)).text
    for name in ("public-read", "public-read-write", "authenticated-read"):
        headers = {"x-amz-acl": name}
        failed(s3.call("PUT", bucket, {"acl": ""}, headers=headers), "AccessDenied")
        failed(s3.call("PUT", f"{bucket}/f", headers=headers), "AccessDenied")
    text = json.dumps({"Version": "2012-10-17", "Statement": [statement(bucket)]})
    failed(s3.call("PUT", bucket, {"policy": ""}, text.encode()), "AccessDenied")
    set_policy(s3, bucket, statement(bucket, Principal={"AWS": guest[1]}))

    done(s3.call("DELETE", bucket, query))
    set_policy(s3, bucket, statement(bucket))
    assert nobody.get(f"{bucket}/public/a").content == b"public/a"
    done(block(s3, bucket, "RestrictPublicBuckets"))
    for client in (nobody, other):
        failed(client.call("GET", f"{bucket}/public/a"), "AccessDenied")
    assert not is_public(s3, bucket)
    done(s3.call("DELETE", bucket, {"policy": ""}))

    done(s3.call("PUT", bucket, {"acl": ""}, headers={"x-amz-acl": "public-read"}))
    assert guest[0].get(f"/storage/{bucket}/public/a").status_code == 200
    done(block(s3, bucket, "IgnorePublicAcls"))
    failed(nobody.call("GET", f"{bucket}/public/a"), "AccessDenied")
    assert guest[0].get(f"/storage/{bucket}/public/a").status_code == 403
    assert bucket not in [each["name"] for each in ok(guest[0].get("/storage/namespaces"))]
    assert not is_public(s3, bucket)
    done(s3.call("DELETE", bucket, query))
    assert nobody.get(f"{bucket}/public/a").content == b"public/a"
    assert guest[0].get(f"/storage/{bucket}/public/a").status_code == 200


EVERYBODY = "http://acs.amazonaws.com/groups/global/AllUsers"
USERS = "http://acs.amazonaws.com/groups/global/AuthenticatedUsers"


@pytest.mark.parametrize("is_document", [False, True])
def test_lists_that_let_others_write_or_users_read(
    s3: S3Client, other: S3Client, nobody: S3Client, bucket: str,
    owner: Who, guest: Who, is_document: bool,
) -> None:  # fmt: skip
    def give(name: str, *grants: tuple[str, str]) -> None:
        if not is_document:
            done(s3.call("PUT", bucket, {"acl": ""}, headers={"x-amz-acl": name}))
        else:
            body = access_list((owner[1], "FULL_CONTROL"), *grants)
            done(s3.call("PUT", bucket, {"acl": ""}, body))
        root = xml(done(s3.call("GET", bucket, {"acl": ""})))
        found = [
            (each.findtext(f"{XMLNS}Grantee/{XMLNS}URI"), each.findtext(f"{XMLNS}Permission"))
            for each in root.iter(f"{XMLNS}Grant")
        ]
        assert found == [*grants, (None, "FULL_CONTROL")]

    give("public-read-write", (EVERYBODY, "READ"), (EVERYBODY, "WRITE"))
    assert is_public(s3, bucket)
    for number, client in enumerate((other, nobody)):
        client.put(f"{bucket}/{number}", b"x", x_amz_tagging="a=b")
        assert client.get(f"{bucket}/{number}").content == b"x"
        source = {"x-amz-copy-source": f"{bucket}/{number}"}
        done(client.call("PUT", f"{bucket}/{number}.copy", headers=source))
        done(client.call("DELETE", f"{bucket}/{number}.copy"))
        done(client.call("DELETE", f"{bucket}/{number}"))
        client.put(f"{bucket}/{number}", b"x")
        done(client.call("POST", bucket, {"delete": ""}, deletion(str(number))))
        failed(client.call("PUT", bucket, {"cors": ""}, b"<CORSConfiguration/>"), "AccessDenied")
        failed(client.call("PUT", f"{bucket}/a", {"tagging": ""}, b"<Tagging/>"), "AccessDenied")
        failed(client.call("DELETE", bucket), "AccessDenied")
    denied = statement(bucket, "s3:PutObject", "/denied/*", Effect="Deny")
    set_policy(s3, bucket, denied)
    failed(nobody.call("PUT", f"{bucket}/denied/a"), "AccessDenied")
    done(s3.call("DELETE", bucket, {"policy": ""}))
    ok(owner[0].put(f"/storage/namespaces/{bucket}", json={"visibility": 0}))
    failed(nobody.call("PUT", f"{bucket}/a"), "AccessDenied")

    give("authenticated-read", (USERS, "READ"))
    assert is_public(s3, bucket)
    assert other.keys(bucket) == ["private/a", "public/a"]
    assert other.get(f"{bucket}/public/a").content == b"public/a"
    failed(other.call("PUT", f"{bucket}/a"), "AccessDenied")
    failed(nobody.call("GET", f"{bucket}/public/a"), "AccessDenied")
    assert guest[0].get(f"/storage/{bucket}/public/a").status_code == 403
    give("public-read", (EVERYBODY, "READ"))
    failed(other.call("PUT", f"{bucket}/a"), "AccessDenied")
    give("private")
    failed(other.call("GET", f"{bucket}/public/a"), "AccessDenied")
    made = unique("bucket")
    done(s3.call("PUT", made, headers={"x-amz-acl": "public-read-write"}))
    nobody.put(f"{made}/a", b"x")


def test_a_bucket_whose_owner_has_no_lists(s3: S3Client, bucket: str) -> None:
    query = {"ownershipControls": ""}
    for name, code in (("BucketOwnerEnforced", ""), ("ObjectWriter", "NotImplemented")):
        rule = f"<Rule><ObjectOwnership>{name}</ObjectOwnership></Rule>"
        body = f"<OwnershipControls>{rule}</OwnershipControls>".encode()
        done(s3.call("PUT", bucket, {"acl": ""}, headers={"x-amz-acl": "public-read"}))
        refusal = code or "InvalidBucketAclWithObjectOwnership"
        failed(s3.call("PUT", bucket, query, body), refusal)
        done(s3.call("PUT", bucket, {"acl": ""}, headers={"x-amz-acl": "private"}))
        if code:
            failed(s3.call("PUT", bucket, query, body), code)
            continue
        done(s3.call("PUT", bucket, query, body))
        other = unique("bucket")
        done(s3.call("PUT", other, headers={"x-amz-object-ownership": name}))
        for where in (bucket, other):
            for target, headers in (("", {"x-amz-acl": "private"}), ("/f", {})):
                answer = s3.call("PUT", where + target, {"acl": ""}, headers=headers)
                failed(answer, "AccessControlListNotSupported")
            answer = s3.call("PUT", f"{where}/f", headers={"x-amz-acl": "private"})
            failed(answer, "AccessControlListNotSupported")
            s3.put(f"{where}/f", x_amz_acl="bucket-owner-full-control")
            done(s3.call("DELETE", where, query))
            s3.put(f"{where}/f", x_amz_acl="private")


@pytest.mark.parametrize(
    ("permission", "allowed"),
    [
        ("READ", {"read"}),
        ("WRITE", {"write"}),
        ("READ_ACP", {"read acl"}),
        ("WRITE_ACP", {"write acl"}),
        ("FULL_CONTROL", {"read", "write", "read acl", "write acl"}),
    ],
)
def test_grants_of_a_bucket_to_users(
    s3: S3Client, other: S3Client, nobody: S3Client, bucket: str,
    owner: Who, guest: Who, permission: str,
    allowed: set[str],
) -> None:  # fmt: skip
    def listed(*grants: tuple[str, str]) -> bytes:
        return access_list((owner[1], "FULL_CONTROL"), *grants)

    query = {"acl": ""}
    failed(s3.call("PUT", bucket, query, listed(("nobody", permission))), "InvalidArgument")
    failed(s3.call("PUT", bucket, query, listed((guest[1], "ALL"))), "NotImplemented")
    many = [(f"user{number:03}", "READ") for number in range(101)]
    failed(s3.call("PUT", bucket, query, listed(*many)), "InvalidRequest")
    body = listed((guest[1], permission))
    failed(s3.call("PUT", f"{bucket}/public/a", query, body), "NotImplemented")
    done(s3.call("PUT", bucket, query, body))
    root = xml(done(s3.call("GET", bucket, query)))
    assert [each.text for each in root.iter(f"{XMLNS}Permission")] == ["FULL_CONTROL", permission]
    requests = {
        "read": ("GET", "/public/a", {}, b""),
        "write": ("PUT", "/new", {}, b"x"),
        "read acl": ("GET", "", query, b""),
        "write acl": ("PUT", "", query, body),
    }
    for what, (method, below, options, data) in requests.items():
        failed(nobody.call(method, bucket + below, options, data), "AccessDenied")
        answer = other.call(method, bucket + below, options, data)
        if what in allowed:
            done(answer)
        else:
            failed(answer, "AccessDenied")
    failed(other.call("PUT", bucket, {"policy": ""}, b"{}"), "AccessDenied")
    done(s3.call("PUT", bucket, query, headers={"x-amz-acl": "private"}))
    for method, below, options, data in requests.values():
        failed(other.call(method, bucket + below, options, data), "AccessDenied")


def test_conditions_on_a_version_hold_however_it_is_named(
    s3: S3Client, other: S3Client, nobody: S3Client, bucket: str
) -> None:
    """The source of a copy, and one of many that are deleted, are asked about as in a request of
    their own."""
    switch(s3, bucket)
    path = f"{bucket}/f"
    secret = s3.put(path, b"secret", x_amz_tagging="kind=private").headers["x-amz-version-id"]
    s3.put(path, b"public", x_amz_tagging="kind=public")
    one = {"StringEquals": {"s3:VersionId": secret}}
    tagged = {"StringEquals": {"s3:ExistingObjectTag/kind": "public"}}
    set_policy(
        s3, bucket, statement(bucket, ["s3:GetObject", "s3:GetObjectVersion"], Condition=tagged),
        statement(bucket, ["s3:PutObject", "s3:PutObjectTagging", "s3:DeleteObjectVersion"]),
        statement(bucket, "s3:DeleteObjectVersion", Effect="Deny", Condition=one),
    )  # fmt: skip
    source = {"x-amz-copy-source": f"{path}?versionId={secret}"}
    for client in (other, nobody):
        assert client.get(path).content == b"public"
        failed(client.call("GET", path, {"versionId": secret}), "AccessDenied")
        failed(client.call("PUT", f"{bucket}/copy", headers=source), "AccessDenied")
    text = f"<Object><Key>f</Key><VersionId>{secret}</VersionId></Object>"
    body = f"<Delete>{text}</Delete>".encode()
    for client in (other, s3):
        failed(client.call("DELETE", path, {"versionId": secret}), "AccessDenied")
        root = xml(done(client.call("POST", bucket, {"delete": ""}, body)))
        assert [each.text for each in root.iter(f"{XMLNS}Code")] == ["AccessDenied"]


def test_old_versions_take_their_own_permission(
    s3: S3Client, nobody: S3Client, bucket: str
) -> None:
    """Also the one whose id is ``null``, and to ask for attributes."""
    path = f"{bucket}/public/a"
    switch(s3, bucket)
    s3.put(path, b"new")
    set_policy(s3, bucket, statement(bucket, ["s3:GetObject", "s3:DeleteObject"]))
    assert nobody.get(path).content == b"new"
    for method, query in (("GET", {}), ("DELETE", {}), ("GET", {"attributes": ""})):
        answer = nobody.call(method, path, {"versionId": "null", **query})
        failed(answer, "AccessDenied")
    source = {"x-amz-copy-source": f"{path}?versionId=null"}
    failed(nobody.call("PUT", f"{bucket}/copy", headers=source), "AccessDenied")
    actions = ["s3:GetObjectAttributes", "s3:GetObjectVersionAttributes"]
    set_policy(s3, bucket, statement(bucket, actions, Effect="Deny"))
    for query in ({}, {"versionId": "null"}):
        headers = {"x-amz-object-attributes": "ETag"}
        failed(s3.call("GET", path, {"attributes": "", **query}, headers=headers), "AccessDenied")
    set_policy(s3, bucket, statement(bucket, "s3:GetObjectVersion"))
    assert nobody.call("GET", path, {"versionId": "null"}).content == b"public/a"


def test_who_may_store_may_give_tags_if_a_policy_says_so(
    s3: S3Client, nobody: S3Client, bucket: str
) -> None:
    """Tags may be what lets others read."""
    tagged = {"StringEquals": {"s3:ExistingObjectTag/kind": "public"}}
    set_policy(
        s3, bucket, statement(bucket, "s3:PutObject"),
        statement(bucket, "s3:GetObject", Condition=tagged),
    )  # fmt: skip
    nobody.put(f"{bucket}/f", b"x")
    tags = {"x-amz-tagging": "kind=public"}
    failed(nobody.call("PUT", f"{bucket}/f", body=b"x", headers=tags), "AccessDenied")
    # A copy brings the tags of its source.
    source = {"x-amz-copy-source": f"{bucket}/public/a"}
    failed(nobody.call("PUT", f"{bucket}/g", headers=source), "AccessDenied")
    done(
        nobody.call("PUT", f"{bucket}/g", headers={**source, "x-amz-tagging-directive": "REPLACE"})
    )


def test_a_condition_on_tags_is_on_those_that_a_version_is_given(
    s3: S3Client, other: S3Client, bucket: str
) -> None:
    are_good = {"StringEquals": {"s3:RequestObjectTag/k": "good"}}
    actions = ["s3:PutObjectTagging", "s3:PutObjectVersionTagging"]
    set_policy(s3, bucket, statement(bucket, actions, Condition=are_good))
    path, good = f"{bucket}/public/a", {"x-amz-tagging": "k=good"}
    for query in ({"tagging": ""}, {"tagging": "", "versionId": "null"}):
        failed(other.call("PUT", path, query, tagging("k", "bad"), good), "AccessDenied")
        done(other.call("PUT", path, query, tagging("k", "good")))


def test_a_list_that_ended_does_not_come_back(
    s3: S3Client, nobody: S3Client, bucket: str, owner: Who
) -> None:
    done(s3.call("PUT", bucket, {"acl": ""}, headers={"x-amz-acl": "public-read-write"}))
    nobody.put(f"{bucket}/f", b"x")
    for visibility in (0, 1):
        where = f"/storage/namespaces/{bucket}"
        ok(owner[0].put(where, json={"visibility": visibility}))
    failed(nobody.call("PUT", f"{bucket}/f"), "AccessDenied")
    assert nobody.get(f"{bucket}/f").content == b"x"


@pytest.mark.parametrize(
    ("network", "is_everywhere"),
    [
        ("0.0.0.0/0", True), ("128.0.0.0/1", True), ("::/0", True), ("10.0.0.0/8", False),
        ("192.0.2.0/24", False), ("2001:db8::/32", False),
    ],
)  # fmt: skip
def test_a_policy_for_all_addresses_is_public(
    s3: S3Client, bucket: str, network: str, is_everywhere: bool
) -> None:
    near = {"IpAddress": {"aws:SourceIp": network}}
    set_policy(s3, bucket, statement(bucket, Condition=near))
    assert is_public(s3, bucket) == is_everywhere


def test_to_create_a_bucket_again_changes_nothing_of_it(
    cloud: Cloud, s3: S3Client, other: S3Client, nobody: S3Client, owner: Who, guest: Who
) -> None:
    """Programs do so when they start; and a key that may create may not share."""
    with client_of(cloud, new_key(*owner, ["create"])) as creator:
        bucket = unique("bucket")
        done(s3.call("PUT", bucket, headers={"x-amz-acl": "authenticated-read"}))
        s3.put(f"{bucket}/f", b"x")
        for client in (s3, creator):
            done(client.call("PUT", bucket))
            assert other.get(f"{bucket}/f").content == b"x"
        done(s3.call("PUT", bucket, {"acl": ""}, headers={"x-amz-acl": "public-read"}))
        for name, code in (
            ("public-read", ""),
            ("public-read-write", "BucketAlreadyExists"),
            ("authenticated-read", "BucketAlreadyExists"),
            ("private", "BucketAlreadyExists"),
        ):
            answer = creator.call("PUT", bucket, headers={"x-amz-acl": name})
            assert failed(answer, code) if code else done(answer)
        headers = {"x-amz-acl": "public-read", "x-amz-object-ownership": "BucketOwnerEnforced"}
        done(creator.call("PUT", bucket, headers=headers))
        failed(nobody.call("PUT", f"{bucket}/g"), "AccessDenied")
        assert nobody.get(f"{bucket}/f").content == b"x"
    headers = {"x-amz-acl": "bucket-owner-full-control"}
    done(s3.call("PUT", unique("bucket"), headers=headers))
