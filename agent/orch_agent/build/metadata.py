"""Instructions that change an image's configuration and no file."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from orch_agent.build.errors import DockerfileError
from orch_agent.build.expand import ExpansionError, expand
from orch_agent.build.parser import Instruction, json_list
from orch_agent.images.model import HealthCheck, ImageConfig

DEFAULT_SHELL = ("/bin/sh", "-c")
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?\Z", re.IGNORECASE)
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ns|us|ms|s|m|h))+\Z")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h)")
_UNIT_S = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_HEALTH_FLAGS = {
    "interval": "interval_s",
    "timeout": "timeout_s",
    "start-period": "start_period_s",
    "start-interval": "start_interval_s",
}
_SIGNAL = re.compile(r"(?:SIG)?[A-Z][A-Z0-9+-]*|[1-9][0-9]?\Z")

Fail = Callable[[str], DockerfileError]


def apply(
    config: ImageConfig, instruction: Instruction, variables: Mapping[str, str], *, escape: str, fail: Fail
) -> ImageConfig:
    """The configuration after one instruction of those in `KEYWORDS`; `fail` makes an error at its line.

    Raises:
        DockerfileError: a value is wrong.
    """

    def word(text: str) -> str:
        try:
            return expand(text, variables, escape=escape)
        except ExpansionError as error:
            raise fail(f"{instruction.keyword}: {error}") from error

    return _APPLIERS[instruction.keyword](config, instruction, word, fail)


_Word = Callable[[str], str]


def env_value(config: ImageConfig, name: str) -> str | None:
    """The value of a variable in an image's environment."""
    for item in config.env:
        key, _, value = item.partition("=")
        if key == name:
            return value
    return None


def with_env(config: ImageConfig, pairs: Mapping[str, str]) -> ImageConfig:
    """The configuration with variables set; those that were there keep their place."""
    env = dict(item.partition("=")[::2] for item in config.env)
    env.update(pairs)
    return replace(config, env=tuple(f"{key}={value}" for key, value in env.items()))


def _env(config: ImageConfig, instruction: Instruction, word: _Word, _fail: Fail) -> ImageConfig:
    return with_env(config, _pairs(instruction, word))


def _label(config: ImageConfig, instruction: Instruction, word: _Word, _fail: Fail) -> ImageConfig:
    return replace(config, labels={**config.labels, **_pairs(instruction, word)})


def _pairs(instruction: Instruction, word: _Word) -> dict[str, str]:
    keys, values = instruction.args[::2], instruction.args[1::2]
    return {word(key): word(value) for key, value in zip(keys, values, strict=True)}


def _expose(config: ImageConfig, instruction: Instruction, word: _Word, fail: Fail) -> ImageConfig:
    ports = set(config.exposed_ports)
    for arg in instruction.args:
        for text in word(arg).split():
            match = _PORT.match(text)
            first = int(match.group(1)) if match else 0
            last = int(match.group(2) or first) if match else 0
            if not match or not 0 < first <= last <= 65535:
                raise fail(f"EXPOSE: {text!r} is not a port; write 80, 80/udp or 8000-8010/tcp")
            protocol = (match.group(3) or "tcp").lower()
            ports |= {f"{port}/{protocol}" for port in range(first, last + 1)}
    return replace(config, exposed_ports=tuple(sorted(ports)))


def _volume(config: ImageConfig, instruction: Instruction, word: _Word, fail: Fail) -> ImageConfig:
    paths = {arg if instruction.json_form else word(arg) for arg in instruction.args}
    if not all(paths):
        raise fail("VOLUME: a path is empty; write the folder's path")
    return replace(config, volumes=tuple(sorted({*config.volumes, *paths})))


def _cmd(config: ImageConfig, instruction: Instruction, _word: _Word, _fail: Fail) -> ImageConfig:
    return replace(config, cmd=command_of(config, instruction))


def _entrypoint(config: ImageConfig, instruction: Instruction, _word: _Word, _fail: Fail) -> ImageConfig:
    # Docker: setting ENTRYPOINT takes away a CMD that came with the base image. The builder marks such a CMD.
    return replace(config, entrypoint=command_of(config, instruction))


def command_of(config: ImageConfig, instruction: Instruction) -> tuple[str, ...]:
    """The argument list of CMD, ENTRYPOINT or RUN in either form."""
    if instruction.json_form:
        return instruction.args
    return (*(config.shell or DEFAULT_SHELL), instruction.args[0])


def _shell(config: ImageConfig, instruction: Instruction, _word: _Word, _fail: Fail) -> ImageConfig:
    return replace(config, shell=instruction.args)


def _user(config: ImageConfig, instruction: Instruction, word: _Word, fail: Fail) -> ImageConfig:
    user = word(instruction.args[0])
    if not user or len(user.split()) != 1:
        raise fail(f"USER: {user!r} is not a user; write a name or number, optionally with :group")
    return replace(config, user=user)


def _stop_signal(config: ImageConfig, instruction: Instruction, word: _Word, fail: Fail) -> ImageConfig:
    signal = word(instruction.args[0])
    if not _SIGNAL.fullmatch(signal):
        raise fail(f"STOPSIGNAL: {signal!r} is not a signal; write a name such as SIGTERM or a number")
    return replace(config, stop_signal=signal)


def _maintainer(config: ImageConfig, instruction: Instruction, _word: _Word, _fail: Fail) -> ImageConfig:
    return replace(config, author=instruction.args[0])


def _healthcheck(config: ImageConfig, instruction: Instruction, _word: _Word, fail: Fail) -> ImageConfig:
    kind, _, rest = instruction.args[0].partition(" ")
    rest = rest.strip()
    if kind.upper() == "NONE" and not rest and not instruction.flags:
        return replace(config, healthcheck=HealthCheck(test=("NONE",)))
    if kind.upper() != "CMD" or not rest:
        raise fail("HEALTHCHECK takes CMD with a command, or NONE alone")
    json_form = json_list(rest)
    test = ("CMD", *json_form) if json_form else ("CMD-SHELL", rest)
    times = {
        _HEALTH_FLAGS[flag]: duration_s(text, flag, fail)
        for flag, text in instruction.flags.items()
        if flag != "retries"
    }
    retries = instruction.flags.get("retries")
    if retries is not None and not (retries.isdigit() and 0 < int(retries) < 1000):
        raise fail(f"HEALTHCHECK --retries={retries} is not a number from 1 to 999")
    return replace(config, healthcheck=HealthCheck(test=test, retries=int(retries) if retries else None, **times))


def duration_s(text: str, flag: str, fail: Fail) -> float:
    """A duration such as 1m30s in seconds."""
    if not _DURATION.match(text):
        raise fail(f"HEALTHCHECK --{flag}={text} is not a duration; write 30s, 1m30s or 500ms")
    return sum(float(number) * _UNIT_S[unit] for number, unit in _DURATION_PART.findall(text))


_APPLIERS: Mapping[str, Callable[[ImageConfig, Instruction, _Word, Fail], ImageConfig]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _label,
    "MAINTAINER": _maintainer,
    "SHELL": _shell,
    "STOPSIGNAL": _stop_signal,
    "USER": _user,
    "VOLUME": _volume,
}
KEYWORDS = frozenset(_APPLIERS)
