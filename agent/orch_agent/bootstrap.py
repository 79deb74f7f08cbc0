"""The objects that a new cluster begins with: itself and its first node."""

from __future__ import annotations

import time

from orch_agent.description import describe_node
from orch_agent.founding_trust import FoundedTrust
from orch_agent.node_state import Membership
from orch_proto import daemon_pb2 as daemon
from orch_proto import defaults
from orch_proto import objects_pb2 as objects
from orch_proto import specs_pb2 as specs
from orch_proto import types_pb2 as types

SCHEMA_VERSION = 1


def founding_objects(
    membership: Membership, hostname: str, request: daemon.InitClusterRequest, trust: FoundedTrust
) -> objects.StoreChanges:
    """The first transaction of a cluster: the Cluster object with every default in it, and the Node of its founder."""
    spec = specs.ClusterSpec()
    spec.CopyFrom(request.spec)
    spec.annotations.name = spec.annotations.name or "default"
    if not spec.raft.snapshot_interval_entries:
        spec.raft.snapshot_interval_entries = defaults.SNAPSHOT_INTERVAL_ENTRIES
    if not spec.raft.keep_entries_for_slow_followers:
        spec.raft.keep_entries_for_slow_followers = defaults.KEEP_ENTRIES
    if not spec.dispatcher.heartbeat_period_ms:
        spec.dispatcher.heartbeat_period_ms = defaults.HEARTBEAT_PERIOD_MS
    if not spec.orchestration.HasField("task_history_limit"):
        spec.orchestration.task_history_limit = defaults.TASK_HISTORY
    if not spec.network.address_pools:
        spec.network.address_pools.append(defaults.ADDRESS_POOL)
    if not spec.network.subnet_prefix_length:
        spec.network.subnet_prefix_length = defaults.SUBNET_PREFIX_LENGTH
    cluster = objects.Cluster(id=membership.cluster_id, spec=spec, schema_version=SCHEMA_VERSION, root_ca=trust.root_ca)
    node = objects.Node(
        id=membership.node_id,
        spec=specs.NodeSpec(
            annotations=types.Annotations(name=hostname),
            desired_role=specs.NODE_ROLE_MANAGER,
            availability=request.availability or specs.NODE_AVAILABILITY_ACTIVE,
        ),
        role=specs.NODE_ROLE_MANAGER,
        description=describe_node(hostname, membership.data_path_address),
        status=objects.NodeStatus(
            state=objects.NODE_STATE_UNKNOWN, message="has not been heard of yet", address=membership.host
        ),
        certificate=objects.NodeCertificate(
            role=specs.NODE_ROLE_MANAGER,
            state=objects.ISSUANCE_STATE_ISSUED,
            certificate_pem=trust.identity.certificate_pem,
            common_name=membership.node_id,
            not_after_unix_ms=trust.identity.facts.not_after_unix_ms,
            issuer_key_id=trust.identity.facts.issuer_key_id,
            roots_digest=trust.identity.roots_digest,
        ),
        manager=objects.ManagerStatus(
            raft_id=1,
            address=membership.advertise_address,
            leader=True,
            reachability=objects.REACHABILITY_REACHABLE,
        ),
    )
    return objects.StoreChanges(
        changes=[
            objects.StoreChange(action=objects.CHANGE_ACTION_CREATE, object=objects.Object(cluster=cluster)),
            objects.StoreChange(action=objects.CHANGE_ACTION_CREATE, object=objects.Object(node=node)),
        ],
        proposed_at_unix_ms=time.time_ns() // 1_000_000,
        reason="cluster init",
    )
