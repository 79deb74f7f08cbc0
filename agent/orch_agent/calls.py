"""Answers the small questions that a manager asks on the session stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

from orch_agent.disk_usage import disk_usage
from orch_agent.errors import AgentError
from orch_agent.image_collection import ImageCollection
from orch_agent.images.errors import ImageError, ImageInUse, ImageNotFound, InvalidReference
from orch_agent.images.model import ImageInfo, write_config
from orch_agent.images.registry.errors import NotInRegistry
from orch_agent.images.registry.pull import resolve
from orch_agent.images.snapshots import Snapshots
from orch_agent.images.store import ImageStore
from orch_agent.stats import StatsReader
from orch_agent.task.templates import NodeFacts
from orch_agent.volumes import VolumeError, VolumeStore
from orch_proto import node_pb2 as calls
from orch_proto import types_pb2 as types
from orch_rpc import logs

log = logs.get("calls")


def unix_ms(rfc3339: str) -> int:
    """Unix milliseconds of an RFC 3339 time; 0 when there is none."""
    try:
        return int(datetime.fromisoformat(rfc3339).timestamp() * 1000)
    except ValueError:
        return 0


def image_summary(image: ImageInfo, node: NodeFacts, unique_bytes: int = 0) -> calls.ImageSummary:
    """An image as the control API shows it."""
    return calls.ImageSummary(
        id=image.id,
        references=list(image.references),
        created_at_unix_ms=unix_ms(image.created),
        size_bytes=image.size_bytes,
        unique_bytes=unique_bytes,
        platform=types.Platform(
            os=image.config.os, architecture=image.config.architecture, variant=image.config.variant
        ),
        node_id=node.id,
        node_hostname=node.hostname,
        labels=dict(image.config.labels),
    )


def call_error(error: Exception) -> calls.CallError:
    """An exception as it travels in an answer."""
    match error:
        case ImageNotFound() | NotInRegistry():
            code = "NOT_FOUND"
        case InvalidReference():
            code = "INVALID_ARGUMENT"
        case ImageInUse() | VolumeError():
            code = "FAILED_PRECONDITION"
        case ImageError() | AgentError():
            code = "FAILED_PRECONDITION"
        case _:
            code = "INTERNAL"
    return calls.CallError(code=code, message=str(error))


class NodeCalls:
    """Serves calls from the node's stores; each in a thread, since stores read disks."""

    def __init__(
        self,
        *,
        node: NodeFacts,
        images: ImageStore,
        volumes: VolumeStore,
        stats: StatsReader,
        images_in_use: Callable[[], set[str]],
        volumes_in_use: Callable[[], set[str]],
        snapshots: Snapshots,
        tasks: Callable[[], set[str]],
        collection: ImageCollection,
    ) -> None:
        self._collection = collection
        self._node = node
        self._images = images
        self._volumes = volumes
        self._stats = stats
        self._images_in_use = images_in_use
        self._volumes_in_use = volumes_in_use
        self._snapshots = snapshots
        self._tasks = tasks

    async def answer(self, call: calls.NodeCall) -> calls.NodeCallResult:
        """The answer to a call, or the error in its place."""
        try:
            if call.WhichOneof("call") == "task_stats":
                stats = await self._stats.for_tasks(set(call.task_stats.task_ids))
                return calls.NodeCallResult(call_id=call.call_id, task_stats=calls.TaskStatsResult(stats=stats))
            if call.WhichOneof("call") == "image_prune":
                gone = await self._collection.prune(named=call.image_prune.all)
                pruned = calls.ImagePruneResult(
                    untagged=gone.untagged, deleted=gone.deleted, freed_bytes=gone.freed_bytes
                )
                return calls.NodeCallResult(call_id=call.call_id, image_prune=pruned)
            return await asyncio.to_thread(self._answer, call)
        except Exception as error:
            failure = call_error(error)
            if failure.code == "INTERNAL":
                log.exception("call.failed", error, call=str(call.WhichOneof("call")))  # noqa: PLE1205, TRY401 -- ours, not logging
            return calls.NodeCallResult(call_id=call.call_id, error=failure)

    def _answer(self, call: calls.NodeCall) -> calls.NodeCallResult:
        result = calls.NodeCallResult(call_id=call.call_id)
        match call.WhichOneof("call"):
            case "disk_usage":
                usages = disk_usage(
                    self._images,
                    self._snapshots,
                    self._volumes,
                    images_in_use=self._images_in_use(),
                    volumes_in_use=self._volumes_in_use(),
                    running=self._tasks(),
                )
                result.disk_usage.usages.extend(usages)
            case "image_list":
                usage = self._images.disk_usage()
                result.image_list.images.extend(
                    image_summary(image, self._node, usage[image.id].unique_bytes if image.id in usage else 0)
                    for image in self._images.list()
                )
                result.image_list.SetInParent()
            case "image_inspect":
                image = self._images.resolve(call.image_inspect.reference)
                result.image_inspect.image.CopyFrom(image_summary(image, self._node))
                result.image_inspect.config_json = write_config(self._images.document(image))
            case "image_resolve":
                result.image_resolve.pinned_reference = resolve(call.image_resolve.reference)
            case "image_remove":
                removal = self._images.remove(
                    call.image_remove.reference, in_use=self._images_in_use(), force=call.image_remove.force
                )
                result.image_remove.untagged.extend(removal.untagged)
                result.image_remove.deleted.extend([removal.deleted_id] if removal.deleted_id else [])
                result.image_remove.SetInParent()
            case "image_tag":
                self._images.tag(call.image_tag.source, call.image_tag.target)
                result.image_tag.SetInParent()
            case "volume_list":
                result.volume_list.volumes.extend(
                    calls.LocalVolume(
                        name=volume.name,
                        driver="local",
                        labels=dict(volume.labels),
                        created_at_unix_ms=unix_ms(volume.created),
                        mountpoint=volume.path,
                        node_id=self._node.id,
                        node_hostname=self._node.hostname,
                    )
                    for volume in self._volumes.list()
                )
                result.volume_list.SetInParent()
            case "volume_remove":
                self._volumes.remove(call.volume_remove.name, in_use=self._volumes_in_use())
                result.volume_remove.SetInParent()
            case kind:
                raise AgentError(f"this node does not know the call {kind}; upgrade it")
        return result
