"""Who cannot reach whom: the words of `orch playground partition`, and the rules that carry them out in the switch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, permutations, product
from typing import Final

from orch_cli.playground import tools
from orch_cli.playground.delay_line import tap_name
from orch_cli.playground.layout import Layout
from orch_rpc.errors import InvalidArgument

#: Ordered pairs of hostnames: nothing that the first sends reaches the second.
Cuts = frozenset[tuple[str, str]]

_TABLE: Final = "faults"
_HOW: Final = "write 'node-1,node-2|node-3' to part groups, 'node-1>node-2' to cut one way, 'node-3' to cut it from all"

# Frames are dropped on their way through the bridge, in silence, whatever connection they belong to: no reset, no
# refusal, as when a cable is pulled. What the host itself says to a node does not pass here.
RULES: Final = f"""\
table bridge {_TABLE} {{
  set cut {{
    type ifname . ifname
  }}
  chain forward {{
    type filter hook forward priority 0; policy accept;
    iifname . oifname @cut drop
  }}
}}
"""


def parse(layout: Layout, expressions: Sequence[str]) -> Cuts:
    """What expressions cut, together.

    ``A,B|C``: between groups nothing passes; nodes that are in none keep all their links. ``A,B>C``: nothing that the
    first send reaches the others. ``A,B`` alone: the group is parted from all other nodes.

    Raises:
        InvalidArgument: an expression means nothing.
        NotFound: a node is unknown.
    """
    cuts: set[tuple[str, str]] = set()
    for expression in expressions:
        if ">" in expression:
            sides = [_group(layout, side, expression) for side in expression.split(">")]
            if len(sides) != 2:
                raise InvalidArgument(f"cannot part {expression!r}", "it has more than one arrow", _HOW)
            _refuse_overlap(sides, expression)
            cuts.update(product(sides[0], sides[1]))
            continue
        groups = [_group(layout, group, expression) for group in expression.split("|")]
        _refuse_overlap(groups, expression)
        if len(groups) == 1:
            groups.append([node.hostname for node in layout.nodes if node.hostname not in groups[0]])
        for one, other in permutations(groups, 2):
            cuts.update(product(one, other))
    if not cuts:
        raise InvalidArgument("cannot part nothing", f"{' '.join(expressions)!r} cuts no two nodes apart", _HOW)
    return frozenset(cuts)


def _group(layout: Layout, text: str, expression: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if "" in names:
        raise InvalidArgument(f"cannot part {expression!r}", "a node's name is missing", _HOW)
    return [layout.node(name).hostname for name in names]


def _refuse_overlap(groups: Sequence[Sequence[str]], expression: str) -> None:
    names = [name for group in groups for name in group]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidArgument(f"cannot part {expression!r}", f"{', '.join(twice)} stands there twice", _HOW)


def apply(layout: Layout, cuts: Cuts) -> None:
    """Makes these the only cuts, all at once.

    Raises:
        OrchError: the kernel refused.
    """
    text = f"flush set bridge {_TABLE} cut\n"
    if cuts:
        # A node's frames come by its own port, or late by another.
        pairs = (product(*((name, tap_name(name)) for name in pair)) for pair in sorted(cuts))
        elements = ", ".join(f'"{source}" . "{target}"' for source, target in chain.from_iterable(pairs))
        text += f"add element bridge {_TABLE} cut {{ {elements} }}\n"
    tools.inside(layout.switch_path, "nft", "-f", "-", stdin=text)


def describe(cuts: Cuts, hostname: str) -> str:
    """What a node is cut from, for people; empty if from nothing."""
    both = sorted(target for source, target in cuts if source == hostname and (target, hostname) in cuts)
    deaf_to = sorted(source for source, target in cuts if target == hostname and (hostname, source) not in cuts)
    unheard_by = sorted(target for source, target in cuts if source == hostname and (target, hostname) not in cuts)
    parts = (("cut from", both), ("not heard by", unheard_by), ("does not hear", deaf_to))
    return "; ".join(f"{words} {', '.join(names)}" for words, names in parts if names)
