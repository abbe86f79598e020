"""What boto3 does by its defaults of today. Run by test_s3_clients.py in their environment."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from urllib.request import Request, urlopen

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

s3 = boto3.client("s3", config=Config(s3={"addressing_style": "path"}, signature_version="s3v4"))


def fails(code: str, call: object, **arguments: object) -> None:
    with pytest.raises(ClientError) as failed:
        call(**arguments)  # type: ignore[operator]
    assert failed.value.response["Error"]["Code"] == code, failed.value


bucket = "boto3-bucket"
s3.create_bucket(Bucket=bucket)
for algorithm in (None, "CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"):
    chosen = {"ChecksumAlgorithm": algorithm} if algorithm else {}
    for length in (0, 5, 300_000):
        data = os.urandom(length)
        key = f"a/{algorithm}/{length} é+&"
        s3.put_object(Bucket=bucket, Key=key, Body=data, Metadata={"k": "v"}, **chosen)
        got = s3.get_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
        assert got["Body"].read() == data
        assert got["Metadata"] == {"k": "v"}
keys = [
    entry["Key"]
    for page in s3.get_paginator("list_objects_v2").paginate(
        Bucket=bucket, PaginationConfig={"PageSize": 5}
    )
    for entry in page["Contents"]
]
assert len(keys) == 18
large = os.urandom(20 * 2**20)
s3.upload_fileobj(io.BytesIO(large), bucket, "large")
out = io.BytesIO()
s3.download_fileobj(bucket, "large", out)
assert out.getvalue() == large
assert s3.head_object(Bucket=bucket, Key="large")["ETag"].endswith('-3"')
s3.copy({"Bucket": bucket, "Key": "large"}, bucket, "copied")
assert s3.get_object(Bucket=bucket, Key="copied")["Body"].read() == large
summed = {"ChecksumAlgorithm": "SHA256"}  # of each part that is copied
s3.copy({"Bucket": bucket, "Key": "large"}, bucket, "summed", ExtraArgs=summed)
head = s3.head_object(Bucket=bucket, Key="summed", ChecksumMode="ENABLED")
assert head["ChecksumSHA256"].endswith("-3")
part = s3.get_object(Bucket=bucket, Key="large", Range="bytes=1000000-1000009")["Body"].read()
assert part == large[1000000:1000010]

arguments = {"Bucket": bucket, "Key": "by url"}
url = s3.generate_presigned_url("put_object", Params=arguments)
with urlopen(Request(url, data=b"presigned", method="PUT")) as answer:
    assert answer.status == 200
with urlopen(s3.generate_presigned_url("get_object", Params=arguments)) as answer:
    assert answer.read() == b"presigned"

# Without a Config it signs URLs with version 2.
plain = boto3.client("s3")


def by_url(method: str, body: bytes | None = None, **more: object) -> tuple[bytes, dict[str, str]]:
    """The bytes of an answer and its headers, by lower-case name."""
    named = {"Bucket": bucket, "Key": "plain/é+& x", **more}
    url = plain.generate_presigned_url(method, Params=named)
    assert "AWSAccessKeyId=" in url
    assert "X-Amz-" not in url
    verb = {"put_object": "PUT", "upload_part": "PUT", "head_object": "HEAD"}.get(method, "GET")
    request = Request(url, data=body, method=verb)
    if body is not None:  # or urllib would say that it is a form
        request.add_header("Content-Type", str(more.get("ContentType", "")))
    with urlopen(request) as answer:
        return answer.read(), {name.lower(): value for name, value in answer.headers.items()}


by_url("put_object", b"presigned", ContentType="a/b", Metadata={"k": "v w"}, Tagging="a=b")
got, headers = by_url(
    "get_object", ResponseContentType="c/d e+f&g", ResponseCacheControl="no-store"
)
assert got == b"presigned"
assert headers["content-type"] == "c/d e+f&g"
assert headers["cache-control"] == "no-store"
assert headers["x-amz-meta-k"] == "v w"
assert by_url("head_object", ChecksumMode="ENABLED")[1]["content-type"] == "a/b"
assert by_url("get_object", VersionId="null")[0] == b"presigned"
upload = s3.create_multipart_upload(Bucket=bucket, Key="plain/é+& x")["UploadId"]
etag = by_url("upload_part", b"a part", UploadId=upload, PartNumber=1)[1]["etag"]
s3.complete_multipart_upload(
    Bucket=bucket, Key="plain/é+& x", UploadId=upload,
    MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etag}]},
)  # fmt: skip
assert by_url("get_object")[0] == b"a part"

fails("NoSuchBucket", s3.list_objects_v2, Bucket="nothing-here")
fails("NoSuchKey", s3.get_object, Bucket=bucket, Key="nothing")
fails("404", s3.head_object, Bucket=bucket, Key="nothing")
fails("BucketNotEmpty", s3.delete_bucket, Bucket=bucket)
fails("PreconditionFailed", s3.put_object, Bucket=bucket, Key="large", Body=b"x", IfNoneMatch="*")
with ThreadPoolExecutor(8) as pool:

    def create(number: int) -> bool:
        try:
            s3.put_object(Bucket=bucket, Key="lock", Body=bytes([number]), IfNoneMatch="*")
        except s3.exceptions.ClientError as error:
            if error.response["Error"]["Code"] != "PreconditionFailed":
                raise
            return False
        return True

    assert sum(pool.map(create, range(16))) == 1

listed = s3.list_objects_v2(Bucket=bucket)["Contents"]
gone = s3.delete_objects(
    Bucket=bucket, Delete={"Objects": [{"Key": entry["Key"]} for entry in listed]}
)
assert len(gone["Deleted"]) == len(listed)
s3.delete_bucket(Bucket=bucket)
