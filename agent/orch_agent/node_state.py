"""Which cluster this node is in: one small file, replaced as a whole."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from orch_rpc.addresses import parse_address

_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
ID_LENGTH = 25


def new_id() -> str:
    """An identifier as Swarm's look: 25 characters of base 36."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(ID_LENGTH))


@dataclass(frozen=True, slots=True)
class Membership:
    """The node's place in a cluster. What it may be there, its certificate says.

    Attributes:
        node_id: of this node.
        cluster_id: of the cluster.
        advertise_address: ``host:port`` where other managers and agents reach this node's manager, if it is one.
        listen_address: ``host:port`` where that one listens.
        data_path_address: address for traffic between tasks.
        managers: ``host:port`` of the managers known when it was last written; at least one.
    """

    node_id: str
    cluster_id: str
    advertise_address: str
    listen_address: str
    data_path_address: str
    managers: tuple[str, ...]

    @property
    def host(self) -> str:
        """The address by which other nodes know this host."""
        return parse_address(self.advertise_address).host


class NodeStateFile:
    """Reads and writes the membership below the state folder."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "node.json"

    def load(self) -> Membership | None:
        """The membership, or None for a node that is in no cluster.

        Raises:
            ValueError: the file is there and cannot be understood.
        """
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        try:
            fields = json.loads(text)
            return Membership(**{**fields, "managers": tuple(str(each) for each in fields["managers"])})
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(
                f"{self._path} cannot be understood ({error}); restore it from a backup, or remove it to start anew"
            ) from error

    def save(self, membership: Membership) -> None:
        """Writes the membership so that it survives power loss."""
        aside = self._path.with_suffix(".new")
        with aside.open("w", encoding="utf-8") as handle:
            json.dump(asdict(membership), handle)
            handle.flush()
            os.fsync(handle.fileno())
        aside.rename(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def forget(self) -> None:
        """The node is in no cluster any more."""
        self._path.unlink(missing_ok=True)
