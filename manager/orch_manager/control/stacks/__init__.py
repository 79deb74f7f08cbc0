"""Deploying a stack: validated, resolved and compared first, then written in one transaction. A plan stops before that."""
