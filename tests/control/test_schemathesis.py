"""Schemathesis, an outsider, reads /openapi.json and holds a real cloud to every word of it.

It makes requests from the document (good ones, and bad ones on purpose), runs them as a
user and as an administrator, chains them (what one answers is used in the next), and
looks at each answer: no crash, no status, type or field that is not declared, bad data
refused, methods that are not offered refused with ``Allow``.

Random names lead to 404 most of the time. So the administrator's run gets the document
*narrowed*: where any name would do, it may only take some that exist, and where a scope
may be anybody's, only its own. Every request that a narrowed document allows, the real one
allows too; what is said of answers is untouched.
"""

from __future__ import annotations

import json
import re
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from checks import bearer, ok
from cloud import PASSWORD, Cloud
from computing import ED25519

SEED = "20260114"
#: For each operation, in the part that is left to chance.
EXAMPLES = "8"
SECONDS = 240
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
    "ignored_auth",
    "use_after_free",
    "ensure_resource_availability",
    # Not positive_data_acceptance: to valid requests it wants no 400, 412 and 416. But 412
    # and 416 are right where a file is not what a precondition or a range says, and 400
    # where JSON Schema cannot say what is wrong: it counts 2.0 as an integer, knows no
    # length in bytes, and not whose user_id a scope must hold.
    # Not object_level_authorization: what is public may be read by other users, and
    # test_access_table.py says who gets what.
]
NAMESPACE = "schema-tests"
#: For reading, and for all else: what is deleted cannot be read afterwards.
KEPT = ["kept.txt", "folder/kept.bin"]
CHANGED = ["a.txt", "folder/b.bin"]
DATA = b"0123456789" * 10


@pytest.fixture(scope="module")
def own_cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """Not the shared one: an administrator who sends anything deletes other tests' users.
    Its containers are a script's, so that each can be made at once."""
    made = Cloud(
        tmp_path_factory.mktemp("schemathesis"),
        environment={
            "GFS_COMPUTE_BACKEND": "scripted:make",
            "PYTHONPATH": str(Path(__file__).parent),
        },
    )
    try:
        yield made.start()
    finally:
        made.stop()


#: A stream without a transfer lasts until the client has heard enough.
CONFIGURATION = """\
[[operations]]
include-path = "/sse/progress"
request-timeout = 0.5
"""


