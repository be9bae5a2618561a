"""The supervisor: desired state against actual state.

`supervisor` is its life and `pool` the pool that it manages, `configuration` what is in force. `core` decides and
does, `health` finds workers that are alive in name only, `succession` is how one supervisor follows another, `verbs` is
what it can be asked, and `observers` looks at all of it and decides nothing. `launch` is how it is started.
"""
