"""The control API: what people's tools say to a manager.

`service` is the gRPC side. `stacks/` validates, resolves, compares and applies whole stacks; `objects` creates,
changes and removes single ones; `queries` finds and filters; `watching` streams changes; `streams` carries logs, exec
and image data.
"""
