"""URLs of an old SDK, boto 2, which signs with version 2. Run by test_s3_clients.py in the
clients' environment; they are used by urllib, which knows nothing of S3."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import boto3
import six

# Since Python 3.12 boto's own copy of six cannot be imported from, and there is no imp.
sys.modules |= {
    "imp": ModuleType("imp"),
    "boto.vendored.six": six,
    "boto.vendored.six.moves": six.moves,
    **{
        f"boto.vendored.six.moves.{name}": importlib.import_module(f"six.moves.{name}")
        for name in ("http_client", "queue", "urllib", "urllib.parse", "urllib.request")
    },
}

connection = importlib.import_module("boto.s3.connection")
endpoint = urlsplit(os.environ["AWS_ENDPOINT_URL"])
s3 = connection.S3Connection(
    os.environ["AWS_ACCESS_KEY_ID"],
    os.environ["AWS_SECRET_ACCESS_KEY"],
    host=endpoint.hostname,
    port=endpoint.port,
    is_secure=False,
    calling_format=connection.OrdinaryCallingFormat(),
)
boto3.client("s3").create_bucket(Bucket="boto-bucket")
key = "a/by boto é+&"
headers = {"Content-Type": "text/x-mine", "x-amz-meta-colour": "blue"}
url = s3.generate_url(60, "PUT", "boto-bucket", key, headers=headers)
with urlopen(Request(url, data=b"presigned", headers=headers, method="PUT")) as answer:
    assert answer.status == 200
asked = {"response-content-disposition": 'attachment; filename="a b.txt"'}
with urlopen(s3.generate_url(60, "GET", "boto-bucket", key, response_headers=asked)) as answer:
    assert answer.read() == b"presigned"
    assert answer.headers["content-type"] == "text/x-mine"
    assert answer.headers["x-amz-meta-colour"] == "blue"
    assert answer.headers["content-disposition"] == asked["response-content-disposition"]
with urlopen(Request(s3.generate_url(60, "HEAD", "boto-bucket", key), method="HEAD")) as answer:
    assert answer.headers["content-length"] == "9"
