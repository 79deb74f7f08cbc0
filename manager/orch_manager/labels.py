"""Labels that mean something to orch."""

from __future__ import annotations

from typing import Final

#: The stack of an object, as docker writes it.
NAMESPACE_LABEL: Final = "com.docker.stack.namespace"
#: On a secret or config whose name went to one with new content; kept while something uses it.
SUPERSEDED_LABEL: Final = "orch.superseded-by"
