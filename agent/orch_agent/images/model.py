"""What an image is, as values: its configuration and its place in the store.

Source of the JSON form: OCI image specification, config.md; HEALTHCHECK and Shell as docker adds them.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orch_agent.images.errors import ArchiveRefused

NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """An image's health check; None leaves a time at the default of who runs it."""

    test: tuple[str, ...]
    """`("CMD", arg...)`, `("CMD-SHELL", line)`, or `("NONE",)` to switch an inherited check off."""
    interval_s: float | None = None
    timeout_s: float | None = None
    start_period_s: float | None = None
    start_interval_s: float | None = None
    retries: int | None = None


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What an image says about how to run it."""

    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    user: str = ""
    working_dir: str = ""
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    stop_signal: str = ""
    healthcheck: HealthCheck | None = None
    shell: tuple[str, ...] | None = None
    architecture: str = ""
    os: str = "linux"
    variant: str = ""
    author: str = ""
    on_build: tuple[str, ...] = ()
    """Instructions for builds that begin from this image (docker's ONBUILD)."""

    @property
    def command(self) -> tuple[str, ...]:
        """The argument list a task runs when its service names none."""
        return (self.entrypoint or ()) + (self.cmd or ())


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """One image of this node."""

    id: str
    """Digest of its config document, `sha256:...`."""
    references: tuple[str, ...]
    """Names in the short form (`web:latest`), sorted; empty for an image that lost its name."""
    config: ImageConfig
    diff_ids: tuple[str, ...]
    """Digests of the uncompressed layers, lowest first."""
    chain_ids: tuple[str, ...]
    """Names of the stacks of layers, lowest first: what layers are shared by."""
    size_bytes: int
    """Bytes of the files in all its layers, shared ones included."""
    created: str
    """RFC 3339 time from the config; empty when it has none."""
    manifest_digest: str = ""
    """Digest of the manifest it was loaded by; empty for images built or imported here."""


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One instruction of the build that made an image."""

    created_by: str
    empty_layer: bool
    created: str = ""
    comment: str = ""


@dataclass(frozen=True, slots=True)
class ConfigDocument:
    """A config document read and checked."""

    config: ImageConfig
    diff_ids: tuple[str, ...]
    history: tuple[HistoryEntry, ...]
    created: str


def read_config(raw: bytes) -> ConfigDocument:
    """Read a config document.

    Raises:
        ArchiveRefused: it is not JSON of the shape that the OCI specification gives.
    """
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ArchiveRefused(f"the image's config is not JSON ({error}); make the archive again") from error
    reader = _Reader("config")
    top = reader.mapping(document, "")
    rootfs = reader.mapping(top.get("rootfs"), "rootfs")
    if rootfs.get("type", "layers") != "layers":
        raise ArchiveRefused("the image's config has a rootfs that is not made of layers; orch runs OCI images only")
    inner = reader.mapping(top.get("config"), "config")
    config = ImageConfig(
        env=tuple(reader.strings(inner.get("Env"), "config.Env") or ()),
        entrypoint=_maybe_tuple(reader.strings(inner.get("Entrypoint"), "config.Entrypoint")),
        cmd=_maybe_tuple(reader.strings(inner.get("Cmd"), "config.Cmd")),
        user=reader.string(inner.get("User"), "config.User"),
        working_dir=reader.string(inner.get("WorkingDir"), "config.WorkingDir"),
        exposed_ports=tuple(sorted(reader.mapping(inner.get("ExposedPorts"), "config.ExposedPorts"))),
        volumes=tuple(sorted(reader.mapping(inner.get("Volumes"), "config.Volumes"))),
        labels={
            key: reader.string(value, f"config.Labels[{key}]")
            for key, value in reader.mapping(inner.get("Labels"), "config.Labels").items()
        },
        stop_signal=reader.string(inner.get("StopSignal"), "config.StopSignal"),
        healthcheck=_read_healthcheck(reader, inner.get("Healthcheck")),
        shell=_maybe_tuple(reader.strings(inner.get("Shell"), "config.Shell")),
        architecture=reader.string(top.get("architecture"), "architecture"),
        os=reader.string(top.get("os"), "os") or "linux",
        variant=reader.string(top.get("variant"), "variant"),
        author=reader.string(top.get("author"), "author"),
        on_build=tuple(reader.strings(inner.get("OnBuild"), "config.OnBuild") or ()),
    )
    history = tuple(_read_history(reader, entry) for entry in reader.sequence(top.get("history"), "history"))
    diff_ids = tuple(reader.strings(rootfs.get("diff_ids"), "rootfs.diff_ids") or ())
    return ConfigDocument(config, diff_ids, history, reader.string(top.get("created"), "created"))


def write_config(document: ConfigDocument) -> bytes:
    """The canonical JSON of a config document; its digest is the image's id."""
    config = document.config
    inner: dict[str, Any] = {
        "Env": list(config.env),
        "Entrypoint": None if config.entrypoint is None else list(config.entrypoint),
        "Cmd": None if config.cmd is None else list(config.cmd),
        "User": config.user,
        "WorkingDir": config.working_dir,
        "ExposedPorts": {port: {} for port in config.exposed_ports},
        "Volumes": {path: {} for path in config.volumes},
        "Labels": dict(config.labels),
        "StopSignal": config.stop_signal,
        "Healthcheck": _write_healthcheck(config.healthcheck),
        "Shell": None if config.shell is None else list(config.shell),
        "OnBuild": list(config.on_build),
    }
    top: dict[str, Any] = {
        "created": document.created,
        "author": config.author,
        "architecture": config.architecture,
        "variant": config.variant,
        "os": config.os,
        "config": {key: value for key, value in inner.items() if value not in (None, "", [], {})},
        "rootfs": {"type": "layers", "diff_ids": list(document.diff_ids)},
        "history": [_write_history(entry) for entry in document.history],
    }
    if config.cmd is not None and not config.cmd:
        top["config"]["Cmd"] = []
    if config.entrypoint is not None and not config.entrypoint:
        top["config"]["Entrypoint"] = []
    kept = {key: value for key, value in top.items() if value not in ("", None)}
    return json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _read_healthcheck(reader: "_Reader", value: object) -> HealthCheck | None:
    if value is None:
        return None
    raw = reader.mapping(value, "config.Healthcheck")
    test = tuple(reader.strings(raw.get("Test"), "config.Healthcheck.Test") or ())
    if not test:
        return None
    return HealthCheck(
        test=test,
        interval_s=reader.seconds(raw.get("Interval"), "config.Healthcheck.Interval"),
        timeout_s=reader.seconds(raw.get("Timeout"), "config.Healthcheck.Timeout"),
        start_period_s=reader.seconds(raw.get("StartPeriod"), "config.Healthcheck.StartPeriod"),
        start_interval_s=reader.seconds(raw.get("StartInterval"), "config.Healthcheck.StartInterval"),
        retries=reader.integer(raw.get("Retries"), "config.Healthcheck.Retries") or None,
    )


def _write_healthcheck(check: HealthCheck | None) -> dict[str, Any] | None:
    if check is None:
        return None
    times = {
        "Interval": check.interval_s,
        "Timeout": check.timeout_s,
        "StartPeriod": check.start_period_s,
        "StartInterval": check.start_interval_s,
    }
    raw: dict[str, Any] = {"Test": list(check.test)}
    raw.update({key: round(value * NANOSECONDS) for key, value in times.items() if value is not None})
    if check.retries:
        raw["Retries"] = check.retries
    return raw


def _read_history(reader: "_Reader", value: object) -> HistoryEntry:
    raw = reader.mapping(value, "history[]")
    return HistoryEntry(
        created_by=reader.string(raw.get("created_by"), "history[].created_by"),
        empty_layer=raw.get("empty_layer") is True,
        created=reader.string(raw.get("created"), "history[].created"),
        comment=reader.string(raw.get("comment"), "history[].comment"),
    )


def _write_history(entry: HistoryEntry) -> dict[str, Any]:
    raw: dict[str, Any] = {"created": entry.created, "created_by": entry.created_by, "comment": entry.comment}
    kept = {key: value for key, value in raw.items() if value}
    if entry.empty_layer:
        kept["empty_layer"] = True
    return kept


def _maybe_tuple(values: Iterable[str] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(values)


class _Reader:
    """Typed access to parsed JSON; every refusal names the path of the value."""

    def __init__(self, document: str) -> None:
        self._document = document

    def mapping(self, value: object, path: str) -> Mapping[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self._refusal(path, "an object")
        return value

    def sequence(self, value: object, path: str) -> Sequence[Any]:
        if value is None:
            return ()
        if not isinstance(value, list):
            raise self._refusal(path, "a list")
        return value

    def strings(self, value: object, path: str) -> Sequence[str] | None:
        if value is None:
            return None
        items = self.sequence(value, path)
        if not all(isinstance(item, str) for item in items):
            raise self._refusal(path, "a list of strings")
        return items

    def string(self, value: object, path: str) -> str:
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self._refusal(path, "a string")
        return value

    def integer(self, value: object, path: str) -> int:
        if value is None:
            return 0
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self._refusal(path, "a whole number of zero or more")
        return value

    def seconds(self, value: object, path: str) -> float | None:
        return (self.integer(value, path) / NANOSECONDS) or None

    def _refusal(self, path: str, wanted: str) -> ArchiveRefused:
        return ArchiveRefused(
            f"the image's {self._document} is malformed: {path or 'the document'} must be {wanted}; "
            "make the archive again"
        )
