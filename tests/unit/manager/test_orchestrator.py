"""Replicated services: the wanted count out of any soup of tasks, and the laws of the restart policy."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from orch_manager import tasks as states
from orch_manager.orchestrator import slots
from orch_manager.orchestrator.slots import Create, SetDesired, Situation
from orch_proto import defaults, restart
from orch_proto.objects_pb2 import Node, NodeState, Service, Task
from orch_proto.specs_pb2 import NodeAvailability
from orch_proto.types_pb2 import RestartCondition, RestartPolicy

NOW_MS = 1_000_000_000


def service(replicas: int, *, version: int = 1) -> Service:
    made = Service(id="service", spec_version=version)
    made.spec.annotations.name = "web"
    made.spec.mode.replicated.replicas = replicas
    made.spec.task.restart.delay_ms = 0
    return made


def nodes() -> dict[str, Node]:
    up, down, drained = Node(id="up"), Node(id="down"), Node(id="drained")
    up.status.state = drained.status.state = NodeState.NODE_STATE_READY
    down.status.state = NodeState.NODE_STATE_DOWN
    drained.spec.availability = NodeAvailability.NODE_AVAILABILITY_DRAIN
    return {each.id: each for each in (up, down, drained)}


def task(name: str, slot: int, *, state: int = 512, desired: int = 512, node_id: str = "up", version: int = 1) -> Task:
    made = Task(id=name, service_id="service", slot=slot, spec_version=version, node_id=node_id)
    made.status.state, made.desired_state = state, desired  # type: ignore[assignment]  # enums' numbers
    made.spec.restart.delay_ms = 0
    made.meta.created_at_unix_ms = NOW_MS - 10_000
    return made


def carry_out(wanted: Service, soup: list[Task], where: dict[str, Node], now_ms: int) -> list[Task]:
    """One round of decisions, and a world that then does at once what is wanted."""
    decisions = slots.decide(Situation(wanted, soup, where, now_ms))
    present = {each.id: each for each in soup}
    for action in decisions.actions:
        if isinstance(action, SetDesired):
            assert action.desired_state > present[action.task.id].desired_state, "desired state only grows"
            present[action.task.id].desired_state = action.desired_state
        elif isinstance(action, Create):
            name = f"new{len(present)}-{now_ms}"
            made = task(
                name, action.slot, state=0, desired=action.desired_state, node_id="", version=wanted.spec_version
            )
            made.not_before_unix_ms, made.meta.created_at_unix_ms = action.not_before_ms, now_ms
            present[name] = made
    for each in present.values():
        if each.desired_state == states.RUNNING and not states.has_ended(each):
            each.status.state, each.node_id = states.RUNNING, "up"
        elif each.desired_state > states.RUNNING and not states.has_ended(each):
            each.status.state = states.SHUTDOWN
    return [each for each in present.values() if each.desired_state != states.REMOVE]


_STATES = st.sampled_from([0, 64, 192, 384, 512, 576, 640, 704, 768])
_SOUP = st.lists(
    st.tuples(
        st.integers(1, 6),
        _STATES,
        st.sampled_from([384, 512, 512, 512, 640, 800]),
        st.sampled_from(["up", "down", "drained", "gone"]),
        st.integers(1, 2),
    ),
    max_size=20,
)


@settings(deadline=None, max_examples=300)
@given(_SOUP, st.integers(0, 6))
def test_the_wanted_count_is_reached_from_any_soup(soup: list[tuple[int, int, int, str, int]], replicas: int) -> None:
    """Whatever tasks there are: after some rounds each wanted slot has one running task, and no more is done."""
    wanted = service(replicas)
    present = [
        task(f"t{number}", slot, state=state, desired=desired, node_id=node_id, version=version)
        for number, (slot, state, desired, node_id, version) in enumerate(soup)
    ]
    for round_number in range(6):
        present = carry_out(wanted, present, nodes(), NOW_MS + round_number * 120_000)
    live = [each for each in present if states.is_wanted(each)]
    done = {
        each.slot
        for each in present
        if each.slot not in {other.slot for other in live} and each.status.state in (576, 704, 768)
    }
    assert all(count == 1 for count in Counter(each.slot for each in live).values())
    assert all(each.status.state == states.RUNNING and each.node_id == "up" for each in live)
    # A slot whose last task ended by itself, and was set aside before, keeps its place.
    assert len(live) <= replicas <= len(live) + len(done)
    assert not slots.decide(Situation(wanted, present, nodes(), NOW_MS + 10_000_000)).actions


def test_scaling_down_takes_what_does_not_run_first_then_from_the_fullest_node() -> None:
    """A pending task goes before a running one, and a crowded node gives before an empty one."""
    where = nodes()
    where["other"] = where["up"]
    soup = [task("a", 1), task("b", 2, node_id="other"), task("c", 3), task("waits", 4, state=64, node_id="")]
    actions = slots.decide(Situation(service(2), soup, where, NOW_MS)).actions
    assert [(each.task.id, each.desired_state) for each in actions if isinstance(each, SetDesired)] == [
        ("c", states.REMOVE),
        ("waits", states.REMOVE),
    ]


def test_a_failed_task_with_delay_zero_is_replaced_at_once_and_with_a_delay_waits_in_ready() -> None:
    """The replacement is wanted RUNNING straight away, or READY until its time has come."""
    wanted = service(1)
    soup = [task("a", 1, state=704)]
    create = next(a for a in slots.decide(Situation(wanted, soup, nodes(), NOW_MS)).actions if isinstance(a, Create))
    assert create.desired_state == states.RUNNING
    wanted.spec.task.restart.ClearField("delay_ms")
    create = next(a for a in slots.decide(Situation(wanted, soup, nodes(), NOW_MS)).actions if isinstance(a, Create))
    assert (create.desired_state, create.not_before_ms) == (states.READY, NOW_MS + defaults.RESTART_DELAY_MS)


def test_a_replacement_waits_for_the_old_task_but_not_for_ever() -> None:
    """It stays READY while the old task runs, for a minute at most, and not at all when the old one's node is down."""
    old = task("old", 1, desired=640)
    fresh = task("new", 1, state=384, desired=384)
    fresh.meta.created_at_unix_ms = NOW_MS
    decisions = slots.decide(Situation(service(1), [old, fresh], nodes(), NOW_MS + 1000))
    assert not decisions.actions
    assert decisions.wake_ms == NOW_MS + defaults.OLD_TASK_WAIT_MS
    for changed, at_ms in ((old, NOW_MS + 60_000), (task("old", 1, desired=640, node_id="down"), NOW_MS + 1)):
        actions = slots.decide(Situation(service(1), [changed, fresh], nodes(), at_ms)).actions
        assert [(each.task.id, each.desired_state) for each in actions if isinstance(each, SetDesired)] == [
            ("new", states.RUNNING)
        ]


