"""What nodes are told, and what they are believed."""

from __future__ import annotations

from typing import Any

from orch_manager import tasks as states
from orch_manager.clock import IdSource
from orch_manager.dispatcher import statuses
from orch_manager.dispatcher.assignments import NodeAssignments, in_messages
from orch_manager.dispatcher.endpoints import EndpointBook
from orch_manager.dispatcher.liveness import Liveness
from orch_manager.store.tables import State
from orch_manager.store.transaction import Overlay, Transaction
from orch_proto.dispatcher_pb2 import AssignmentChange, StatusBatch, TaskStatusUpdate
from orch_proto.objects_pb2 import Config, Network, Node, NodeState, Secret, Service, Stack, Task
from orch_proto.types_pb2 import PublishMode


def world() -> State:
    """Two services on two networks, a secret each, one task of each on a node of its own."""
    state = State()
    stack = Stack(id="stack")
    stack.annotations.name = "shop"
    state.put(stack)
    for name, net, node_id in (("web", "front", "a"), ("db", "back", "b")):
        node = Node(id=node_id)
        node.status.state = NodeState.NODE_STATE_READY
        state.put(node)
        network = Network(id=net)
        network.spec.internal = net == "back"
        state.put(network)
        state.put(Secret(id=f"{name}-key"))
        service = Service(id=name, stack_id="stack")
        service.spec.annotations.name = f"shop_{name}"
        service.spec.task.networks.add(target=net, aliases=["also"])
        service.endpoint.virtual_ips.add(network_id=net, address="10.0.0.2")
        state.put(service)
        state.put(running(name, net, node_id))
    return state


def running(name: str, net: str, node_id: str) -> Task:
    task = Task(id=f"{name}-1", service_id=name, slot=1, node_id=node_id, desired_state=states.RUNNING)
    task.service_name = f"shop_{name}"
    task.status.state = states.RUNNING
    task.networks.add(network_id=net, addresses=["10.0.0.5/24"])
    task.spec.container.secrets.add(secret_id=f"{name}-key")
    return task


def told(changes: list[AssignmentChange]) -> set[tuple[int, str, str]]:
    found = set()
    for change in changes:
        kind = change.assignment.WhichOneof("item")
        assert kind is not None
        item: Any = getattr(change.assignment, kind)
        found.add((change.action, kind, item.service_id if kind == "service" else item.id))
    return found


def test_a_node_learns_what_its_tasks_need_and_no_more() -> None:
    """The other node's secret, network and service stay unknown; when the task ends, what it needed is taken back."""
    state = world()
    book = EndpointBook(state)
    node = NodeAssignments("a", state, book)
    node.mark_everything()
    assert told(node.changes()) == {
        (1, "task", "web-1"),
        (1, "network", "front"),
        (1, "secret", "web-key"),
        (1, "service", "web"),
    }
    assert node.changes() == []
    old = state.get(Task, "web-1")
    assert old is not None
    ended = running("web", "front", "a")
    ended.status.state = states.FAILED
    state.put(ended)
    assert node.observe(Task, "web-1", old, ended)
    assert told(node.changes()) == {(2, "network", "front"), (2, "secret", "web-key"), (2, "service", "web")}
    state.remove(Task, "web-1")
    assert node.observe(Task, "web-1", ended, None)
    assert told(node.changes()) == {(2, "task", "web-1")}


def test_what_an_agent_said_is_not_echoed() -> None:
    """A mere change of status is no news to the node it came from; a change of desired state is."""
    state = world()
    node = NodeAssignments("a", state, EndpointBook(state))
    node.mark_everything()
    node.changes()
    old, new = state.get(Task, "web-1"), running("web", "front", "a")
    new.status.message = "healthy"
    assert not node.observe(Task, "web-1", old, new)
    new.desired_state = states.SHUTDOWN
    state.put(new)
    assert node.observe(Task, "web-1", old, new)
    assert told(node.changes()) == {(1, "task", "web-1")}


