"""What deploy/ ships for Prometheus, Grafana and systemd is what those programs accept."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is missing")


def run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@needs_promtool
def test_prometheus_accepts_the_configuration_and_all_rules() -> None:
    """The shipped configuration names rule files that exist, and Prometheus' own checker accepts all of it."""
    output = run("promtool", "check", "config", str(DEPLOY / "prometheus" / "prometheus.yml"))
    assert output.count("rules found") == 2


@needs_promtool
@pytest.mark.parametrize("file", sorted((DEPLOY / "prometheus" / "tests").glob("*.yml")), ids=lambda path: path.name)
def test_alerts_fire_when_they_should(file: Path) -> None:
    """Each story of deploy/prometheus/tests ends in the alerts that it names."""
    assert "SUCCESS" in run("promtool", "test", "rules", str(file))


def test_every_alert_says_what_to_do() -> None:
    """No alert reaches a person without a severity, a sentence and a next step."""
    alerts = 0
    for file in (DEPLOY / "prometheus" / "alerts").glob("*.yml"):
        for group in yaml.safe_load(file.read_text())["groups"]:
            for rule in group["rules"]:
                alerts += 1
                assert rule["labels"]["severity"] in {"page", "ticket"}, rule["alert"]
                assert rule["annotations"]["summary"], rule["alert"]
                assert rule["annotations"]["action"], rule["alert"]
    assert alerts >= 10


def test_the_dashboard_is_one() -> None:
    """The dashboard's panels have titles, queries and places that do not overlap."""
    dashboard = json.loads((DEPLOY / "grafana" / "orch-cluster.json").read_text())
    places: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        assert panel["title"]
        assert all(target["expr"] for target in panel["targets"])
        place = panel["gridPos"]
        cells = {
            (column, row)
            for column in range(place["x"], place["x"] + place["w"])
            for row in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & places, panel["title"]
        assert max(column for column, _ in cells) < 24
        places |= cells


def test_stopping_the_daemon_leaves_containers_alone() -> None:
    """The systemd unit ends the daemon's own process only, and keeps the folder of running containers."""
    unit = (DEPLOY / "orchd.service").read_text()
    for line in ("KillMode=process", "Delegate=yes", "RuntimeDirectoryPreserve=yes", "Restart=always"):
        assert re.search(rf"^{line}$", unit, re.MULTILINE), line


@pytest.mark.parametrize("script", sorted(DEPLOY.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_refuse_what_they_do_not_know(script: Path) -> None:
    """Each script stops at an unknown option, before it does anything, and names the option."""
    result = subprocess.run([script, "--frobnicate"], capture_output=True, text=True, timeout=20, check=False)
    assert result.returncode != 0
    assert "--frobnicate" in result.stderr
