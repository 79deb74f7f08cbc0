"""Writes docs/access.md from the table of who may call what, or checks that the page is fresh.

Usage: ``python proto/orch_rpc/access_page.py [--check]``; with ``--check`` nothing is written and the exit status is 1
when the page differs from the table.
"""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path
from typing import Final

from orch_rpc.access import RULES, Callers, Rule

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "access.md"
HEAD: Final = """\
# Who may call what

Generated from `proto/orch_rpc/access.py` by `python proto/orch_rpc/access_page.py`; do not edit it by hand.
*local* is the unix socket of a manager's host (root, and the group orch); *read*, *deploy* and *admin* are roles in
users' certificates; *anonymous* is TLS without a certificate, on the port for joining. What is not in the table nobody
may call. Every call of a method that writes leaves an audit line, and so does every refusal. Where a method says
"by content", the request decides too: `deploy` may create, change and remove services, networks, secrets, configs
and volumes, no nodes and not the cluster; `read` may put questions to nodes that change nothing.
"""
_COLUMNS: Final = (
    ("local", Callers.LOCAL),
    ("manager", Callers.MANAGER),
    ("worker", Callers.WORKER),
    ("read", Callers.READ),
    ("deploy", Callers.DEPLOY),
    ("admin", Callers.ADMIN),
    ("anonymous", Callers.ANONYMOUS),
)


def _row(path: str, rule: Rule) -> str:
    notes = ["writes"] if rule.writes else []
    if rule.narrow is not None:
        notes.append("by content")
    cells = ["yes" if callers & rule.callers else "" for _, callers in _COLUMNS]
    return f"| {path.rpartition('/')[2]} | {' | '.join(cells)} | {', '.join(notes)} |"


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    for service, rules in groupby(RULES.items(), key=lambda item: item[0].split("/")[1]):
        lines += [f"## {service}", "", f"| method | {' | '.join(name for name, _ in _COLUMNS)} | |"]
        lines += ["| --- " * (len(_COLUMNS) + 2) + "|", *(_row(path, rule) for path, rule in rules), ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Writes the page, or with --check compares it."""
    if sys.argv[1:] not in ([], ["--check"]):
        sys.exit(f"access_page: unknown arguments {sys.argv[1:]}: only --check is known")
    fresh = page()
    if sys.argv[1:] == ["--check"]:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != fresh:
            sys.exit("access_page: docs/access.md is not fresh; run python proto/orch_rpc/access_page.py")
        return
    PAGE.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    main()
