"""Deploying a stack: validated, resolved, compared, then written in one transaction. A plan stops before that."""
