"""The supervisor: the daemon that keeps a pool in its desired state.

`supervisor` is the daemon's process, and `active_configuration` the configuration that the pool runs with. `health`
recovers hung workers, `takeover` replaces a supervisor or its keeper (the parent process, which holds the pool's
sockets) while workers run, `verbs` handles commands, `observers` reports events. `launch` starts a pool.
"""
