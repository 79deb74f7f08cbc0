"""Chooses a node for each task: filters that explain themselves, then spread."""
