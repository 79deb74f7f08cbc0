"""Joins the steps: files and environment in, a stack or every problem out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from orch_cli.compose.check import check_file
from orch_cli.compose.dotenv import EnvFileError, parse_env_file
from orch_cli.compose.interpolation import interpolate
from orch_cli.compose.merge import merge_files
from orch_cli.compose.nodes import MapNode, Mark, Node, is_null
from orch_cli.compose.report import ComposeError, Problem, Report, nearest
from orch_cli.compose.stack_name import folder_stack_name, stack_name_problem
from orch_cli.compose.view import View
from orch_cli.compose.yaml_reader import read_yaml
from orch_proto import defaults

if TYPE_CHECKING:
    from orch_cli.compose.project import ReadFile
    from orch_cli.compose.service import Build
    from orch_proto.specs_pb2 import StackSpec

DOTENV: Final = ".env"
_DOTENV_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One stack file: the name that messages show, and its text."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Model:
    """The merged file before it becomes a stack: what ``orch stack config`` prints."""

    name: str
    root: MapNode
    folder: str
    variables: Mapping[str, str]
    warnings: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class LoadedStack:
    """What a deploy needs."""

    spec: StackSpec
    builds: tuple[Build, ...]
    warnings: tuple[Problem, ...]
    source: str


@dataclass(frozen=True, slots=True)
class Options:
    """How a stack is loaded.

    Args:
        folder: relative paths start here: the folder of the first file.
        environment: the client's variables.
        stack: the name from the command line; empty: from the file, else the folder's.
        profiles: active profiles; ``*`` means all.
        env_files: texts of ``--env-file``, in order; with none, ``.env`` in the folder is read when it is there.
    """

    folder: str
    environment: Mapping[str, str]
    stack: str = ""
    profiles: frozenset[str] = frozenset()
    env_files: tuple[SourceFile, ...] = ()


def read_from_disk(path: str, limit: int) -> bytes:
    """Reads a file that the stack names, at most ``limit`` bytes and one more (so that too much is noticed)."""
    with open(path, "rb") as stream:
        return stream.read(limit + 1)


def load_model(files: Sequence[SourceFile], options: Options, read_file: ReadFile = read_from_disk) -> Model:
    """Reads, interpolates, checks and merges the files.

    Raises:
        ComposeError: with every problem found.
    """
    report = Report()
    variables = _variables(options, read_file, report)
    raw = [root for file in files if (root := _read(file, report)) is not None]
    report.raise_if_problems()
    if not raw:
        raise ComposeError([Problem(None, "", "no stack file is given", "", "name one, or give it with -c")])
    name = _stack_name(raw, options, variables, report)
    variables = {"COMPOSE_PROJECT_NAME": name, "STACK": name, **variables}
    warned: set[str] = set()
    roots = []
    for root in raw:
        replaced = interpolate(root, variables, "", report, warned)
        assert isinstance(replaced, MapNode)
        check_file(replaced, report)
        roots.append(replaced)
    report.raise_if_problems()
    merged = _active_services(merge_files(roots), options.profiles, report)
    report.raise_if_problems()
    return Model(name, merged, options.folder, variables, tuple(report.warnings))


def load_stack(files: Sequence[SourceFile], options: Options, read_file: ReadFile = read_from_disk) -> LoadedStack:
    """Loads a stack from its files.

    Raises:
        ComposeError: with every problem found.
    """
    model = load_model(files, options, read_file)
    return build_stack(model, "\n---\n".join(file.text for file in files), read_file)


def build_stack(model: Model, source: str, read_file: ReadFile = read_from_disk) -> LoadedStack:
    """Turns a merged model into the stack's specs.

    Raises:
        ComposeError: with every problem found.
    """
    # Imported here: protobuf is the largest part of the start-up, and a file with problems in its form never needs it.
    from orch_cli.compose import project as projects
    from orch_cli.compose.service import read_service
    from orch_proto.specs_pb2 import StackSpec

    report = Report(warnings=list(model.warnings))
    root = View(model.root, "", report)
    project = projects.Project(model.name, model.folder, model.variables, read_file, report)
    networks = projects.read_networks(root, project)
    volumes = projects.read_volumes(root, project)
    secrets = projects.read_secrets(root, project)
    configs = projects.read_configs(root, project)
    spec = StackSpec(name=model.name, secrets=secrets, configs=configs)
    builds = []
    for key, view in sorted(root.named("services"), key=lambda pair: pair[0]):
        service, build = read_service(key, view, root, project)
        spec.services.append(service)
        if build is not None:
            builds.append(build)
    report.raise_if_problems()
    for key in sorted(project.used_networks):
        item = project.networks[key]
        if item.external:
            spec.external_networks.append(item.name)
        else:
            spec.networks.append(networks[key])
    for key in sorted(project.used_volumes):
        if not project.volumes[key].external:
            spec.volumes.append(volumes[key])
    spec.external_secrets.extend(sorted(item.name for item in project.secrets.values() if item.external))
    spec.external_configs.extend(sorted(item.name for item in project.configs.values() if item.external))
    _check_names(spec, report)
    report.raise_if_problems()
    return LoadedStack(spec, tuple(builds), tuple(report.warnings), source)


def _check_names(spec: StackSpec, report: Report) -> None:
    for kind, items in (
        ("network", spec.networks),
        ("secret", spec.secrets),
        ("config", spec.configs),
        ("volume", spec.volumes),
    ):
        seen = set()
        for item in items:
            name = item.annotations.name
            if name in seen:
                report.error(None, f"{kind}s", f"two of them have the name {name!r}", "", "give one another name:")
            seen.add(name)


def _read(file: SourceFile, report: Report) -> MapNode | None:
    if len(file.text) > defaults.STACK_FILE_BYTES:
        report.error(
            Mark(file.name, 1),
            "",
            "the file is too large",
            f"the limit is {defaults.STACK_FILE_BYTES} bytes",
            "is it a stack file?",
        )
        return None
    return read_yaml(file.text, file.name, report)


def _variables(options: Options, read_file: ReadFile, report: Report) -> dict[str, str]:
    """The client's environment, and below it ``--env-file`` or ``.env``."""
    files = list(options.env_files)
    if not files:
        path = os.path.join(options.folder, DOTENV)
        try:
            files = [SourceFile(path, read_file(path, _DOTENV_BYTES).decode("utf-8"))]
        except (FileNotFoundError, NotADirectoryError):
            files = []
        except (OSError, UnicodeDecodeError) as error:
            report.error(
                Mark(path, 1), "", "the file cannot be read", str(error), "it gives the stack file's variables"
            )
    values: dict[str, str] = {}
    for file in files:
        try:
            read = parse_env_file(file.text, {**values, **options.environment})
        except EnvFileError as error:
            report.error(Mark(file.name, error.line), "", error.what, "", error.hint)
            continue
        values.update({name: value for name, value in read.items() if value is not None})
    return {**values, **options.environment}


