"""The rights of rbac.yaml: what the file grants, and the account that it makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from apiserver import Identity, Server

from control.compute import kubernetes as package

Rules = list[dict[str, Any]]

FILE = Path(package.__file__).with_name("rbac.yaml")


def rules_of_file() -> Rules:
    (role,) = (each for each in _documents() if each["kind"] == "ClusterRole")
    rules: Rules = role["rules"]
    return rules


def account_of_file(server: Server) -> Identity:
    """As an administrator does it: apply the file as it is, and take a token of the account
    in it. May be done again."""
    for document in _documents():
        server.apply(document)
    (account,) = (each for each in _documents() if each["kind"] == "ServiceAccount")
    about = account["metadata"]
    return server.account(about["namespace"], about["name"], rules_of_file())


def _documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(FILE.read_text()))
