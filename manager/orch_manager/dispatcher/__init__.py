"""Speaks with the agents: one stream each, assignments down as differences, statuses up in batches.

`service` serves the streams, `session` is one of them, `assignments` works out what a node must know, `endpoints`
what it must know of services, `statuses` what may be believed of what it says, `liveness` who is still there, `calls`
puts questions to it.
"""
