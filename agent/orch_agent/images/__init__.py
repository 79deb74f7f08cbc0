"""Images of a node: content by digest, layers unpacked once and shared, one upper layer per task.

`store.ImageStore` is the entrance; `snapshots.Snapshots` gives a task its writable layer.
Plain blocking code, safe for several processes at once: the agent calls it from threads or workers.
"""
