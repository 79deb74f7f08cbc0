"""Channels to managers follow the identity."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc

from orch_rpc.identity import IdentitySource
from orch_rpc.tls import ManagerChannels
from unit.trust.servers import TestCluster, store_with

SHUTDOWN = grpc.ChannelConnectivity.SHUTDOWN


def test_channels_are_made_anew_when_the_identity_was_replaced(tmp_path: Path) -> None:
    """A channel is kept while nothing changes; one that was closed, or is of an older identity, is not given out."""

    async def story() -> None:
        cluster = TestCluster()
        store = store_with(tmp_path, cluster.worker())
        channels = ManagerChannels(IdentitySource(store))
        first = channels.get("127.0.0.1:1")
        assert channels.get("127.0.0.1:1") is first
        await first.close(None)
        second = channels.get("127.0.0.1:1")
        assert second is not first
        store.save(cluster.worker())
        assert channels.get("127.0.0.1:1") is not second
        await channels.close()
        assert second.get_state() is SHUTDOWN

    asyncio.run(story())


def test_who_speaks_with_one_manager_keeps_no_other_channel(tmp_path: Path) -> None:
    """Turning to another manager closes the channel to the one before, which would try to connect for ever."""

    async def story() -> None:
        channels = ManagerChannels(IdentitySource(store_with(tmp_path, TestCluster().worker())))
        first = channels.only("127.0.0.1:1")
        second = channels.only("127.0.0.1:2")
        for _ in range(1000):
            if first.get_state() is SHUTDOWN:
                break
            await asyncio.sleep(0.01)
        assert first.get_state() is SHUTDOWN
        assert second.get_state() is not SHUTDOWN
        assert channels.only("127.0.0.1:2") is second
        await channels.close()

    asyncio.run(story())
