"""Signs the requests that it reads with botocore, the oracle. Run by test_s3_clients.py in the
clients' environment: JSON in, JSON out."""

from __future__ import annotations

import json
import sys

from botocore.auth import HmacV1QueryAuth, S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

signed = []
for each in json.load(sys.stdin):
    request = AWSRequest(
        each["method"], each["url"], each["headers"], each["body"].encode() or None
    )
    credentials = Credentials(each["id"], each["secret"])
    if each["version"] == 2:
        HmacV1QueryAuth(credentials, expires=each["expires"]).add_auth(request)
    elif each["expires"]:
        S3SigV4QueryAuth(credentials, "s3", each["region"], expires=each["expires"]).add_auth(
            request
        )
    else:
        S3SigV4Auth(credentials, "s3", each["region"]).add_auth(request)
    prepared = request.prepare()
    signed.append({"url": prepared.url, "headers": dict(prepared.headers.items())})
json.dump(signed, sys.stdout)
