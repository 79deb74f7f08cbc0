"""All tasks of the node: what is assigned, what is reported, what is found again after a restart."""
