"""Makes the state of a manager, and its identity, from a backup. orchd runs it: `python -m orch_manager.restoring ...`.

The new cluster has one manager, which takes the place (the node id) of the one that made the backup; certificate
authority, tokens, services, secrets and the ids of everything are those of the backup, so that nodes whose certificates
are valid come back by themselves. The other managers of then are workers until they are promoted.

Prints `{"node_id": ..., "cluster_id": ...}`. Exit status: 0 done; 1 not done, and the last line of standard error says
why.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orch_manager.ca.roots import issue_to_node, trusted_roots
from orch_manager.store.errors import StoreError
from orch_manager.store.schema import StoreObject
from orch_manager.store.snapshot import read_snapshot, snapshot_writer
from orch_manager.store.tables import State
from orch_proto.objects_pb2 import Cluster, Node
from orch_proto.specs_pb2 import NodeRole
from orch_raft.engine import Member
from orch_raft.errors import RaftError
from orch_raft.recovery import TERMS_AHEAD
from orch_raft.storage import found_cluster
from orch_rpc.addresses import parse_address
from orch_rpc.backups import Backup, read_backup
from orch_rpc.certificates import new_key, new_request
from orch_rpc.errors import InvalidArgument, OrchError
from orch_rpc.identity import Identity, IdentityStore


@dataclass(frozen=True, slots=True)
class Restored:
    """What a backup is turned into.

    Attributes:
        objects: the state to begin with.
        cluster: of it.
        node: this manager's, with its new certificate.
        identity: of the node.
    """

    objects: Sequence[StoreObject]
    cluster: Cluster
    node: Node
    identity: Identity


def restore(backup: Backup, now_unix_ms: int) -> Restored:
    """Works out the state and the identity.

    Raises:
        InvalidArgument: the backup lacks something.
        FailedPrecondition: its cluster has no certificate authority.
    """
    try:
        _, items = read_snapshot(io.BytesIO(backup.data))
    except StoreError as error:
        raise InvalidArgument(
            "cannot use the backup", str(error), "restore it with the version that made it"
        ) from error
    cluster = next((item for item in items if isinstance(item, Cluster)), None)
    if cluster is None:
        raise InvalidArgument("cannot use the backup", "there is no cluster in it", "name another one")
    own = next((item for item in items if isinstance(item, Node) and item.id == backup.header.node_id), None)
    node = own if own is not None else Node(id=backup.header.node_id)
    key = new_key()
    for each in (item for item in items if isinstance(item, Node)):
        each.ClearField("manager")
        each.role = each.spec.desired_role = NodeRole.NODE_ROLE_WORKER
    node.role = node.spec.desired_role = NodeRole.NODE_ROLE_MANAGER
    node.certificate.CopyFrom(issue_to_node(cluster, node, new_request(key, node.id), now_unix_ms))
    identity = Identity(node.certificate.certificate_pem, key, trusted_roots(cluster.root_ca))
    return Restored(items if own is not None else [*items, node], cluster, node, identity)


def write(restored: Restored, backup: Backup, state_dir: Path, identity_dir: Path, address: str) -> None:
    """Writes both to disk; the identity last, as it is what makes the node a member.

    Raises:
        RaftError: the state folder cannot be used.
        OSError: the identity cannot be written.
    """
    state = State()
    for item in restored.objects:
        state.put(item)
    found_cluster(
        state_dir,
        Member(random.SystemRandom().getrandbits(63) or 1, restored.node.id, address),
        write_state=snapshot_writer(state, backup.header.index),
        index=backup.header.index,
        term=backup.header.term + TERMS_AHEAD,
    )
    IdentityStore(identity_dir).save(restored.identity)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="orch_manager.restoring", description="Makes a manager's state of a backup.")
    parser.add_argument("--backup", type=Path, required=True, help="the file")
    parser.add_argument("--state-dir", type=Path, required=True, help="folder of the log and the snapshots to be made")
    parser.add_argument("--identity-dir", type=Path, required=True, help="folder where the node's certificate goes")
    parser.add_argument("--advertise-address", required=True, help="where other managers reach this one")
    arguments = parser.parse_args()
    try:
        address = parse_address(arguments.advertise_address)
        with arguments.backup.open("rb") as stream:
            backup = read_backup(stream)
        restored = restore(backup, time.time_ns() // 1_000_000)
        write(restored, backup, arguments.state_dir, arguments.identity_dir, str(address))
    except (OrchError, RaftError, OSError) as error:
        sys.exit(" ".join(str(error).split()))
    sys.stdout.write(json.dumps({"node_id": restored.node.id, "cluster_id": restored.cluster.id}) + "\n")


if __name__ == "__main__":
    main()
