"""The log on disk: encrypted, checksummed segments and snapshots that survive the loss of power."""
