"""What COPY and ADD read: the build's folder, or the files of an earlier stage or image; found, filtered, digested."""

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from orch_agent.build.errors import ContextError
from orch_agent.build.patterns import IgnoreRules, PatternError, component_regex, has_wildcard
from orch_agent.images.merged import Attributes, MergedTree, Node, PathProblem

_CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Source:
    """One thing to copy: a file, or a folder with what is below it."""

    node: Node
    name: str
    """Its own name, which it keeps when it is copied into a folder."""
    path: str = ""
    """As it was named or matched, from the tree's root, without links resolved."""
    unpack: bool = False
    """ADD's habit: an archive is unpacked."""


class SourceTree:
    """A tree that COPY reads from."""

    def __init__(
        self, tree: MergedTree, *, ignore: IgnoreRules | None, described: str, excluded: IgnoreRules | None = None
    ) -> None:
        """Read from `tree` without what `ignore` leaves out; `described` names it in errors.

        `excluded` leaves out more, by the path relative to each copied folder.
        """
        self._tree = tree
        self._ignore = ignore
        self._described = described
        self._excluded = excluded

    @property
    def is_filtered(self) -> bool:
        """Whether `.dockerignore` leaves something out."""
        return self._ignore is not None

    def excluding(self, patterns: Sequence[str]) -> "SourceTree":
        """The same tree for one COPY with `--exclude`.

        Raises:
            ContextError: a pattern is malformed.
        """
        try:
            rules = IgnoreRules(patterns)
        except PatternError as error:
            raise ContextError(f"--exclude: {error}; correct the pattern") from error
        return SourceTree(self._tree, ignore=self._ignore, described=self._described, excluded=rules)

    def find(self, path: str) -> tuple[Source, ...]:
        """The sources that a path or pattern names, sorted.

        Raises:
            ContextError: nothing is there, or all of it is ignored.
        """
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise ContextError(f"{path!r} leads out of {self._described}; copy only from within it")
        try:
            found = self._matches(parts) if has_wildcard(path) else self._exact(parts)
        except (PatternError, PathProblem) as error:
            raise ContextError(f"{path!r} cannot be copied from {self._described}: {error}") from error
        if found and self._excluded:
            excluded = self._excluded
            found = tuple(
                source
                for source in found
                if source.node.is_directory or not (excluded.ignores(source.name) or excluded.ignores(source.path))
            )
        elif not found:
            why = "is left out by .dockerignore or does not exist" if self._ignore else "does not exist"
            raise ContextError(f"{path!r} {why} in {self._described}; check the path, which is relative to it")
        return found

    def below(self, folder: Node) -> Iterator[tuple[str, Node]]:
        """Everything below a folder with its path relative to it, ignored things left out."""
        pending = list(reversed(self._tree.children(folder)))
        start = len(folder.path.rstrip("/")) + 1
        while pending:
            node = pending.pop()
            relative = node.path[start:]
            excluded = self._excluded is not None and self._excluded.ignores(relative)
            ignored = excluded or self._ignores(node)
            if not ignored and not stat.S_ISSOCK(node.status.st_mode):
                yield relative, node
            if node.is_directory and (not ignored or _has_exceptions(self._ignore, self._excluded)):
                pending += reversed(self._tree.children(node))

    def _exact(self, parts: list[str]) -> tuple[Source, ...]:
        node = self._tree.lookup("/" + "/".join(parts))
        if node is None or (parts and not node.is_directory and self._ignores(node)):
            return ()
        return (Source(node, parts[-1] if parts else "", "/".join(parts)),)

    def _matches(self, parts: list[str]) -> tuple[Source, ...]:
        nodes = [self._tree.root()]
        for index, part in enumerate(parts):
            regex = component_regex(part)
            children = [
                child
                for node in nodes
                for child in self._tree.children(node)
                if regex.match(child.path.rpartition("/")[2])
            ]
            if index < len(parts) - 1:
                followed = [self._tree.lookup(child.path) for child in children]
                children = [child for child in followed if child and child.is_directory]
            nodes = children
        kept = [node for node in nodes if not self._ignores(node)]
        targets = [(self._tree.lookup(node.path), node.path) for node in kept]
        return tuple(Source(node, path.rpartition("/")[2], path.lstrip("/")) for node, path in targets if node)

    def _ignores(self, node: Node) -> bool:
        return self._ignore is not None and self._ignore.ignores(node.path.lstrip("/"))


def context_tree(context: Path, dockerfile: Path) -> SourceTree:
    """The build's folder as a source, with its `.dockerignore` (or `Dockerfile.dockerignore`) heeded.

    Raises:
        ContextError: the folder does not exist or the ignore file is malformed.
    """
    if not context.is_dir():
        raise ContextError(f"the build's folder {context} does not exist; name a folder")
    own = dockerfile.with_name(f"{dockerfile.name}.dockerignore")
    rules = None
    for ignore_file in (own, context / ".dockerignore"):
        found = within(context, ignore_file)
        if found is None or not found.is_file():
            continue
        try:
            rules = IgnoreRules(found.read_text(encoding="utf-8-sig").splitlines())
            break
        except (PatternError, UnicodeDecodeError) as error:
            raise ContextError(f"{ignore_file}: {error}; correct the line") from error
    tree = MergedTree((str(context.resolve()),))
    return SourceTree(tree, ignore=rules, described=f"the build's folder {context}")


def within(context: Path, path: Path) -> Path | None:
    """Where a file of the build's folder lies, links resolved within the folder, not on the host; None if nowhere.

    A path that is not below the folder is returned as it is: its choice is the caller's.

    Raises:
        ContextError: the links loop, or lead through a file.
    """
    if context not in path.parents:
        return path
    try:
        node = MergedTree((str(context.resolve()),)).lookup("/" + str(path.relative_to(context)))
    except PathProblem as error:
        raise ContextError(f"{path}: {error}") from error
    return Path(node.source) if node else None


def _has_exceptions(*rules: IgnoreRules | None) -> bool:
    return any(rule is not None and rule.has_exceptions for rule in rules)


def digest(tree: SourceTree, sources: Iterable[Source], attributes: Attributes) -> str:
    """The digest of what would be copied: names, kinds, modes, owners, contents; not times."""
    total = hashlib.sha256()
    for source in sources:
        total.update(_record(source.name, source.node, attributes))
        if source.node.is_directory:
            for relative, node in tree.below(source.node):
                total.update(_record(relative, node, attributes))
    return total.hexdigest()


def _record(name: str, node: Node, attributes: Attributes) -> bytes:
    status = node.status
    content = ""
    if node.is_symlink:
        content = os.readlink(node.source)  # noqa: PTH115 - the link's text, not a path of the host
    elif stat.S_ISREG(status.st_mode):
        content = _file_digest(node.source)
    fields = (
        name,
        stat.S_IFMT(status.st_mode),
        stat.S_IMODE(status.st_mode) if attributes.mode is None else attributes.mode,
        status.st_uid if attributes.uid is None else attributes.uid,
        status.st_gid if attributes.gid is None else attributes.gid,
        content,
    )
    return json.dumps(fields).encode("utf-8", "surrogateescape") + b"\n"


def _file_digest(path: str) -> str:
    total = hashlib.sha256()
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        while data := file.read(_CHUNK_BYTES):
            total.update(data)
    return total.hexdigest()
