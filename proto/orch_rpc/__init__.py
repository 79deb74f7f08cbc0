"""How orch's processes speak to each other: channels, servers, errors on the wire, and the log lines they all write."""
