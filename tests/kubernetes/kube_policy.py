"""The policy of admission.yaml, in force.

The API server here is too old to know ValidatingAdmissionPolicies, so a newer one's code
decides: see policies.go. The API server asks it about every request that admission is
about, of whomever, as it would ask itself, and records who asks and what would be stored.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import policies
import yaml
from apiserver import Server
from lifeline import Lifeline
from limits import wait_for

from control.compute import kubernetes as package

FILE = Path(package.__file__).with_name("admission.yaml")
NAME = "policies"
HOOKS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
#: What an operator has in the settings, and in admission.yaml as well.
OPEN_NETWORK = ip_network("10.1.2.0/24")
STORAGE_CLASS = "fast"
#: The account as if it had all rights.
ALMIGHTY = {
    "Impersonate-User": "system:serviceaccount:gfs-control:gfs-control",
    "Impersonate-Group": "system:masters",
}


@contextmanager
def in_force(server: Server) -> Iterator[None]:
    here = server.directory
    manifests, log = here / "policies.json", here / "policies.log"
    manifests.write_text(json.dumps(documents()))
    log.write_text("")
    command = [str(policies.program()), str(server.parts.kubeconfig), str(manifests)]
    command += [str(server.tls / "cert.pem"), str(server.tls / "key.pem")]
    engine = Lifeline(command, log=log, directory=here)
    try:
        port = _port(engine, log)
        with server.admin.client() as client:
            hook = _hook(server, port)
            client.post(HOOKS, json=hook).raise_for_status()
            try:
                _wait(client)
                yield
            finally:
                client.delete(f"{HOOKS}/{NAME}").raise_for_status()
    finally:
        engine.kill()


def documents() -> list[dict[str, Any]]:
    """The policy and its binding, with an operator's settings, and with what a newer API
    server would fill in."""
    policy, binding = yaml.safe_load_all(FILE.read_text())
    opened, classes = policy["spec"]["variables"][:2]
    assert (opened["name"], classes["name"]) == ("open_networks", "storage_classes")
    opened["expression"] = f'["{OPEN_NETWORK}"]'
    # The first is this cluster's default: what a claim has that names none.
    classes["expression"] = f'["standard", "{STORAGE_CLASS}"]'
    constraints = policy["spec"]["matchConstraints"]
    constraints |= {"namespaceSelector": {}, "objectSelector": {}, "matchPolicy": "Equivalent"}
    for rule in constraints["resourceRules"]:
        rule["scope"] = "*"
    return [policy, binding]


def _port(engine: Lifeline, log: Path) -> int:
    def look() -> re.Match[str] | None:
        assert not engine.ended, log.read_text()[-2000:]
        return re.search(r"^port (\d+)\n", log.read_text(), re.M)

    found = wait_for(look, "port of the policies")
    assert found is not None
    return int(found[1])


def _hook(server: Server, port: int) -> dict[str, Any]:
    rule = {"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*/*"]}
    return {
        "metadata": {"name": NAME},
        "webhooks": [
            {
                "name": "policies.example.org",
                "clientConfig": {
                    "url": f"https://127.0.0.1:{port}/",
                    "caBundle": base64.b64encode(server.certificate.read_bytes()).decode(),
                },
                "rules": [rule],
                "failurePolicy": "Fail",
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
                "timeoutSeconds": 30,
            }
        ],
    }


def _wait(client: Any) -> None:
    """Until the API server asks: it learns of the hook a little later."""
    body = {"metadata": {"name": "refused"}}

    def is_asked() -> bool:
        answer = client.post(
            "/api/v1/namespaces", params={"dryRun": "All"}, headers=ALMIGHTY, json=body
        )
        return answer.status_code in (403, 422) and "ValidatingAdmissionPolicy" in answer.text

    wait_for(is_asked, "question to the policies")
