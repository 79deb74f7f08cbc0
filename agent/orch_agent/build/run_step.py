"""Prepares RUN: its command, its mounts, and what the layer cache knows the step by."""

import contextlib
import os
import posixpath
import secrets
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orch_agent.build import metadata, mount_specs, sources, stages
from orch_agent.build.errors import BuildError, DockerfileError, StepFailed
from orch_agent.build.job import Job, Origin, Prepared
from orch_agent.build.mount_specs import MountSpec
from orch_agent.build.parser import Instruction
from orch_agent.build.runner import Output, StepCommand, StepMount
from orch_agent.build.sources import Source
from orch_agent.build.stages import Stage
from orch_agent.build.state import StageState
from orch_agent.images.merged import Attributes, LayerWriter
from orch_agent.images.rootfs import DEFAULT_PATH

NETWORKS = ("default", "host", "none")
_SCRIPTS = "/dev/pipes"
"""Where heredocs that name their own interpreter stand (as in BuildKit)."""


def prepare(job: Job, stage: Stage, state: StageState, item: Instruction) -> Prepared:
    """The step of a RUN.

    Raises:
        DockerfileError: an option is wrong.
        ContextError: the source of a bind mount is missing.
        BuildError: a required secret was not given.
    """

    def fail(message: str) -> DockerfileError:
        return job.plan.dockerfile.error(item.line, message)

    working_dir, user = state.config.working_dir or "/", state.config.user
    specs = mount_specs.read(item, working_dir, lambda word: job.expanded(state, item, word), fail)
    network = job.expanded(state, item, item.flags.get("network", job.network))
    if network not in NETWORKS:
        raise fail(f"RUN --network={network} is unknown; choose one of {', '.join(NETWORKS)}")
    if item.flags.get("security", "sandbox") != "sandbox":
        raise fail("RUN --security=insecure is not given to builds; leave it out")
    environment, key_environment = _environment(job, state, specs)
    args, script = _command(state, item)
    binds = {index: _bound(job, stage, spec) for index, spec in enumerate(specs) if spec.kind == "bind"}

    def write(folder: Path, lower: tuple[str, ...], output: Output) -> None:
        (folder / "work").mkdir()
        with contextlib.ExitStack() as held:
            mounter = _Mounter(job, stage, folder, held, fail)
            made = [mounter.mount(spec, binds.get(index)) for index, spec in enumerate(specs)]
            mounts = [mount for mount in made if mount]
            if script:
                mounts.append(_script_file(folder, item.heredocs[0].name, script))
            command = StepCommand(
                lower,
                str(folder / "diff"),
                str(folder / "work"),
                args,
                environment,
                working_dir,
                user,
                tuple(mounts),
                host_network=network != "none",
                stop=job.stop,
            )
            code = job.runner.run(command, output)
        if code != 0:
            raise StepFailed(
                f"{job.plan.dockerfile.file}:{item.line}: {item.text}: the command ended with exit code {code}; "
                "its output above says why",
                exit_code=code,
            )

    key: dict[str, object] = {
        "step": "RUN",
        "args": args,
        "script": script,
        "env": key_environment,
        "cwd": working_dir,
        "user": user,
    }
    if specs:
        key["mounts"] = [_key(spec, binds.get(index)) for index, spec in enumerate(specs)]
    if network == "none":
        key["network"] = network
    return Prepared(key, write)


def _environment(job: Job, state: StageState, specs: Sequence[MountSpec]) -> tuple[tuple[str, ...], list[str]]:
    """The command's environment, and the part of it that the cache's key holds: no proxies, no secrets."""
    predefined = {name: value for name, value in job.build_args.items() if name in stages.PREDEFINED_ARGS}
    env = {**predefined, **state.args, **state.environment}
    env.setdefault("PATH", DEFAULT_PATH.partition("=")[2])
    kept = sorted(f"{name}={value}" for name, value in env.items() if name not in stages.PREDEFINED_ARGS)
    for spec in specs:
        content = job.secrets.content(spec.id) if spec.kind == "secret" and spec.env else None
        if content is not None:
            env[spec.env] = content.decode("utf-8", "surrogateescape")
    return tuple(f"{name}={value}" for name, value in env.items()), kept


def _command(state: StageState, item: Instruction) -> tuple[tuple[str, ...], str]:
    """The argument list, and the text of a script that names its own interpreter (else empty)."""
    if not item.heredocs:
        return metadata.command_of(state.config, item), ""
    shell = state.config.shell or metadata.DEFAULT_SHELL
    line = item.args[0]
    alone = line.strip() in {
        f"<<{dash}{quote}{doc.name}{quote}" for doc in item.heredocs for dash in ("", "-") for quote in ("", '"', "'")
    }
    if alone and item.heredocs[0].body.startswith("#!"):
        return (*shell, f"{_SCRIPTS}/{item.heredocs[0].name}"), item.heredocs[0].body
    if alone:
        return (*shell, item.heredocs[0].body), ""
    return (*shell, line + "\n" + "".join(f"{doc.body}{doc.name}\n" for doc in item.heredocs)), ""


