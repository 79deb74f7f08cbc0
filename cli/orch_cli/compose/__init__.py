"""Compose and stack files: text and environment in, a ``StackSpec`` or a list of problems with file and line out.

The way of a file: ``yaml_reader`` (text to nodes) -> ``interpolation`` (variables) -> ``check`` (known keys and
shapes, by the table in ``attributes``) -> ``merge`` (several files) -> ``service``, ``project`` (nodes to specs).
``loader`` joins them. Files that a stack names (env files, secrets, configs) are read through a function that is
handed in; nothing else touches the machine.
"""
