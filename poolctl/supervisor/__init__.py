"""The supervisor: the daemon that keeps a pool in its desired state.

`supervisor` is its process and the pool that it manages, `active_configuration` the configuration that the pool runs
with. `core` decides and acts, `health` finds hung workers, `takeover` replaces one supervisor or keeper by another,
`verbs` answers the control socket, and `observers` only watches. `launch` starts a pool.
"""
