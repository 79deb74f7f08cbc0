"""A whole cluster on one machine: each node is a network namespace with a daemon of its own, joined by a bridge."""
