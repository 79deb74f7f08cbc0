"""Builds an image from a Dockerfile, step by step, remembering the layer of each step.

**The cache.** A step's layer is found again by a key: the digest of the stack of layers below and of everything that
went into the step.

- RUN: the argument list, the environment (ENV and the declared build arguments), the user, the working folder;
- COPY, ADD: the destination, the owner and mode asked for, and the digest of the sources: their names, kinds, modes,
  owners and contents, but not their times;
- WORKDIR, where it makes a folder: the path.

So a change of one copied file repeats that COPY and what follows it, and nothing before. Instructions that only set
configuration cost nothing and are not remembered. The table is part of the image store (`orch_agent.images.steps`).
"""

import contextlib
import hashlib
import json
import os
import posixpath
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orch_agent.build import copying, metadata, sources, stages
from orch_agent.build.errors import BuildError, ContextError, StepFailed
from orch_agent.build.events import BuildEvent, EventKind, Progress
from orch_agent.build.expand import ExpansionError, expand
from orch_agent.build.parser import Instruction, parse
from orch_agent.build.runner import StepCommand, StepRunner
from orch_agent.build.sources import SourceTree
from orch_agent.build.stages import SCRATCH, Plan, Stage
from orch_agent.build.state import StageState
from orch_agent.images import files, reference
from orch_agent.images.archive import host_architecture
from orch_agent.images.clock import timestamp
from orch_agent.images.errors import ImageError, ImageNotFound
from orch_agent.images.limits import DEFAULT_UNPACK_LIMITS
from orch_agent.images.merged import Attributes, LayerWriter, MergedTree
from orch_agent.images.model import ConfigDocument, ImageConfig, ImageInfo, write_config
from orch_agent.images.rootfs import DEFAULT_PATH
from orch_agent.images.steps import Step
from orch_agent.images.store import ImageStore

_KEY_VERSION = 1
_STEP_KEYWORDS = ("RUN", "COPY", "ADD", "WORKDIR")


class Builder:
    """Builds into one image store; several builds may run at once."""

    def __init__(self, store: ImageStore, runner: StepRunner) -> None:
        """Keep images in `store`; RUN is executed by `runner`."""
        self._store = store
        self._runner = runner

    def build(
        self,
        context: Path,
        *,
        dockerfile: Path | None = None,
        tag: str | None = None,
        build_args: Mapping[str, str] | None = None,
        target: str | None = None,
        no_cache: bool = False,
        progress: Progress = lambda _event: None,
    ) -> ImageInfo:
        """Build the Dockerfile (by default `Dockerfile` in `context`) and name the image `tag`.

        Args:
            context: The folder that COPY and ADD read.
            dockerfile: The file with the instructions, anywhere.
            tag: The image's name; None leaves it with its id alone.
            build_args: Values for ARG.
            target: The stage to stop at; the last one by default.
            no_cache: Do every step again.
            progress: Told of each thing that happens; called from this thread.

        Raises:
            DockerfileError: the Dockerfile is wrong; nothing has been built.
            ContextError: a source of COPY or ADD is not there.
            StepFailed: a command of RUN failed.
            BuildError: something else stands in the way, e.g. an image that is not on this node.
        """
        path = dockerfile or context / "Dockerfile"
        names = (reference.parse(tag),) if tag else ()
        try:
            found = sources.within(context, path)
            if found is None or not found.exists():
                raise BuildError(f"there is no {path}; write a Dockerfile there, or name it with --file")
            text = found.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError) as error:
            raise BuildError(f"{path} cannot be read as a Dockerfile: {error}") from error
        given = dict(build_args or {})
        plan = stages.plan(parse(text, file=str(path)), given)
        needed = plan.needed(target)
        for name in sorted(given.keys() - plan.consumed_args - stages.PREDEFINED_ARGS):
            progress(BuildEvent(EventKind.WARNING, 0, f"the build argument {name} is used by no ARG"))
        context_sources = sources.context_tree(context, path)
        with self._store.ingesting():
            run = _Run(
                self._store, self._runner, plan, context_sources, given, steps=_Steps(progress), no_cache=no_cache
            )
            state = run.all(needed)
            document = ConfigDocument(state.config, state.diff_ids, state.history, state.created)
            info = self._store.register(write_config(document), references=names)
        self._store.collect_garbage()
        return info


