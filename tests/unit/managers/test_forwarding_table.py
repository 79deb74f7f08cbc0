"""The table of what is answered where."""

from __future__ import annotations

from orch_manager.forwarding import methods
from orch_proto import ca_pb2, control_pb2, dispatcher_pb2, raft_pb2


def test_every_method_of_the_contract_has_its_place() -> None:
    """Every method that a manager serves stands in the table once, and the table has no other."""
    contract = {
        f"/{service.full_name}/{method.name}"
        for file in (control_pb2, dispatcher_pb2, ca_pb2, raft_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert set(methods.METHODS) == contract
    listed = [*methods._HERE, *methods._LEADER_READS, *methods._LEADER_WRITES]
    assert len(listed) == len(set(listed)) == len(contract)


def test_what_changes_something_is_never_repeated() -> None:
    """A call that may have been done is not made again, unless it is a read."""
    for path, method in methods.METHODS.items():
        if any(word in path for word in ("Apply", "Create", "Update", "Remove", "Scale", "Issue", "Rotate", "Exec")):
            assert not method.repeatable, path
            assert method.place is methods.Place.LEADER, path
