"""Talking with one running task: terminals, keys, streams, copies."""
