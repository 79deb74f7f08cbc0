"""What a deploy does on the client: builds, applies, and waits until the cluster has what was asked for."""
