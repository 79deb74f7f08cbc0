"""Everything a task needs before its program can run: image, files, volumes, network, the runtime's configuration.

Files are prepared in a thread and the network at the same time; both may be repeated after a restart of the agent.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from orch_agent.errors import LinkLost, LinkRefused, TaskFailure
from orch_agent.images.errors import ImageError, ImageNotFound
from orch_agent.images.model import ImageConfig, ImageInfo
from orch_agent.images.snapshots import Snapshots
from orch_agent.images.store import ImageStore
from orch_agent.packets import JsonObject, PacketLink
from orch_agent.runtime import ContainerRequest
from orch_agent.task import files, mounts, process
from orch_agent.task.container_config import container_config, user_of
from orch_agent.task.health import HealthPlan, plan_health
from orch_agent.task.needs import Needs, needs_of
from orch_agent.task.privileges import check_policy, open_up
from orch_agent.task.record import Records
from orch_agent.task.templates import NodeFacts
from orch_agent.volumes import VolumeStore
from orch_agent.worker.assignments import Holdings
from orch_network import protocol as network_protocol
from orch_proto import defaults
from orch_proto import objects_pb2 as objects
from orch_proto import types_pb2 as types
from orch_rpc import logs
from orch_runtime.plan import LogOptions, OverlayRootfs

log = logs.get("task")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A task that could start now. Times in seconds."""

    image_id: str
    request: ContainerRequest
    health: HealthPlan | None
    stop_signal: int
    stop_grace_s: float
    stop_delay_s: float


@dataclass(frozen=True, slots=True)
class _Files:
    """What the thread made."""

    image: ImageInfo
    rootfs: OverlayRootfs
    mounts: tuple[mounts.OciMount, ...]
    is_recalled: bool = False


def stop_signal(task: objects.Task, image: ImageConfig) -> int:
    """The number of the signal that asks the task to stop.

    Raises:
        TaskFailure: there is no signal of that name.
    """
    name = task.spec.container.stop_signal or image.stop_signal or defaults.STOP_SIGNAL
    if name.isdigit() and 0 < int(name) < signal.NSIG:
        return int(name)
    full = name.upper() if name.upper().startswith("SIG") else f"SIG{name.upper()}"
    number = getattr(signal, full, None)
    if isinstance(number, signal.Signals):
        return int(number)
    raise TaskFailure(f"stop signal {name!r} is unknown; use a name such as SIGTERM", types.FAILURE_REASON_START)


def log_options(task: objects.Task, path: Path) -> LogOptions | None:
    """Where and how the container's output is kept; None for the driver ``none``.

    Raises:
        TaskFailure: the driver or an option cannot be used.
    """
    driver = task.spec.log_driver
    if driver.name == "none":
        return None
    if driver.name not in {"", "json-file", "local"}:
        raise TaskFailure(
            f"log driver {driver.name} is unknown; use json-file, local or none", types.FAILURE_REASON_START
        )
    size = driver.options.get("max-size", "")
    count = driver.options.get("max-file", "")
    try:
        max_size_bytes = parse_size(size) if size else defaults.LOG_MAX_SIZE_BYTES
        max_files = int(count) if count else defaults.LOG_MAX_FILES
    except ValueError as error:
        raise TaskFailure(f"log options: {error}", types.FAILURE_REASON_START) from error
    return LogOptions(path=str(path), max_bytes=max_size_bytes, max_files=max(max_files, 1))


def parse_size(text: str) -> int:
    """Bytes of a size such as ``10m``.

    Raises:
        ValueError: the text is no size.
    """
    units = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
    digits, unit = (text[:-1], text[-1].lower()) if text[-1:].isalpha() else (text, "b")
    if unit not in units or not digits.replace(".", "", 1).isdigit():
        raise ValueError(f"{text!r} is no size; write a number with k, m or g")
    return int(float(digits) * units[unit])


