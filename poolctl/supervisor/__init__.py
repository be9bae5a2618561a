"""The supervisor: desired state against actual state.

`supervisor` is its process and `managed_pool` the pool that it manages, `active_configuration` what is in force. `core`
decides and acts, `health` finds hung workers, `takeover` is how one supervisor or keeper replaces another, `verbs`
answers the control socket, and `observers` watches and decides nothing. `launch` starts a pool.
"""
