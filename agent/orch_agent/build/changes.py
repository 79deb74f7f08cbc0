"""Instructions that set an imported image's configuration, given one by one."""

from collections.abc import Collection, Mapping
from dataclasses import replace

from orch_agent.build import metadata
from orch_agent.build.errors import DockerfileError
from orch_agent.build.expand import ExpansionError, expand
from orch_agent.build.parser import parse_changes
from orch_agent.images.model import ImageConfig

_FILE = "--change"


def apply_changes(config: ImageConfig, lines: Collection[str]) -> ImageConfig:
    """The configuration after Dockerfile lines such as `ENV A=1` or `CMD ["sh"]`.

    Raises:
        DockerfileError: a line is malformed, or its instruction would change files.
    """
    for instruction in parse_changes(tuple(lines)):
        number = instruction.line

        def fail(message: str, number: int = number) -> DockerfileError:
            return DockerfileError(message, file=_FILE, line=number)

        variables = _variables(config)
        if instruction.keyword == "WORKDIR":
            try:
                path = expand(instruction.args[0], variables)
            except ExpansionError as error:
                raise fail(f"WORKDIR: {error}") from error
            if not path.startswith("/"):
                raise fail(f"WORKDIR {path} is not absolute; write it from the root, such as /app")
            config = replace(config, working_dir=path)
        elif instruction.keyword in metadata.KEYWORDS:
            config = metadata.apply(config, instruction, variables, escape="\\", fail=fail)
        else:
            allowed = ", ".join(sorted({*metadata.KEYWORDS, "WORKDIR"}))
            raise fail(f"{instruction.keyword} cannot be used here, as it would change files; use one of {allowed}")
    return config


def _variables(config: ImageConfig) -> Mapping[str, str]:
    return dict(item.partition("=")[::2] for item in config.env)
