"""OCI runtime configuration: secure defaults out, a validated plan from a config.json in."""

from orch_runtime.config.compiler import compile_config
from orch_runtime.config.defaults import (
    DEFAULT_CAPABILITIES,
    DEFAULT_DEVICE_RULES,
    DEFAULT_MASKED_PATHS,
    DEFAULT_MOUNTS,
    DEFAULT_PIDS_LIMIT,
    DEFAULT_READONLY_PATHS,
    DEFAULT_SYSCTLS,
    default_config,
)

__all__ = [
    "DEFAULT_CAPABILITIES",
    "DEFAULT_DEVICE_RULES",
    "DEFAULT_MASKED_PATHS",
    "DEFAULT_MOUNTS",
    "DEFAULT_PIDS_LIMIT",
    "DEFAULT_READONLY_PATHS",
    "DEFAULT_SYSCTLS",
    "compile_config",
    "default_config",
]