# ---- mounts --------------------------------------------------------------------------------------


def _bound(job: Job, stage: Stage, spec: MountSpec) -> tuple[Origin, Source]:
    origin = job.origin(spec.origin, stage)
    found = origin.tree.find(posixpath.normpath(spec.source).lstrip("/") or ".")
    if len(found) != 1:
        raise BuildError(f"--mount: source={spec.source} names {len(found)} things; name one file or folder")
    return origin, found[0]


def _key(spec: MountSpec, bound: tuple[Origin, Source] | None) -> list[object]:
    """What the result depends on: the content of binds; of caches and secrets only where they stand (as BuildKit)."""
    content: object = ""
    if bound:
        origin, source = bound
        content = (
            sources.digest(origin.tree, [source], Attributes()) if origin.is_context else [origin.chain_id, spec.source]
        )
    return [spec.kind, spec.target, spec.id, spec.env, spec.read_only, spec.mode, spec.uid, spec.gid, content]


@dataclass(frozen=True, slots=True)
class _Mounter:
    """Makes the mounts of one step for the time of `held`."""

    job: Job
    stage: Stage
    folder: Path
    held: contextlib.ExitStack
    fail: mount_specs.Fail

    def mount(self, spec: MountSpec, bound: tuple[Origin, Source] | None) -> StepMount | None:
        """The mount; None for an optional secret that was not given, or one that is only a variable."""
        match spec.kind:
            case "bind":
                assert bound is not None
                source = _bind_source(*bound, self.folder, read_only=spec.read_only)
                return StepMount(spec.target, source, spec.read_only)
            case "cache":
                folder = self.held.enter_context(
                    self.job.caches.use(spec, lambda target: self._fill(spec, target), self.job.stop)
                )
                return StepMount(spec.target, str(folder), spec.read_only)
            case "tmpfs":
                size = () if spec.size_bytes is None else (f"size={spec.size_bytes}",)
                return StepMount(spec.target, "", read_only=False, options=("mode=1777", *size))
            case "secret":
                return self._secret(spec)
            case _:
                if spec.required:
                    raise self.fail("RUN --mount=type=ssh: no agent's keys are passed on; use a secret")
                self.job.log.tell_warning("RUN --mount=type=ssh: no agent's keys are passed on; the step has none")
                return None

    def _fill(self, spec: MountSpec, target: Path) -> None:
        """The first content of a cache."""
        if spec.origin:
            origin, source = _bound(self.job, self.stage, spec)
            _copy_tree(origin, source, target, link=False)

    def _secret(self, spec: MountSpec) -> StepMount | None:
        if self.job.secrets.content(spec.id) is None:
            if spec.required:
                raise self.fail(f"RUN needs the secret {spec.id}; give it by --secret id={spec.id},src=FILE")
            self.job.log.tell_warning(f"the secret {spec.id} was not given; the step runs without it")
            return None
        if not spec.target:
            return None
        return StepMount(spec.target, str(self.held.enter_context(self.job.secrets.file(spec))), read_only=True)


def _bind_source(origin: Origin, source: Source, folder: Path, *, read_only: bool) -> str:
    """What is mounted: the thing itself where it stands in one folder and is only read, else a copy beside the step."""
    node = source.node
    if read_only and not node.is_directory:
        return node.source
    if read_only and len(node.folders) == 1 and not origin.tree.is_filtered:
        return node.folders[0]
    copy = folder / f"bind-{secrets.token_hex(4)}"
    if node.is_directory:
        copy.mkdir()
        _copy_tree(origin, source, copy, link=read_only)
    else:
        copy.mkdir()
        LayerWriter(str(copy), ()).copy(node, "/file", Attributes())
        return str(copy / "file")
    return str(copy)


def _copy_tree(origin: Origin, source: Source, target: Path, *, link: bool) -> None:
    """Put what a folder holds into `target`; with `link` the files are the same ones, for reading only."""
    writer = LayerWriter(str(target), ())
    status = source.node.status
    target.chmod(stat.S_IMODE(status.st_mode))
    os.chown(target, status.st_uid, status.st_gid)
    for relative, node in origin.tree.below(source.node):
        if link and stat.S_ISREG(node.status.st_mode):
            try:
                os.link(node.source, target / relative, follow_symlinks=False)
            except OSError:  # another file system, or too many links
                shutil.copy2(node.source, target / relative, follow_symlinks=False)
        else:
            writer.copy(node, f"/{relative}", Attributes())


def _script_file(folder: Path, name: str, text: str) -> StepMount:
    path = folder / "script"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    path.chmod(0o755)
    return StepMount(f"{_SCRIPTS}/{name}", str(path), read_only=True)
