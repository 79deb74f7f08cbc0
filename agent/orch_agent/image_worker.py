"""A process of its own for the heavy work on images: pull, push, load, save, import, build.

Reads one JSON object from standard input, writes events as JSON lines to standard output: ``{"progress": …}`` any
    number of times, then ``{"images": [ids]}`` or ``{"error": …, "code": …}``. It ends when asked to by SIGTERM,
    removing what it made halfway.
"""

from __future__ import annotations

import base64
import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path, PurePosixPath
from types import FrameType
from typing import Any

from orch_agent.build.builder import Builder
from orch_agent.build.errors import BuildError
from orch_agent.build.events import BuildEvent, EventKind, plain_line
from orch_agent.build.runtime_runner import RuntimeStepRunner
from orch_agent.images.compression import opened
from orch_agent.images.errors import ImageError, ImageNotFound, InvalidReference
from orch_agent.images.extract import Extractor
from orch_agent.images.limits import DEFAULT_UNPACK_LIMITS
from orch_agent.images.model import ImageInfo
from orch_agent.images.registry.errors import NotInRegistry
from orch_agent.images.registry.pull import pull
from orch_agent.images.registry.push import push
from orch_agent.images.saving import Saving
from orch_agent.images.store import ImageStore
from orch_agent.images.tarstream import TarStream


def _say(**event: object) -> None:
    print(json.dumps(event), flush=True)  # noqa: T201 -- the protocol with the parent


def _stop(_number: int, _frame: FrameType | None) -> None:
    sys.exit(143)


def _build(store: ImageStore, wish: dict[str, Any], upload: Path) -> list[str]:
    dockerfile = PurePosixPath(wish["dockerfile"])
    if dockerfile.is_absolute() or ".." in dockerfile.parts:
        raise BuildError(f"the Dockerfile {dockerfile} lies outside the build's folder; move it in")
    context = Path(tempfile.mkdtemp(dir=upload.parent, prefix="context-"))
    try:
        with upload.open("rb") as archive:
            Extractor(str(context), DEFAULT_UNPACK_LIMITS, whiteouts=False).extract(
                TarStream(opened(archive)[1], DEFAULT_UNPACK_LIMITS)
            )

        def progress(event: BuildEvent) -> None:
            _say(progress=plain_line(event), from_step=event.kind is EventKind.OUTPUT)

        runtime_socket = Path(wish["runtime_socket"])
        secrets = {name: base64.b64decode(value) for name, value in wish["secrets"].items()}
        # The runtime's folder is on the node's tmpfs.
        builder = Builder(
            store,
            RuntimeStepRunner(str(runtime_socket)),
            secrets_folder=runtime_socket.parent,
            fetch_image=lambda name: _fetch(store, name),
        )
        image = builder.build(
            context,
            dockerfile=context / dockerfile,
            tag=wish["reference"] or None,
            tags=wish["tags"],
            build_args=wish["build_args"],
            labels=wish["labels"],
            target=wish["target"] or None,
            platform=wish["platform"],
            network=wish["network"] or "default",
            secrets=secrets,
            no_cache=wish["no_cache"],
            progress=progress,
        )
    finally:
        shutil.rmtree(context, ignore_errors=True)
    return [image.id]


def _fetch(store: ImageStore, name: str) -> None:
    """Bring a base image."""
    pull(store, name, lambda text: _say(progress=text))


def _work(wish: dict[str, Any]) -> list[str]:
    store = ImageStore(Path(wish["root"]))
    images: list[ImageInfo]
    match wish["work"]:
        case "pull":
            images = [pull(store, wish["reference"], lambda text: _say(progress=text))]
        case "push":
            images = [push(store, wish["reference"], lambda text: _say(progress=text))]
        case "save":
            with Path(wish["archive"]).open("wb") as archive:
                saving = Saving(store, archive.write, leave_out=wish["leave_out"], made_here=wish["made_here"])
                images = saving.save(wish["references"])
        case "accept":
            images = [store.accept(Path(wish["upload"]), wish["image_id"], wish["reference"])]
        case "load":
            images = list(store.load(Path(wish["upload"])))
        case "import":
            images = [store.import_rootfs(Path(wish["upload"]), wish["reference"], changes=wish["changes"])]
        case "build":
            return _build(store, wish, Path(wish["upload"]))
        case other:
            raise ImageError(f"this node does not know the work {other!r}; upgrade it")
    return [image.id for image in images]


def main() -> None:
    """Does one piece of work."""
    signal.signal(signal.SIGTERM, _stop)
    wish = sys.stdin.read()
    if not wish:
        return  # a spare process that nobody needed
    try:
        _say(images=_work(json.loads(wish)))
    except (ImageNotFound, NotInRegistry) as error:
        _say(error=str(error), code="NOT_FOUND")
    except InvalidReference as error:
        _say(error=str(error), code="INVALID_ARGUMENT")
    except (ImageError, BuildError, OSError) as error:
        _say(error=str(error), code="FAILED_PRECONDITION")


if __name__ == "__main__":
    main()
