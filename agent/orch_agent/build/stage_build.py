"""Builds stages: each instruction in turn, each step from the cache or anew, independent stages side by side."""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import posixpath
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from orch_agent.build import copy_step, metadata, parser, reproducible, run_step, stages
from orch_agent.build.errors import BuildError, ContextError, StageStopped, StepFailed
from orch_agent.build.job import Job, Prepared
from orch_agent.build.parser import Instruction
from orch_agent.build.runner import Output
from orch_agent.build.stages import SCRATCH, Stage
from orch_agent.build.state import StageState
from orch_agent.build.steps import Step as Told
from orch_agent.images import files
from orch_agent.images.archive import host_architecture
from orch_agent.images.clock import timestamp
from orch_agent.images.errors import ImageError
from orch_agent.images.merged import Attributes, LayerWriter, MergedTree
from orch_agent.images.model import ImageConfig
from orch_agent.images.rootfs import DEFAULT_PATH
from orch_agent.images.steps import Step

SIDE_BY_SIDE_MAX = 4
"""Stages that are built at once."""
_KEY_VERSION = 2
_STEP_KEYWORDS = ("RUN", "COPY", "ADD", "WORKDIR")


def build_stages(job: Job, needed: Sequence[Stage]) -> StageState:
    """Build the stages, given in their order, and return the last one's state; the first failure ends the others.

    Raises:
        BuildError: a step failed.
    """
    if len(needed) == 1:
        return _StageBuild(job, needed[0]).run()
    futures: dict[int, Future[StageState]] = {}

    def one(stage: Stage) -> StageState:
        try:
            # What a stage needs comes before it in the order, so it runs or has run: this wait ends.
            for index in sorted(job.plan.sources(stage)):
                job.finished[index] = futures[index].result()
            return _StageBuild(job, stage).run()
        except BaseException:
            job.stop.set()
            raise

    with ThreadPoolExecutor(SIDE_BY_SIDE_MAX, thread_name_prefix="stage") as pool:
        try:
            for stage in needed:
                futures[stage.index] = pool.submit(one, stage)
            done, _ = concurrent.futures.wait(futures.values(), return_when=concurrent.futures.FIRST_EXCEPTION)
            failed = [error for future in done if (error := future.exception())]
            concurrent.futures.wait(futures.values())
        except BaseException:
            job.stop.set()
            raise
    if failed:
        raise min(failed, key=lambda error: isinstance(error, StageStopped))
    return futures[needed[-1].index].result()


@dataclass(frozen=True, slots=True)
class _Position:
    """Where a step stands, for the progress: `[build 2/4] `."""

    label: str
    number: int
    total: int

    def __str__(self) -> str:
        return f"[{self.label}{self.number}/{self.total}]"


