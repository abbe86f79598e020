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
from checks import bearer, metrics, ok
from cloud import PASSWORD, Cloud
from computing import ED25519
from limits import HANG_SECONDS
from share import share

from control.console.module import BUILT

pytestmark = pytest.mark.real

SEED = 20260114
#: What is answered leads to what is asked, so that no seed is certain to reach everything.
SEEDS_MAX = 5
#: Of all that is asked for one document, on the busiest machine.
RUN_SECONDS = 4 * HANG_SECONDS
#: For each operation, in the part that is left to chance.
EXAMPLES = 8
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
#: One that is deleted.
DOOMED = "doomed"
#: For reading, and for all else: what is deleted cannot be read afterwards.
KEPT = ["kept.txt", "folder/kept.bin"]
CHANGED = ["a.txt", "folder/b.bin"]
DATA = b"0123456789" * 10
NOT_BUILT = ["main.js"]
#: The console's files, which need Node to be built.
PAGES = sorted(each.stem for each in BUILT.glob("main-*.gz")) or NOT_BUILT


@pytest.fixture(scope="module")
def own_cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """Not the shared one: an administrator who sends anything deletes other tests' users.
    Its containers are a script's, so that each can be made at once."""
    here = str(Path(__file__).parent)
    variables = {"GFS_COMPUTE_BACKEND": "scripted:make", "PYTHONPATH": here}
    with Cloud(tmp_path_factory.mktemp("schemathesis"), environment=variables) as made:
        yield made.start()


#: No server is dead, no shadow master away, and nothing elects a master.
UNREACHED = {
    ("DELETE", "/admin/cluster/servers/{server}"),
    ("DELETE", "/admin/cluster/masters/{address}"),
    ("POST", "/admin/cluster/failover"),
}

#: A stream without a transfer lasts until the client has heard enough, as does that of health.
CONFIGURATION = """\
[[operations]]
include-path-regex = "^/sse/"
request-timeout = 0.5
"""


def run(
    cloud: Cloud,
    directory: Path,
    schema: str,
    token: str,
    examples: int,
    *arguments: str,
    seed: int = SEED,
) -> None:
    """Fails with Schemathesis' own report, whose commands replay each failure."""
    (directory / "schemathesis.toml").write_text(CONFIGURATION)
    done = subprocess.run(
        [
            *(str(Path(sysconfig.get_path("scripts")) / "st"), "run", schema),
            *("--url", cloud.url, "-H", f"Authorization: Bearer {token}"),
            *("--checks", ",".join(CHECKS), "--seed", f"{seed}", "--max-examples", f"{examples}"),
            *("--phases", "examples,coverage,fuzzing,stateful", "--continue-on-failure"),
            *("--request-timeout", f"{HANG_SECONDS}", "--generation-database", "none"),
            "--no-color",
            *("--no-shrink", "--output-truncate", "false", "--warnings", "off", *arguments),
        ],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
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
    run(own_cloud, tmp_path, str(schema), bearer(client), share(EXAMPLES))
    ok(client.get("/api/session"))


def test_an_administrator_finds_everything_as_documented(own_cloud: Cloud, tmp_path: Path) -> None:
    """And reaches everything: each operation succeeds at least once."""
    admin = own_cloud.login("admin")
    user_id = ok(admin.get("/api/session"))["user_id"]
    for name in (NAMESPACE, DOOMED):
        ok(admin.post("/storage/namespaces", json={"name": name}))
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
        key=ok(admin.post("/api/s3-keys", json=account))["id"],
    )
    narrow_compute(document, admin)
    narrow_snapshots(document, admin)
    narrow_uploads(document, admin)
    narrow_cluster(document, own_cloud, tmp_path)
    schema = tmp_path / "openapi.json"
    schema.write_text(json.dumps(document))
    before = succeeded(own_cloud)
    service_key = (own_cloud.cluster.state / "control" / "keys" / "service.key").read_text()

    declared = {
        (method.upper(), path)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        # What is a WebSocket and nothing else has no answer 200; nor what leads elsewhere.
        if "200" in operation["responses"] and "302" not in operation["responses"]
        if PAGES != NOT_BUILT or "console" not in path
    }
    for seed in range(SEED, SEED + SEEDS_MAX):
        run(
            own_cloud,
            tmp_path,
            str(schema),
            bearer(admin),
            EXAMPLES,  # fewer do not reach everything
            *("-H", f"X-Service-Key: {service_key.strip()}"),
            # What the narrowed document forbids need not be refused.
            *("--mode", "positive"),
            seed=seed,
        )
        after = succeeded(own_cloud)
        missed = {each for each in declared if after.get(each, 0) == before.get(each, 0)}
        if missed == UNREACHED:
            break
    assert missed == UNREACHED


