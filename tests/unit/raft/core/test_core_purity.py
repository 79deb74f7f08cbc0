"""What the core is made of."""

import ast
import sys
from pathlib import Path

import orch_raft.core.node

_CORE = Path(orch_raft.core.node.__file__).parent
#: Standard library modules without input, output, time or threads. `random` is for the type of what is handed in.
_PURE = {"bisect", "collections", "dataclasses", "enum", "random", "typing"}
#: Values and errors of this package that the core shares with the rest.
_SHARED = {"orch_raft.engine", "orch_raft.errors", "orch_raft.log.records", "orch_raft.membership"}


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert node.module
            found.add(node.module)
    return found


def test_the_core_imports_nothing_that_acts() -> None:
    """No file of the core imports a clock, a socket, a file, a thread, asyncio, grpc, or a module that does."""
    files = sorted(_CORE.glob("*.py"))
    assert len(files) > 10
    for path in files:
        for name in _imports(path):
            pure = name.split(".")[0] in _PURE or name in _SHARED or name.split(".")[:2] == ["orch_raft", "core"]
            assert pure, f"{path.name} imports {name}"


def test_what_the_core_shares_imports_nothing_that_acts() -> None:
    """The values that the core takes from elsewhere are as pure; the form on disk of members is protobuf's."""
    for name in _SHARED:
        path = Path(str(sys.modules[name].__file__))
        for imported in _imports(path):
            allowed = imported.split(".")[0] in {*_PURE, "pathlib", "struct"} or imported in {*_SHARED, "orch_proto"}
            assert allowed, f"{path.name} imports {imported}"


def test_chance_comes_from_outside() -> None:
    """The core draws no random number but from the generator it was given."""
    for path in _CORE.glob("*.py"):
        text = path.read_text()
        assert "random.Random()" not in text
        for call in ("random.random(", "random.choice(", "random.randint(", "random.randrange("):
            assert call not in text.replace("rng.randrange(", ""), path.name
