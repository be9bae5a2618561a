"""The forwarder: a process beside HAProxy for what HAProxy cannot do. It knows no HTTP.

It has connections wait for targets that do not run yet. It also holds duplicates of the gateway's listeners, for a pool
whose keeper and supervisor were both killed.
"""
