"""Registries: where images come from. Speaks the OCI distribution specification, and Docker's before it."""
