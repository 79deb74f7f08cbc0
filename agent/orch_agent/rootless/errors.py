"""Errors of running without root.

RootlessError    orchd cannot run without root here; says what is missing and what to do. Ends the process
"""

from __future__ import annotations


class RootlessError(Exception):
    """Raised before anything was started; three parts in one sentence."""
