"""The manager: store, control loops, dispatcher and control API.

Importing this package, before grpc is first imported, has grpc poll with the loop it had before its EventEngine: a
message there and back over TLS takes 165 us with it and 280 us without, and a manager's day is made of those
(`docs/decisions/0009-grpc-poller.md`). A grpc that no longer knows the names says so in its log and goes on.
"""

import os

os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
