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
