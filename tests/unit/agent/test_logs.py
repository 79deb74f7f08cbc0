"""Reading containers' logs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from orch_agent.logs import LogFollower, log_files, parse_record, stream_records, wanted_records
from orch_proto import node_pb2 as calls


def line(text: str, second: int, stream: str = "stdout") -> str:
    return json.dumps({"log": text, "stream": stream, "time": f"2026-01-01T00:00:{second:02d}.5Z"}) + "\n"


def options(**fields: object) -> calls.LogsOptions:
    return calls.LogsOptions(**{"tail_lines": -1, **fields})  # type: ignore[arg-type]


def test_rotated_files_are_read_oldest_first(tmp_path: Path) -> None:
    """The lines of log.2, log.1 and log come in the order in which they were written."""
    path = tmp_path / "log"
    path.write_text(line("c\n", 3))
    path.with_name("log.1").write_text(line("b\n", 2))
    path.with_name("log.2").write_text(line("a\n", 1))
    assert [file.name for file in log_files(path)] == ["log.2", "log.1", "log"]
    assert [record.line for record in wanted_records(path, options())] == [b"a\n", b"b\n", b"c\n"]


def test_tail_since_and_stream_select(tmp_path: Path) -> None:
    """Tail takes the last of what the other options leave."""
    path = tmp_path / "log"
    path.write_text("".join(line(f"{n}\n", n, "stderr" if n % 2 else "stdout") for n in range(10)))
    chosen = wanted_records(path, options(tail_lines=2, stdout=True))
    assert [record.line for record in chosen] == [b"6\n", b"8\n"]
    start_ms = parse_record(line("", 7).encode()).timestamp_unix_ns // 1_000_000  # type: ignore[union-attr]
    assert [record.line for record in wanted_records(path, options(since_unix_ms=start_ms))] == [b"7\n", b"8\n", b"9\n"]
    assert wanted_records(path, options(tail_lines=0)) == []


def test_broken_lines_are_passed_over(tmp_path: Path) -> None:
    """A line that the writer did not finish, or that is no record, does not stop the reading."""
    path = tmp_path / "log"
    path.write_text('{"log": "half\n' + "[]\n" + line("whole\n", 1))
    assert [record.line for record in wanted_records(path, options())] == [b"whole\n"]


def test_a_missing_log_is_empty(tmp_path: Path) -> None:
    """A task that has written nothing has no file, and that is no error."""
    assert wanted_records(tmp_path / "log", options()) == []


def test_a_follower_loses_nothing_over_a_rotation(tmp_path: Path) -> None:
    """What was written before and after a rotation is given once and in order."""
    path = tmp_path / "log"
    path.write_text(line("old\n", 0))
    follower = LogFollower(path)
    with path.open("a") as handle:
        handle.write(line("a\n", 1))
    path.rename(path.with_name("log.1"))
    path.write_text(line("b\n", 2))
    assert [record.line for record in follower.poll()] == [b"a\n", b"b\n"]
    with path.open("a") as handle:
        handle.write(line("c\n", 3)[:-5])
    assert follower.poll() == []
    with path.open("a") as handle:
        handle.write(line("c\n", 3)[-5:])
    assert [record.line for record in follower.poll()] == [b"c\n"]
    follower.close()


def test_following_ends_with_the_container(tmp_path: Path) -> None:
    """A followed log gives what is there, what comes, and ends when the container has ended."""
    path = tmp_path / "log"
    path.write_text(line("first\n", 1))

    async def scenario() -> list[bytes]:
        over = asyncio.Event()
        seen = []
        async for records in stream_records(path, options(follow=True), over):
            seen += [record.line for record in records]
            if len(seen) == 1:
                with path.open("a") as handle:
                    handle.write(line("last\n", 2))
                over.set()
        return seen

    assert asyncio.run(asyncio.wait_for(scenario(), 5)) == [b"first\n", b"last\n"]
