"""What minio's client does. Run by test_s3_clients.py in their environment."""

from __future__ import annotations

import io
import os
from urllib.request import urlopen

from minio import Minio
from minio.deleteobjects import DeleteObject

client = Minio(
    endpoint=os.environ["AWS_ENDPOINT_URL"].removeprefix("http://"),
    access_key=os.environ["AWS_ACCESS_KEY_ID"],
    secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
    secure=False,
)
bucket = "minio-bucket"
client.make_bucket(bucket_name=bucket)
assert client.bucket_exists(bucket_name=bucket)
data = os.urandom(16_000_000)
client.put_object(
    bucket_name=bucket, object_name="a/b", data=io.BytesIO(data), length=-1, part_size=5 * 2**20
)
assert client.get_object(bucket_name=bucket, object_name="a/b").read() == data
with urlopen(client.presigned_get_object(bucket_name=bucket, object_name="a/b")) as answer:
    assert answer.read() == data
found = client.list_objects(bucket_name=bucket, recursive=True)
assert [(each.object_name, each.size) for each in found] == [("a/b", len(data))]
errors = client.remove_objects(bucket_name=bucket, delete_object_list=[DeleteObject("a/b")])
assert list(errors) == []
client.remove_bucket(bucket_name=bucket)
