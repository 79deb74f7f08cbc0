import io
import os
import stat
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orch_agent.build.builder import Builder
from orch_agent.build.errors import BuildError, DockerfileError
from orch_agent.build.events import BuildEvent, EventKind
from orch_agent.build.runner import Output, StepCommand
from orch_agent.images.merged import MergedTree, Node
from orch_agent.images.model import ImageInfo
from orch_agent.images.store import ImageStore

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="layers hold owners: needs root")


class NoRunner:
    """These builds have no RUN: those that have are tried in tests/runtime_images."""

    def run(self, command: StepCommand, output: Output) -> int:
        raise AssertionError(f"{command} was run, {output} waits")


class Project:
    """A build's folder and a store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "context"
        self.folder.mkdir()
        self.store = ImageStore(folder / "images", durable=False)
        self.events: list[BuildEvent] = []

    def write(self, **contents: str) -> None:
        for name, text in contents.items():
            path = self.folder / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

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


def test_configuration_of_every_instruction(project: Project) -> None:
    """All instructions that set configuration arrive in the image, with variables replaced."""
    info = project.build(
        """ARG BASE=scratch
FROM ${BASE}
ARG VERSION=1
ENV A=$VERSION B="${A:-two} three"
ENV OLD form $A
LABEL v="$VERSION" multi=line
EXPOSE 80 90-92/udp $VERSION
VOLUME /data /logs
USER app:group
WORKDIR /srv
WORKDIR sub/../deep
STOPSIGNAL SIGQUIT
MAINTAINER me
SHELL ["/bin/bash", "-c"]
HEALTHCHECK --interval=1m30s --timeout=500ms --start-period=2s --retries=5 CMD ["check", "it"]
CMD run $A
ENTRYPOINT ["/entry"]
""",
        tag="t",
        build_args={"VERSION": "8"},
    )
    config = info.config
    assert config.env[1:] == ("A=8", "B=two three", "OLD=form 8")
    assert dict(config.labels) == {"v": "8", "multi": "line"}
    assert config.exposed_ports == ("8/tcp", "80/tcp", "90/udp", "91/udp", "92/udp")
    assert config.volumes == ("/data", "/logs")
    assert (config.user, config.working_dir, config.stop_signal, config.author) == (
        "app:group",
        "/srv/deep",
        "SIGQUIT",
        "me",
    )
    assert config.healthcheck is not None
    assert config.healthcheck.test == ("CMD", "check", "it")
    assert (config.healthcheck.interval_s, config.healthcheck.timeout_s) == (90.0, 0.5)
    assert (config.healthcheck.start_period_s, config.healthcheck.retries) == (2.0, 5)
    assert config.command == ("/entry", "/bin/bash", "-c", "run $A")
    assert project.store.resolve("t") == info
    assert project.node(info, "/srv/deep").is_directory


def test_an_entrypoint_ends_an_inherited_command(project: Project) -> None:
    """CMD of the base image does not survive a new ENTRYPOINT; one of the same stage does."""
    project.build('FROM scratch\nCMD ["base"]\n', tag="base")
    assert project.build('FROM base\nENTRYPOINT ["e"]\n').config.command == ("e",)
    assert project.build('FROM base\nCMD ["c"]\nENTRYPOINT ["e"]\n').config.command == ("e", "c")
    assert project.build("FROM base\nENV A=1\n").config.command == ("base",)


def test_where_sources_land(project: Project) -> None:
    """Files and folders land where docker's reference says, for each form of the destination."""
    project.write(a="A", b="B", d__x="X", d__e__y="Y")
    info = project.build(
        """FROM scratch
WORKDIR /w
COPY a file
COPY a dir/
COPY a b many/
COPY d tree
COPY d /w/tree/again/
COPY a tree
COPY d/e .
COPY ["b", "/abs/with space"]
COPY ./a /./x/../norm
"""
    )
    assert project.paths(info) == [
        "/abs/with space",
        "/norm",
        "/w/dir/a",
        "/w/file",
        "/w/many/a",
        "/w/many/b",
        "/w/tree/a",
        "/w/tree/again/e/y",
        "/w/tree/again/x",
        "/w/tree/e/y",
        "/w/tree/x",
        "/w/y",
    ]


