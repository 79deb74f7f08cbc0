"""Which method of the contract is answered where: one table, complete (a test compares it with the contract)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from orch_proto import ca_pb2, control_pb2, dispatcher_pb2, raft_pb2


class Place(Enum):
    """Who answers a method.

    HERE: the manager that is asked. Reads wait for a read barrier there, so that they are as good as the leader's.
    LEADER: the leader alone; the others carry the call to it.
    """

    HERE = "here"
    LEADER = "leader"


@dataclass(frozen=True, slots=True)
class Method:
    """One method.

    Attributes:
        path: as gRPC calls it: "/orch.v1.Control/Get".
        place: who answers it.
        repeatable: it changes nothing, so that a call whose connection broke may be made again.
        vouched: an answer for which nothing was written tells of the leader's state, which must not be old.
        request_type: class of what goes in.
        answer_type: class of what comes out.
        streams: more than one message in one of the directions.
    """

    path: str
    place: Place
    repeatable: bool
    vouched: bool
    request_type: type[Message]
    answer_type: type[Message]
    streams: bool


_HERE: Final = (
    "Control/Get",
    "Control/List",
    "Control/Watch",
    "Control/Events",
    # Tells the view of the leader, or, while there is none, this manager's own.
    "Control/ClusterInfo",
    "Control/Backup",
    # Both tell an agent where the leader is: its stream must not pass through a third.
    "Dispatcher/Attach",
    "Relay/Open",
    "Relay/FetchImage",
    "Relay/WantedImages",
    "Raft/Stream",
    "Raft/Snapshot",
    "Raft/ResolveAddress",
    # A joiner compares the answer with its token; every manager has it.
    "CA/GetRootCertificate",
)
#: Answered by the leader, and changing nothing.
_LEADER_READS: Final = ("Control/PlanStack", "Control/Logs", "CA/NodeCertificateStatus", "CA/RootStatus")
_LEADER_WRITES: Final = (
    "Control/ApplyStack",
    "Control/RemoveStack",
    "Control/Create",
    "Control/Update",
    "Control/Remove",
    "Control/ScaleServices",
    "Control/UnlockKey",
    # Questions to nodes, whose sessions the leader has; some of them remove images and volumes.
    "Control/CallNodes",
    "Control/Exec",
    "Control/SendToNode",
    "CA/IssueNodeCertificate",
    "CA/IssueUserCertificate",
    "CA/JoinTokens",
    "CA/RotateRoot",
    "Raft/Join",
    "Raft/Leave",
)


#: What they answer is not of the store: it is of nodes, whose sessions the leader has, or of the managers themselves.
_NOT_OF_THE_STORE: Final = frozenset(
    ("Control/Logs", "Control/CallNodes", "Control/Exec", "Control/SendToNode", "Raft/Join", "Raft/Leave")
)


def _methods_of_the_contract() -> dict[str, MethodDescriptor]:
    return {
        f"{service.name}/{method.name}": method
        for file in (control_pb2, dispatcher_pb2, ca_pb2, raft_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


def _table() -> dict[str, Method]:
    contract = _methods_of_the_contract()
    table = {}
    for names, place, repeatable in (
        (_HERE, Place.HERE, True),
        (_LEADER_READS, Place.LEADER, True),
        (_LEADER_WRITES, Place.LEADER, False),
    ):
        for name in names:
            described = contract[name]
            path = f"/{described.containing_service.full_name}/{described.name}"
            table[path] = Method(
                path,
                place,
                repeatable,
                place is Place.LEADER and name not in _NOT_OF_THE_STORE,
                message_factory.GetMessageClass(described.input_type),
                message_factory.GetMessageClass(described.output_type),
                bool(described.client_streaming or described.server_streaming),
            )
    return table


METHODS: Final = _table()