class _StageBuild:
    """One stage while it is built."""

    def __init__(self, job: Job, stage: Stage) -> None:
        self._job = job
        self._stage = stage
        self._label = f"{stage.label} " if len(job.plan.stages) > 1 else ""

    def run(self) -> StageState:
        """Do all instructions, those that the base image asks for first."""
        stage = self._stage
        own = sum(item.keyword in _STEP_KEYWORDS for item in stage.instructions)
        told = self._job.log.begin(f"{_Position(self._label, 1, 1 + own)} {stage.text}")
        with self._failing(told, stage.line):
            state, triggers = self._base()
        told.done()
        total = 1 + own + sum(item.keyword in _STEP_KEYWORDS for item in triggers)
        number = 1
        for item in (*triggers, *stage.instructions):
            if self._job.stop.is_set():
                raise StageStopped("another step of the build had failed")
            if item.keyword in _STEP_KEYWORDS:
                number += 1
                told = self._job.log.begin(f"{_Position(self._label, number, total)} {item.text}")
                with self._failing(told, item.line):
                    state = self._step(state, item, told)
            else:
                with self._failing(None, item.line):
                    state = self._setting(state, item)
        return state

    @contextlib.contextmanager
    def _failing(self, told: Told | None, line: int) -> Iterator[None]:
        """Put the Dockerfile's line before errors that do not name it, and tell the progress."""
        try:
            yield
        except (BuildError, ImageError) as error:
            final: Exception = error
            if isinstance(error, ContextError | ImageError) or type(error) is BuildError:
                final = BuildError(f"{self._job.plan.dockerfile.file}:{line}: {error}")
            if self._job.stop.is_set() and not isinstance(error, StepFailed):
                final = StageStopped(str(final))
            if told:
                told.failed(str(final))
            if final is error:
                raise
            raise final from error

    def _base(self) -> tuple[StageState, tuple[Instruction, ...]]:
        """What the stage begins from, and the instructions that ONBUILD left there."""
        base = self._stage.base
        if base == SCRATCH:
            return StageState(ImageConfig(env=(DEFAULT_PATH,), architecture=host_architecture())), ()
        if base.startswith("#"):
            state = replace(self._job.finished[int(base[1:])], args={}, sets_cmd=False)
        else:
            image = self._job.image(base)
            document = self._job.store.document(image)
            state = StageState(
                document.config, image.diff_ids, image.chain_ids, document.history, created=document.created
            )
        triggers = parser.parse_triggers(state.config.on_build, image=base) if state.config.on_build else ()
        return replace(state, config=replace(state.config, on_build=())), triggers

    # ---- instructions that set something --------------------------------------------------------

    def _setting(self, state: StageState, item: Instruction) -> StageState:
        plan = self._job.plan
        if item.keyword == "ARG":
            args = dict(state.args)
            given = self._job.build_args
            stages.declare_args(item, args, given, plan.global_args, plan.dockerfile, environment=state.environment)
            return replace(state, args=args)
        if item.keyword == "ONBUILD":
            bodies = "".join(f"\n{document.body}{document.name}" for document in item.heredocs)
            on_build = (*state.config.on_build, item.args[0] + bodies)
            return replace(state, config=replace(state.config, on_build=on_build)).with_history(item.text)
        config = metadata.apply(
            state.config,
            item,
            state.variables,
            escape=plan.dockerfile.escape,
            fail=lambda message: plan.dockerfile.error(item.line, message),
        )
        if item.keyword == "ENTRYPOINT" and not state.sets_cmd:
            config = replace(config, cmd=None)
        sets_cmd = state.sets_cmd or item.keyword == "CMD"
        return replace(state, config=config, sets_cmd=sets_cmd).with_history(item.text)

    # ---- the steps ------------------------------------------------------------------------------

    def _step(self, state: StageState, item: Instruction, told: Told) -> StageState:
        prepared: Prepared | None
        if item.keyword == "WORKDIR":
            state, prepared = self._workdir(state, item)
        elif item.keyword == "RUN":
            prepared = run_step.prepare(self._job, self._stage, state, item)
        else:
            prepared = copy_step.prepare(self._job, self._stage, state, item)
        if prepared is None:
            told.done()
            return state.with_history(item.text)
        return self._layer(state, prepared, item.text, told)

    def _layer(self, state: StageState, prepared: Prepared, text: str, told: Told) -> StageState:
        store, epoch_s = self._job.store, self._job.epoch_s
        record: dict[str, object] = {"version": _KEY_VERSION, "parent": state.parent_chain, **prepared.key}
        if epoch_s is not None:
            record["epoch"] = epoch_s
        key = hashlib.sha256(json.dumps(record, sort_keys=True).encode("utf-8", "surrogateescape")).hexdigest()
        known = None if self._job.no_cache else store.steps.get(key)
        if known and (not known.diff_id or store.layers.get(known.chain_id)):
            told.cached()
            return state.with_step(known, text)
        lower = self._job.lower_dirs(state)
        folder = store.layers.stage()
        try:
            upper = folder / "diff"
            upper.mkdir()
            _like(upper, lower[0])
            prepared.write(folder, lower, told.output)
            created = timestamp()
            if epoch_s is not None:
                reproducible.clamp_times(upper, epoch_s)
                created = reproducible.rfc3339(epoch_s)
            if any(upper.iterdir()):
                layer = store.layers.adopt(upper, state.parent_chain)
                step = Step(layer.chain_id, layer.diff_id, created)
            else:
                step = Step(state.parent_chain or "", "", created)
        finally:
            files.remove_tree(folder)
        store.steps.put(key, step)
        told.done()
        return state.with_step(step, text)

    def _workdir(self, state: StageState, item: Instruction) -> tuple[StageState, Prepared | None]:
        given = self._job.expanded(state, item, item.args[0])
        path = posixpath.normpath(posixpath.join("/", state.config.working_dir, given))
        state = replace(state, config=replace(state.config, working_dir=path))
        if MergedTree(self._job.lower_dirs(state)).lookup(path):
            return state, None

        def write(folder: Path, lower: tuple[str, ...], _output: Output) -> None:
            LayerWriter(str(folder / "diff"), lower).make_directory(path, Attributes())

        return state, Prepared({"step": "WORKDIR", "path": path}, write)


def _like(upper: Path, lower: str) -> None:
    """Give the step's folder the owner and mode of the root below: overlayfs shows the upper one's."""
    status = Path(lower).stat()
    upper.chmod(status.st_mode & 0o7777)
    os.chown(upper, status.st_uid, status.st_gid)
