"""How orch's processes speak to each other: who they are, channels, servers, errors on the wire, and their log lines.

Importing this package, before grpc is first used, holds grpc to TLS 1.3. Python's gRPC has no setting for the version,
only for the cipher suites of TLS 1.2 and older, read from the environment when it starts; those of TLS 1.3 are always
on. The one suite named here needs a pre-shared key, which orch has none of: so TLS 1.2 and older have no suite at all,
and a peer that cannot do 1.3 is refused in the handshake, by clients and servers alike.
"""

import os

os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-PSK-AES128-CBC-SHA"
# Refused handshakes are told by orch itself, with what to do; grpc's own lines about them would only stand between.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
