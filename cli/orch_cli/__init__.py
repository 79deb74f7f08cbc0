"""The orch command line: compose loader, client, output."""