def without_logout(document: dict[str, Any]) -> dict[str, Any]:
    """With it the run would be anybody's from then on."""
    del document["paths"]["/api/logout"]
    return document


def session_id(token: str) -> str:
    return str(jwt.decode(token, options={"verify_signature": False})["jti"])


def narrow_auth(
    document: dict[str, Any], *, session: str, limited: str, account: str, key: str
) -> None:
    """Names and passwords that a user may have; a session to be ended, a user whose quota
    is changed, a service account that gets tokens, and an access key to be revoked."""
    schemas = document["components"]["schemas"]
    schemas["UserBody"]["properties"] |= {
        "username": {"type": "string", "pattern": "^[a-z]{8,20}$"},
        "password": {"enum": [PASSWORD]},
    }
    # A new password would end the session that another request is to end.
    schemas["UserChange"]["properties"] = {"display_name": {"enum": ["Ada", ""]}}
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
        (document["paths"]["/admin/users"]["put"], limited),
        (tokens, account),
        (document["paths"]["/api/s3-keys/{id}"]["delete"], key),
    ):
        (parameter,) = operation["parameters"]
        parameter["schema"] = {"type": "string", "enum": [wanted]}


def narrow(document: dict[str, Any], user_id: str) -> None:
    """Allow less: names that exist, scopes of one's own."""
    spaces = {"type": "string", "enum": ["default", NAMESPACE]}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            files = KEPT if method in ("get", "head") else CHANGED
            for parameter in operation["parameters"]:
                match parameter["in"], parameter["name"]:
                    case _, "namespace":
                        parameter["schema"] = spaces
                    case "path", "name":
                        chosen = DOOMED if method == "delete" else NAMESPACE
                        parameter["schema"] = {"type": "string", "enum": [chosen]}
                    case "path", "path":
                        parameter["schema"] = {"type": "string", "enum": files}
                    case "query", "name" if method != "post":
                        parameter["schema"] = {"type": "string", "enum": files}
                    case "query", "overwrite":
                        parameter["schema"] = {"type": "string", "enum": ["true", "false"]}
                    case "path", "file":
                        chosen_files = PAGES if "console" in path else ["page.js", "swagger-ui.css"]
                        parameter["schema"] = {"type": "string", "enum": chosen_files}
                    case "query", "path" if path.endswith("/locate"):
                        parameter["schema"] = {"type": "string", "enum": KEPT}
                    case "query", "path" if "namespace" in str(operation["parameters"]):
                        parameter["schema"] = {"type": "string", "enum": ["folder"]}
                    case "query", "after" if "/storage/namespaces/{" in path:
                        parameter["schema"] = {"type": "string", "enum": [""]}
    narrow_trees(document["components"]["schemas"])
    for body in ("TokenBody", "AccountBody", "ScopesBody"):
        scopes = document["components"]["schemas"][body]["properties"]["scopes"]
        scopes.pop("examples", None)
        scopes["propertyNames"] = {"enum": [f"storage.{user_id}.files", f"storage.{user_id}"]}
        scopes["maxProperties"] = 2
        scopes["additionalProperties"]["items"] = {"enum": ["create", "read", "delete"]}


def narrow_trees(schemas: dict[str, Any]) -> None:
    """Files that are there, or were deleted, and what may be in their place."""
    files = {"type": "string", "enum": CHANGED}
    there = {"source": files, "target": {"type": "string", "enum": [*CHANGED, "new", "in/new"]}}
    schemas["MoveBody"]["properties"] |= {**there, "overwrite": {"enum": [True]}}
    schemas["CopyBody"]["properties"] |= {
        **there, "namespace": {"enum": ["", NAMESPACE]}, "overwrite": {"enum": [True]},
    }  # fmt: skip
    schemas["UndeleteBody"]["properties"] |= {
        "path": files, "id": {"enum": [""]}, "target": {"type": "string", "pattern": "^u[a-z]{8}$"},
    }  # fmt: skip