def test_wildcards_choose_sources(project: Project) -> None:
    """Stars and brackets match within a folder, a match of a folder copies its content."""
    project.write(a1="1", a2="2", b1="3", d1__f="4", d2__g="5")
    info = project.build("FROM scratch\nCOPY a? /a/\nCOPY d[1-2] /d/\nCOPY d*/g /g\n")
    assert project.paths(info) == ["/a/a1", "/a/a2", "/d/f", "/d/g", "/g"]


def test_owners_and_modes(project: Project) -> None:
    """Files belong to root unless --chown says otherwise, by number or by a name of the image; --chmod sets modes."""
    project.write(a="A", passwd="app:x:7:8::/:/bin/sh\n", group="staff:x:50:\n")
    os.chown(project.folder / "a", 1234, 1234)
    (project.folder / "a").chmod(0o640)
    info = project.build(
        """FROM scratch
COPY passwd group /etc/
COPY a /plain
COPY --chown=app a /dir/user
COPY --chown=app:staff a /both
COPY --chown=9 --chmod=0711 a /number
"""
    )

    def of(path: str) -> tuple[int, int, int]:
        status = project.node(info, path).status
        return status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)

    assert of("/plain") == (0, 0, 0o640)
    assert of("/dir/user") == (7, 8, 0o640)
    assert of("/dir") == (7, 8, 0o755)
    assert of("/both") == (7, 50, 0o640)
    assert of("/number") == (9, 9, 0o711)
    with pytest.raises(BuildError, match=r"Dockerfile:3: --chown: .* has no 'nobody'"):
        project.build("FROM scratch\nCOPY passwd /etc/\nCOPY --chown=nobody a /a\n")


def test_links_in_the_context_stay_links_and_never_lead_out(project: Project) -> None:
    """Links within a copied folder are copied as links; a link named as source is followed within the folder only."""
    project.write(d__f="inside", etc__passwd="mine")
    (project.folder / "d/link").symlink_to("f")
    (project.folder / "d/out").symlink_to("/etc/passwd")
    (project.folder / "host").symlink_to("../../../../../../etc/passwd")
    info = project.build("FROM scratch\nCOPY d /d/\nCOPY d/link /followed\nCOPY host /host\nCOPY d/out /out\n")
    assert project.node(info, "/d/link").is_symlink
    assert project.node(info, "/d/out").is_symlink
    assert project.text(info, "/followed") == "inside"
    assert (project.text(info, "/host"), project.text(info, "/out")) == ("mine", "mine")


def test_a_destination_may_be_a_link_of_the_image(project: Project) -> None:
    """A file copied into a linked folder of the image lands in the folder that the link names, within the image."""
    project.write(a="A", d__usr__keep="")
    (project.folder / "d/lib").symlink_to("/usr")
    info = project.build("FROM scratch\nCOPY d /\nCOPY a /lib/a\nCOPY a /lib/\n")
    assert project.paths(info) == ["/lib", "/usr/a", "/usr/keep"]


def test_dockerignore_leaves_out(project: Project) -> None:
    """What .dockerignore names is neither copied nor part of the cache's key, but for its exceptions."""
    project.write(keep="k", drop__a="a", drop__b="b", log="x")
    (project.folder / ".dockerignore").write_text("log\ndrop\n!drop/b\n.dockerignore\nDockerfile\n")
    dockerfile = "FROM scratch\nCOPY . /\n"
    assert project.paths(project.build(dockerfile)) == ["/drop/b", "/keep"]
    project.write(log="changed", drop__a="changed")
    project.build(dockerfile)
    assert project.cached() == [2]
    with pytest.raises(BuildError, match=r"'log' is left out by \.dockerignore"):
        project.build("FROM scratch\nCOPY log /\n")


