"""Generates the protobuf code beside the .proto files, or checks that it is fresh.

Usage: ``python proto/orch_proto/generate.py [--check]``; with ``--check`` nothing is written and the exit status is 1
when a generated file differs from what the .proto files say.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent


def generate(target: Path) -> None:
    """Compiles every .proto file of the package into ``target``, which gets an ``orch_proto`` folder."""
    files = sorted(str(path.relative_to(ROOT)) for path in PACKAGE.glob("*.proto"))
    arguments = [
        "protoc",
        f"--proto_path={ROOT}",
        f"--python_out={target}",
        f"--mypy_out=quiet:{target}",
        f"--grpc_python_out={target}",
        f"--mypy_grpc_out=quiet:{target}",
        *files,
    ]
    # The plug-ins stand beside the interpreter, whether or not its environment is activated.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    if protoc.main(arguments) != 0:
        sys.exit("generate: protoc failed, see above")
    for proto in PACKAGE.glob("*.proto"):
        if not re.search(r"^service \w+ \{", proto.read_text(encoding="utf-8"), re.MULTILINE):
            for suffix in (".py", ".pyi"):
                (target / "orch_proto" / f"{proto.stem}_pb2_grpc{suffix}").unlink(missing_ok=True)


def main() -> None:
    """Writes the generated files, or with --check compares them."""
    check = sys.argv[1:] == ["--check"]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder)
        generate(target)
        fresh = {path.name: path.read_bytes() for path in (target / "orch_proto").iterdir()}
    present = {path.name: path.read_bytes() for path in PACKAGE.glob("*_pb2*.py*")}
    if check:
        stale = sorted(name for name in fresh.keys() | present.keys() if fresh.get(name) != present.get(name))
        if stale:
            sys.exit(f"generate: not fresh: {', '.join(stale)}; run python proto/orch_proto/generate.py")
        return
    for name in present.keys() - fresh.keys():
        (PACKAGE / name).unlink()
    for name, content in fresh.items():
        (PACKAGE / name).write_bytes(content)


if __name__ == "__main__":
    main()
