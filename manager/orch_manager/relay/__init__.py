"""Long calls to a node: the agent is told to open a stream, and the caller's frames are piped through it both ways."""