def test_stages_hand_on_files(project: Project) -> None:
    """COPY --from takes files of an earlier stage or an image, with their owners; unneeded stages are not built."""
    project.write(a="A")
    project.build("FROM scratch\nCOPY --chown=5:6 a /from-image\n", tag="other:1")
    dockerfile = """FROM scratch AS one
COPY --chown=3:4 a /made
FROM scratch as unneeded
COPY missing /
FROM One AS two
ENV FROM_ONE=1
COPY --from=one /made /copy
FROM scratch AS final
COPY --from=two /copy /made /
COPY --from=0 /made /zero
COPY --from=other:1 /from-image /
"""
    info = project.build(dockerfile)
    assert project.paths(info) == ["/copy", "/from-image", "/made", "/zero"]
    assert (project.node(info, "/zero").status.st_uid, project.node(info, "/from-image").status.st_gid) == (3, 6)
    assert "FROM_ONE=1" in project.build(dockerfile, target="two").config.env
    with pytest.raises(DockerfileError, match="no stage 'tow'; choose one of one, unneeded, two, final"):
        project.build(dockerfile, target="tow")


def test_the_cache_follows_content_not_times(project: Project) -> None:
    """A step is repeated when a name, mode or content of its sources changes, or a step before it; not for a time."""
    project.write(a="A", b="B")
    dockerfile = "FROM scratch\nCOPY a /a\nCOPY b /b\nWORKDIR /w\n"
    first = project.build(dockerfile)
    assert project.build(dockerfile).id == first.id
    assert project.cached() == [2, 3, 4]
    os.utime(project.folder / "a", (1, 1))
    project.build(dockerfile)
    assert project.cached() == [2, 3, 4]
    (project.folder / "b").chmod(0o600)
    project.build(dockerfile)
    assert project.cached() == [2]
    project.write(a="changed")
    assert project.text(project.build(dockerfile), "/a") == "changed"
    assert project.cached() == []


def test_the_cache_outlives_images_and_is_no_trap(project: Project) -> None:
    """Removing an image keeps the cache; clearing the cache frees its layers, and building works again."""
    project.write(a="A")
    dockerfile = "FROM scratch\nCOPY a /a\n"
    info = project.build(dockerfile, tag="t")
    project.store.remove("t", in_use=())
    assert project.build(dockerfile, tag="t").id == info.id
    assert project.cached() == [2]
    project.store.remove("t", in_use=())
    assert project.store.steps.clear() == 1
    assert project.store.collect_garbage() == 1
    assert project.text(project.build(dockerfile), "/a") == "A"


def _archive(path: Path, compression: str, *members: tuple[str, str]) -> None:
    with tarfile.open(path, f"w:{compression}") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.uid, info.mtime = len(content), 42, 5
            archive.addfile(info, io.BytesIO(content.encode()))


@pytest.mark.parametrize("compression", ["", "gz", "bz2", "xz"])
def test_add_unpacks_local_archives_and_copy_does_not(project: Project, compression: str) -> None:
    """ADD unpacks an archive whatever its name, with its owners; COPY copies it as it is."""
    _archive(project.folder / "data", compression, ("d/f", "in the archive"))
    project.write(plain="text")
    info = project.build("FROM scratch\nADD data plain /add/\nCOPY data /copy/\n")
    assert project.paths(info) == ["/add/d/f", "/add/plain", "/copy/data"]
    assert project.node(info, "/add/d/f").status.st_uid == 42


def test_add_of_a_hostile_archive_is_refused(project: Project) -> None:
    """An archive that climbs out is refused with the line of ADD, and leaves nothing."""
    _archive(project.folder / "data", "gz", ("../../evil", "x"))
    with pytest.raises(BuildError, match=r"Dockerfile:2: .*climbs"):
        project.build("FROM scratch\nADD data /\n")
    assert list((project.store.root / "staging").iterdir()) == []


