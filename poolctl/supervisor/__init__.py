"""The supervisor: the daemon that keeps a pool in its desired state.

`supervisor` is its process and the pool that it manages, `active_configuration` the configuration in force. `core`
decides and acts, `health` finds hung workers, `takeover` replaces one supervisor or keeper by another, `verbs` answers
the control socket, and `observers` watches and decides nothing. `launch` starts a pool.
"""
