"""A real Prometheus scrapes a node and its manager, with the configuration and the rules that are shipped."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cluster.playground_driver import Playground, task_processes, wait_for

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
ADDRESS = f"127.0.0.1:{20000 + os.getpid() % 10000}"
pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is missing")

STACK = """\
services:
  web:
    image: test:1
    init: true
    command: ["httpd", "-f", "-p", "8080"]
    ports: ["8075:8080"]
    deploy:
      replicas: 2
      restart_policy: {delay: 0s}
      resources: {limits: {memory: 64M, cpus: "0.5"}}
"""

Series = dict[str, str]


class Prometheus:
    """Asks a running Prometheus."""

    def __init__(self) -> None:
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str) -> object:
        with self._opener.open(f"http://{ADDRESS}{path}", timeout=5) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[tuple[Series, float]]:
        data = self.get(f"/api/v1/query?{urllib.parse.urlencode({'query': expression})}")
        assert isinstance(data, dict)
        return [(found["metric"], float(found["value"][1])) for found in data["result"]]

    def is_ready(self) -> bool:
        try:
            with self._opener.open(f"http://{ADDRESS}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@pytest.fixture
def prometheus(clean: Playground, tmp_path: Path) -> Iterator[Prometheus]:
    configuration = clean.layout.scrape_file.read_text().replace("scrape_interval: 5s", "scrape_interval: 1s")
    (tmp_path / "prometheus.yml").write_text(configuration + f"rule_files: [{DEPLOY}/prometheus/rules/*.yml]\n")
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address={ADDRESS}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=log,
    )
    try:
        asked = Prometheus()
        wait_for(asked.is_ready, "Prometheus")
        yield asked
    finally:
        process.terminate()
        process.wait(20)
        log.close()


def test_prometheus_sees_the_cluster_and_its_containers(clean: Playground, prometheus: Prometheus) -> None:
    """Both targets are up, and the series tell what runs: nodes, tasks, replicas, each container's use and limits."""
    clean.deploy("seen", STACK)
    tasks = clean.wait_running("seen_web", 2)
    first = task_processes(tasks[:1])[tasks[0].id]
    assert first is not None
    first.kill()
    clean.wait_running("seen_web", 2)

    def value(expression: str, expected: float) -> None:
        wait_for(lambda: [number for _, number in prometheus.query(expression)] == [expected], expression)

    value('up{job="orch-node"}', 1)
    value('up{job="orch-manager"}', 1)
    value('orch_nodes{state="ready"}', 1)
    value('orch_tasks{state="running"}', 2)
    value('orch_service_replicas_desired{service="seen_web"}', 2)
    value('orch_service_replicas_running{service="seen_web"}', 2)
    value('sum(orch_service_task_failures_total{service="seen_web"})', 1)
    value("orch_raft_has_leader", 1)
    by_service = 'container_label_com_docker_swarm_service_name="seen_web"'
    value(f"count(container_memory_working_set_bytes{{{by_service}}} > 0)", 2)
    value(f"count(container_spec_memory_limit_bytes{{{by_service}}} == 64*1024*1024)", 2)
    value(f"count(container_cpu_usage_seconds_total{{{by_service}}})", 2)
    value(f"count(container_processes{{{by_service}}} >= 1)", 2)
    value(f"count(container_network_receive_bytes_total{{{by_service}}})", 2)
    assert prometheus.query("orch_build_info")

    assert not unknown_series(prometheus), "rules, alerts and the dashboard use series that nobody exports"


def unknown_series(prometheus: Prometheus) -> set[str]:
    """Names in the shipped rules, alerts and dashboard that Prometheus has never seen."""
    expressions = [
        rule["expr"]
        for file in DEPLOY.glob("prometheus/*/orch.yml")
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
    ]
    dashboard = json.loads((DEPLOY / "grafana" / "orch-cluster.json").read_text())
    expressions += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    wanted = {name for text in expressions for name in re.findall(r"\b(?:orch|container)_[a-z0-9_]+", text)}
    wanted -= {name for name in wanted if name.startswith("container_label_")}
    deadline = time.monotonic() + 15
    while True:
        known = prometheus.get("/api/v1/label/__name__/values")
        assert isinstance(known, list)
        missing = wanted - set(known)
        # Only a repair of the kernel's state makes this one appear.
        missing -= {"orch_agent_reconcile_drift_total"}
        if not missing or time.monotonic() > deadline:
            return missing
        time.sleep(0.5)


def test_metrics_pass_prometheus_own_linter(clean: Playground) -> None:
    """What the node and the manager export is well-formed and named by Prometheus' conventions, cAdvisor's apart."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for address in (clean.node.metrics_address, clean.node.manager_metrics_address):
        with opener.open(f"http://{address}/metrics", timeout=5) as answer:
            text = answer.read()
        result = subprocess.run(
            ["promtool", "check", "metrics"], input=text, capture_output=True, timeout=20, check=False
        )
        complaints = [
            line
            for line in (result.stdout + result.stderr).decode().splitlines()
            if not line.startswith(("container_", "machine_", "python_", "process_"))
        ]
        assert not complaints, complaints


def test_the_page_of_metrics_is_complete(clean: Playground) -> None:
    """docs/metrics.md names every series that a node and a manager export, and none that they do not."""
    page = (DEPLOY.parent / "docs" / "metrics.md").read_text()
    documented = set(re.findall(r"`((?:orch|container|machine)_[a-z_]+)`", page))
    documented -= {name for name in documented if name.startswith("container_label_")}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    exported = set()
    for address in (clean.node.metrics_address, clean.node.manager_metrics_address):
        with opener.open(f"http://{address}/metrics", timeout=5) as answer:
            exported |= set(re.findall(r"^# HELP (\S+)", answer.read().decode(), re.MULTILINE))
    exported = {name for name in exported if not name.endswith("_created")}
    assert documented == exported
