"""COPY and ADD beyond plain files, ONBUILD, and reproducible builds."""

import hashlib
import io
import os
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from orch_agent.build.builder import Builder
from orch_agent.build.errors import BuildError
from orch_agent.build.events import BuildEvent, EventKind
from orch_agent.build.runner import Output, StepCommand
from orch_agent.images.merged import MergedTree, Node
from orch_agent.images.model import ImageInfo
from orch_agent.images.store import ImageStore

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="layers hold owners: needs root")


class NoRunner:
    """These builds have no RUN."""

    def run(self, command: StepCommand, output: Output) -> int:
        raise AssertionError(f"{command} was run, {output} waits")


class Project:
    """A build's folder and a store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "context"
        self.folder.mkdir()
        self.store = ImageStore(folder / "images", durable=False)
        self.events: list[BuildEvent] = []

    def write(self, *names: str) -> None:
        for name in names:
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)

    def build(self, dockerfile: str, **options: object) -> ImageInfo:
        (self.folder / "Dockerfile").write_text(dockerfile)
        self.events.clear()
        builder = Builder(self.store, NoRunner())
        return builder.build(self.folder, progress=self.events.append, **options)  # type: ignore[arg-type]

    def cached(self) -> list[int]:
        return [event.step for event in self.events if event.kind is EventKind.CACHED]

    def node(self, info: ImageInfo, path: str) -> Node:
        node = MergedTree(self.store.lower_dirs(info)).lookup(path, follow=False)
        assert node is not None, f"{path} is not in the image"
        return node

    def text(self, info: ImageInfo, path: str) -> str:
        return Path(self.node(info, path).source).read_text()

    def paths(self, info: ImageInfo) -> list[str]:
        tree = MergedTree(self.store.lower_dirs(info))
        return [node.path for node in tree.walk(tree.root()) if not node.is_directory]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """An empty folder and store."""
    return Project(tmp_path)


def test_heredocs_become_files(project: Project) -> None:
    """COPY of heredocs writes files, with variables unless the word is quoted; quotes and escapes stay as they are."""
    info = project.build(
        """FROM scratch
ENV A=value
COPY --chmod=600 --chown=3:4 <<one <<-'two' /d/
it's "$A" ${A%ue} \\$A \\n
one
	$A
two
COPY <<EOF /named
EOF
"""
    )
    assert project.text(info, "/d/one") == 'it\'s "value" val $A \\n\n'
    assert project.text(info, "/d/two") == "$A\n"
    assert project.text(info, "/named") == ""
    status = project.node(info, "/d/one").status
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (3, 4, 0o600)
    assert project.node(info, "/named").status.st_mode & 0o777 == 0o644


def test_exclude_leaves_out_and_parents_keeps_folders(project: Project) -> None:
    """--exclude leaves out by pattern, also from the cache's key; --parents keeps paths, from the pivot on."""
    project.write("a/x.md", "a/y.txt", "a/deep/z.md", "a/deep/w.txt", "b/v.txt")
    dockerfile = """FROM scratch
COPY --exclude=*.md --exclude=**/z.md a /one/
COPY --parents a/deep/w.txt b /two/
COPY --parents a/./deep/*.txt /three
"""
    info = project.build(dockerfile)
    assert project.paths(info) == [
        "/one/deep/w.txt",
        "/one/y.txt",
        "/three/deep/w.txt",
        "/two/a/deep/w.txt",
        "/two/b/v.txt",
    ]
    (project.folder / "a/x.md").write_text("other")
    assert project.build(dockerfile).id == info.id
    assert project.cached() == [2, 3, 4]
    with pytest.raises(BuildError, match="leaves nothing to copy"):
        project.build("FROM scratch\nCOPY --exclude=*.txt b/v.txt /\n")


def _tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        member = tarfile.TarInfo("inside")
        member.size = 2
        archive.addfile(member, io.BytesIO(b"in"))
    return stream.getvalue()


