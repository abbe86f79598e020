"""Alarms and the dashboard: Prometheus takes them, the disasters that there were set them
off, and on a real cluster every query has an answer."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployed import DEPLOY, run
from harness import Cluster
from limits import HANG_SECONDS, wait_for
from processes import free_port

from gfs.cli.command import SECTIONS

RULES = DEPLOY / "prometheus" / "gfs-alerts.yml"
TESTS = DEPLOY / "prometheus" / "gfs-alerts-test.yml"
SCRAPE = DEPLOY / "prometheus" / "prometheus.yml"
DASHBOARD = DEPLOY / "grafana" / "gfs.json"
MONITORING = DEPLOY.parent / "docs" / "monitoring.md"
#: What Prometheus itself makes, of targets and of alarms.
OWN = {"up", "ALERTS"}
#: Alarms that say of this machine that it is full or slow.
OF_MACHINE = "GfsSpaceLow|GfsDiskFull|GfsDiskSlow|GfsMetadataDiskLow|GfsDescriptorsLow"


def rules() -> list[dict[str, Any]]:
    [group] = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def queries() -> list[str]:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def metrics_of(expression: str) -> set[str]:
    plain = re.sub(r'"[^"]*"', "", expression)
    return set(re.findall(r"\b(?:gfs|process)_\w+|\bup\b", plain))


def test_the_files_are_as_prometheus_wants_them() -> None:
    run("promtool", "check", "config", SCRAPE.name, cwd=SCRAPE.parent)


def test_the_disasters_there_were_set_the_alarms_off() -> None:
    run("promtool", "test", "rules", TESTS.name, cwd=TESTS.parent)
    tested = set(re.findall(r'alertname="(\w+)"', TESTS.read_text(encoding="utf-8")))
    assert tested == {rule["alert"] for rule in rules()}


def test_each_alarm_says_what_it_is_and_what_to_run_next() -> None:
    commands = {name for section in SECTIONS.values() for name in section}
    for rule in rules():
        assert len(rule["annotations"]["summary"]) > 20
        program, command, *_ = rule["annotations"]["next"].split()
        assert (program, command in commands) == ("gfs", True), rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket")


def test_alarms_and_dashboard_ask_for_what_there_is() -> None:
    page = MONITORING.read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(\w+)` \| (?:gauge|counter|histogram) ", page, re.M))
    asked = {
        name for text in [*queries(), *(r["expr"] for r in rules())] for name in metrics_of(text)
    }
    assert {re.sub(r"_(bucket|count)$", "", name) for name in asked} - OWN <= documented


# --- on a real cluster --------------------------------------------------------------------


class Prometheus:
    """A real one, which asks the servers of ``cluster`` as the files say, but every second."""

    def __init__(self, directory: Path, cluster: Cluster) -> None:
        ready = cluster.ready
        targets = {
            "gfs-master": [ready["master"]["metrics"]],
            "gfs-chunkserver": [server["metrics"] for server in ready["chunkservers"]],
            "gfs-control": [ready["control"]["auth"]],
        }
        config = yaml.safe_load(SCRAPE.read_text(encoding="utf-8"))
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(RULES)]
        del config["alerting"]
        for job in config["scrape_configs"]:
            urls = map(urllib.parse.urlsplit, targets.pop(job["job_name"]))
            job["static_configs"] = [{"targets": [url.netloc for url in urls]}]
        assert not targets
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.url = f"http://127.0.0.1:{free_port()}"
        with open(directory / "prometheus.log", "wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={directory / 'prometheus.yml'}",
                    f"--storage.tsdb.path={directory / 'data'}",
                    f"--web.listen-address={self.url.removeprefix('http://')}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def ask(self, query: str) -> list[dict[str, Any]]:
        """The result; nothing while it does not answer."""
        with suppress(OSError):
            asked = urllib.parse.urlencode({"query": query})
            with urllib.request.urlopen(
                f"{self.url}/api/v1/query?{asked}", timeout=HANG_SECONDS
            ) as answer:
                found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
                return found
        return []

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(HANG_SECONDS)
        finally:
            self._process.kill()
            self._process.wait()


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Prometheus]]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), "--metrics", "--tls", control=True)
    cluster.arguments += ["--control-bind", f"127.0.0.1:{free_port()}"]
    try:
        cluster.start()
        prometheus = Prometheus(tmp_path_factory.mktemp("prometheus"), cluster)
        try:
            yield cluster, prometheus
        finally:
            prometheus.stop()
    finally:
        cluster.stop()


def test_every_query_of_the_dashboard_has_an_answer(
    watched: tuple[Cluster, Prometheus],
) -> None:
    cluster, prometheus = watched
    cluster.gfs("put", "-", "/file", input=b"x" * 100_000)
    cluster.gfs("get", "/file", "-")
    cluster.gfs("cat", "/nowhere", code=1)
    for query in queries():
        # Of rates over the last minute; in Grafana it is at least four scrapes.
        found = query.replace("$__rate_interval", "1m")
        wait_for(lambda asked=found: prometheus.ask(asked), f"answer to {found}")


def test_a_cluster_that_is_well_sets_no_alarm_off_and_a_dead_server_does(
    watched: tuple[Cluster, Prometheus],
) -> None:
    cluster, prometheus = watched
    cluster.gfs("put", "-", "/other", input=b"x" * 100_000)
    wait_for(lambda: prometheus.ask('up{job="gfs-chunkserver"} == 1'), "first answers")
    assert prometheus.ask(f'ALERTS{{alertname!~"{OF_MACHINE}"}}') == []
    cluster.kill("chunkserver-2")
    # It is started again on another port: Prometheus asks the old one in vain.
    wait_for(lambda: prometheus.ask('ALERTS{alertname="GfsTargetDown"}'), "alarm of a dead server")