def test_published_services_are_known_everywhere() -> None:
    """A node without a task of a service answers on its published port: it knows the backends."""
    state = world()
    published = Service()
    published.CopyFrom(state.get(Service, "web") or Service())
    published.endpoint.ports.add(target_port=80, published_port=8080)
    state.put(published)
    book = EndpointBook(state)
    node = NodeAssignments("b", state, book)
    node.mark_everything()
    services = {item for item in told(node.changes()) if item[1] == "service"}
    assert services == {(1, "service", "web"), (1, "service", "db")}
    described = book.get("web")
    assert described is not None
    assert described.ingress_network_id == "front"
    assert [each.address for each in described.networks[0].endpoints] == ["10.0.0.5"]
    assert list(described.networks[0].aliases) == ["web", "also"]


def test_only_tasks_that_run_and_are_wanted_get_traffic() -> None:
    """A task that is to stop leaves the balancer before it stops; one that is not healthy yet is not in it."""
    for state_now, desired in ((states.STARTING, states.RUNNING), (states.RUNNING, states.SHUTDOWN)):
        state = world()
        task = running("web", "front", "a")
        task.status.state, task.desired_state = state_now, desired
        state.put(task)
        described = EndpointBook(state).get("web")
        assert described is not None
        assert not described.networks[0].endpoints


def test_every_node_has_the_network_of_a_published_port() -> None:
    """A node without a task gets the network with the port and gives it back with it; in host mode it needs none."""
    state = world()
    network = Network(id="front")
    network.ipam.pools.add(subnet="10.0.0.0/24", gateway="10.0.0.1")
    state.put(network)
    book = EndpointBook(state)
    node = NodeAssignments("b", state, book)
    node.mark_everything()
    assert (1, "network", "front") not in told(node.changes())
    for mode, expected in ((PublishMode.PUBLISH_MODE_INGRESS, 1), (PublishMode.PUBLISH_MODE_HOST, 2)):
        published = Service()
        published.CopyFrom(state.get(Service, "web") or Service())
        del published.endpoint.ports[:]
        published.endpoint.ports.add(target_port=80, published_port=8080, mode=mode)
        state.put(published)
        book.forget("web")
        node.service_changed("web")
        assert (expected, "network", "front") in told(node.changes())


def test_ways_lead_to_all_tasks_on_nodes_that_are_up() -> None:
    """A task that gets no traffic is told with its node's address, one that ended or whose node is down is not."""
    for state_now, node_state, expected in (
        (states.STARTING, NodeState.NODE_STATE_READY, ["192.0.2.1"]),
        (states.SHUTDOWN, NodeState.NODE_STATE_READY, []),
        (states.STARTING, NodeState.NODE_STATE_DOWN, []),
    ):
        state = world()
        task = running("web", "front", "a")
        task.status.state = state_now
        state.put(task)
        node = Node(id="a")
        node.status.state = node_state
        node.description.data_path_address = "192.0.2.1"
        state.put(node)
        described = EndpointBook(state).get("web")
        assert described is not None
        assert [each.data_path_address for each in described.networks[0].silent] == expected
        assert not described.mesh_addresses


def test_large_sets_come_in_parts() -> None:
    """Messages hold at most a hundred changes and little more than two MiB; all but the last say that more follows."""
    changes = [AssignmentChange(action=1) for _ in range(250)]
    for change in changes:
        change.assignment.config.CopyFrom(Config(id="x"))
    parts = list(in_messages(changes, complete=True, applies_to="", results_in="s-1"))
    assert [(len(part.changes), part.more) for part in parts] == [(100, True), (100, True), (50, False)]
    for change in changes:
        change.assignment.config.spec.data = bytes(900_000)
    parts = list(in_messages(changes[:5], complete=False, applies_to="s-1", results_in="s-2"))
    assert [len(part.changes) for part in parts] == [2, 2, 1]
    assert len(list(in_messages([], complete=True, applies_to="", results_in="s-1"))) == 1


