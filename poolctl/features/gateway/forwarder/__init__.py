"""The forwarder: a process beside HAProxy, without HTTP, in which connections wait for targets that do not run yet."""
