"""The backends of the gateway's routes: load balancing, circuit breakers, limits, and disabled hosts.

`route_backends` chooses a backend for each request by the route's policy (`balance`), among those that are ready and
not disabled (`hosts`), whose `breaker` is closed, and whose `limiter` has room. A lease is the right to send one
request to the chosen backend. `backends` holds the backends of all routes.
"""
