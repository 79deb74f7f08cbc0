"""Published ports on the host of an ordinary user: slirp4netns listens, and passes connections into the namespaces.

What is wanted is compared with what slirp4netns says it does, so that neither a missed change nor a restart of
anything leaves a port open or closed for long.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from pathlib import Path

from orch_agent.rootless import slirp
from orch_network.protocol import PublishedPort
from orch_rpc import logs

log = logs.get("rootless")
LOOK_INTERVAL_S = 0.2  # a look is a comparison of two sets in memory
RECONCILE_INTERVAL_S = 30.0
EVERYWHERE = "0.0.0.0"  # noqa: S104 -- what publishing a port without an address means
UNPRIVILEGED = 1024
#: Protocol, address of the host, port.
Forward = tuple[str, str, int]


def wanted_forwards(ports: Collection[PublishedPort]) -> frozenset[Forward]:
    """What slirp4netns has to listen on."""
    return frozenset((port.protocol, port.host_ip or EVERYWHERE, port.published) for port in ports)


def why_refused(forward: Forward, answer: str) -> str:
    """A sentence for people about a port that slirp4netns cannot listen on."""
    _, _, port = forward
    if port < UNPRIVILEGED:
        return (
            f"ports below {UNPRIVILEGED} need root: publish a higher one, or as root run "
            f"sysctl net.ipv4.ip_unprivileged_port_start={port}"
        )
    return f"another program of this host probably listens there ({answer}): stop it, or publish another port"


class PortForwarder:
    """Keeps slirp4netns's forwards equal to the published ports.

    Args:
        api: its socket.
        published: gives the ports that the node answers at now.
    """

    def __init__(self, api: Path, published: Callable[[], Collection[PublishedPort]]) -> None:
        self._api = api
        self._published = published
        self._refused: set[Forward] = set()

    async def run(self) -> None:
        """Goes on until cancelled; containers keep their ports then."""
        done: frozenset[Forward] | None = None
        done_at = 0.0
        while True:
            wanted = wanted_forwards(self._published())
            if wanted != done or time.monotonic() - done_at > RECONCILE_INTERVAL_S:
                try:
                    await asyncio.to_thread(self.reconcile, wanted)
                    done, done_at = wanted, time.monotonic()
                except (OSError, ValueError) as error:
                    log.warning("ports.not_forwarded", why=str(error), then="it is tried again")
                    await asyncio.sleep(1.0)
            await asyncio.sleep(LOOK_INTERVAL_S)

    def reconcile(self, wanted: frozenset[Forward]) -> None:
        """Adds and removes what differs; a port that is refused is told once, and tried again each time.

        Raises:
            OSError, ValueError: slirp4netns does not answer.
        """
        present: dict[Forward, int] = {
            (entry["proto"], entry["host_addr"], int(entry["host_port"])): int(entry["id"])
            for entry in slirp.ask(self._api, "list_hostfwd")["entries"]
        }
        for forward in sorted(present.keys() - wanted):
            slirp.ask(self._api, "remove_hostfwd", id=present[forward])
        self._refused &= wanted
        for forward in sorted(wanted - present.keys()):
            protocol, address, port = forward
            where = {"host_addr": address, "host_port": port, "guest_addr": slirp.GUEST_ADDRESS, "guest_port": port}
            try:
                slirp.ask(self._api, "add_hostfwd", proto=protocol, **where)
            except ValueError as error:
                if forward not in self._refused:
                    self._refused.add(forward)
                    why = why_refused(forward, str(error))
                    log.warning("port.not_published", port=f"{address}:{port}/{protocol}", why=why)
            else:
                self._refused.discard(forward)
                log.info("port.published", port=f"{address}:{port}/{protocol}")
