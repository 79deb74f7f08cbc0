"""The managers as members of Raft: who may be lost, who joins and leaves, and that membership follows the wanted roles.

`quorum` is pure arithmetic with its sentences; `view` reads the engine; `handler` answers Join and Leave;
`joining` is the joiner's side of it; `keeper` is the leader's loop.
"""
