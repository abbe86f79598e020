"""What buckets of S3 have beside objects, and requests about it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from checks import PLAIN, make_namespace, ok, paths, put, wait_for
from cloud import Cloud
from limits import HANG_SECONDS
from s3_client import (
    XMLNS,
    S3Client,
    access_list,
    begin,
    client_of,
    done,
    failed,
    new_key,
    put_below,
    rule,
    tagging,
    xml,
)
from storage_people import Who

from control.s3.signature import Key

EVERYBODY = "http://acs.amazonaws.com/groups/global/AllUsers"


def texts(root: Any, name: str) -> list[str]:
    return [each.text for each in root.iter(f"{XMLNS}{name}")]


def visibility(user: httpx.Client, bucket: str) -> int:
    listed = ok(user.get("/storage/namespaces"))
    return next(int(each["visibility"]) for each in listed if each["name"] == bucket)


def test_the_canned_list_of_a_bucket_is_its_visibility(
    cloud: Cloud, s3: S3Client, owner: Who, bucket: str
) -> None:
    user, user_id = owner
    s3.put(f"{bucket}/f", b"x")
    with client_of(cloud) as nobody:
        for name, expected in (("public-read", [EVERYBODY]), ("private", [])):
            done(s3.call("PUT", bucket, {"acl": ""}, headers={"x-amz-acl": name}))
            for path in (bucket, f"{bucket}/f"):
                root = xml(s3.call("GET", path, {"acl": ""}))
                assert texts(root, "URI") == expected
                assert set(texts(root, "ID")) == {user_id}
                grants = [(user_id, "FULL_CONTROL"), *((group, "READ") for group in expected)]
                done(s3.call("PUT", path, {"acl": ""}, access_list(*grants)))
            done(s3.call("PUT", f"{bucket}/f", {"acl": ""}, headers={"x-amz-acl": name}))
            s3.put(f"{bucket}/f", b"x", x_amz_acl=name)
            other = {"x-amz-acl": "private" if expected else "public-read"}
            failed(s3.call("PUT", f"{bucket}/f", {"acl": ""}, headers=other), "NotImplemented")
            failed(s3.call("PUT", f"{bucket}/g", headers=other), "NotImplemented")
            assert (nobody.call("GET", f"{bucket}/f").status_code == 200) == bool(expected)
            assert (visibility(user, bucket) != 0) == bool(expected)
            failed(nobody.call("GET", bucket, {"acl": ""}), "AccessDenied")
            failed(nobody.call("PUT", bucket, {"acl": ""}, headers=other), "AccessDenied")
    for name, code in (("log-delivery-write", "NotImplemented"), ("open", "InvalidArgument")):
        failed(s3.call("PUT", bucket, {"acl": ""}, headers={"x-amz-acl": name}), code)
    granted = access_list(("somebody", "FULL_CONTROL"))
    failed(s3.call("PUT", bucket, {"acl": ""}, granted), "NotImplemented")
    assert s3.keys(bucket) == ["f"]


CORS = (
    "<CORSRule><AllowedOrigin>https://*.example.org</AllowedOrigin>"
    "<AllowedMethod>GET</AllowedMethod><AllowedMethod>PUT</AllowedMethod>"
    "<AllowedHeader>x-amz-*</AllowedHeader><ExposeHeader>ETag</ExposeHeader>"
    "<MaxAgeSeconds>60</MaxAgeSeconds></CORSRule>"
)
LIFECYCLE = (
    "<Rule><ID>one</ID><Filter><Prefix>old/</Prefix></Filter><Status>Enabled</Status>"
    "<Expiration><Days>1</Days></Expiration></Rule>"
)
DATE = "<Date>2015-01-01T00:00:00Z</Date>"
MARKERS = "<ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker>"
ABORT = (
    "<Rule><ID>one</ID><Filter><Prefix>p</Prefix></Filter><Status>Enabled</Status>"
    "<AbortIncompleteMultipartUpload><DaysAfterInitiation>1</DaysAfterInitiation>"
    "</AbortIncompleteMultipartUpload></Rule>"
)
TAGS = "<TagSet><Tag><Key>k</Key><Value>v &amp; w</Value></Tag></TagSet>"


@pytest.mark.parametrize(
    ("name", "root", "text", "missing", "bad"),
    [
        (
            *("cors", "CORSConfiguration", CORS, "NoSuchCORSConfiguration"),
            [
                ("", "MalformedXML"),
                ("<CORSRule><AllowedOrigin>*</AllowedOrigin></CORSRule>", "MalformedXML"),
                (CORS.replace("GET", "PATCH"), "InvalidRequest"),
                (CORS.replace("https", "*"), "InvalidRequest"),
                (CORS * 101, "MalformedXML"),
            ],
        ),
        (
            *("lifecycle", "LifecycleConfiguration", LIFECYCLE, "NoSuchLifecycleConfiguration"),
            [
                ("", "MalformedXML"),
                (LIFECYCLE * 2, "InvalidArgument"),
                (LIFECYCLE.replace("Enabled", "enabled"), "MalformedXML"),
                (LIFECYCLE.replace("<Days>1<", "<Days>0<"), "InvalidArgument"),
                (LIFECYCLE.replace("<Days>1</Days>", "<Date>now</Date>"), "MalformedXML"),
                (LIFECYCLE.replace("Expiration", "Transition"), "NotImplemented"),
                (LIFECYCLE.replace("Expiration", "Other"), "InvalidRequest"),
                (LIFECYCLE.replace("one", "x" * 256), "InvalidArgument"),
                (LIFECYCLE.replace("<Days>1</Days>", ""), "MalformedXML"),
                (LIFECYCLE.replace("<Days>1</Days>", f"<Days>1</Days>{DATE}"), "MalformedXML"),
                (LIFECYCLE.replace("</Days>", f"</Days>{MARKERS}"), "MalformedXML"),
                (
                    ABORT.replace("<DaysAfterInitiation>1</DaysAfterInitiation>", ""),
                    "InvalidRequest",
                ),
                # An upload has neither tags nor a size: the rule would end all.
                *(
                    (ABORT.replace("<Prefix>p</Prefix>", scope), "InvalidRequest")
                    for scope in (
                        "<Tag><Key>a</Key><Value>b</Value></Tag>",
                        "<ObjectSizeGreaterThan>1</ObjectSizeGreaterThan>",
                        "<And><Prefix/><ObjectSizeLessThan>9</ObjectSizeLessThan></And>",
                    )
                ),
            ],
        ),
        (
            *("tagging", "Tagging", TAGS, "NoSuchTagSet"),
            [(TAGS.replace(">k<", "><"), "InvalidTag"), (TAGS * 2, "InvalidTag")],
        ),
    ],
)
def test_documents_of_buckets_are_checked_stored_and_removed(
    cloud: Cloud, s3: S3Client, bucket: str, name: str, root: str, text: str, missing: str,
    bad: list[tuple[str, str]],
) -> None:  # fmt: skip
    query = {name: ""}
    failed(s3.call("GET", bucket, query), missing)
    for wrong, code in bad:
        failed(s3.call("PUT", bucket, query, f"<{root}>{wrong}</{root}>".encode()), code)
    failed(s3.call("GET", bucket, query), missing)
    for written in (f"<{root}>{text}</{root}>", f'<{root} xmlns="{XMLNS[1:-1]}">{text}</{root}>'):
        done(s3.call("PUT", bucket, query, written.encode()))
        stored = done(s3.call("GET", bucket, query)).text
        assert stored.endswith(f'<{root} xmlns="{XMLNS[1:-1]}">{text}</{root}>')
    with client_of(cloud) as nobody:
        for method in ("GET", "PUT", "DELETE"):
            failed(nobody.call(method, bucket, query), "AccessDenied")
    for _ in range(2):
        done(s3.call("DELETE", bucket, query))
    failed(s3.call("GET", bucket, query), missing)
    done(s3.call("PUT", bucket, query, f"<{root}>{text}</{root}>".encode()))
    done(s3.call("DELETE", bucket))
    s3.put(bucket)
    failed(s3.call("GET", bucket, query), missing)


def test_rules_that_delete_need_a_key_that_may(cloud: Cloud, owner: Who, bucket: str) -> None:
    with client_of(cloud, new_key(*owner, ["create", "read", "update"])) as keeper:
        rules = f"<LifecycleConfiguration>{LIFECYCLE}</LifecycleConfiguration>".encode()
        failed(keeper.call("PUT", bucket, {"lifecycle": ""}, rules), "AccessDenied")
        cors = f"<CORSConfiguration>{CORS}</CORSConfiguration>".encode()
        done(keeper.call("PUT", bucket, {"cors": ""}, cors))


def test_nobody_configures_what_all_users_share(s3: S3Client) -> None:
    upload = begin(s3, "default/f")
    for name, root, text in (
        ("lifecycle", "LifecycleConfiguration", LIFECYCLE),
        ("cors", "CORSConfiguration", CORS),
        ("tagging", "Tagging", TAGS),
    ):
        body = f"<{root}>{text}</{root}>".encode()
        failed(s3.call("PUT", "default", {name: ""}, body), "AccessDenied")
    private = {"x-amz-acl": "private"}
    failed(s3.call("PUT", "default", {"acl": ""}, headers=private), "AccessDenied")
    failed(s3.call("DELETE", "default"), "AccessDenied")
    done(s3.call("DELETE", "default/f", {"uploadId": upload}))


def test_pages_of_other_origins_may_do_what_the_rules_say(
    cloud: Cloud, s3: S3Client, bucket: str
) -> None:
    s3.put(f"{bucket}/f", b"x")
    asked = {"origin": "https://a.example.org", "access-control-request-method": "PUT"}
    failed(s3.call("OPTIONS", f"{bucket}/f", headers=asked), "AccessForbidden")
    rules = f"<CORSConfiguration>{CORS}</CORSConfiguration>".encode()
    done(s3.call("PUT", bucket, {"cors": ""}, rules))
    with client_of(cloud) as page:
        names = {"access-control-request-headers": "X-Amz-Meta-A"}
        answer = done(page.call("OPTIONS", f"{bucket}/f", headers=asked | names))
        for header, value in (
            ("allow-origin", "https://a.example.org"),
            ("allow-methods", "GET, PUT"),
            ("allow-headers", "x-amz-meta-a"),
            ("expose-headers", "ETag"),
            ("max-age", "60"),
        ):
            assert answer.headers[f"access-control-{header}"] == value
        for changes in (
            {"origin": "https://example.com"},
            {"access-control-request-method": "DELETE"},
            {"access-control-request-headers": "authorization"},
        ):
            answer = page.call("OPTIONS", f"{bucket}/f", headers=asked | changes)
            failed(answer, "AccessForbidden")
            assert "access-control-allow-origin" not in answer.headers
        failed(page.call("OPTIONS", bucket), "BadRequest")
        answer = page.call("GET", f"{bucket}/f", headers={"origin": asked["origin"]})
        failed(answer, "AccessDenied")
        assert answer.headers["access-control-allow-origin"] == asked["origin"]
        answer = page.call("GET", "nothing-here", headers={"origin": asked["origin"]})
        assert "access-control-allow-origin" not in answer.headers


def test_objects_expire_by_the_rules_of_their_bucket(make_cloud: Callable[..., Cloud]) -> None:
    cloud = make_cloud(chunkservers=1, environment={"GFS_S3_LIFECYCLE_DAY_SECONDS": "1"}).start()
    user, user_id = cloud.make_user()
    key = new_key(user, user_id)
    with client_of(cloud, key) as s3:
        s3.put("bucket")
        rules = (
            "<Rule><Filter><And><Prefix>logs/</Prefix><Tag><Key>a</Key><Value>b</Value></Tag>"
            "<ObjectSizeGreaterThan>1</ObjectSizeGreaterThan></And></Filter>"
            "<Status>Enabled</Status><Expiration><Days>1</Days></Expiration></Rule>"
        )
        past = "<Expiration><Date>2015-01-01T00:00:00Z</Date></Expiration>"
        abort = "<DaysAfterInitiation>1</DaysAfterInitiation>"
        abort = f"<AbortIncompleteMultipartUpload>{abort}</AbortIncompleteMultipartUpload>"
        rules += "".join(rule(prefix, past) for prefix in ("past/", "odd", "other "))
        rules += rule("kept", "<Expiration><Days>1</Days></Expiration>", "Disabled")
        rules += rule("later/", "<Expiration><Days>100000</Days></Expiration>")
        rules += rule("parts/", abort)
        put_below(cloud, "bucket", f".s3-uploads/{'f' * 32}/upload", b"\xff is no key")
        for name in ("parts/f", "kept"):
            upload = begin(s3, f"bucket/{name}")
        body = f"<LifecycleConfiguration>{rules}</LifecycleConfiguration>".encode()
        done(s3.call("PUT", "bucket", {"lifecycle": ""}, body))
        for name in ("kept", "logs/tagless", "other"):
            s3.put(f"bucket/{name}", b"xx")
        s3.put("bucket/logs/short", b"x", x_amz_tagging="a=b")
        later = s3.put("bucket/later/f", b"xx")
        assert "expiry-date=" in later.headers["x-amz-expiration"]
        assert "x-amz-expiration" not in s3.get("bucket/kept").headers
        s3.put("bucket/logs/old", b"xx", x_amz_tagging="a=b&c=d")
        for name in ("past/f", "odd/", "odd//f", "odd"):
            s3.put(f"bucket/{name}", b"xx")
        kept = ["kept", "later/f", "logs/short", "logs/tagless", "other"]
        wait_for(lambda: s3.keys("bucket") == kept, "end of what expires")

        def uploads() -> list[str]:
            return texts(xml(s3.call("GET", "bucket", {"uploads": ""})), "Key")

        wait_for(lambda: uploads() == ["kept"], "end of the upload")
        done(s3.call("DELETE", "bucket/kept", {"uploadId": upload}))
        assert ok(user.get("/api/quota"))["files"]["used"] == len(kept)


def test_a_rule_that_is_about_far_times_or_about_nothing_known(s3: S3Client, bucket: str) -> None:
    s3.put(f"{bucket}/f", b"x")

    def put(scope: str, days: int = 1) -> httpx.Response:
        rule = f"{scope}<Status>Enabled</Status><Expiration><Days>{days}</Days></Expiration>"
        body = f"<LifecycleConfiguration><Rule>{rule}</Rule></LifecycleConfiguration>"
        return s3.call("PUT", bucket, {"lifecycle": ""}, body.encode())

    done(put("<Filter/>", 999_999_999_999_999))
    assert "9999" in s3.get(f"{bucket}/f").headers["x-amz-expiration"]
    assert "9999" in s3.put(f"{bucket}/f").headers["x-amz-expiration"]
    for scope in (
        "",
        "<filter><Prefix>a</Prefix></filter>",
        "<Filter/><Prefix>a</Prefix>",
        "<Filter><prefix>a</prefix></Filter>",
        "<Filter><And><Prefix>a</Prefix></And><Prefix>b</Prefix></Filter>",
        "<Filter><And/></Filter>",
        "<Prefix>a</Prefix><Prefix>b</Prefix>",
    ):
        failed(put(scope), "MalformedXML")
    done(s3.call("DELETE", bucket, {"lifecycle": ""}))


def test_documents_that_are_too_deep_or_too_long(s3: S3Client, bucket: str) -> None:
    for more in (b"<a>" * 5_000 + b"</a>" * 5_000, b"<a/>" * 20_000):
        body = tagging("k", "v").replace(b"</Tagging>", more + b"</Tagging>")
        failed(s3.call("PUT", bucket, {"tagging": ""}, body), "MalformedXML")


def test_an_object_is_the_only_version_of_itself(s3: S3Client, bucket: str) -> None:
    for key in ("a", "b/1", "b/2", "c"):
        s3.put(f"{bucket}/{key}", b"x")
    found, query = [], {"versions": "", "max-keys": "1", "delimiter": "/"}
    while True:
        root = xml(done(s3.call("GET", bucket, query)))
        assert set(texts(root, "VersionId")) <= {"null"}
        found += texts(root, "Key") + texts(root, "Prefix")[1:]
        if root.findtext(f"{XMLNS}IsTruncated") != "true":
            break
        query["key-marker"] = str(root.findtext(f"{XMLNS}NextKeyMarker"))
    assert found == ["a", "b/", "c"]
    done(s3.call("GET", f"{bucket}/a", {"versionId": "null"}))
    failed(s3.call("GET", f"{bucket}/a", {"versionId": "1"}), "InvalidArgument")
    objects = "".join(
        f"<Object><Key>{key}</Key><VersionId>{version}</VersionId></Object>"
        for key, version in (("a", "null"), ("c", "1"))
    )
    root = xml(s3.call("POST", bucket, {"delete": ""}, f"<Delete>{objects}</Delete>".encode()))
    assert (texts(root, "Key"), texts(root, "Code")) == (["a", "c"], ["InvalidArgument"])
    assert s3.keys(bucket) == ["b/1", "b/2", "c"]


def test_conditions_decide_deletions(s3: S3Client, bucket: str) -> None:
    path = f"{bucket}/f"
    s3.put(path, b"x")
    head = s3.get(path).headers
    date = head["last-modified"]
    for headers in (
        {"if-match": '"1"'},
        {"x-amz-if-match-size": "2"},
        {"x-amz-if-match-last-modified-time": "Thu, 01 Jan 2015 00:00:00 GMT"},
    ):
        failed(s3.call("DELETE", path, headers=headers), "PreconditionFailed")
    wrong = {"x-amz-if-match-last-modified-time": "yesterday"}
    failed(s3.call("DELETE", path, headers=wrong), "InvalidArgument")
    body = b"<Delete><Object><Key>f</Key><ETag>1</ETag></Object></Delete>"
    root = xml(s3.call("POST", bucket, {"delete": ""}, body))
    assert texts(root, "Code") == ["PreconditionFailed"]
    good = {"if-match": head["etag"], "x-amz-if-match-size": "1"}
    done(s3.call("DELETE", path, headers={**good, "x-amz-if-match-last-modified-time": date}))
    done(s3.call("DELETE", path, headers={"if-match": '"1"'}))
    s3.put(path, b"x")
    failed(s3.call("PUT", path, headers={"if-none-match": head["etag"]}), "PreconditionFailed")
    s3.put(path, b"y", if_none_match='"1"')


def test_attributes_of_an_object(s3: S3Client, bucket: str) -> None:
    s3.put(f"{bucket}/f", b"x", x_amz_sdk_checksum_algorithm="CRC32")
    names = {"x-amz-object-attributes": "ETag,Checksum,ObjectSize,StorageClass,ObjectParts"}
    root = xml(done(s3.call("GET", f"{bucket}/f", {"attributes": ""}, headers=names)))
    found = {each.tag.removeprefix(XMLNS): each.text for each in root.iter()}
    assert found["ETag"] == hashlib.md5(b"x").hexdigest()
    assert (found["ObjectSize"], found["ChecksumType"]) == ("1", "FULL_OBJECT")
    assert "ChecksumCRC32" in found
    wrong = {"x-amz-object-attributes": "Colour"}
    failed(s3.call("GET", f"{bucket}/f", {"attributes": ""}, headers=wrong), "InvalidArgument")


def test_names_that_s3_forbids(s3: S3Client, owner: Who) -> None:
    for name in ("Ab-c", "a_b", "ab", "a" * 64, "1.2.3.4", "a..b", "files", "upload"):
        failed(s3.call("PUT", name), "InvalidBucketName")
    # A storage namespace may have one all the same: then it is read and written.
    name = make_namespace(owner[0], "My_Space")
    put(owner[0], name, "by-rest", b"one")
    s3.put(f"{name}/by s3", b"two")
    assert s3.get(f"{name}/by-rest").content == b"one"
    assert s3.keys(name) == ["by s3", "by-rest"]
    head = done(s3.call("HEAD", name)).headers
    assert head["x-amz-bucket-region"] == "us-east-1"


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("x-amz-security-token", "of a session", "InvalidToken"),
        ("x-amz-storage-class", "GLACIER", "InvalidStorageClass"),
        ("x-amz-bucket-object-lock-enabled", "true", "NotImplemented"),
        ("x-amz-object-ownership", "ObjectWriter", "NotImplemented"),
        ("x-amz-write-offset-bytes", "1", "NotImplemented"),
        ("x-amz-grant-read", "id=1", "NotImplemented"),
        ("x-amz-expected-bucket-owner", "somebody", "AccessDenied"),
    ],
)
def test_headers_that_ask_for_more_are_not_ignored(
    s3: S3Client, bucket: str, name: str, value: str, code: str
) -> None:
    failed(s3.call("PUT", f"{bucket}/f", headers={name: value}), code)
    failed(s3.call("PUT", f"{bucket}/f", {"renameObject": ""}), "NotImplemented")
    assert s3.keys(bucket) == []


@pytest.mark.parametrize(
    ("method", "where", "name", "code"),
    [
        ("GET", "", "policy", "NoSuchBucketPolicy"),
        ("GET", "", "encryption", "ServerSideEncryptionConfigurationNotFoundError"),
        ("GET", "", "replication", "ReplicationConfigurationNotFoundError"),
        ("GET", "", "website", "NoSuchWebsiteConfiguration"),
        ("GET", "", "publicAccessBlock", "NoSuchPublicAccessBlockConfiguration"),
        ("GET", "", "object-lock", "ObjectLockConfigurationNotFoundError"),
        ("PUT", "", "object-lock", "InvalidBucketState"),
        ("GET", "/f", "retention", "InvalidRequest"),
        ("PUT", "/f", "legal-hold", "InvalidRequest"),
        ("GET", "", "policyStatus", ""),
        ("GET", "", "notification", ""),
        ("GET", "", "logging", ""),
        ("GET", "", "ownershipControls", ""),
    ],
)
def test_what_a_bucket_has_not_is_said_as_s3_says_it(
    cloud: Cloud, s3: S3Client, bucket: str, method: str, where: str, name: str, code: str
) -> None:
    s3.put(f"{bucket}/f", b"x")
    answer = s3.call(method, bucket + where, {name: ""})
    if code:
        failed(answer, code)
    else:
        done(answer)
    with client_of(cloud) as nobody:
        failed(nobody.call(method, bucket + where, {name: ""}), "AccessDenied")


def test_buckets_are_listed_page_by_page(cloud: Cloud) -> None:
    key = new_key(*cloud.make_user(), ["create", "read"])
    with client_of(cloud, key) as s3:
        names = [f"page-{key['access_key_id'].lower()}-{number}" for number in range(3)]
        for name in names:
            s3.put(name)
        found, query = [], {"max-buckets": "1"}
        while True:
            root = xml(s3.call("GET", "", query))
            found += texts(root, "Name")
            token = root.findtext(f"{XMLNS}ContinuationToken")
            if token is None:
                break
            query["continuation-token"] = token
        assert found == names
        assert texts(xml(s3.call("GET", "", {"prefix": "page-x"})), "Name") == []
        failed(s3.call("GET", "", {"max-buckets": "0"}), "InvalidArgument")


class Form:
    """A browser that sends forms to a bucket, by the policies of a user."""

    def __init__(self, cloud: Cloud, key: dict[str, str], bucket: str) -> None:
        self.url = cloud.cluster.ready["control"]["s3"]
        self.key = key
        self.bucket = bucket
        self.conditions: list[object] = [
            {"bucket": bucket}, ["starts-with", "$key", "up/"], {"acl": "private"},
            ["starts-with", "$Content-Type", "text/"], ["content-length-range", 1, 1000],
            ["starts-with", "$x-amz-meta-a", ""], ["starts-with", "$success_action_status", ""],
            ["starts-with", "$success_action_redirect", ""], ["starts-with", "$tagging", ""],
            ["starts-with", "$x-amz-checksum-sha256", ""],
        ]  # fmt: skip

    def policy(self, seconds: float = 60, conditions: object = None) -> dict[str, str]:
        """The fields of a policy, signed with version 2."""
        until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))
        document = {"expiration": until, "conditions": conditions or self.conditions}
        text = base64.b64encode(json.dumps(document).encode())
        secret = self.key["secret_access_key"].encode()
        signature = base64.b64encode(hmac.digest(secret, text, "sha1")).decode()
        key_id = self.key["access_key_id"]
        return {"AWSAccessKeyId": key_id, "policy": text.decode(), "signature": signature}

    def fields(self, **fields: str) -> dict[str, str]:
        """All fields of a form that the policy allows, and these."""
        usual = {
            "key": "up/${filename}", "acl": "private", "Content-Type": "text/plain",
            "x-amz-meta-a": "b", "success_action_status": "", "success_action_redirect": "",
            "tagging": "<Tagging/>",
            "x-amz-checksum-sha256": base64.b64encode(hashlib.sha256(b"data").digest()).decode(),
        }  # fmt: skip
        return {**usual, **self.policy(), **{n.replace("__", "-"): v for n, v in fields.items()}}

    def send(self, fields: dict[str, str], data: bytes = b"data") -> httpx.Response:
        files: list[Any] = [(name, (None, value)) for name, value in fields.items()]
        files.append(("file", ("f.txt", data)))
        return httpx.post(f"{self.url}/{self.bucket}", files=files, timeout=HANG_SECONDS, **PLAIN)


def test_forms_upload_what_their_policy_allows(
    cloud: Cloud, owner: Who, s3: S3Client, bucket: str
) -> None:
    key = new_key(*owner)
    form = Form(cloud, key, bucket)
    assert form.send(form.fields()).status_code == 204
    stored = s3.get(f"{bucket}/up/f.txt")
    assert (stored.content, stored.headers["x-amz-meta-a"]) == (b"data", "b")
    assert stored.headers["content-type"] == "text/plain"
    tags = tagging("k", "v").decode()
    answer = form.send(form.fields(key="up/g", success_action_status="201", tagging=tags))
    assert (answer.status_code, xml(answer).findtext("Key")) == (201, "up/g")
    assert texts(xml(s3.call("GET", f"{bucket}/up/g", {"tagging": ""})), "Value") == ["v"]
    where = "https://example.org/done?x=1"
    answer = form.send(form.fields(key="up/h", success_action_redirect=where))
    assert answer.status_code == 303
    assert answer.headers["location"].startswith(f"{where}&bucket={bucket}&key=up%2Fh&etag=%22")
    # Version 4 signs the same text with the key of the day.
    fields = form.fields(key="up/v4")
    fields = {n: v for n, v in fields.items() if n not in ("AWSAccessKeyId", "signature")}
    date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    scope = f"{date[:8]}/us-east-1/s3/aws4_request"
    more = {
        "x-amz-algorithm": "AWS4-HMAC-SHA256",
        "x-amz-credential": f"{key['access_key_id']}/{scope}",
        "x-amz-date": date,
    }
    conditions = [*form.conditions, *({name: value} for name, value in more.items())]
    policy = form.policy(conditions=conditions)["policy"]
    signed = {"x-amz-signature": Key(key["secret_access_key"], scope).sign_text(policy)}
    assert form.send({**fields, "policy": policy, **more, **signed}).status_code == 204
    assert s3.keys(bucket) == ["up/f.txt", "up/g", "up/h", "up/v4"]


def test_forms_that_their_policy_does_not_allow_store_nothing(
    cloud: Cloud, owner: Who, bucket: str
) -> None:
    form = Form(cloud, new_key(*owner), bucket)
    good = form.fields()
    without_key = {name: value for name, value in good.items() if name != "key"}
    anonymous = {"key": "f", "Content-Type": "text/plain"}
    half = {name: value for name, value in good.items() if name != "signature"}
    for fields, data, code in (
        (without_key, b"data", "InvalidArgument"),
        (anonymous, b"data", "AccessDenied"),
        (half, b"data", "InvalidArgument"),
        (form.fields(key="f"), b"data", "AccessDenied"),
        (form.fields(other="x"), b"data", "AccessDenied"),
        (form.fields(Content__Type="image/png"), b"data", "AccessDenied"),
        (form.fields(acl="public-read"), b"data", "AccessDenied"),
        (good, b"", "EntityTooSmall"),
        (good, b"x" * 1001, "EntityTooLarge"),
        (good, b"other", "BadDigest"),
        (good | form.policy(seconds=-1), b"data", "AccessDenied"),
        (
            good
            | {"x-amz-copy-source": f"{bucket}/f"}
            | form.policy(conditions=[*form.conditions, ["starts-with", "$x-amz-copy-source", ""]]),
            b"data",
            "InvalidArgument",
        ),
        (form.fields(signature="x"), b"data", "SignatureDoesNotMatch"),
        (form.fields(policy="x"), b"data", "SignatureDoesNotMatch"),
        (form.fields(AWSAccessKeyId="nobody"), b"data", "InvalidAccessKeyId"),
        *(
            (good | form.policy(conditions=[wrong]), b"data", "InvalidPolicyDocument")
            for wrong in ({}, ["eq", "$key"], ["content-length-range", -1, 0])
        ),
        (form.fields(tagging="<"), b"data", "MalformedXML"),
        (form.fields(x__ignore__a="x" * 70_000), b"data", "InvalidArgument"),
    ):
        failed(form.send(fields, data), code)
    answer = httpx.post(f"{form.url}/{bucket}", content=b"x", timeout=HANG_SECONDS, **PLAIN)
    failed(answer, "NotImplemented")
    assert paths(owner[0], bucket) == []


def test_fields_that_would_be_other_headers(
    cloud: Cloud, owner: Who, s3: S3Client, bucket: str
) -> None:
    form = Form(cloud, new_key(*owner), bucket)
    usual = list(form.conditions)
    for fields in (
        {"x-amz-meta-a": "b\r\nSet-Cookie: c"},
        {"x-amz-meta-a": "b\0"},
        {"Content-Type": "text/plain\r\nSet-Cookie: c"},
        {"x-amz-meta-b c": "d"},
        {"x-amz-meta-é": "d"},
    ):
        form.conditions = usual + [["starts-with", f"${name}", ""] for name in fields]
        failed(form.send({**form.fields(), **fields}), "InvalidArgument")
    form.conditions = usual
    assert s3.keys(bucket) == []
    for where in ("https://example.org/\r\nSet-Cookie: c", "https://[x", "javascript:a"):
        answer = form.send(form.fields(success_action_redirect=where))
        assert (answer.status_code, "set-cookie" in answer.headers) == (204, False)
    lengths = [*form.conditions, ["content-length-range", 0, 3], ["content-length-range", 0, 9]]
    answer = form.send(form.fields() | form.policy(conditions=lengths))
    failed(answer, "EntityTooLarge")
    endless = [*form.conditions[:-1], ["content-length-range", 0, float("inf")]]
    answer = form.send(form.fields() | form.policy(conditions=endless))
    failed(answer, "InvalidPolicyDocument")


def test_headers_come_back_as_they_were_sent(s3: S3Client, bucket: str) -> None:
    path = f"{bucket}/f"
    name = 'attachment; filename="é日.txt"'.encode().decode("latin-1")
    # The signature is of the bytes: here each is a letter.
    s3.put(path, b"x", content_disposition=name, x_amz_meta_a="\xe9")
    raw = dict(s3.get(path).headers.raw)
    assert raw[b"content-disposition"].decode() == 'attachment; filename="é日.txt"'
    assert raw[b"x-amz-meta-a"].decode() == "é"
    for value in ("a\r\nSet-Cookie: b", "a\0"):
        for override in ("content-disposition", "content-type"):
            answer = s3.call("GET", path, {f"response-{override}": value})
            failed(answer, "InvalidArgument")


def test_a_bucket_may_be_in_the_name_of_the_host(s3: S3Client, bucket: str) -> None:
    host = f"{bucket}.s3.example.org"
    for named in (host, f"{host}:9000", host.upper()):
        done(s3.call("PUT", "a/b", body=named.encode(), headers={"host": named}))
        assert s3.get(f"{bucket}/a/b").content == named.encode()
        assert done(s3.call("GET", "a/b", headers={"host": named})).content == named.encode()
        assert texts(xml(s3.call("GET", "", headers={"host": named})), "Key") == ["a/b"]
    for named in ("s3.example.org", f"{bucket}.example.org"):  # there the path has it
        done(s3.call("GET", f"{bucket}/a/b", headers={"host": named}))
        failed(s3.call("GET", "a/b", headers={"host": named}), "NoSuchBucket")
    failed(s3.call("GET", "a/b", headers={"host": "no-such.s3.example.org"}), "NoSuchBucket")


def test_the_policy_of_a_bucket_can_shut_out_one_key_also_from_forms(
    cloud: Cloud, owner: Who, s3: S3Client, bucket: str
) -> None:
    key = new_key(*owner)
    form = Form(cloud, key, bucket)
    statement = {
        "Effect": "Deny", "Principal": {"AWS": key["access_key_id"]}, "Action": "s3:PutObject",
        "Resource": f"arn:aws:s3:::{bucket}/*",
    }  # fmt: skip
    policy = json.dumps({"Statement": [statement]}).encode()
    done(s3.call("PUT", bucket, {"policy": ""}, policy))
    failed(form.send(form.fields()), "AccessDenied")
    s3.put(f"{bucket}/f", b"x")


def test_a_policy_about_tags_is_about_those_of_a_form_and_not_about_its_file(
    cloud: Cloud, s3: S3Client, bucket: str
) -> None:
    form = Form(cloud, new_key(*cloud.make_user()), bucket)
    allowed = {"Effect": "Allow", "Principal": "*", "Resource": f"arn:aws:s3:::{bucket}/*"}
    are_good = {"StringEquals": {"s3:RequestObjectTag/k": "good"}}
    statements = [
        {**allowed, "Action": "s3:PutObject"},
        {**allowed, "Action": "s3:PutObjectTagging", "Condition": are_good},
    ]
    policy = json.dumps({"Statement": statements}).encode()
    done(s3.call("PUT", bucket, {"policy": ""}, policy))
    good, bad = tagging("k", "good"), tagging("k", "bad")
    # Its bytes are those of a document about other tags.
    checksum = {"x-amz-checksum-sha256": base64.b64encode(hashlib.sha256(good).digest()).decode()}
    failed(form.send(form.fields(tagging=bad.decode()) | checksum, good), "AccessDenied")
    assert s3.keys(bucket) == []
    assert form.send(form.fields(tagging=good.decode())).status_code == 204
    assert s3.get(f"{bucket}/up/f.txt").content == b"data"
    assert texts(xml(s3.call("GET", f"{bucket}/up/f.txt", {"tagging": ""})), "Value") == ["good"]
