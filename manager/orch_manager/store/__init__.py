"""The store: every object of the cluster in memory, written through consensus.

Reads are synchronous on the event loop and see what is committed. Writes are functions run against a
`Transaction`. Changes are told to watchers. `store.Store` joins the parts.
"""
