"""Apply, plan and remove stacks: the asynchronous shell around `deploy`."""

from __future__ import annotations

from collections import Counter

from orch_manager import tasks as states
from orch_manager.clock import Clock, IdSource
from orch_manager.control import validation
from orch_manager.control.stacks.deploy import Deployer, Deployment
from orch_manager.control.stacks.images import ImageFacts, look_up
from orch_manager.dispatcher.calls import NodeCalls
from orch_manager.faults import told_as
from orch_manager.orchestrator.slots import wanted_replicas
from orch_manager.scheduler.nodes import NodeSet
from orch_manager.scheduler.placing import place
from orch_manager.store.store import Store
from orch_manager.store.tables import Reader
from orch_manager.store.transaction import Transaction
from orch_proto.control_pb2 import (
    ApplyStackRequest,
    ApplyStackResponse,
    ChangeKind,
    ObjectChange,
    PlacementPlan,
    PlanStackResponse,
    RemoveStackRequest,
    RemoveStackResponse,
)
from orch_proto.objects_pb2 import Node, Service, Stack, Task
from orch_proto.types_pb2 import ObjectKind
from orch_rpc import logs
from orch_rpc.errors import InvalidArgument, NotFound

_log = logs.get("control")


class Stacks:
    """See the module.

    Args:
        store: read and written.
        calls: to ask nodes for images.
        clock: what time it is.
        ids: for new objects.
    """

    def __init__(self, store: Store, calls: NodeCalls, *, clock: Clock, ids: IdSource) -> None:
        self._store = store
        self._calls = calls
        self._clock = clock
        self._ids = ids

    async def apply(self, request: ApplyStackRequest) -> ApplyStackResponse:
        """Makes the stack as wanted, in one transaction, or changes nothing.

        Raises:
            OrchError: what is wrong with it, or why it could not be written.
        """
        what = f"cannot deploy stack {request.spec.name}"
        facts = await self._prepare(request, what)

        def write(transaction: Transaction) -> Deployment:
            deployment = self._work_out(transaction, request, facts)
            for kind, object_id in deployment.deletes:
                transaction.delete(kind, object_id)
            for item in deployment.updates:
                transaction.update(item)
            for item in deployment.creates:
                transaction.create(item)
            return deployment

        with told_as(what):
            deployment = await self._store.update(write, reason=f"deploy {request.spec.name}")
        if deployment.changed:
            _log.info("stack deployed", stack=request.spec.name, version=deployment.version, author=request.author)
        return ApplyStackResponse(
            stack_id=deployment.stack_id,
            version=deployment.version,
            changes=deployment.changes,
            warnings=[*facts.warnings, *deployment.warnings],
            applied_index=self._store.index if deployment.changed else 0,
        )

    async def plan(self, request: ApplyStackRequest) -> PlanStackResponse:
        """What `apply` would do, and where the new tasks would run.

        Raises:
            OrchError: as `apply`.
        """
        what = f"cannot plan stack {request.spec.name}"
        facts = await self._prepare(request, what)
        with told_as(what):
            await self._store.read_barrier()
        deployment = self._work_out(self._store, request, facts)
        stack = next(iter(self._store.find(Stack, name=request.spec.name)), None)
        return PlanStackResponse(
            changes=deployment.changes,
            placements=self._dry_run(deployment),
            warnings=[*facts.warnings, *deployment.warnings],
            base_version=stack.current.number if stack is not None else 0,
        )

    async def remove(self, request: RemoveStackRequest) -> RemoveStackResponse:
        """Begins the removal: the stack is gone when its last object is.

        Raises:
            NotFound: there is no such stack.
        """
        what = f"cannot remove stack {request.name}"

        def write(transaction: Transaction) -> RemoveStackResponse:
            found = transaction.find(Stack, name=request.name)
            if not found:
                raise NotFound(what, "there is no stack of this name", "look at them: orch stack ls")
            answer = RemoveStackResponse(stack_id=found[0].id)
            for service in transaction.find(Service, stack_id=found[0].id):
                if not service.pending_delete:
                    edited = transaction.edit(Service, service.id)
                    edited.pending_delete = True
                    transaction.update(edited)
                answer.changes.append(
                    ObjectChange(
                        change=ChangeKind.CHANGE_KIND_REMOVE,
                        kind=ObjectKind.OBJECT_KIND_SERVICE,
                        id=service.id,
                        name=service.spec.annotations.name,
                    )
                )
            if not found[0].pending_delete:
                stack = transaction.edit(Stack, found[0].id)
                stack.pending_delete = True
                transaction.update(stack)
            return answer

        with told_as(what):
            answer = await self._store.update(write, reason=f"remove stack {request.name}")
        _log.info("stack is being removed", stack=request.name)
        return answer

    # ---- what both do --------------------------------------------------------------------------------

    async def _prepare(self, request: ApplyStackRequest, what: str) -> ImageFacts:
        """Validates the stack by itself, tries it out against the present state, and finds its images."""
        problems = list(validation.stack(request.spec))
        if problems:
            raise InvalidArgument(what, "; ".join(problems), "correct the stack file, then repeat")
        if request.resolve_image not in ("", "always", "changed", "never"):
            raise InvalidArgument(what, f"resolve_image is '{request.resolve_image}'", "use always, changed or never")
        running = self._running_digests(request)
        kept = running if request.resolve_image in ("changed", "never") else {}
        # Refusals that need no image come before a node is asked.
        self._work_out(self._store, request, ImageFacts(digests=dict(kept)))
        containers = [service.task.container for service in request.spec.services]
        # Where services of one image differ, the one that asks for more counts.
        containers.sort(key=lambda one: (one.pull_policy == "always", one.pull_policy != "never"))
        images = {container.image: container.pull_policy for container in containers}
        return await look_up(self._calls, images, what=what, kept=kept, running=running)

    def _running_digests(self, request: ApplyStackRequest) -> dict[str, str]:
        """What the services run whose image stays the same reference."""
        present = {service.spec.annotations.name: service for service in self._store.all(Service)}
        running = {}
        for spec in request.spec.services:
            container = spec.task.container
            service = present.get(spec.annotations.name)
            if service is not None and service.spec.task.container.image == container.image:
                running[container.image] = service.spec.task.container.image_digest
        return running

    def _work_out(self, reader: Reader, request: ApplyStackRequest, facts: ImageFacts) -> Deployment:
        now_ms = self._clock.unix_ms()
        return Deployer(reader, request, facts.digests, ids=self._ids, now_ms=now_ms).work_out()

    def _dry_run(self, deployment: Deployment) -> list[PlacementPlan]:
        """Places the tasks that would be new on the nodes as they are, less the tasks that would go."""
        now_ms = self._clock.unix_ms()
        changed = [item for item in [*deployment.creates, *deployment.updates] if isinstance(item, Service)]
        replaced = {
            service.id
            for service in changed
            if (present := self._store.get(Service, service.id)) is not None
            and (present.spec_version != service.spec_version or service.pending_delete)
        }
        nodes = NodeSet()
        for node in self._store.all(Node):
            nodes.put_node(node)
        for task in self._store.all(Task):
            if task.service_id not in replaced:
                nodes.put_task(task, now_ms)
        plans = []
        for service in changed:
            if service.pending_delete:
                continue
            kept = 0
            if service.id not in replaced:
                kept = sum(1 for task in self._store.find(Task, service_id=service.id) if states.is_wanted(task))
            plans.append(_place(service, wanted_replicas(service) - kept, nodes, now_ms))
        return plans


def _place(service: Service, count: int, nodes: NodeSet, now_ms: int) -> PlacementPlan:
    wanted = [
        states.new_task(service, slot, task_id=f"plan-{slot}", now_ms=now_ms, term=0) for slot in range(1, count + 1)
    ]
    for number, task in enumerate(wanted):
        task.id = f"{service.id}-{number}"
        task.endpoint.ports.extend(service.spec.endpoint.ports)
    placements = place(wanted, nodes, now_ms).placements
    by_node = Counter(
        nodes.infos[each.node_id].node.description.hostname or each.node_id for each in placements if each.node_id
    )
    reasons = [each.reason for each in placements if not each.node_id]
    return PlacementPlan(
        service_name=service.spec.annotations.name,
        placed=sum(by_node.values()),
        unplaced=len(reasons),
        explanation=reasons[0] if reasons else "",
        by_node=dict(by_node),
    )
