"""One build while it runs: what its steps share."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orch_agent.build.cache_mounts import CacheMounts
from orch_agent.build.errors import BuildError
from orch_agent.build.expand import ExpansionError, expand
from orch_agent.build.parser import Instruction
from orch_agent.build.runner import Output, StepRunner
from orch_agent.build.secret_files import SecretFiles
from orch_agent.build.sources import SourceTree
from orch_agent.build.stages import Plan, Stage
from orch_agent.build.state import StageState
from orch_agent.build.steps import StepLog
from orch_agent.images.errors import ImageNotFound
from orch_agent.images.merged import MergedTree
from orch_agent.images.model import ImageInfo
from orch_agent.images.store import ImageStore

FetchImage = Callable[[str], None]
"""Brings an image to this node by its name, or raises ImageError."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A step that changes files, ready to be looked up or done."""

    key: Mapping[str, object]
    write: Callable[[Path, tuple[str, ...], Output], None]
    """Writes into a step's folder `diff`, above the given lower folders; may tell lines of output."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where COPY --from or a mount reads: the build's folder, a stage or an image."""

    tree: SourceTree
    chain_id: str | None
    """The stack of layers that is read; None for the build's folder, or a stage without any."""
    is_context: bool


@dataclass(slots=True)
class Job:
    """What the steps of one build share; used by several threads."""

    store: ImageStore
    runner: StepRunner
    plan: Plan
    context: SourceTree
    build_args: Mapping[str, str]
    log: StepLog
    secrets: SecretFiles
    caches: CacheMounts
    scratch: Path
    """A folder of the store's staging area, for what is fetched or written aside."""
    no_cache: bool = False
    network: str = "default"
    epoch_s: int | None = None
    fetch_image: FetchImage | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    finished: dict[int, StageState] = field(default_factory=dict)
    _fetching: threading.Lock = field(default_factory=threading.Lock)

    def expanded(self, state: StageState, item: Instruction, word: str) -> str:
        """A word with its variables replaced.

        Raises:
            DockerfileError: it is malformed.
        """
        try:
            return expand(word, state.variables, escape=self.plan.dockerfile.escape)
        except ExpansionError as error:
            raise self.plan.dockerfile.error(item.line, f"{item.keyword}: {error}") from error

    def lower_dirs(self, state: StageState) -> tuple[str, ...]:
        """The folders of a stage's layers, topmost first."""
        return self.store.lower_dirs_of(state.chain_ids)

    def image(self, name: str) -> ImageInfo:
        """An image of this node, brought here first if it is not and that is possible.

        Raises:
            ImageNotFound: it is not here, and nothing can bring it.
            ImageError: it cannot be brought.
        """
        with self._fetching:
            try:
                return self.store.resolve(name)
            except ImageNotFound as error:
                if self.fetch_image is None:
                    raise ImageNotFound(f"{error} (a build takes base images from this node; it pulls none)") from error
            self.fetch_image(name)
            return self.store.resolve(name)

    def origin(self, name: str, stage: Stage) -> Origin:
        """What `from=name` means within a stage; empty is the build's folder.

        Raises:
            ImageError: it is an image that is not here.
            BuildError: it is a stage that this build did not make.
        """
        if not name:
            return Origin(self.context, None, is_context=True)
        earlier = self.plan.earlier(name, stage)
        if earlier:
            state = self.finished.get(earlier.index)
            if state is None:
                raise BuildError(
                    f"from={name}: the stage {earlier.label} is not built before this one; name it without variables"
                )
            chains, described = state.chain_ids, f"the stage {earlier.label}"
        else:
            chains, described = self.image(name).chain_ids, f"the image {name}"
        tree = SourceTree(MergedTree(self.store.lower_dirs_of(chains)), ignore=None, described=described)
        return Origin(tree, chains[-1] if chains else "", is_context=False)
