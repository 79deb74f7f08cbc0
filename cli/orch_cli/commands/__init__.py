"""The commands: one module per noun, each with its ``VERBS``."""
