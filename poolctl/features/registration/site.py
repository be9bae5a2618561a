"""The site of [registration], at which services on other machines and in containers register.

Each request has a client's token, and a client may register services only for its configured routes. Limits apply
before any input is trusted: on heads, bodies, connections, requests per second, and attempts with a wrong token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from starlette.requests import Request
from starlette.responses import Response

from poolctl.address import parse
from poolctl.clock import Clock, RateLimit, ReportLimit
from poolctl.exit_codes import CONFLICT, DONE, INVALID_CONFIGURATION, NOTHING_MATCHED
from poolctl.json_form import Table
from poolctl.web.bearer_tokens import Ip, Peer, Refused, Token, TokenCheck, bearer_token, unmapped
from poolctl.web.site import EndpointSite, SiteLimits, SupervisorClient, path_of, response

# A service on another machine may vanish without unregistering.
DEFAULT_TTL = "1m"
# Limit for one client: enough for its maximum of services with a heartbeat every ten seconds.
_REQUESTS_PER_SECOND, MAX_BURST = 100, 200
_OPTIONS = {"register": ("name", "to", "ttl", "weight", "probe"), "unregister": ("name", "to")}
_STATUSES = {DONE: 200, INVALID_CONFIGURATION: 400, NOTHING_MATCHED: 404, CONFLICT: 409}


class AuthorizedClient:
    """A client of [registration]: its token, routes, and networks; without networks any address is allowed."""

    def __init__(self, name: str, token: str, routes: Iterable[str], allow: Iterable[str] = ()) -> None:
        self.name = name
        self.token = Token(token)
        self.routes = frozenset(routes)
        self.networks: tuple[IPv4Network | IPv6Network, ...] = ()
        if "*" not in allow:
            self.networks = tuple(ip_network(network, strict=False) for network in allow)
        self.requests = RateLimit(MAX_BURST, _REQUESTS_PER_SECOND)

    def allows(self, ip: Ip) -> bool:
        """Whether the client may send requests from this address and register services there."""
        return not self.networks or any(ip in network for network in self.networks)

    def target_problem(self, url: str, peer: Peer) -> str:
        """Why the client may not register this URL; "" if it may. Invalid URLs are refused elsewhere."""
        _, separator, place = url.partition("://")
        if not separator:
            return "a Unix socket is of this machine: register it there" if ":" in url else ""
        try:
            has_port = ":" in (place.rpartition("]")[2] if place.startswith("[") else place)
            host = parse(place if has_port else f"{place}:80").host
        except ValueError:
            return ""
        try:
            ip = unmapped(ip_address(host.partition("%")[0]))
        except ValueError:
            return f"{host} is a name, which may lead elsewhere later: register the IP address"
        if not self.allows(ip):
            return f"{ip} is not in the networks that {self.name} may register"
        if ip.is_loopback and not peer.is_local and not self.networks:
            return f"{ip} is this machine's own, and the client is elsewhere: register its own address"
        return ""


class RegistrationSite(EndpointSite):
    """Answers `POST /v1/register` and `/v1/unregister`."""

    limits = SiteLimits(connections=64, keep_alive_seconds=60)

    def __init__(self, supervisor: SupervisorClient, clock: Clock | None = None) -> None:
        super().__init__(supervisor, clock)
        self.clients: tuple[AuthorizedClient, ...] = ()
        self._tokens = TokenCheck()
        self._refusals = ReportLimit()

    def configure(self, settings: Table) -> None:
        self.clients = tuple(AuthorizedClient(**client) for client in settings["clients"])

    def error_body(self, message: str) -> tuple[str, bytes]:
        return "application/json", json.dumps({"error": message}).encode() + b"\n"

    async def answer(self, request: Request, peer: Peer) -> Response:
        client = self._authenticate(request, peer)
        if not client.requests.take(1, self.clock.monotonic()):
            raise Refused(429, "too many requests", retry_after="1")
        path = path_of(request)
        verb = path.removeprefix("/v1/")
        if verb not in _OPTIONS or not path.startswith("/v1/"):
            raise Refused(404, "the endpoints are /v1/register and /v1/unregister")
        if request.method != "POST":
            raise Refused(405, "only POST", allow="POST")
        options = read_options(await request.body(), verb)
        if options["name"] not in client.routes:
            raise Refused(403, f"{client.name} may not register for the route {options['name'][:200]!r}")
        if problem := client.target_problem(options["to"], peer) if "to" in options else "":
            raise Refused(403, problem)
        if verb == "register":
            options.setdefault("ttl", DEFAULT_TTL)
        result = await self.supervisor.ask(verb, {**options, "owner": client.name}, peer.address)
        status = _STATUSES.get(result["exit_code"], 500)
        return response(status, "application/json", json.dumps({"result": result}).encode() + b"\n")

    def _authenticate(self, request: Request, peer: Peer) -> AuthorizedClient:
        """The client that sent the request. Raises Refused."""
        sent = bearer_token(request.headers.get("authorization", ""))
        clients = {client.token: client for client in self.clients}
        try:
            client = clients[self._tokens.accepted(sent, clients, peer.key, self.clock.monotonic())]
        except Refused as refused:
            if refused.status == 401:
                self._report_refusal(peer, str(refused))
            raise
        if peer.ip is not None and not client.allows(peer.ip):
            self._report_refusal(peer, f"{client.name} may not use it from there")
            raise Refused(403, f"{client.name} may not register from {peer.ip}")
        return client

    def _report_refusal(self, peer: Peer, why: str) -> None:
        """Count a refusal; the refusals are recorded as at most one event a minute."""
        if count := self._refusals.count_to_report(self.clock.monotonic()):
            where = peer.address or "a Unix socket"
            message = f"{count} registrations refused, the last one from {where}: {why}"
            self.supervisor.report_refusal("registration", message)


def read_options(body: bytes, verb: str) -> Table:
    """The options of a request. Raises Refused."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON") from None
    options = document.get("options") if isinstance(document, dict) else None
    if not isinstance(options, dict):
        raise Refused(400, 'the body is not {"options": {…}}')
    options = {key: value for key, value in options.items() if value is not None}
    if other := options.keys() - set(_OPTIONS[verb]):
        allowed = ", ".join(_OPTIONS[verb])
        raise Refused(400, f"{min(other)[:60]!r} cannot be given here; the options are {allowed}")
    needed = ("name", "to") if verb == "register" else ("name",)
    for key in needed:
        if not isinstance(options.get(key), str):
            raise Refused(400, f"{key!r} is missing")
    if not isinstance(options.get("to", ""), str):
        raise Refused(400, "'to' is not a URL")
    if "ttl" in options and options["ttl"] in (0, "0", "0s"):
        raise Refused(400, "a service that is elsewhere needs a ttl")
    return options
