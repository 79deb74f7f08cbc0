"""COPY and ADD: where each source lands, and how it is written into the step's layer.

Source: docker's Dockerfile reference, COPY and ADD, "Copying files and directories", "Destination", and ADD's
"Adding local tar archives".
"""

import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orch_agent.build.errors import ContextError
from orch_agent.build.sources import Source, SourceTree
from orch_agent.images.compression import opened
from orch_agent.images.errors import ArchiveRefused
from orch_agent.images.extract import Extractor
from orch_agent.images.limits import UnpackLimits
from orch_agent.images.merged import Attributes, LayerWriter, MergedTree, PathProblem
from orch_agent.images.tarstream import TarStream

_OCTAL = re.compile(r"0?[0-7]{3,4}\Z")
_ACCOUNTS_BYTES_MAX = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """One COPY or ADD with everything resolved."""

    tree: SourceTree
    sources: tuple[Source, ...]
    destination: str
    """Absolute; with a slash at its end if it must be a folder."""
    attributes: Attributes
    unpacked_attributes: Attributes
    """For what comes out of archives: its own owners, unless --chown was given."""
    parents: bool = False
    """--parents: sources keep the folders of their path, all below the destination."""


def run(plan: CopyPlan, writer: LayerWriter, staging: Path, limits: UnpackLimits) -> None:
    """Write the sources into the layer.

    Raises:
        ContextError: a source cannot go where it should.
        ArchiveRefused: an archive that ADD unpacks is hostile or damaged.
    """
    try:
        into_folder = _goes_into_folder(plan, writer)
        for source in plan.sources:
            if source.node.is_directory:
                _copy_folder(plan, source, writer)
            elif source.unpack and is_archive(source.node.source):
                _unpack(plan, source, writer, staging, limits)
            else:
                target = plan.destination.rstrip("/")
                writer.copy(source.node, f"{target}/{source.name}" if into_folder else target, plan.attributes)
    except PathProblem as error:
        raise ContextError(f"cannot copy to {plan.destination!r}: {error}") from error


def parse_mode(text: str) -> int | None:
    """The mode of `--chmod`, or None if it is not octal."""
    return int(text, 8) if _OCTAL.match(text) else None


def owner(text: str, tree: MergedTree) -> tuple[int, int]:
    """The ids of `--chown=user:group`, names looked up in the image's own /etc/passwd and /etc/group.

    Raises:
        ContextError: a name is not in the image.
    """
    user, colon, group = text.partition(":")
    uid, primary = _account(tree, "/etc/passwd", user)
    gid = _account(tree, "/etc/group", group)[0] if colon else primary
    return uid, gid


def is_archive(path: str) -> bool:
    """Whether a file is a tar, compressed or not, judged by its first header; an empty tar is none."""
    limits = UnpackLimits(entries=1_000_000)
    try:
        with Path(path).open("rb") as file:
            return next(iter(TarStream(opened(file)[1], limits)), None) is not None
    except ArchiveRefused:
        return False


def _goes_into_folder(plan: CopyPlan, writer: LayerWriter) -> bool:
    if plan.destination.endswith("/") or plan.parents:
        return True
    present = writer.tree.lookup(plan.destination)
    if present and present.is_directory:
        return True
    if len(plan.sources) > 1:
        raise ContextError(
            f"{len(plan.sources)} sources cannot become the one file {plan.destination!r}; "
            "end the destination with a slash to make it a folder"
        )
    return False


def _copy_folder(plan: CopyPlan, source: Source, writer: LayerWriter) -> None:
    destination = f"{plan.destination.rstrip('/')}/{source.name}" if plan.parents else plan.destination
    target = writer.make_directory(destination, plan.attributes)
    for relative, node in plan.tree.below(source.node):
        writer.copy(node, f"{target.rstrip('/')}/{relative}", plan.attributes)


def _unpack(plan: CopyPlan, source: Source, writer: LayerWriter, staging: Path, limits: UnpackLimits) -> None:
    """Unpack aside first, so that links in the image are heeded as for any copy, then copy."""
    aside = tempfile.mkdtemp(dir=staging)
    try:
        with Path(source.node.source).open("rb") as file:
            entries = TarStream(opened(file)[1], limits, require_end=True)
            Extractor(aside, limits, whiteouts=False).extract(entries)
        tree = MergedTree((aside,))
        target = writer.make_directory(plan.destination, plan.attributes)
        for node in tree.walk(tree.root()):
            writer.copy(node, f"{target.rstrip('/')}{node.path}", plan.unpacked_attributes)
    finally:
        shutil.rmtree(aside)


def _account(tree: MergedTree, file: str, name: str) -> tuple[int, int]:
    """The id of a name and its primary group; a number stands for itself (and its group)."""
    if name.isdigit() and len(name) < 11:
        return int(name), int(name)
    try:
        node = tree.lookup(file)
    except PathProblem as error:
        raise ContextError(f"--chown={name}: {error}") from error
    if node and not node.is_directory:
        with Path(node.source).open("rb") as accounts:
            text = accounts.read(_ACCOUNTS_BYTES_MAX).decode("utf-8", "replace")
        fields = _line_of(text.splitlines(), name)
        if fields:
            return int(fields[2]), int(fields[3]) if file == "/etc/passwd" else int(fields[2])
    raise ContextError(f"--chown: the image's {file} has no {name!r}; create it in an earlier RUN, or use its number")


def _line_of(lines: Sequence[str], name: str) -> list[str] | None:
    for line in lines:
        fields = line.split(":")
        if fields[0] == name and len(fields) >= 4 and fields[2].isdigit() and (fields[3].isdigit() or len(fields) == 4):
            return fields
    return None
