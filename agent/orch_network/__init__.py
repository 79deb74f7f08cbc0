"""The network of a node: wanted state in, kernel state out."""
