"""The loops that tidy: old tasks, services and stacks being removed, tasks of nodes that stay away."""