def narrow_snapshots(document: dict[str, Any], admin: httpx.Client) -> None:
    """Snapshots and links that exist: some to look at, others to be deleted."""
    base = f"/storage/namespaces/{NAMESPACE}"
    made = [ok(admin.post(f"{base}/snapshots", json={}))["id"] for _ in "12"]
    links = [ok(admin.post(f"{base}/shares", json={"path": KEPT[0]})) for _ in "12"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            doomed = method == "delete"
            for parameter in operation["parameters"]:
                chosen = ""
                if parameter["name"] == "id" and "/snapshots/" in path:
                    chosen = made[doomed]
                elif parameter["name"] == "id" and "/share" in path:
                    chosen = links[doomed]["id"]
                elif parameter["name"] == "key":
                    chosen = links[0]["url"].partition("?key=")[2]
                elif parameter["name"] == "namespace" and "{id}" in path:
                    chosen = NAMESPACE
                if chosen:
                    parameter["schema"] = {"type": "string", "enum": [chosen]}
    schemas = document["components"]["schemas"]
    kept = {"type": "string", "enum": KEPT}
    schemas["NewSnapshot"]["properties"] = {
        "name": {"type": "string", "pattern": "^[a-z]{1,9}$"}, "folder": {"enum": [""]},
    }  # fmt: skip
    schemas["RestoreBody"]["properties"] = {
        "path": kept, "target": {"type": "string", "pattern": "^r[a-z]{8}$"},
    }  # fmt: skip
    schemas["NewShare"]["properties"]["path"] = kept
    schemas["PathBody"]["properties"]["path"] = kept
    schemas["AdminPathBody"]["properties"] = {"path": kept, "namespace": {"enum": [NAMESPACE]}}


def narrow_uploads(document: dict[str, Any], admin: httpx.Client) -> None:
    """Uploads in parts that are under way: one to go on with, one to be given up."""
    base = "/storage/namespaces/{namespace}/uploads"
    begin = base.format(namespace="default")
    kept, doomed = (
        ok(admin.post(begin, json={"path": f"{name}.bin", "size": 1 << 30}))["id"]
        for name in ("parts", "doomed")
    )
    for method, operation in document["paths"][f"{base}/{{id}}"].items():
        chosen = doomed if method == "delete" else kept
        wanted = {"namespace": "default", "id": chosen, "offset": 0}
        for parameter in operation["parameters"]:
            if parameter["name"] in wanted:
                parameter["schema"] = {"enum": [wanted[parameter["name"]]]}
    document["components"]["schemas"]["NewUpload"]["properties"] |= {
        "path": {"type": "string", "pattern": "^up[a-z]{8}$"},
        "size": {"type": "integer", "minimum": 1, "maximum": 1000},
    }


def narrow_cluster(document: dict[str, Any], cloud: Cloud, directory: Path) -> None:
    """A server that nobody drains for long, and its disks. Repair is not paused for good."""
    (server, *_) = ok(cloud.admin.get("/admin/cluster/servers"))["servers"]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for parameter in operation["parameters"]:
                if parameter["name"] == "server":
                    parameter["schema"] = {"type": "string", "enum": [server["id"]]}
                elif path == "/admin/cluster/events":
                    parameter["schema"] = {"enum": [""] if parameter["name"] == "before" else [1]}
    schemas = document["components"]["schemas"]
    schemas["DrainBody"] |= {
        "properties": {"cancel": {"enum": [True]}}, "required": ["cancel"],
    }  # fmt: skip
    schemas["DiskBody"]["properties"] = {
        "path": {"enum": [str(directory / "disk")]}, "action": {"enum": ["add", "remove"]},
    }  # fmt: skip
    schemas["RepairBody"]["properties"] = {"paused": {"enum": [False]}}


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
        text = metrics(client)
    counted: dict[tuple[str, str], float] = {}
    for labels, value in re.findall(r"^gfs_control_requests_total\{(.*)\} (\S+)$", text, re.M):
        label = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if label["status"].startswith("2"):
            operation = (label["method"], re.sub(r":\w+}", "}", label["route"]))
            counted[operation] = counted.get(operation, 0) + float(value)
    return counted
