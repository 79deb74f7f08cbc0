"""What the leader has assigned, as sets change it."""

from __future__ import annotations

import pytest

from orch_agent.worker.assignments import Assignments, OutOfStep
from orch_proto import dispatcher_pb2 as dispatcher
from orch_proto import objects_pb2 as objects

COMPLETE = dispatcher.ASSIGNMENT_SET_TYPE_COMPLETE
INCREMENTAL = dispatcher.ASSIGNMENT_SET_TYPE_INCREMENTAL


def put(task_id: str) -> dispatcher.AssignmentChange:
    return dispatcher.AssignmentChange(
        action=dispatcher.ASSIGNMENT_ACTION_UPDATE, assignment=dispatcher.Assignment(task=objects.Task(id=task_id))
    )


def remove(task_id: str) -> dispatcher.AssignmentChange:
    return dispatcher.AssignmentChange(
        action=dispatcher.ASSIGNMENT_ACTION_REMOVE, assignment=dispatcher.Assignment(task=objects.Task(id=task_id))
    )


def test_a_complete_set_replaces_what_is_held() -> None:
    """After a COMPLETE set exactly its tasks are held, and the delta names those that are gone."""
    assignments = Assignments()
    assignments.apply(dispatcher.AssignmentSet(type=COMPLETE, results_in="1", changes=[put("a"), put("b")]))
    delta = assignments.apply(dispatcher.AssignmentSet(type=COMPLETE, results_in="2", changes=[put("b"), put("c")]))
    assert delta is not None
    assert set(assignments.held.tasks) == {"b", "c"}
    assert delta.tasks == {"b", "c"}
    assert delta.tasks_removed == {"a"}


def test_incremental_sets_must_follow_on() -> None:
    """An INCREMENTAL set that applies to another state is refused and changes nothing."""
    assignments = Assignments()
    assignments.apply(dispatcher.AssignmentSet(type=COMPLETE, results_in="1", changes=[put("a")]))
    with pytest.raises(OutOfStep):
        assignments.apply(
            dispatcher.AssignmentSet(type=INCREMENTAL, applies_to="7", results_in="8", changes=[remove("a")])
        )
    assert set(assignments.held.tasks) == {"a"}
    delta = assignments.apply(
        dispatcher.AssignmentSet(type=INCREMENTAL, applies_to="1", results_in="2", changes=[remove("a"), put("b")])
    )
    assert delta is not None
    assert set(assignments.held.tasks) == {"b"}
    assert delta.tasks_removed == {"a"}


def test_a_set_in_parts_is_applied_with_its_last_part() -> None:
    """Nothing of a set in parts counts before the last part, and a broken-off one is forgotten."""
    assignments = Assignments()
    assert assignments.apply(dispatcher.AssignmentSet(type=COMPLETE, changes=[put("a")], more=True)) is None
    assert not assignments.held.tasks
    assignments.reset()
    assert assignments.apply(dispatcher.AssignmentSet(type=COMPLETE, changes=[put("b")], more=True)) is None
    delta = assignments.apply(dispatcher.AssignmentSet(type=COMPLETE, results_in="1", changes=[put("c")]))
    assert delta is not None
    assert set(assignments.held.tasks) == {"b", "c"}


def test_removed_and_put_again_in_one_set_is_an_update() -> None:
    """A task that one set removes and puts again is held, and not told to be removed."""
    assignments = Assignments()
    assignments.apply(dispatcher.AssignmentSet(type=COMPLETE, results_in="1", changes=[put("a")]))
    delta = assignments.apply(
        dispatcher.AssignmentSet(type=INCREMENTAL, applies_to="1", results_in="2", changes=[remove("a"), put("a")])
    )
    assert delta is not None
    assert delta.tasks == {"a"}
    assert delta.tasks_removed == set()


def test_unknown_kinds_are_refused() -> None:
    """An assignment of a kind that this version does not know is not skipped in silence."""
    with pytest.raises(OutOfStep):
        Assignments().apply(dispatcher.AssignmentSet(type=COMPLETE, changes=[dispatcher.AssignmentChange()]))
