"""Making table ``orch`` of a namespace what it should be: rules by their tags, elements by comparison."""

from __future__ import annotations

from collections.abc import Mapping

from orch_network.kernel.nftables import Batch, Nftables
from orch_network.limits import TABLE
from orch_network.rules import Ruleset


def install(nftables: Nftables, ruleset: Ruleset) -> None:
    """Make the table in a namespace that has none, in one batch."""
    batch = Batch(f"install table {TABLE}")
    batch.add_table(TABLE)
    for number, element_set in enumerate(ruleset.sets, 1):
        batch.add_set(TABLE, element_set, number)
    for chain, _ in ruleset.chains:
        batch.add_chain(TABLE, chain)
    for chain, rules in ruleset.chains:
        for rule in rules or ():
            batch.add_rule(TABLE, chain.name, rule)
    nftables.commit(batch)


def repair_ruleset(nftables: Nftables, ruleset: Ruleset) -> list[str]:
    """Restore chains, rules and sets that differ, in one batch; returns what was wrong. Chains of others stay."""
    if TABLE not in nftables.tables():
        install(nftables, ruleset)
        return [f"table {TABLE} was missing"]
    chains, tags, sets = nftables.chains(TABLE), nftables.rule_tags(TABLE), nftables.sets(TABLE)
    batch = Batch(f"repair table {TABLE}")
    found: list[str] = []
    for number, element_set in enumerate(ruleset.sets, 1):
        if element_set.name not in sets:
            found.append(f"set {element_set.name} was missing")
            batch.add_set(TABLE, element_set, number)
    for chain, _ in ruleset.chains:
        present = chains.get(chain.name)
        if present == chain:
            continue
        found.append(f"chain {chain.name} was {'missing' if present is None else 'of another kind'}")
        if present is not None:
            batch.flush_chain(TABLE, chain.name)
            batch.delete_chain(TABLE, chain.name)
            tags.pop(chain.name, None)
        batch.add_chain(TABLE, chain)
    for chain, rules in ruleset.chains:
        if rules is None or tags.get(chain.name, []) == [rule.tag for rule in rules]:
            continue
        if chains.get(chain.name) == chain:
            found.append(f"rules of chain {chain.name} differed")
            batch.flush_chain(TABLE, chain.name)
        for rule in rules:
            batch.add_rule(TABLE, chain.name, rule)
    nftables.commit(batch)
    return found


def change_elements(batch: Batch, set_name: str, before: Mapping[bytes, bytes], after: Mapping[bytes, bytes]) -> int:
    """Add to ``batch`` what turns ``before`` into ``after``; returns how many elements differ."""
    gone = [key for key, data in before.items() if after.get(key) != data]
    new = {key: data for key, data in after.items() if before.get(key) != data}
    if gone:
        batch.delete_elements(TABLE, set_name, gone)
    if new:
        batch.add_elements(TABLE, set_name, new)
    return len(set(gone) | set(new))


def repair_elements(nftables: Nftables, wanted: Mapping[str, Mapping[bytes, bytes]]) -> list[str]:
    """Make the elements of the named sets what they should be, in one batch; returns what was wrong."""
    batch = Batch("repair elements")
    found: list[str] = []
    for set_name, elements in wanted.items():
        different = change_elements(batch, set_name, nftables.elements(TABLE, set_name), elements)
        if different:
            found.append(f"{different} elements of {set_name} differed")
    nftables.commit(batch)
    return found
