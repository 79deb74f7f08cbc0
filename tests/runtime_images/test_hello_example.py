import http.client
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from orch_agent.build.builder import Builder
from orch_agent.images.snapshots import Snapshots
from orch_agent.images.store import ImageStore
from orch_runtime.client import RuntimeClient
from orch_runtime.config import compile_config, default_config
from orch_runtime.plan import OverlayRootfs
from orch_runtime.protocol import STATUS_EXITED

HELLO = Path(__file__).parents[2] / "compose-examples" / "hello"


def poll(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.02)


def answered(port: int, path: str) -> str | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.read().decode() if response.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def test_hello_is_built_serves_its_name_is_healthy_and_stops_when_told(
    tmp_path: Path, store: ImageStore, builder: Builder, runtime_socket: str
) -> None:
    """The hello example runs from what its prepare.sh makes: page, health check as its user, a stop by SIGTERM."""
    context = tmp_path / "hello"
    shutil.copytree(HELLO, context)
    subprocess.run([context / "prepare.sh"], check=True, capture_output=True)
    image = builder.build(context, tag="hello-web:1")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve = (context / "serve").read_text().replace("8080", str(port))  # the port is the host's own in this test
    assert image.config.user == "65534:65534"
    config = default_config(
        args=["/bin/sh", "-c", serve], env=image.config.env, hostname="hello-task", host_network=True
    )
    snapshots = Snapshots(tmp_path / "snapshots")
    rootfs = OverlayRootfs(store.lower_dirs(image), *snapshots.prepare("hello"))
    plan = compile_config(config, rootfs=rootfs, container_id="hello", user=image.config.user)
    with RuntimeClient(runtime_socket) as client:
        client.run(plan)
        try:
            poll(lambda: answered(port, "/") == "Hello from hello-task\n", "the page")
            stack = yaml.safe_load((context / "stack.yml").read_text())
            kind, *command = stack["services"]["web"]["healthcheck"]["test"]
            assert kind == "CMD"
            healthy = client.exec("hello", [word.replace("8080", str(port)) for word in command])
            assert (healthy.exit_code, healthy.output) == (0, "")
            client.kill("hello", signal.SIGTERM)
            poll(lambda: client.state("hello").status == STATUS_EXITED, "the stop by SIGTERM")
            assert client.state("hello").exit_signal != signal.SIGKILL
        finally:
            client.delete("hello", force=True)
    snapshots.remove("hello")
    assert snapshots.wait_deleted(20)
    snapshots.close()
