"""Names of stacks: `[a-z0-9][a-z0-9_-]*`, at most 63 characters, as they become parts of host names and labels."""

from __future__ import annotations

import os
import re

from orch_proto import defaults

_STACK_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


def stack_name_problem(name: str) -> str:
    """Why ``name`` cannot name a stack; empty when it can."""
    if len(name) > defaults.STACK_NAME_LENGTH:
        return f"it is longer than {defaults.STACK_NAME_LENGTH} characters"
    if not _STACK_NAME.fullmatch(name):
        return "it has to begin with a small letter or digit, and hold small letters, digits, - and _ only"
    return ""


def folder_stack_name(folder: str) -> str:
    """The name of a stack that has none: the folder's, in small letters without what a name cannot hold."""
    base = os.path.basename(os.path.abspath(folder)).lower()
    return re.sub(r"[^a-z0-9_-]", "", base).lstrip("_-")[: defaults.STACK_NAME_LENGTH]