def _stack_name(roots: list[MapNode], options: Options, variables: Mapping[str, str], report: Report) -> str:
    mark: Mark | None = None
    name, where = options.stack, "--stack"
    if not name:
        for root in roots:
            node = root.entries.get("name")
            if node is not None and not is_null(node):
                replaced = interpolate(node, variables, "name", Report(), set())
                name, mark, where = getattr(replaced, "text", ""), root.mark_of("name"), "name"
    if not name:
        name, where = variables.get("COMPOSE_PROJECT_NAME", ""), "COMPOSE_PROJECT_NAME"
    if not name:
        name, where = folder_stack_name(options.folder), "the folder's name"
    problem = stack_name_problem(name)
    if problem:
        report.error(mark, where, f"{name!r} cannot name a stack", problem, "give a name with --stack NAME")
    return name


def _active_services(root: MapNode, profiles: frozenset[str], report: Report) -> MapNode:
    """The file without the services whose profiles are not active; says once which were left out."""
    services = root.entries.get("services")
    if not isinstance(services, MapNode):
        report.error(
            root.mark, "services", "there are no services", "a stack is made of them", "add one below `services:`"
        )
        return root
    kept: dict[str, Node] = {}
    known: set[str] = set()
    left_out = []
    for key, node in services.entries.items():
        if key.startswith("x-"):
            continue
        if not isinstance(node, MapNode):
            report.error(
                services.mark_of(key),
                f"services.{key}",
                "the service is empty",
                "it needs image or build",
                "add image: name:tag",
            )
            continue
        wanted = View(node, f"services.{key}", report).words("profiles")
        known.update(wanted)
        if not wanted or "*" in profiles or profiles & set(wanted):
            kept[key] = node
        else:
            left_out.append(f"{key} ({', '.join(wanted)})")
    for profile in sorted(profiles - known - {"*"}):
        report.error(
            None,
            "--profile",
            f"no service has the profile {profile!r}",
            "",
            nearest(profile, known) or "look at profiles: in the file",
        )
    if left_out:
        report.warn(
            None, "profiles", f"left out: {', '.join(left_out)}", "their profiles are not active", "use --profile NAME"
        )
    if not kept:
        report.error(
            services.mark,
            "services",
            "there are no services",
            "all of them are left out" if left_out else "",
            "add one, or use --profile",
        )
    return MapNode(
        {**root.entries, "services": MapNode(kept, services.mark, services.key_marks)}, root.mark, root.key_marks
    )
