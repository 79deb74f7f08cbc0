"""Prepares COPY and ADD: what is copied from where, and what the layer cache knows the step by."""

import posixpath
import secrets
from dataclasses import replace
from pathlib import Path

from orch_agent.build import copying, fetching, sources
from orch_agent.build.expand import ExpansionError, expand_text
from orch_agent.build.job import Job, Prepared
from orch_agent.build.lexer import Heredoc
from orch_agent.build.parser import Instruction
from orch_agent.build.runner import Output
from orch_agent.build.sources import Source, SourceTree
from orch_agent.build.stages import Stage
from orch_agent.build.state import StageState
from orch_agent.images.limits import DEFAULT_UNPACK_LIMITS
from orch_agent.images.merged import Attributes, LayerWriter, MergedTree


def prepare(job: Job, stage: Stage, state: StageState, item: Instruction) -> Prepared:
    """The step of a COPY or ADD; sources are found and digested now, files of the web fetched.

    Raises:
        DockerfileError: an option is wrong.
        ContextError: a source is missing.
        BuildError: something cannot be fetched.
    """
    words = item.args if item.json_form else tuple(job.expanded(state, item, word) for word in item.args)
    origin = job.origin(job.expanded(state, item, item.flags.get("from", "")), stage)
    tree = origin.tree.excluding(item.repeated["exclude"]) if "exclude" in item.repeated else origin.tree
    attributes = _attributes(job, state, item)
    found: list[Source] = []
    checksums: list[str] = []
    heredocs = {f"<<{doc.name}": doc for doc in item.heredocs}
    for original, word in zip(item.args[:-1], words[:-1], strict=True):
        document = heredocs.get(original.replace("<<-", "<<").replace('"', "").replace("'", ""))
        if document and not item.json_form:
            found.append(_heredoc(job, state, item, document))
        elif item.keyword == "ADD" and fetching.is_remote(word):
            source, checksum = _fetched(job, item, word, words[-1])
            found.append(source)
            checksums.append(checksum)
        else:
            found += _local(tree, word, item)
    if not found:
        raise job.plan.dockerfile.error(item.line, f"{item.keyword}: --exclude leaves nothing to copy; remove the line")
    if checksums == [] and item.flags.get("checksum"):
        raise job.plan.dockerfile.error(item.line, "ADD --checksum is for sources of the web; leave it out")
    plan = copying.CopyPlan(
        tree,
        tuple(found),
        _destination(state, words[-1]),
        attributes,
        attributes if "chown" in item.flags else Attributes(mode=attributes.mode),
        parents=bool(item.flags.get("parents")),
    )

    def write(folder: Path, lower: tuple[str, ...], _output: Output) -> None:
        copying.run(plan, LayerWriter(str(folder / "diff"), lower), folder, DEFAULT_UNPACK_LIMITS)

    key = {
        "step": item.keyword,
        "destination": plan.destination,
        "owner": [attributes.uid, attributes.gid, attributes.mode, "chown" in item.flags],
        "content": sources.digest(tree, found, attributes),
        "how": [plan.parents, [source.unpack for source in found]],
    }
    return Prepared(key, write)


def _local(tree: SourceTree, word: str, item: Instruction) -> tuple[Source, ...]:
    """What a path or pattern names; with --parents under its path from the pivot `/./` on."""
    found = tree.find(word)
    unpack = item.keyword == "ADD" and item.flags.get("unpack") != ""
    if not item.flags.get("parents"):
        return tuple(replace(source, unpack=unpack) for source in found)
    before, pivot, _ = word.partition("/./")
    skipped = len([part for part in before.split("/") if part not in ("", ".")]) if pivot else 0
    return tuple(replace(source, name="/".join(source.path.split("/")[skipped:])) for source in found)


def _heredoc(job: Job, state: StageState, item: Instruction, document: Heredoc) -> Source:
    body = document.body
    if document.expand:
        try:
            body = expand_text(body, state.variables, escape=job.plan.dockerfile.escape)
        except ExpansionError as error:
            raise job.plan.dockerfile.error(item.line, f"{item.keyword} <<{document.name}: {error}") from error
    folder = job.scratch / secrets.token_hex(8)
    folder.mkdir()
    path = folder / document.name
    path.write_text(body, encoding="utf-8", errors="surrogateescape")
    path.chmod(0o644)
    return _alone(path, document.name)


def _fetched(job: Job, item: Instruction, url: str, destination: str) -> tuple[Source, str]:
    if fetching.is_git(url):
        raise job.plan.dockerfile.error(
            item.line, f"ADD {url}: git repositories are not fetched; clone it into the build's folder, or in a RUN"
        )
    checksum = item.flags.get("checksum", "")
    if checksum and not fetching.is_checksum(checksum):
        raise job.plan.dockerfile.error(
            item.line, f"ADD --checksum={checksum[:80]} cannot be checked; write sha256: and 64 hexadecimal digits"
        )
    name = fetching.file_name(url)
    if not name and destination.endswith("/"):
        raise job.plan.dockerfile.error(
            item.line, f"ADD {url}: the address names no file; write the file's name into the destination"
        )
    path, digest = fetching.fetch(url, job.scratch, checksum=checksum)
    return replace(_alone(path, name or path.name), unpack=bool(item.flags.get("unpack"))), digest


def _alone(path: Path, name: str) -> Source:
    """A file made for this build as a source."""
    node = MergedTree((str(path.parent),)).lookup(f"/{path.name}", follow=False)
    assert node is not None
    return Source(node, name, name)


def _destination(state: StageState, word: str) -> str:
    path = posixpath.join("/", state.config.working_dir, word)
    folder = word.endswith(("/", "/.")) or word in (".", "..")
    path = posixpath.normpath(path).replace("//", "/").rstrip("/") + ("/" if folder else "")
    return path or "/"


def _attributes(job: Job, state: StageState, item: Instruction) -> Attributes:
    from_context = "from" not in item.flags
    uid = gid = 0 if from_context else None
    if "chown" in item.flags:
        owner = job.expanded(state, item, item.flags["chown"])
        uid, gid = copying.owner(owner, MergedTree(job.lower_dirs(state)))
    mode = None
    if "chmod" in item.flags:
        text = job.expanded(state, item, item.flags["chmod"])
        mode = copying.parse_mode(text)
        if mode is None:
            raise job.plan.dockerfile.error(item.line, f"--chmod={text} is not an octal mode such as 644 or 0755")
    return Attributes(uid, gid, mode)