class _Steps:
    """Numbers the steps and tells of them."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._number = 0
        self._begun_s = 0.0

    def begin(self, text: str) -> None:
        self._number += 1
        self._begun_s = time.monotonic()
        self._tell(EventKind.BEGUN, text)

    def cached(self) -> None:
        self._tell(EventKind.CACHED)

    def output(self, line: str) -> None:
        self._tell(EventKind.OUTPUT, line)

    def done(self) -> None:
        self._tell(EventKind.DONE)

    def failed(self, text: str) -> None:
        self._tell(EventKind.FAILED, text)

    def _tell(self, kind: EventKind, text: str = "") -> None:
        self._progress(BuildEvent(kind, self._number, text, time.monotonic() - self._begun_s))


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A step that changes files, ready to be looked up or done."""

    key: Mapping[str, object]
    write: Callable[[Path, tuple[str, ...]], None]
    """Writes into a stage's folder `diff`, above the given lower folders."""


class _Run:
    """One build."""

    def __init__(
        self,
        store: ImageStore,
        runner: StepRunner,
        plan: Plan,
        context: SourceTree,
        build_args: Mapping[str, str],
        *,
        steps: _Steps,
        no_cache: bool,
    ) -> None:
        self._store = store
        self._runner = runner
        self._plan = plan
        self._context = context
        self._build_args = build_args
        self._steps = steps
        self._no_cache = no_cache
        self._finished: dict[int, StageState] = {}

    def all(self, needed: Sequence[Stage]) -> StageState:
        for stage in needed:
            self._finished[stage.index] = self._stage(stage)
        return self._finished[needed[-1].index]

    def _stage(self, stage: Stage) -> StageState:
        total = 1 + sum(item.keyword in _STEP_KEYWORDS for item in stage.instructions)
        label = f"{stage.label} " if len(self._plan.stages) > 1 else ""
        self._steps.begin(f"[{label}1/{total}] {stage.text}")
        with self._failing(stage.line):
            state = self._base(stage)
        self._steps.done()
        number = 1
        for instruction in stage.instructions:
            if instruction.keyword in _STEP_KEYWORDS:
                number += 1
                self._steps.begin(f"[{label}{number}/{total}] {instruction.text}")
            with self._failing(instruction.line):
                state = self._instruction(stage, state, instruction)
        return state

    @contextlib.contextmanager
    def _failing(self, line: int) -> Iterator[None]:
        """Put the Dockerfile's line before errors that do not name it, and tell the progress."""
        try:
            yield
        except StepFailed as error:
            self._steps.failed(str(error))
            raise
        except (ContextError, ImageError) as error:
            self._steps.failed(str(error))
            raise BuildError(f"{self._plan.dockerfile.file}:{line}: {error}") from error

    def _base(self, stage: Stage) -> StageState:
        if stage.base.startswith("#"):
            return replace(self._finished[int(stage.base[1:])], args={}, sets_cmd=False)
        if stage.base == SCRATCH:
            return StageState(ImageConfig(env=(DEFAULT_PATH,), architecture=host_architecture()))
        image = self._image(stage.base)
        document = self._store.document(image)
        return StageState(document.config, image.diff_ids, image.chain_ids, document.history, created=document.created)

    def _image(self, name: str) -> ImageInfo:
        try:
            return self._store.resolve(name)
        except ImageNotFound as error:
            raise ImageNotFound(f"{error} (a build takes base images from this node; it pulls none)") from error

    def _instruction(self, stage: Stage, state: StageState, item: Instruction) -> StageState:
        if item.keyword == "ARG":
            args = dict(state.args)
            stages.declare_args(item, args, self._build_args, self._plan.global_args, self._plan.dockerfile)
            return replace(state, args=args)
        if item.keyword in metadata.KEYWORDS:
            return self._configured(state, item).with_history(item.text)
        state, prepared = self._prepare(stage, state, item)
        if prepared is None:
            self._steps.done()
            return state.with_history(item.text)
        return self._layer(state, prepared, item.text)

    def _configured(self, state: StageState, item: Instruction) -> StageState:
        escape = self._plan.dockerfile.escape
        config = metadata.apply(
            state.config,
            item,
            state.variables,
            escape=escape,
            fail=lambda message: self._plan.dockerfile.error(item.line, message),
        )
        if item.keyword == "ENTRYPOINT" and not state.sets_cmd:
            config = replace(config, cmd=None)
        return replace(state, config=config, sets_cmd=state.sets_cmd or item.keyword == "CMD")

    def _prepare(self, stage: Stage, state: StageState, item: Instruction) -> tuple[StageState, _Prepared | None]:
        if item.keyword == "WORKDIR":
            return self._workdir(state, item)
        if item.keyword == "RUN":
            return state, self._command(state, item)
        return state, self._copy(stage, state, item)

    # ---- the steps ------------------------------------------------------------------------------

    def _layer(self, state: StageState, prepared: _Prepared, text: str) -> StageState:
        record = {"version": _KEY_VERSION, "parent": state.parent_chain, **prepared.key}
        key = hashlib.sha256(json.dumps(record, sort_keys=True).encode("utf-8", "surrogateescape")).hexdigest()
        known = None if self._no_cache else self._store.steps.get(key)
        if known and (not known.diff_id or self._store.layers.get(known.chain_id)):
            self._steps.cached()
            return state.with_step(known, text)
        lower = self._lower_dirs(state)
        folder = self._store.layers.stage()
        try:
            upper = folder / "diff"
            upper.mkdir()
            _like(upper, lower[0])
            prepared.write(folder, lower)
            if any(upper.iterdir()):
                layer = self._store.layers.adopt(upper, state.parent_chain)
                step = Step(layer.chain_id, layer.diff_id, timestamp())
            else:
                step = Step(state.parent_chain or "", "", timestamp())
        finally:
            files.remove_tree(folder)
        self._store.steps.put(key, step)
        self._steps.done()
        return state.with_step(step, text)

    def _workdir(self, state: StageState, item: Instruction) -> tuple[StageState, _Prepared | None]:
        given = self._expanded(state, item, item.args[0])
        path = posixpath.normpath(posixpath.join("/", state.config.working_dir, given))
        state = replace(state, config=replace(state.config, working_dir=path))
        if MergedTree(self._lower_dirs(state)).lookup(path):
            return state, None

        def write(folder: Path, lower: tuple[str, ...]) -> None:
            LayerWriter(str(folder / "diff"), lower).make_directory(path, Attributes())

        return state, _Prepared({"step": "WORKDIR", "path": path}, write)

    def _command(self, state: StageState, item: Instruction) -> _Prepared:
        args = metadata.command_of(state.config, item)
        if item.heredocs:
            args = (*(state.config.shell or metadata.DEFAULT_SHELL), _script(item))
        predefined = {name: value for name, value in self._build_args.items() if name in stages.PREDEFINED_ARGS}
        env = {**predefined, **state.args, **state.environment}
        env.setdefault("PATH", DEFAULT_PATH.partition("=")[2])
        environment = tuple(f"{name}={value}" for name, value in env.items())
        working_dir, user = state.config.working_dir or "/", state.config.user
        if item.flags.get("network", "default") not in ("default", "host"):
            raise self._plan.dockerfile.error(item.line, "RUN --network takes default or host; leave it out")

        def write(folder: Path, lower: tuple[str, ...]) -> None:
            work = folder / "work"
            work.mkdir()
            command = StepCommand(lower, str(folder / "diff"), str(work), args, environment, working_dir, user)
            code = self._runner.run(command, self._steps.output)
            if code != 0:
                raise StepFailed(
                    f"{self._plan.dockerfile.file}:{item.line}: {item.text}: the command ended with exit code {code}; "
                    "its output above says why",
                    exit_code=code,
                )

        kept = sorted(part for part in environment if part.partition("=")[0] not in stages.PREDEFINED_ARGS)
        key = {"step": "RUN", "args": args, "env": kept, "cwd": working_dir, "user": user}
        return _Prepared(key, write)

    def _copy(self, stage: Stage, state: StageState, item: Instruction) -> _Prepared:
        words = item.args if item.json_form else tuple(self._expanded(state, item, word) for word in item.args)
        if item.heredocs:
            raise self._plan.dockerfile.error(item.line, f"{item.keyword} of a heredoc is not supported; use a file")
        for word in words[:-1]:
            if item.keyword == "ADD" and ("://" in word or word.startswith("git@")):
                raise self._plan.dockerfile.error(
                    item.line,
                    f"ADD of {word!r}: builds fetch nothing; put the file into the build's folder, or RUN curl",
                )
        tree = self._copied_from(stage, state, item)
        attributes = self._attributes(state, item)
        found = tuple(source for word in words[:-1] for source in tree.find(word))
        destination = posixpath.join("/", state.config.working_dir, words[-1])
        folder = words[-1].endswith(("/", "/.")) or words[-1] in (".", "..")
        destination = posixpath.normpath(destination).replace("//", "/").rstrip("/") + ("/" if folder else "")
        plan = copying.CopyPlan(
            tree,
            found,
            destination or "/",
            attributes,
            attributes if "chown" in item.flags else Attributes(mode=attributes.mode),
            unpack=item.keyword == "ADD",
        )

        def write(folder: Path, lower: tuple[str, ...]) -> None:
            copying.run(plan, LayerWriter(str(folder / "diff"), lower), folder, DEFAULT_UNPACK_LIMITS)

        key = {
            "step": item.keyword,
            "destination": plan.destination,
            "owner": [attributes.uid, attributes.gid, attributes.mode, "chown" in item.flags],
            "content": sources.digest(tree, found, attributes),
        }
        return _Prepared(key, write)

    def _copied_from(self, stage: Stage, state: StageState, item: Instruction) -> SourceTree:
        if "from" not in item.flags:
            return self._context
        name = self._expanded(state, item, item.flags["from"])
        earlier = self._plan.earlier(name, stage)
        if earlier:
            lower = self._lower_dirs(self._finished[earlier.index])
            return SourceTree(MergedTree(lower), ignore=None, described=f"the stage {earlier.label}")
        lower = self._store.lower_dirs(self._image(name))
        return SourceTree(MergedTree(lower), ignore=None, described=f"the image {name}")

    def _attributes(self, state: StageState, item: Instruction) -> Attributes:
        from_context = "from" not in item.flags
        uid = gid = 0 if from_context else None
        if "chown" in item.flags:
            owner = self._expanded(state, item, item.flags["chown"])
            uid, gid = copying.owner(owner, MergedTree(self._lower_dirs(state)))
        mode = None
        if "chmod" in item.flags:
            text = self._expanded(state, item, item.flags["chmod"])
            mode = copying.parse_mode(text)
            if mode is None:
                raise self._plan.dockerfile.error(item.line, f"--chmod={text} is not an octal mode such as 644 or 0755")
        return Attributes(uid, gid, mode)

    def _expanded(self, state: StageState, item: Instruction, word: str) -> str:
        try:
            return expand(word, state.variables, escape=self._plan.dockerfile.escape)
        except ExpansionError as error:
            raise self._plan.dockerfile.error(item.line, f"{item.keyword}: {error}") from error

    def _lower_dirs(self, state: StageState) -> tuple[str, ...]:
        return self._store.lower_dirs_of(state.chain_ids)


def _script(item: Instruction) -> str:
    """What the shell is given for RUN with heredocs: the body itself if that is all, else the line with the bodies."""
    line = item.args[0]
    if line.strip() in {
        f"<<{dash}{quote}{doc.name}{quote}" for doc in item.heredocs for dash in ("", "-") for quote in ("", '"', "'")
    }:
        return item.heredocs[0].body
    return line + "\n" + "".join(f"{doc.body}{doc.name}\n" for doc in item.heredocs)


def _like(upper: Path, lower: str) -> None:
    """Give the step's folder the owner and mode of the root below: overlayfs shows the upper one's."""
    status = Path(lower).stat()
    upper.chmod(status.st_mode & 0o7777)
    os.chown(upper, status.st_uid, status.st_gid)
