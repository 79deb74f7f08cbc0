"""What a manager that does not lead does with a call that only the leader can answer.

`methods` says which method is answered where; `leader` knows who leads; `forwarder` carries a call there and its answer
back; `interceptor` puts that in front of the local servicers.
"""
