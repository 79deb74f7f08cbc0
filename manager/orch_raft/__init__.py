"""Consensus: a replicated log with snapshots behind a small engine interface."""
