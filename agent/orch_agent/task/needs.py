"""What a task needs of what is assigned to its node: networks, secrets and configs. Pure.

It is remembered together with the task, so that a start which an agent did not finish can be finished by the next one
before (or without) hearing from the leader.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orch_agent.worker.assignments import Holdings
from orch_proto import dispatcher_pb2 as dispatcher
from orch_proto import objects_pb2 as objects


@dataclass(frozen=True, slots=True)
class Needs:
    """The objects that a task names, by id; one that was not delivered is missing here too."""

    networks: Mapping[str, objects.Network] = field(default_factory=dict)
    secrets: Mapping[str, objects.Secret] = field(default_factory=dict)
    configs: Mapping[str, objects.Config] = field(default_factory=dict)


def needs_of(task: objects.Task, held: Holdings) -> Needs:
    """What a task needs, out of all that the node holds."""
    networks = [attachment.network_id for attachment in task.networks]
    secrets = [reference.secret_id for reference in task.spec.container.secrets]
    configs = [use.config_id for use in task.spec.container.configs]
    return Needs(
        networks={key: held.networks[key] for key in networks if key in held.networks},
        secrets={key: held.secrets[key] for key in secrets if key in held.secrets},
        configs={key: held.configs[key] for key in configs if key in held.configs},
    )


def to_bytes(needs: Needs) -> bytes:
    """The form in which needs are kept: the changes of an assignment set."""
    kept = dispatcher.AssignmentSet()
    for network in needs.networks.values():
        kept.changes.add().assignment.network.CopyFrom(network)
    for secret in needs.secrets.values():
        kept.changes.add().assignment.secret.CopyFrom(secret)
    for config in needs.configs.values():
        kept.changes.add().assignment.config.CopyFrom(config)
    return kept.SerializeToString()


def from_bytes(data: bytes) -> Needs:
    """The other way.

    Raises:
        google.protobuf.message.DecodeError: these are not kept needs.
    """
    items = [change.assignment for change in dispatcher.AssignmentSet.FromString(data).changes]
    return Needs(
        networks={item.network.id: item.network for item in items if item.HasField("network")},
        secrets={item.secret.id: item.secret for item in items if item.HasField("secret")},
        configs={item.config.id: item.config for item in items if item.HasField("config")},
    )