def test_a_node_is_believed_about_its_own_tasks_and_forward_only() -> None:
    """Statuses of other nodes' tasks, older states, and second endings are dropped with the reason."""
    task = running("web", "front", "a")

    def reason(state: int, node_id: str = "a", known: Task | None = task) -> str:
        update = TaskStatusUpdate(task_id="web-1")
        update.status.state = state  # type: ignore[assignment]  # an enum's number
        return statuses.refusal(known, update, node_id)

    assert reason(704) == ""
    assert reason(512) == ""
    assert reason(448) == "older than what is known"
    assert reason(704, "b") == "another node's task"
    assert reason(704, known=None) == "unknown task"
    assert reason(64) == "not the node's to say"
    task.status.state = states.COMPLETE
    assert reason(704) == "the task has ended already"


def test_a_silent_node_is_overdue_after_three_periods_and_after_an_election_after_six() -> None:
    """Heartbeats move the deadline; each silence is told once."""
    liveness = Liveness(IdSource(), 5_000)
    liveness.expect_first_word("a", 0.0)
    liveness.heard("b", 0.0)
    assert liveness.overdue(14.9) == []
    assert liveness.overdue(15.0) == ["b"]
    assert liveness.overdue(29.9) == []
    liveness.heard("a", 29.9)
    assert liveness.overdue(44.8) == []
    assert liveness.overdue(44.9) == ["a"]
    assert not liveness.expects("a")
    assert 4_500 <= liveness.next_period_ms() <= 5_500


def test_a_leader_that_was_stopped_does_not_blame_the_nodes() -> None:
    """When nobody was awake to look, every node gets a whole grace anew, and is overdue after that."""
    liveness = Liveness(IdSource(), 5_000)
    liveness.heard("a", 0.0)
    liveness.heard("b", 4.0)
    assert liveness.overdue(60.0) == []
    liveness.heard("b", 61.0)
    assert liveness.overdue(75.0) == ["a"]
    assert liveness.overdue(76.0) == ["b"]


def test_that_a_node_is_overdue_is_said_again_unless_it_is_heard_of() -> None:
    """When it could not be written down, the node is named again a period later."""
    liveness = Liveness(IdSource(), 5_000)
    liveness.heard("a", 0.0)
    assert liveness.overdue(15.0) == ["a"]
    liveness.try_again("a", 16.0)
    assert liveness.overdue(21.0) == ["a"]
    liveness.heard("a", 22.0)
    liveness.try_again("a", 22.0)
    assert liveness.overdue(30.0) == []


def test_a_task_on_a_node_that_is_down_gets_no_traffic() -> None:
    """Its service is balanced over the tasks that can be reached."""
    state = world()
    node = Node(id="a")
    node.status.state = NodeState.NODE_STATE_DOWN
    state.put(node)
    described = EndpointBook(state).get("web")
    assert described is not None
    assert not described.networks[0].endpoints


# ---- tasks that an agent made by itself ------------------------------------------------------------


def batch_of(*made: tuple[str, str], ended: tuple[str, ...] = ()) -> StatusBatch:
    """Replacements (new, old), and the tasks that ended before."""
    batch = StatusBatch()
    for task_id, replaces in made:
        batch.replacements.add(task_id=task_id, replaces=replaces, desired_state=states.RUNNING, restart_count=1)
        batch.updates.add(task_id=task_id).status.state = states.FAILED if task_id in ended else states.RUNNING
    for task_id in ended:
        if task_id not in [each[0] for each in made]:
            batch.updates.add(task_id=task_id).status.state = states.FAILED
    return batch


def fresh_id(number: int) -> str:
    return f"{number:025}"


def taken(transaction: Transaction, batch: StatusBatch, node_id: str = "a") -> statuses.Taken:
    return statuses.take(transaction, node_id=node_id, replacements=batch.replacements, updates=batch.updates, term=3)


def transaction_on(state: State) -> Transaction:
    return Transaction(Overlay(state), 1_000)


