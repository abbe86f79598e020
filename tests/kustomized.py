"""What ``kubectl kustomize`` makes of deploy/kubernetes, as far as that uses kustomize."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

DIRECTORY = Path(__file__).parents[1] / "deploy" / "kubernetes"
#: Kinds that are in no namespace.
CLUSTER_WIDE = {"Namespace"}
KNOWN = {"apiVersion", "kind", "namespace", "images", "configMapGenerator", "resources"}

Manifest = dict[str, Any]


def rendered(namespace: str = "", image: str = "", **settings: str) -> list[Manifest]:
    """All manifests, those that an operator adds for Prometheus as well; in another namespace,
    with another image and more settings, as an overlay would have it."""
    about = _read(DIRECTORY / "kustomization.yaml")
    extra = _read(DIRECTORY / "monitoring" / "kustomization.yaml")
    assert about.keys() <= KNOWN
    assert extra.keys() <= KNOWN
    (tag,) = about["images"]
    everywhere, namespace = namespace, namespace or about["namespace"]
    image = image or f"{tag['name']}:{tag['newTag']}"
    files = [DIRECTORY / name for name in about["resources"]]
    found = [each for file in files for each in yaml.safe_load_all(file.read_text())]
    config_map = _config_map(about, settings)
    found.insert(1, config_map)
    components = [_read(DIRECTORY / "monitoring" / name) for name in extra["resources"]]
    for manifest in found + (components if everywhere else []):
        if manifest["kind"] in CLUSTER_WIDE:
            manifest["metadata"]["name"] = namespace
        else:
            manifest["metadata"]["namespace"] = namespace
        for subject in manifest.get("subjects", ()):
            subject["namespace"] = namespace
        for container in containers(manifest):
            assert container["image"] == tag["name"]
            container["image"] = image
            for source in container["envFrom"]:
                assert source["configMapRef"]["name"] == "gfs"
                source["configMapRef"]["name"] = config_map["metadata"]["name"]
    return found + components


def _config_map(about: Manifest, settings: dict[str, str]) -> Manifest:
    """Its name has a hash of its content."""
    (made,) = about["configMapGenerator"]
    assert made.keys() == {"name", "literals"}
    data = dict(each.split("=", 1) for each in made["literals"]) | settings
    content = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    name = f"{made['name']}-{content[:10]}"
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def of_kind(kind: str, manifests: list[Manifest]) -> dict[str, Manifest]:
    """By name."""
    return {each["metadata"]["name"]: each for each in manifests if each["kind"] == kind}


def pod_of(manifest: Manifest) -> Manifest:
    found: Manifest = manifest["spec"]["template"]["spec"]
    return found


def containers(manifest: Manifest) -> list[Manifest]:
    if manifest["kind"] not in ("StatefulSet", "Deployment"):
        return []
    pod = pod_of(manifest)
    return [*pod.get("initContainers", ()), *pod["containers"]]


def _read(file: Path) -> Manifest:
    found: Manifest = yaml.safe_load(file.read_text())
    return found
