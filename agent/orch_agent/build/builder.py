"""Builds an image from a Dockerfile, step by step, remembering the layer of each step.

**The cache.** A step's layer is found again by a key: the digest of the stack of layers below and of everything that
went into the step.

- RUN: the argument list, the environment (ENV and the declared build arguments), the user, the working folder, the
  content of what --mount binds, and where caches and secrets stand (not what they hold);
- COPY, ADD: the destination, the owner and mode asked for, and the digest of the sources: their names, kinds, modes,
  owners and contents, but not their times;
- WORKDIR, where it makes a folder: the path.

So a change of one copied file repeats that COPY and what follows it, and nothing before. Instructions that only set
configuration cost nothing and are not remembered. The table is part of the image store (`orch_agent.images.steps`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from orch_agent.build import reproducible, secret_files, sources, stages
from orch_agent.build.cache_mounts import CacheMounts
from orch_agent.build.errors import BuildError
from orch_agent.build.events import Progress
from orch_agent.build.job import FetchImage, Job
from orch_agent.build.parser import parse
from orch_agent.build.run_step import NETWORKS
from orch_agent.build.runner import StepRunner
from orch_agent.build.stage_build import build_stages
from orch_agent.build.state import StageState
from orch_agent.build.steps import StepLog
from orch_agent.images import files, reference
from orch_agent.images.model import ConfigDocument, ImageInfo, write_config
from orch_agent.images.reference import Reference
from orch_agent.images.store import ImageStore


class Builder:
    """Builds into one image store; several builds may run at once."""

    def __init__(
        self,
        store: ImageStore,
        runner: StepRunner,
        *,
        fetch_image: FetchImage | None = None,
        secrets_folder: Path | None = None,
    ) -> None:
        """Keep images in `store`; RUN is executed by `runner`.

        `fetch_image` brings base images that are not in the store; without it they are an error. `secrets_folder` is
        on a tmpfs (by default /dev/shm) and holds what RUN --mount=type=secret mounts while a step runs.
        """
        self._store = store
        self._runner = runner
        self._fetch_image = fetch_image
        self._secrets_folder = secrets_folder

    def build(
        self,
        context: Path,
        *,
        dockerfile: Path | None = None,
        tag: str | None = None,
        tags: Sequence[str] = (),
        build_args: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        target: str | None = None,
        platform: str = "",
        network: str = "default",
        secrets: Mapping[str, bytes] | None = None,
        no_cache: bool = False,
        progress: Progress = lambda _event: None,
    ) -> ImageInfo:
        """Build the Dockerfile (by default `Dockerfile` in `context`) and name the image `tag` and `tags`.

        Args:
            context: The folder that COPY and ADD read.
            dockerfile: The file with the instructions, anywhere.
            tag: The image's name; None leaves it with its id alone.
            tags: Further names.
            build_args: Values for ARG; SOURCE_DATE_EPOCH makes the image reproducible.
            labels: Labels of the image, over those of the Dockerfile.
            target: The stage to stop at; the last one by default.
            platform: Refused unless it is this node's own; empty for that.
            network: Of RUN without --network: default, host or none.
            secrets: What RUN --mount=type=secret mounts, by id.
            no_cache: Do every step again.
            progress: Told of each thing that happens, one at a time, from several threads.

        Raises:
            DockerfileError: the Dockerfile is wrong; nothing has been built.
            ContextError: a source of COPY or ADD is not there.
            StepFailed: a command of RUN failed.
            BuildError: something else stands in the way, e.g. an image that is not on this node.
        """
        names = tuple(reference.parse(name) for name in (*((tag,) if tag else ()), *tags))
        if problem := stages.platform_problem(platform):
            raise BuildError(f"--platform={platform}: {problem}")
        if network not in NETWORKS:
            raise BuildError(f"--network={network} is unknown; choose one of {', '.join(NETWORKS)}")
        path = dockerfile or context / "Dockerfile"
        given = dict(build_args or {})
        plan = stages.plan(parse(_read(context, path), file=str(path)), given)
        needed = plan.needed(target)
        log = StepLog(progress)
        for name in sorted(given.keys() - plan.consumed_args - stages.PREDEFINED_ARGS - {reproducible.EPOCH_ARG}):
            log.tell_warning(f"the build argument {name} is used by no ARG")
        with self._store.ingesting(), secret_files.opened(secrets or {}, self._secrets_folder) as files_of_secrets:
            scratch = self._store.layers.stage()
            try:
                job = Job(
                    store=self._store,
                    runner=self._runner,
                    plan=plan,
                    context=sources.context_tree(context, path),
                    build_args=given,
                    log=log,
                    secrets=files_of_secrets,
                    caches=CacheMounts(self._store.root / "build-mounts"),
                    scratch=scratch,
                    no_cache=no_cache,
                    network=network,
                    epoch_s=reproducible.epoch_s(given.get(reproducible.EPOCH_ARG, "")),
                    fetch_image=self._fetch_image,
                )
                info = self._export(job, build_stages(job, needed), dict(labels or {}), names)
            finally:
                files.remove_tree(scratch)
        self._store.collect_garbage()
        return info

    def _export(self, job: Job, state: StageState, labels: Mapping[str, str], names: Sequence[Reference]) -> ImageInfo:
        """Make the last stage an image."""
        step = job.log.begin("exporting to image")
        config = replace(state.config, labels={**state.config.labels, **labels})
        created, history = state.created, state.history
        if job.epoch_s is not None:
            created = reproducible.rfc3339(job.epoch_s)
            history = tuple(replace(entry, created=min(entry.created, created)) for entry in history)
        document = ConfigDocument(config, state.diff_ids, history, created)
        info = self._store.register(write_config(document), references=names)
        step.output(f"writing image {info.id} done")
        for name in names:
            step.output(f"naming to {name.familiar} done")
        step.done()
        return info


def _read(context: Path, path: Path) -> str:
    try:
        found = sources.within(context, path)
        if found is None or not found.exists():
            raise BuildError(f"there is no {path}; write a Dockerfile there, or name it with --file")
        return found.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise BuildError(f"{path} cannot be read as a Dockerfile: {error}") from error
