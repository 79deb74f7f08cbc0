"""Ways to the tasks of other nodes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orch_network.protocol import Remote, Service
from orch_network.remotes import Remotes

ADDRESSES = st.sampled_from([f"10.0.1.{number}" for number in range(2, 7)])
NODES = st.sampled_from([f"192.0.2.{number}" for number in range(1, 4)])
SERVICES = st.builds(
    lambda routes, peers: Service(
        "s", "s", remotes=tuple(Remote(*each) for each in routes.items()), peers=tuple(peers)
    ),
    st.dictionaries(ADDRESSES, NODES),
    st.sets(NODES),
)
CHANGES = st.lists(st.dictionaries(st.sampled_from("abc"), st.none() | SERVICES, min_size=1))


@given(CHANGES)
def test_differences_add_up_to_what_is_wanted(changes: list[dict[str, Service | None]]) -> None:
    """The differences, applied in order, give the routes and nodes of what was told last, and nothing else."""
    remotes, routes, nodes = Remotes(), dict[bytes, bytes](), set[bytes]()
    told: dict[str, Service | None] = {}
    for change in changes:
        difference = remotes.change(change)
        told |= change
        routes = {key: node for key, node in routes.items() if key not in difference.routes_gone}
        routes |= difference.routes_set
        nodes = (nodes | difference.nodes_new) - difference.nodes_gone
        assert routes == remotes.routes
        assert nodes == set(remotes.nodes)
    present = [service for service in told.values() if service is not None]
    assert len(routes) == len({each.address for service in present for each in service.remotes})
    assert set(routes.values()) <= nodes
    if not present:
        assert not nodes


def test_an_address_that_passed_on_is_not_taken_away() -> None:
    """When a second service has an address, the first one's end changes nothing."""
    remotes = Remotes()
    remotes.change({"old": Service("old", "old", remotes=(Remote("10.0.1.5", "192.0.2.1"),))})
    remotes.change({"new": Service("new", "new", remotes=(Remote("10.0.1.5", "192.0.2.2"),))})
    difference = remotes.change({"old": None})
    assert not difference.routes_gone
    assert not difference.routes_set
    assert remotes.routes == {bytes((10, 0, 1, 5)): bytes((192, 0, 2, 2))}
    assert set(remotes.nodes) == {bytes((192, 0, 2, 2))}