def run(cloud: Cloud, directory: Path, schema: str, token: str, *arguments: str) -> None:
    """Fails with Schemathesis' own report, whose commands replay each failure."""
    (directory / "schemathesis.toml").write_text(CONFIGURATION)
    done = subprocess.run(
        [
            *(str(Path(sysconfig.get_path("scripts")) / "st"), "run", schema),
            *("--url", cloud.url, "-H", f"Authorization: Bearer {token}"),
            *("--checks", ",".join(CHECKS), "--seed", SEED, "--max-examples", EXAMPLES),
            *("--phases", "examples,coverage,fuzzing,stateful", "--continue-on-failure"),
            *("--request-timeout", "20", "--generation-database", "none", "--no-color"),
            *("--no-shrink", "--output-truncate", "false", "--warnings", "off", *arguments),
        ],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tested = re.search(r"Selected: (\d+)/(\d+)\n\s+Tested: (\d+)", done.stdout)
    assert tested, done.stdout
    assert len(set(tested.groups())) == 1, done.stdout


def test_a_user_finds_everything_as_documented(own_cloud: Cloud, tmp_path: Path) -> None:
    client, _ = own_cloud.make_user()
    schema = tmp_path / "openapi.json"
    schema.write_text(json.dumps(without_logout(ok(client.get("/openapi.json")))))
    run(own_cloud, tmp_path, str(schema), bearer(client))
    ok(client.get("/api/session"))


def test_an_administrator_finds_everything_as_documented(own_cloud: Cloud, tmp_path: Path) -> None:
    """And reaches everything: each operation succeeds at least once."""
    admin = own_cloud.login("admin")
    user_id = ok(admin.get("/api/session"))["user_id"]
    ok(admin.post("/storage/namespaces", json={"name": NAMESPACE}))
    for space in ("default", NAMESPACE):
        for path in KEPT + CHANGED:
            ok(admin.put(f"/storage/{space}/{path}", content=DATA))
    document = without_logout(ok(admin.get("/openapi.json")))
    narrow(document, user_id)
    account = {"name": "kept", "scopes": {f"storage.{user_id}": ["read"]}}
    other, other_id = own_cloud.make_user()
    narrow_auth(
        document,
        # Another user's, since a new password ends the administrator's.
        session=session_id(bearer(other)),
        # Another's, since the administrator needs his quota.
        limited=other_id,
        account=ok(admin.post("/api/service-accounts", json=account))["id"],
    )
    narrow_compute(document, admin)
    schema = tmp_path / "openapi.json"
    schema.write_text(json.dumps(document))
    before = succeeded(own_cloud)
    service_key = (own_cloud.cluster.state / "control" / "keys" / "service.key").read_text()

    run(
        own_cloud,
        tmp_path,
        str(schema),
        bearer(admin),
        *("-H", f"X-Service-Key: {service_key.strip()}"),
        # What the narrowed document forbids need not be refused.
        *("--mode", "positive"),
    )

    after = succeeded(own_cloud)
    reached = {operation for operation, count in after.items() if count > before.get(operation, 0)}
    declared = {
        (method.upper(), path)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        # What is a WebSocket and nothing else has no answer 200; nor what leads elsewhere.
        if "200" in operation["responses"] and "302" not in operation["responses"]
    }
    assert declared - reached == set()


def without_logout(document: dict[str, Any]) -> dict[str, Any]:
    """With it the run would be anybody's from then on."""
    del document["paths"]["/api/logout"]
    return document


def session_id(token: str) -> str:
    return str(jwt.decode(token, options={"verify_signature": False})["jti"])


def narrow_auth(document: dict[str, Any], *, session: str, limited: str, account: str) -> None:
    """Names and passwords that a user may have; a session to be ended, a user whose quota
    is changed, and a service account that gets tokens."""
    schemas = document["components"]["schemas"]
    schemas["UserBody"]["properties"] |= {
        "username": {"type": "string", "pattern": "^[a-z]{8,20}$"},
        "password": {"enum": [PASSWORD]},
    }
    schemas["PasswordBody"]["properties"] = {
        "old": {"enum": [PASSWORD]},
        "new": {"enum": [f"{PASSWORD}!"]},
    }
    schemas["LoginBody"]["properties"] = {
        "username": {"enum": ["admin"]},
        "password": {"enum": [PASSWORD, f"{PASSWORD}!"]},
    }
    tokens = document["paths"]["/api/service-accounts/{id}/tokens"]["post"]
    for operation, wanted in (
        (document["paths"]["/admin/sessions"]["delete"], session),
        (document["paths"]["/admin/quotas"]["get"], limited),
        (document["paths"]["/admin/quotas"]["put"], limited),
        (tokens, account),
    ):
        (parameter,) = operation["parameters"]
        parameter["schema"] = {"type": "string", "enum": [wanted]}


def narrow(document: dict[str, Any], user_id: str) -> None:
    """Allow less: names that exist, scopes of one's own."""
    spaces = {"type": "string", "enum": ["default", NAMESPACE]}
    for operations in document["paths"].values():
        for method, operation in operations.items():
            files = KEPT if method in ("get", "head") else CHANGED
            for parameter in operation["parameters"]:
                match parameter["in"], parameter["name"]:
                    case _, "namespace":
                        parameter["schema"] = spaces
                    case "path", "path":
                        parameter["schema"] = {"type": "string", "enum": files}
                    case "query", "name" if method != "post":
                        parameter["schema"] = {"type": "string", "enum": files}
                    case "query", "overwrite":
                        parameter["schema"] = {"type": "string", "enum": ["true", "false"]}
                    case "path", "file":
                        parameter["schema"] = {
                            "type": "string",
                            "enum": ["page.js", "swagger-ui.css"],
                        }
    for body in ("TokenBody", "AccountBody", "ScopesBody"):
        scopes = document["components"]["schemas"][body]["properties"]["scopes"]
        scopes.pop("examples", None)
        scopes["propertyNames"] = {"enum": [f"storage.{user_id}.files", f"storage.{user_id}"]}
        scopes["maxProperties"] = 2
        scopes["additionalProperties"]["items"] = {"enum": ["create", "read", "delete"]}


def narrow_compute(document: dict[str, Any], admin: httpx.Client) -> None:
    """Containers and keys that exist: some to look at, others to be deleted."""
    keys = [
        ok(admin.post("/compute/ssh-keys", json={"name": name, "public_key": ED25519}))["id"]
        for name in ("kept", "doomed")
    ]
    boxes = [
        ok(admin.post("/compute/containers", json={"name": name, "ssh_key_ids": keys[:1]}))["id"]
        for name in ("kept", "doomed")
    ]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            doomed = method == "delete"
            for parameter in operation["parameters"]:
                match parameter["name"]:
                    case "id" if path.startswith("/compute/containers/"):
                        chosen = boxes[doomed and path.endswith("{id}")]
                        parameter["schema"] = {"type": "string", "enum": [chosen]}
                    case "id" if path.startswith("/compute/ssh-keys/"):
                        parameter["schema"] = {"type": "string", "enum": [str(keys[doomed])]}
                    case "port":
                        parameter["schema"] = {"type": "string", "enum": ["80", "8080"]}
    schemas = document["components"]["schemas"]
    mounts = {"type": "array", "items": {"enum": ["/root"]}, "minItems": 1, "maxItems": 1}
    schemas["NewKey"]["properties"]["public_key"] = {"enum": [ED25519]}
    schemas["NewRule"]["properties"] = {
        "port": {"enum": [80, 443, 8080]},
        "target_port": {"type": "integer", "minimum": 1, "maximum": 65535},
    }
    schemas["MountsInfo"]["properties"]["mount_paths"] = mounts
    schemas["NewContainer"]["properties"] |= {
        "ssh_key_ids": {"type": "array", "items": {"enum": keys[:1]}, "minItems": 1, "maxItems": 1},
        "instance_type": {"enum": ["nano", "medium"]},
        "memory_mb": {"type": "integer", "minimum": 128, "maximum": 65536},
        "storage_gb": {"type": "integer", "minimum": 1, "maximum": 1000},
        "mount_paths": mounts,
    }
    for name in ("NewContainer", "NewKey"):
        schemas[name]["properties"]["name"] = {"type": "string", "pattern": "^[a-z]{1,64}$"}


def succeeded(cloud: Cloud) -> dict[tuple[str, str], float]:
    """How often each operation was answered with 2xx, as the server has counted."""
    with cloud.client() as client:
        text = client.get("/metrics").text
    counted: dict[tuple[str, str], float] = {}
    for labels, value in re.findall(r"^gfs_control_requests_total\{(.*)\} (\S+)$", text, re.M):
        label = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if label["status"].startswith("2"):
            operation = (label["method"], re.sub(r":\w+}", "}", label["route"]))
            counted[operation] = counted.get(operation, 0) + float(value)
    return counted
