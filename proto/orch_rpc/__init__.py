"""Channels, servers and the mapping of errors to gRPC status."""