class Preparation:
    """Makes and removes what tasks need on this node.

    Args:
        node: facts for templates.
        held: gives what is assigned now.
        images, snapshots, volumes: the node's stores.
        network: link to the network process.
        records: gives each task its folder.
        log_folder: where logs are kept.
        host_gateway: address that ``host-gateway`` stands for.
        pull: brings an image from its registry.
        fetch: brings an image, by its name and id, from another node.
    """

    def __init__(
        self,
        *,
        node: NodeFacts,
        held: Callable[[], Holdings],
        images: ImageStore,
        snapshots: Snapshots,
        volumes: VolumeStore,
        network: PacketLink,
        records: Records,
        log_folder: Path,
        host_gateway: str,
        pull: Callable[[str], Awaitable[None]],
        fetch: Callable[[str, str], Awaitable[None]],
        policies: Collection[str] = (),
    ) -> None:
        self._node = node
        self._held = held
        self._images = images
        self._snapshots = snapshots
        self._volumes = volumes
        self._network = network
        self._records = records
        self._log_folder = log_folder
        self._host_gateway = host_gateway
        self._pull = pull
        self._fetch = fetch
        self._policies = policies

    def log_path(self, task_id: str) -> Path:
        """The newest file of a task's log."""
        return self._log_folder / task_id / "container.log"

    def needs(self, task: objects.Task) -> Needs:
        """What is assigned now of what a task needs."""
        return needs_of(task, self._held())

    async def prepare(self, task: objects.Task, needs: Needs) -> Prepared:
        """Prepares a task; again with the same needs is fine, and gives the same.

        Raises:
            TaskFailure: something is missing; the message says what, and what to do.
        """
        attaching = asyncio.get_running_loop().create_task(self._attach(task, needs))
        try:
            await self._bring_image(task)
            made = await asyncio.to_thread(self._prepare_files, task, needs)
            netns_path = await attaching
        except BaseException:
            attaching.cancel()
            raise
        return self._assemble(task, made, netns_path)

    async def recall(self, task: objects.Task) -> Prepared:
        """What is needed to go on with a container that runs already."""
        image = await asyncio.to_thread(self._resolve, task)
        return self._assemble(
            task, _Files(image, OverlayRootfs(lower=(), upper="", work=""), (), is_recalled=True), None
        )

    def release_network(self, task: objects.Task) -> None:
        """Asks for the task to be detached; the request is sent before this returns to the loop, and not waited for."""
        if task.networks or task.spec.container.namespaces.network != "host":
            detaching = asyncio.get_running_loop().create_task(
                self._network.call(network_protocol.OP_DETACH, {"task_id": task.id}, repeat=True)
            )
            detaching.add_done_callback(_note_detach)

    async def release(self, task: objects.Task) -> None:
        """Removes the task's root file system and anonymous volumes; its log and record stay."""
        await asyncio.to_thread(self._release_files, task)

    def sweep(self, live: Collection[str]) -> None:
        """Removes the root file systems of tasks that are not alive."""
        self._snapshots.sweep(live)

    def sweep_logs(self, known: Collection[str]) -> None:
        """Removes the logs of tasks that the leader has forgotten; those of ended tasks stay as long as it has them."""
        if self._log_folder.exists():
            for folder in self._log_folder.iterdir():
                if folder.name not in known:
                    files.remove_task_files(folder)

    def forget(self, task_id: str) -> None:
        """Removes the last traces of a task that the leader has forgotten: its log."""
        files.remove_task_files(self._log_folder / task_id)

    async def _bring_image(self, task: objects.Task) -> None:
        """Brings the image if it is not here: from its registry, or, if it was built or loaded, from another node."""
        spec = task.spec.container
        wanted = spec.image_digest or spec.image
        is_local = "@" not in wanted and bool(spec.image_digest)
        if spec.pull_policy == "never":
            return
        try:
            check_policy(task, self._policies, self._node)
            try:
                await asyncio.to_thread(self._images.resolve, wanted)
            except ImageNotFound:
                await (self._fetch(spec.image, wanted) if is_local else self._pull(wanted))
        except ImageError as error:
            raise TaskFailure(str(error), types.FAILURE_REASON_IMAGE) from error

    # ---- in a thread -------------------------------------------------------------------------------

    def _resolve(self, task: objects.Task) -> ImageInfo:
        spec = task.spec.container
        try:
            return self._images.resolve(spec.image_digest or spec.image)
        except ImageError as error:
            raise TaskFailure(str(error), types.FAILURE_REASON_IMAGE) from error

    def _prepare_files(self, task: objects.Task, needs: Needs) -> _Files:
        check_policy(task, self._policies, self._node)
        image = self._resolve(task)
        self._images.mark_used(image.id)
        lower = self._images.lower_dirs(image)
        binds = files.write_task_files(
            self._records.folder(task.id),
            task,
            node=self._node,
            gateway=self._host_gateway,
            secrets=needs.secrets,
            configs=needs.configs,
        )
        made = mounts.make_mounts(task, image, lower, node=self._node, volumes=self._volumes)
        upper, work = self._snapshots.prepare(task.id)
        self.log_path(task.id).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _Files(
            image,
            OverlayRootfs(lower=tuple(lower), upper=str(upper), work=str(work)),
            (*map(mounts.bind_file, binds), *made.mounts),
        )

    def _release_files(self, task: objects.Task) -> None:
        self._snapshots.remove(task.id)
        prefix = f"anon-{task.id}-"
        for volume in self._volumes.list():
            if volume.name.startswith(prefix):
                self._volumes.remove(volume.name, in_use=())

    # ---- network and configuration -----------------------------------------------------------------

    async def _attach(self, task: objects.Task, needs: Needs) -> str | None:
        mode = task.spec.container.namespaces.network
        if mode == "host":
            return None
        addresses = [
            network_protocol.TaskAddress(
                network_id=attachment.network_id, address=attachment.addresses[0].split("/")[0]
            )
            for attachment in task.networks
            if attachment.addresses
        ]
        outward = [
            address.network_id
            for address in addresses
            if address.network_id in needs.networks and not needs.networks[address.network_id].spec.internal
        ]
        wanted = network_protocol.Task(
            task_id=task.id, networks=tuple(addresses), default_network=outward[0] if outward else ""
        )
        try:
            answer = await self._network.call(
                network_protocol.OP_ATTACH, {"task": network_protocol.to_json(wanted)}, timeout_s=15.0, repeat=True
            )
        except (LinkRefused, LinkLost) as error:
            raise TaskFailure(f"network: {error}", types.FAILURE_REASON_NETWORK) from error
        return network_protocol.read_attachment(answer).netns

    def _assemble(self, task: objects.Task, made: _Files, netns_path: str | None) -> Prepared:
        spec = task.spec.container
        image = made.image.config
        arguments = process.arguments(spec, image)
        if not arguments:
            raise TaskFailure(
                f"image {spec.image} names no program and neither does the service; add a command",
                types.FAILURE_REASON_START,
            )
        config = container_config(task, image, arguments, made.mounts, self._node)
        if not made.is_recalled:
            open_up(config, task)
        return Prepared(
            image_id=made.image.id,
            request=ContainerRequest(
                config=config,
                rootfs=made.rootfs,
                netns_path=netns_path,
                log=log_options(task, self.log_path(task.id)),
                user=user_of(spec, image),
                init=spec.init,
            ),
            health=plan_health(spec.healthcheck, image.healthcheck, image.shell),
            stop_signal=stop_signal(task, image),
            stop_grace_s=(spec.stop_grace_ms if spec.HasField("stop_grace_ms") else defaults.STOP_GRACE_MS) / 1000,
            stop_delay_s=(spec.stop_delay_ms if spec.HasField("stop_delay_ms") else defaults.STOP_DELAY_MS) / 1000,
        )


def _note_detach(detaching: asyncio.Task[JsonObject]) -> None:
    if not detaching.cancelled() and (error := detaching.exception()) is not None:
        log.warning("network.detach_failed", why=str(error))
