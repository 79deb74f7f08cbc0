"""The container runtime: a plan in, an isolated process out."""
