"""Builds images from Dockerfiles: parse, plan the stages, run each step over the layers below, remember its layer.

`builder.Builder` is the entrance. Plain blocking code; the agent calls it from a thread or a worker process.
"""
