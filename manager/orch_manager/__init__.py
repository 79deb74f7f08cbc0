"""The manager: store, control loops, dispatcher and control API."""
