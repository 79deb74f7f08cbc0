"""Raft as a pure state machine: ticks and messages in, what to do out.

Nothing here opens a file or a socket, asks for the time, waits, or starts a thread; chance comes in as a
`random.Random`. Begin with `node.RaftNode`, which says what its driver must do, then `ready.Ready`, `messages` and
`state`.
"""
