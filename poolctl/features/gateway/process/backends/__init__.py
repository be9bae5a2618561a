"""The backends behind the gateway's routes: which of them gets a request, and which cannot have one now.

`route_backends` chooses for one route, by its policy (`balance`), among backends that are ready, whose `breaker` is
closed and `limiter` has room, and that an operator has not disabled (`hosts`). A lease is the right to send the request
that was chosen for. `backends` keeps the backends of all routes.
"""