@pytest.mark.parametrize(
    ("dockerfile", "message"),
    [
        ("FROM nothing:1", "Dockerfile:1: no image 'nothing:1' on this node"),
        ("FROM scratch\nCOPY missing /", "Dockerfile:2: 'missing' does not exist in the build's folder"),
        ("FROM scratch\nCOPY ../a /", "leads out of the build's folder"),
        ("FROM scratch\nCOPY no* /", "'no*' does not exist"),
        ("FROM scratch\nCOPY a b /file", "end the destination with a slash"),
        ("FROM scratch\nCOPY a /f\nCOPY b /f/", "is a file"),
        ("FROM scratch\nCOPY --chmod=u+x a /", "not an octal mode"),
        ("FROM scratch\nADD https://example.org/x.git /", "git repositories are not fetched"),
        ("FROM scratch AS one\nCOPY --from=later a /\nFROM one AS later", "no image 'later'"),
        ("FROM scratch\nEXPOSE 99999", "Dockerfile:2: EXPOSE: '99999' is not a port"),
        ("FROM scratch\nHEALTHCHECK --interval=soon CMD x", "is not a duration"),
        ("FROM scratch\nHEALTHCHECK x", "HEALTHCHECK takes CMD"),
        ("FROM scratch\nUSER ${NOBODY}", "USER: '' is not a user"),
        ("FROM scratch\nSTOPSIGNAL stop", "is not a signal"),
        ('FROM scratch\nENV A="${B:?is needed}"', "the variable B is not set: is needed"),
        ("FROM scratch\nARG 1A", "'1A' is not a name"),
        ("FROM ${X}", "names no image"),
        ("FROM --platform=linux/vax scratch", "builds for linux/"),
    ],
)
def test_each_mistake_names_its_line_and_keeps_no_image(project: Project, dockerfile: str, message: str) -> None:
    """A build that cannot be done says why, with file and line, and leaves no image."""
    project.write(a="A", b="B")
    with pytest.raises(BuildError) as caught:
        project.build(dockerfile, tag="t")
    assert message in str(caught.value)
    assert project.store.list() == ()


def test_unused_build_arguments_are_told(project: Project) -> None:
    """A build argument that no ARG takes gives a warning; one that docker predefines does not."""
    project.build("FROM scratch\nARG A\n", build_args={"A": "1", "B": "2", "HTTP_PROXY": "p"})
    warnings = [event.text for event in project.events if event.kind is EventKind.WARNING]
    assert warnings == ["the build argument B is used by no ARG"]


def test_a_missing_dockerfile_is_explained(project: Project) -> None:
    """Without a Dockerfile the message names the path and the option."""
    with pytest.raises(BuildError, match=r"there is no .*/Dockerfile; .*--file"):
        Builder(project.store, NoRunner()).build(project.folder)


def test_many_builds_at_once_share_a_store(project: Project) -> None:
    """Builds that run at the same time in one store do not disturb each other."""
    project.write(a="A")
    (project.folder / "Dockerfile").write_text("FROM scratch\nARG N\nCOPY a /$N\nCOPY a /same\n")
    build: Callable[[int], ImageInfo] = lambda n: Builder(project.store, NoRunner()).build(  # noqa: E731
        project.folder, tag=f"t{n}", build_args={"N": str(n)}
    )
    with ThreadPoolExecutor(4) as pool:
        infos = list(pool.map(build, range(8)))
    assert [project.paths(info) for info in infos] == [[f"/{n}", "/same"] for n in range(8)]
    assert len(project.store.list()) == 8


def test_a_linked_dockerfile_is_read_within_the_folder(project: Project, tmp_path: Path) -> None:
    """A Dockerfile or ignore file that is a link leads within the build's folder, so none of the host's is shown."""
    (tmp_path / "secret").write_text("SECRET of the host\n")
    (project.folder / "Dockerfile").symlink_to(tmp_path / "secret")
    with pytest.raises(BuildError) as caught:
        Builder(project.store, NoRunner()).build(project.folder)
    assert "SECRET" not in str(caught.value)
    (project.folder / "Dockerfile").unlink()
    project.write(real__Dockerfile="FROM scratch\nENV A=1\n")
    (project.folder / "Dockerfile").symlink_to("/real/Dockerfile")
    assert "A=1" in Builder(project.store, NoRunner()).build(project.folder).config.env