def test_a_disconnect_grace_holds_tasks_on_a_node_that_is_down() -> None:
    """Within the grace nothing moves; after it the task is replaced."""
    where = nodes()
    where["down"].status.since_unix_ms = NOW_MS
    held = task("a", 1, node_id="down")
    wanted = service(1)
    wanted.spec.task.disconnect_grace_ms = 30_000
    decisions = slots.decide(Situation(wanted, [held], where, NOW_MS + 29_999))
    assert (decisions.actions, decisions.wake_ms) == ([], NOW_MS + 30_000)
    assert len(slots.decide(Situation(wanted, [held], where, NOW_MS + 30_000)).actions) == 2
    where["down"].spec.availability = NodeAvailability.NODE_AVAILABILITY_DRAIN
    assert len(slots.decide(Situation(wanted, [held], where, NOW_MS + 1)).actions) == 2, "drained: nobody waits"


@given(st.integers(0, 100_000), st.integers(1, 60), st.one_of(st.none(), st.integers(0, 500_000)))
def test_the_back_off_grows_to_its_ceiling_and_never_below_the_delay(
    delay_ms: int, count: int, ceiling: int | None
) -> None:
    """Delays never shrink with further failures, begin at the policy's own, and end at the ceiling."""
    policy = RestartPolicy(delay_ms=delay_ms, max_delay_ms=ceiling)
    now, following = restart.backoff_ms(policy, count), restart.backoff_ms(policy, count + 1)
    assert delay_ms <= now <= following
    assert restart.backoff_ms(policy, defaults.RESTART_BACKOFF_FREE) == delay_ms
    assert following <= max(delay_ms, ceiling if ceiling is not None else defaults.RESTART_MAX_DELAY_MS)


def test_a_long_run_is_no_crash_loop() -> None:
    """After ten minutes of running the count begins anew."""
    ended = task("a", 1, state=704)
    ended.restart_count = 9
    ended.status.container.started_at_unix_ms = NOW_MS - 600_000
    ended.status.timestamp_unix_ms = NOW_MS
    assert restart.judge(ended, [ended], RestartPolicy(), NOW_MS).count == 1
    ended.status.container.started_at_unix_ms = NOW_MS - 1000
    assert restart.judge(ended, [ended], RestartPolicy(), NOW_MS).count == 10


def test_conditions_and_attempts_decide_on_a_restart() -> None:
    """None never, on-failure not after success, and no more often than max_attempts within the window."""
    good, bad = task("a", 1, state=576), task("a", 1, state=704)
    never = RestartPolicy(condition=RestartCondition.RESTART_CONDITION_NONE)
    on_failure = RestartPolicy(condition=RestartCondition.RESTART_CONDITION_ON_FAILURE)
    assert not restart.judge(bad, [bad], never, NOW_MS).restart
    assert not restart.judge(good, [good], on_failure, NOW_MS).restart
    assert restart.judge(bad, [bad], on_failure, NOW_MS).restart
    history = [task(f"t{number}", 1, state=704) for number in range(4)]
    for number, each in enumerate(history):
        each.meta.created_at_unix_ms = NOW_MS - 100_000 + number * 1000
        each.restart_count = number
    limited = RestartPolicy(max_attempts=3)
    assert restart.judge(history[2], history[:3], limited, NOW_MS).restart
    assert not restart.judge(history[3], history, limited, NOW_MS).restart
    limited.window_ms = 50_000
    assert restart.judge(history[3], history, limited, NOW_MS).restart