def test_a_task_that_its_node_made_takes_over_slot_and_address() -> None:
    """The old one ended, is wanted no more, and gave its address to the new one, which runs as the node says."""
    transaction = transaction_on(world())
    assert taken(transaction, batch_of((fresh_id(1), "web-1"), ended=("web-1",))) == statuses.Taken()
    old, made = transaction.get(Task, "web-1"), transaction.get(Task, fresh_id(1))
    assert old is not None
    assert made is not None
    assert (old.status.state, old.desired_state) == (states.FAILED, states.SHUTDOWN)
    assert (made.status.state, made.desired_state, made.slot) == (states.RUNNING, states.RUNNING, 1)
    assert (made.networks, made.replaces, made.restart_count) == (old.networks, "web-1", 1)
    written = [change.object.task.id for change in transaction.changes.changes]
    assert written.index("web-1") < written.index(fresh_id(1)), "the address is free before it is taken"


def test_a_chain_of_replacements_is_taken_whole_and_twice_is_once() -> None:
    """All that came and went meanwhile is in the history; telling it again changes nothing."""
    transaction = transaction_on(world())
    first, second = fresh_id(1), fresh_id(2)
    batch = batch_of((first, "web-1"), (second, first), ended=("web-1", first))
    for _ in range(2):
        assert taken(transaction, batch).refused == []
    found = {task.id: task for task in transaction.find(Task, service_id="web")}
    assert {task_id: task.status.state for task_id, task in found.items()} == {
        "web-1": states.FAILED,
        first: states.FAILED,
        second: states.RUNNING,
    }
    assert [task_id for task_id, task in found.items() if states.is_wanted(task)] == [second]


def test_what_a_node_made_is_refused_when_it_is_not_its_to_make() -> None:
    """A slot given elsewhere, another node's task, a task that runs, a service that goes, an id in use."""

    def refused(batch: StatusBatch, state: State, node_id: str = "a") -> str:
        transaction = transaction_on(state)
        outcome = taken(transaction, batch, node_id)
        assert outcome.refused == [one.task_id for one in batch.replacements]
        return next(iter(outcome.dropped))

    batch = batch_of((fresh_id(1), "web-1"), ended=("web-1",))
    replaced = world()
    old = running("web", "front", "a")
    old.desired_state = states.SHUTDOWN
    replaced.put(old)
    assert "not wanted any more" in refused(batch, replaced)
    rival = running("web", "front", "b")
    rival.id = "rival"
    del rival.networks[:]
    replaced.put(rival)
    assert "given to another" in refused(batch, replaced)
    rival = running("web", "front", "b")
    rival.id, rival.status.state = "rival", states.STARTING
    replaced.put(rival)
    assert "address was given" in refused(batch, replaced)
    transaction = transaction_on(world())
    outcome = taken(transaction, batch, "b")
    assert outcome.refused == [fresh_id(1)]
    assert outcome.dropped["replacement: what it replaces is no task of this node"] == 1
    assert "not known to have ended" in refused(batch_of((fresh_id(1), "web-1")), world())
    going = world()
    service = Service(id="web", pending_delete=True)
    going.put(service)
    assert "service is gone" in refused(batch, going)
    assert "no fresh one" in refused(batch_of(("db-1", "web-1"), ended=("web-1",)), world())


def test_a_refused_task_is_taken_back_from_its_node() -> None:
    """The removal of an assignment tells the agent to stop what it made, in a complete set as well."""
    state = world()
    node = NodeAssignments("a", state, EndpointBook(state))
    node.mark_everything()
    node.refuse(fresh_id(1))
    assert (2, "task", fresh_id(1)) in told(node.changes())
    node.refuse(fresh_id(1))
    assert told(node.changes()) == {(2, "task", fresh_id(1))}


def test_a_replacement_of_the_leader_that_does_not_run_yet_gives_way() -> None:
    """Of two replacements in one slot the running one stays: the node's."""
    state = world()
    old, rival = running("web", "front", "a"), Task(id="rival", service_id="web", slot=1, desired_state=states.READY)
    old.desired_state, old.status.state = states.SHUTDOWN, states.FAILED
    rival.status.state = states.PENDING
    state.put(old)
    state.put(rival)
    transaction = transaction_on(state)
    assert taken(transaction, batch_of((fresh_id(1), "web-1"), ended=("web-1",))).refused == []
    wanted = [task.id for task in transaction.find(Task, service_id="web") if states.is_wanted(task)]
    assert wanted == [fresh_id(1)]
