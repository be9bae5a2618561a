"""The backends of the gateway's routes: load balancing, circuit breakers, limits, and disabled hosts.

`route_backends` chooses for one route, by its policy (`balance`), among backends that are ready, whose `breaker` is
closed and `limiter` has room, and that an operator has not disabled (`hosts`). A lease is the right to send
one request to the chosen backend. `backends` keeps the backends of all routes.
"""
