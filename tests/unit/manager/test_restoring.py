"""Backups: what is written is read again, what is damaged is refused, and a restored manager is the only one."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch_manager.restoring import restore, write
from orch_manager.store.snapshot import read_snapshot, snapshot_writer
from orch_manager.store.tables import State
from orch_proto import control_pb2 as control
from orch_proto.objects_pb2 import Cluster, JoinTokens, Node, RootCa, Service
from orch_proto.specs_pb2 import NodeRole
from orch_raft.engine import Member, Observer
from orch_raft.errors import AlreadyFounded
from orch_raft.limits import EngineOptions
from orch_raft.storage import found_cluster, open_storage
from orch_rpc.backups import Backup, read_backup, write_part
from orch_rpc.certificates import CertificateRole, is_issued_by, new_authority
from orch_rpc.errors import InvalidArgument
from orch_rpc.identity import IdentityStore

NOW_MS = 1_790_000_000_000


def a_state() -> State:
    """A cluster of two managers and a service."""
    root = new_authority("cluster1", now_unix_ms=NOW_MS)
    state = State()
    root_ca = RootCa(certificate_pem=root.certificate_pem, key_pem=root.key_pem, join_tokens=JoinTokens(worker="w"))
    state.put(Cluster(id="cluster1", root_ca=root_ca))
    for name in ("one", "two"):
        node = Node(id=name, role=NodeRole.NODE_ROLE_MANAGER)
        node.spec.desired_role = NodeRole.NODE_ROLE_MANAGER
        node.manager.address = f"{name}:2377"
        state.put(node)
    state.put(Service(id="web", spec_version=3))
    return state


def a_backup() -> Backup:
    stream = io.BytesIO()
    snapshot_writer(a_state(), 40)(stream)
    header = control.BackupHeader(format=1, cluster_id="cluster1", index=41, term=7, node_id="two")
    return Backup(header, stream.getvalue())


def as_file(backup: Backup, piece_bytes: int = 700) -> bytes:
    stream = io.BytesIO()
    write_part(stream, control.BackupPart(header=backup.header))
    for start in range(0, len(backup.data), piece_bytes):
        write_part(stream, control.BackupPart(data=backup.data[start : start + piece_bytes]))
    digest = hashlib.sha256(backup.data).digest()
    write_part(stream, control.BackupPart(trailer=control.BackupTrailer(size_bytes=len(backup.data), digest=digest)))
    return stream.getvalue()


WRITTEN = as_file(a_backup())


def test_a_backup_is_read_as_it_was_written() -> None:
    """Header and content survive the way through a file."""
    backup = a_backup()
    assert read_backup(io.BytesIO(as_file(backup))) == backup


@given(st.integers(0, len(WRITTEN) - 1))
def test_a_backup_that_was_cut_is_refused(length: int) -> None:
    """A file that ends early, wherever, is refused as no whole backup."""
    with pytest.raises(InvalidArgument, match="whole file"):
        read_backup(io.BytesIO(WRITTEN[:length]))


@given(st.integers(0, len(WRITTEN) - 1), st.integers(1, 255))
def test_a_damaged_backup_never_gives_other_content(position: int, flip: int) -> None:
    """A byte that rotted is noticed, unless it stands where it changes no content: then the content is what it was."""
    damaged = bytearray(WRITTEN)
    damaged[position] ^= flip
    try:
        found = read_backup(io.BytesIO(bytes(damaged)))
    except InvalidArgument:
        return
    assert found.data == read_backup(io.BytesIO(WRITTEN)).data


def test_the_restored_manager_is_the_only_one_and_is_trusted(tmp_path: Path) -> None:
    """It has the id of the one that made the backup and a certificate by the old root; the others are workers."""
    backup = a_backup()
    state_dir = tmp_path / "manager"
    write(restore(backup, NOW_MS), backup, state_dir, tmp_path, "10.0.0.9:2377")
    identity = IdentityStore(tmp_path).load()
    assert identity is not None
    assert (identity.name, identity.role, identity.cluster_id) == ("two", CertificateRole.MANAGER, "cluster1")
    storage, recovered = open_storage(state_dir, options=EngineOptions(), observer=Observer())
    storage.close()
    assert [member.node_id for member in recovered.snapshot.membership.members] == ["two"]
    assert recovered.snapshot.index >= backup.header.index
    assert recovered.log.hard_state.term > backup.header.term, "agents refuse a leader of an older term"
    assert recovered.state is not None
    _, items = read_snapshot(recovered.state)
    nodes = {item.id: item for item in items if isinstance(item, Node)}
    assert nodes["two"].role == NodeRole.NODE_ROLE_MANAGER
    assert [member.address for member in recovered.snapshot.membership.members] == ["10.0.0.9:2377"]
    assert nodes["one"].role == nodes["one"].spec.desired_role == NodeRole.NODE_ROLE_WORKER
    assert not nodes["one"].HasField("manager")
    (cluster,) = [item for item in items if isinstance(item, Cluster)]
    assert is_issued_by(identity.certificate_pem, [cluster.root_ca.certificate_pem])
    assert any(isinstance(item, Service) and item.spec_version == 3 for item in items)


def test_a_backup_does_not_overwrite_a_state(tmp_path: Path) -> None:
    """A folder that holds a cluster is refused, and stays as it is."""
    found_cluster(tmp_path / "manager", Member(5, "n", "10.0.0.1:2377"))
    with pytest.raises(AlreadyFounded):
        write(restore(a_backup(), NOW_MS), a_backup(), tmp_path / "manager", tmp_path, "10.0.0.9:2377")
    assert IdentityStore(tmp_path).load() is None
