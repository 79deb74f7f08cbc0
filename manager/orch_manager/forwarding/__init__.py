"""What a manager that does not lead does with a call that only the leader can answer.

`methods` says which method is answered where; `leader` knows who leads; `forwarder` carries a call there and its answer
back; `vouching` keeps a leader that was replaced from answering out of its old state; `interceptor` puts all that in
front of the local servicers.
"""
