"""Channels for consensus: apart from those of calls, so that neither waits for the other."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import grpc.aio

from orch_raft.transport.client import CHANNEL_OPTIONS
from orch_rpc.addresses import parse_address
from orch_rpc.certificates import MANAGER_SERVER_NAME
from orch_rpc.identity import IdentitySource


def consensus_channels(source: IdentitySource) -> Callable[[str], grpc.aio.Channel]:
    """What makes a mutually authenticated channel to another manager, given its address.

    Args:
        source: who we are; read for each channel.
    """

    def dial(address: str) -> grpc.aio.Channel:
        identity = source.current()
        identity.check_valid()
        credentials = grpc.ssl_channel_credentials(identity.roots_pem, identity.key_pem, identity.certificate_pem)
        options = [*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", MANAGER_SERVER_NAME)]
        return grpc.aio.secure_channel(str(parse_address(address)), credentials, options=options)

    return dial
