"""The starter file of `poolctl init --gateway`."""

from __future__ import annotations

from .program import program_path, program_problem

POOL = """\
# A pool of HTTP servers behind one port. Every key: `poolctl config --schema`, checks: `poolctl validate`.

[pool]
# The pool's name (`poolctl --pool {name} status`); default: derived from this file's path.
# name = "{name}"

[gateway]                        # clients reach the servers through it, by host and path
bind = ":8080"                   # or [":80", {{ bind = ":443", tls = {{ cert = "edge.pem", key = "edge.key" }} }}]
# trusted_proxies = ["10.0.0.0/8"]               # proxies whose X-Forwarded-For is believed
# timeouts = {{ connect = "5s", head = "60s" }}    # for every route; a route's own value wins

[defaults]                       # for every server; a server's own value wins
# restart = "always"             # "no", "on-failure" or "always"
# start_timeout = "30s"

[[server]]
name = "web"                     # unique; letters, digits, dots, underscores, hyphens
bind = "127.0.0.1:8081"          # only this machine reaches it directly; "unix:./web.sock" works as well
app = "{app}"{padding}# module:attribute, an ASGI or WSGI application
{health}# ready when GET on this path answers; a restart waits for it
# workers = 2

[[server]]
name = "api"
bind = "127.0.0.1:8082"
app = "{app}"
# tags = ["backend"]

[[route]]                        # what no other route takes
to = "web"                       # a server, "tag:backend", "http://HOST:PORT", or a list of them

[[route]]                        # by path: /api and all below it, on every host
to = "api"
path = "/api"
# strip_path = true              # the server is asked for /users instead of /api/users

[[route]]                        # by host; the host decides before the path
alias = "api-by-host"            # unique; default: the first target's name
to = "api"
host = "api.localhost"           # or "*.example.com", or a first label: "api" is for api.example.com, api.test, …
"""


def warnings() -> list[str]:
    """A warning if HAProxy is not installed, otherwise an empty list."""
    problem = program_problem(program_path(None))
    return [f"the gateway needs HAProxy: {'; '.join(problem)}"] if problem else []
