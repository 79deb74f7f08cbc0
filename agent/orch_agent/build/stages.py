"""The stages of a Dockerfile: what each begins from, which ones a target needs, which arguments they see."""

from collections.abc import Mapping
from dataclasses import dataclass

from orch_agent.build import mount_specs
from orch_agent.build.errors import DockerfileError
from orch_agent.build.expand import ExpansionError, expand
from orch_agent.build.parser import Dockerfile, Instruction
from orch_agent.images.archive import host_architecture

SCRATCH = "scratch"
_SAME_PLATFORMS = {
    "linux/amd64": ("linux/x86_64", "linux/amd64/v1"),
    "linux/arm64": ("linux/aarch64", "linux/arm64/v8"),
}
_PROXY_ARGS = ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
PREDEFINED_ARGS = frozenset({*_PROXY_ARGS, *(name.lower() for name in _PROXY_ARGS)})
"""Build arguments that need no ARG (docker's reference, Predefined ARGs)."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One FROM with what follows it."""

    index: int
    name: str
    """As given by AS, in lower case; empty without."""
    base: str
    """A stage's number as `#2`, `scratch`, or the name of an image."""
    line: int
    text: str
    instructions: tuple[Instruction, ...]

    @property
    def label(self) -> str:
        """How progress names it."""
        return self.name or f"stage-{self.index}"


@dataclass(frozen=True, slots=True)
class Plan:
    """All stages, and the global arguments that stages may take over by ARG."""

    dockerfile: Dockerfile
    stages: tuple[Stage, ...]
    global_args: Mapping[str, str]
    consumed_args: frozenset[str]
    """Build arguments that some ARG takes."""

    def find(self, name: str) -> Stage | None:
        """A stage by its name or number; a later stage of the same name wins."""
        for stage in reversed(self.stages):
            if (stage.name and stage.name == name.lower()) or (name.isdigit() and int(name) == stage.index):
                return stage
        return None

    def needed(self, target: str | None) -> tuple[Stage, ...]:
        """The stages that `target` (the last one if None) is made from, in order, itself at the end.

        Raises:
            DockerfileError: there is no such stage.
        """
        last = self.find(target) if target else self.stages[-1]
        if last is None:
            known = ", ".join(stage.label for stage in self.stages)
            raise DockerfileError(f"there is no stage {target!r}; choose one of {known}", file=self.dockerfile.file)
        wanted = {last.index}
        for stage in reversed(self.stages[: last.index + 1]):
            if stage.index in wanted:
                wanted |= self.sources(stage)
        return tuple(stage for stage in self.stages if stage.index in wanted)

    def sources(self, stage: Stage) -> set[int]:
        """The numbers of the stages that a stage takes something from."""
        found = {int(stage.base[1:])} if stage.base.startswith("#") else set()
        for instruction in stage.instructions:
            for name in (instruction.flags.get("from", ""), *mount_specs.origins(instruction)):
                source = self.earlier(name, stage)
                if source:
                    found.add(source.index)
        return found

    def earlier(self, name: str, stage: Stage) -> Stage | None:
        """The stage that `COPY --from=name` within `stage` means, or None if it means an image."""
        candidates = Plan(self.dockerfile, self.stages[: stage.index], {}, frozenset())
        return candidates.find(name) if name else None


def platform_args() -> dict[str, str]:
    """The arguments that describe this machine (docker's reference, Automatic platform ARGs)."""
    architecture = host_architecture()
    values: dict[str, str] = {}
    for prefix in ("TARGET", "BUILD"):
        values |= {
            f"{prefix}PLATFORM": f"linux/{architecture}",
            f"{prefix}OS": "linux",
            f"{prefix}ARCH": architecture,
            f"{prefix}VARIANT": "",
        }
    return values


def platform_problem(platform: str) -> str:
    """Why this node cannot build for a platform; empty if it can."""
    here = f"linux/{host_architecture()}"
    own = {"", "local", "linux", here, *_SAME_PLATFORMS.get(here, ())}
    return "" if platform.lower() in own else f"this node builds for {here} only; leave it out, or use such a node"


def plan(dockerfile: Dockerfile, build_args: Mapping[str, str]) -> Plan:
    """Divide a Dockerfile into stages and replace the variables of each FROM.

    Raises:
        DockerfileError: a FROM is wrong.
    """
    global_args: dict[str, str] = platform_args()
    stages: list[Stage] = []
    position = 0
    items = dockerfile.instructions
    while items[position].keyword == "ARG":
        declare_args(items[position], global_args, build_args, {}, dockerfile)
        position += 1
    while position < len(items):
        end = position + 1
        while end < len(items) and items[end].keyword != "FROM":
            end += 1
        stages.append(_stage(dockerfile, items[position], items[position + 1 : end], tuple(stages), global_args))
        position = end
    consumed = {name.partition("=")[0] for item in items if item.keyword == "ARG" for name in item.args}
    return Plan(dockerfile, tuple(stages), global_args, frozenset(consumed))


def declare_args(
    instruction: Instruction,
    args: dict[str, str],
    build_args: Mapping[str, str],
    global_args: Mapping[str, str],
    dockerfile: Dockerfile,
    *,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Add what an ARG declares to `args`: the caller's value, else its default, else the global one of that name.

    A default may name arguments before it and, over them, variables of `environment`.

    Raises:
        DockerfileError: a name or default is malformed.
    """
    if not instruction.args:
        raise dockerfile.error(instruction.line, "ARG has no name; write ARG name or ARG name=default")
    for word in instruction.args:
        name, equals, default = word.partition("=")
        if not name.isidentifier() or not name.isascii():
            raise dockerfile.error(instruction.line, f"ARG: {name!r} is not a name; use letters, digits, underscores")
        if name in build_args:
            args[name] = build_args[name]
        elif equals:
            try:
                args[name] = expand(default, {**args, **(environment or {})}, escape=dockerfile.escape)
            except ExpansionError as error:
                raise dockerfile.error(instruction.line, f"ARG {name}: {error}") from error
        elif name in global_args:
            args[name] = global_args[name]


def _stage(
    dockerfile: Dockerfile,
    first: Instruction,
    rest: tuple[Instruction, ...],
    earlier: tuple[Stage, ...],
    global_args: Mapping[str, str],
) -> Stage:
    try:
        base = expand(first.args[0], global_args, escape=dockerfile.escape)
        platform = expand(first.flags.get("platform", ""), global_args, escape=dockerfile.escape)
    except ExpansionError as error:
        raise dockerfile.error(first.line, f"FROM: {error}") from error
    if problem := platform_problem(platform):
        raise dockerfile.error(first.line, f"FROM --platform={platform}: {problem}")
    if not base:
        raise dockerfile.error(first.line, f"FROM {first.args[0]} names no image; give the ARG a value")
    name = first.args[2].lower() if len(first.args) == 3 else ""
    if name and (not name[0].isalpha() or not name.replace("-", "a").replace("_", "a").replace(".", "a").isalnum()):
        raise dockerfile.error(first.line, f"FROM ... AS {name}: a stage's name begins with a letter; rename it")
    for stage in reversed(earlier):
        if stage.name == base.lower() and stage.name:
            base = f"#{stage.index}"
            break
    return Stage(len(earlier), name, base, first.line, first.text, rest)
