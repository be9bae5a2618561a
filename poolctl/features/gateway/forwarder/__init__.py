"""The forwarder: a TCP proxy process beside HAProxy in which connections wait for targets that are still starting."""