@contextmanager
def _serving(contents: dict[str, bytes]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = contents.get(self.path)
            self.send_response(302 if self.path == "/away" else 200 if content is not None else 404)
            self.send_header("Content-Length", str(len(content or b"")))
            self.send_header("Last-Modified", "Thu, 01 Jan 2015 00:00:00 GMT")
            if self.path == "/away":
                self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *arguments: object) -> None:
            del arguments

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_add_fetches_from_the_web(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """ADD of an address gives a file of mode 0600 dated by the server, unpacked if asked; its content is the key."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    contents = {"/dir/f%20x?q=1": b"text", "/t.tgz": _tar()}
    with _serving(contents) as site:
        dockerfile = (
            f"FROM scratch\nADD {site}/dir/f%20x?q=1 /d/\nADD {site}/t.tgz /t.tgz\nADD --unpack {site}/t.tgz /u/\n"
        )
        info = project.build(dockerfile)
        assert project.paths(info) == ["/d/f x", "/t.tgz", "/u/inside"]
        status = project.node(info, "/d/f x").status
        assert (status.st_mode & 0o777, status.st_uid, int(status.st_mtime)) == (0o600, 0, 1420070400)
        project.build(dockerfile)
        assert project.cached() == [2, 3, 4]
        contents["/dir/f%20x?q=1"] = b"changed"
        assert project.text(project.build(dockerfile), "/d/f x") == "changed"
        digest = hashlib.sha256(b"changed").hexdigest()
        project.build(f"FROM scratch\nADD --checksum=sha256:{digest} {site}/dir/f%20x?q=1 /f\n")
        for line, message in {
            f"--checksum=sha256:{'0' * 64} {site}/t.tgz /f": "its digest is sha256:",
            f"--checksum=md5:1 {site}/t.tgz /f": "cannot be checked",
            f"{site}/missing /f": "404",
            f"{site}/away /f": "cannot be fetched",
            f"{site}/ /f/": "names no file",
            "--checksum=sha256:1 Dockerfile /f": "is for sources of the web",
            "https://example.org/r.git#main /f": "git repositories are not fetched",
        }.items():
            with pytest.raises(BuildError, match=r"Dockerfile:2: ") as caught:
                project.build(f"FROM scratch\nADD {line}\n")
            assert message in str(caught.value)
    assert list((project.store.root / "staging").iterdir()) == []


def test_add_can_leave_an_archive_as_it_is(project: Project) -> None:
    """ADD --unpack=false copies a local archive."""
    (project.folder / "t.tgz").write_bytes(_tar())
    info = project.build("FROM scratch\nADD t.tgz /a/\nADD --unpack=false t.tgz /b/\n")
    assert project.paths(info) == ["/a/inside", "/b/t.tgz"]


def test_onbuild_waits_for_the_next_image(project: Project) -> None:
    """ONBUILD does nothing in its own image, comes first in one built from it, once, and errors name the trigger."""
    project.write("f")
    base = project.build(
        "FROM scratch\nONBUILD ARG NAME=g\nONBUILD COPY f /$NAME\nONBUILD COPY <<EOF /h\nONBUILD text\nEOF\n"
        "ONBUILD ENV SET=1\n",
        tag="base",
    )
    assert project.paths(base) == []
    assert len(base.config.on_build) == 4
    child = project.build(
        "FROM base\nCOPY --from=base . /none/\nENV LATER=$SET\n", tag="child", build_args={"NAME": "n"}
    )
    assert project.paths(child) == ["/h", "/n"]
    assert project.text(child, "/h") == "ONBUILD text\n"
    assert "LATER=1" in child.config.env
    assert child.config.on_build == ()
    assert project.paths(project.build("FROM child\n")) == ["/h", "/n"]
    staged = project.build("FROM scratch AS one\nONBUILD COPY f /from-stage\nFROM one\n")
    assert project.paths(staged) == ["/from-stage"]


def test_the_source_date_makes_images_equal(tmp_path: Path) -> None:
    """With SOURCE_DATE_EPOCH two stores make the same image at any time, nothing in it later than that date."""
    ids = []
    for name, dated_s in (("one", 2_000_000_000), ("two", 2_000_000_500)):
        (tmp_path / name).mkdir()
        project = Project(tmp_path / name)
        project.write("a/f", "old")
        os.utime(project.folder / "a/f", (dated_s, dated_s))
        os.utime(project.folder / "a", (dated_s, dated_s))
        os.utime(project.folder / "old", (5, 5))
        dockerfile = "FROM scratch\nWORKDIR /w\nCOPY a new/\nCOPY old .\nCOPY <<EOF /h\nx\nEOF\n"
        info = project.build(dockerfile, build_args={"SOURCE_DATE_EPOCH": "1700000000"})
        ids.append(info.id)
        assert info.created == "2023-11-14T22:13:20Z"
        tree = MergedTree(project.store.lower_dirs(info))
        times = {node.path: int(node.status.st_mtime) for node in tree.walk(tree.root())}
        assert max(times.values()) == 1_700_000_000
        assert times["/w/old"] == 5
    assert ids[0] == ids[1]
    with pytest.raises(BuildError, match="is not a number of seconds"):
        project.build("FROM scratch\n", build_args={"SOURCE_DATE_EPOCH": "today"})


def test_labels_names_and_platform_of_the_caller(project: Project) -> None:
    """Labels of the caller win over the Dockerfile's, every name is given at once, another platform is refused."""
    info = project.build("FROM scratch\nLABEL a=1 b=2\n", tag="x:1", tags=["y:2"], labels={"a": "9"})
    assert dict(info.config.labels) == {"a": "9", "b": "2"}
    assert info.references == ("x:1", "y:2")
    with pytest.raises(BuildError, match=r"--platform=linux/s390x: this node builds for linux/"):
        project.build("FROM scratch\n", platform="linux/s390x")
    with pytest.raises(BuildError, match=r"--network=mine is unknown"):
        project.build("FROM scratch\n", network="mine")


def test_an_absent_base_image_is_fetched_once(project: Project, tmp_path: Path) -> None:
    """Where something can bring images, FROM and COPY --from bring what is absent, each name once."""
    project.write("f")
    asked: list[str] = []

    def fetch(name: str) -> None:
        asked.append(name)
        (tmp_path / "other").mkdir()
        (tmp_path / "other/Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /made\n")
        Builder(project.store, NoRunner()).build(tmp_path / "other", tag=name)

    (project.folder / "Dockerfile").write_text("FROM far:1 AS a\nFROM far:1\nCOPY --from=a /made /again\n")
    info = Builder(project.store, NoRunner(), fetch_image=fetch).build(project.folder)
    assert asked == ["far:1"]
    assert project.paths(info) == ["/again", "/made"]
