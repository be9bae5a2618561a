"""The address [registration]: services register by HTTP, with the token of a client that may do so for certain routes.

Limits apply before any input is trusted: on heads, bodies, connections, requests per second, services, and attempts
with a wrong token.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import socket
from collections import OrderedDict
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NamedTuple, Protocol

from poolctl.address import Address, parse
from poolctl.clock import Clock, RateLimit
from poolctl.config import Tables, named_addresses
from poolctl.control.answers import Result
from poolctl.control.pool_paths import SOCKET_NAME
from poolctl.errors import ServerError
from poolctl.exit_codes import CONFLICT, DONE, INVALID_CONFIGURATION, NOTHING_MATCHED
from poolctl.http.http_server import Received, Responder, ServerLimits
from poolctl.http.messages import BadMessage
from poolctl.json_form import Table, to_json
from poolctl.keeper import fd_store
from poolctl.monitor.event_queue import Events
from poolctl.platform import peer_credentials
from poolctl.selection.selector import Selector
from poolctl.supervisor.active_configuration import PoolEnvironment
from poolctl.supervisor.observers.held_address import HeldAddress, HttpEndpoint
from poolctl.supervisor.verbs.verb import Call

from .table import RegistrationTable

LIMITS = ServerLimits(
    head_bytes=16 * 1024,
    body_bytes=16 * 1024,
    request_seconds=10.0,
    keep_alive_seconds=60.0,
    connections=64,
)
# A service on another machine may vanish without unregistering.
DEFAULT_TTL = "1m"
EVENT_SECONDS = 60.0
# Limit for one address: wrong tokens in a burst, and the interval between later ones.
MOST_WRONG_TOKENS, WRONG_TOKEN_SECONDS = 10, 6.0
_MOST_ADDRESSES = 4096
# Limit for one client: enough for more than its maximum of services, each with a heartbeat every ten seconds.
_REQUESTS_PER_SECOND, _BURST = 100, 200
_BEARER = b"bearer "
_OPTIONS = {"register": ("name", "to", "ttl", "weight", "probe"), "unregister": ("name", "to")}
_STATUSES = {DONE: 200, INVALID_CONFIGURATION: 400, NOTHING_MATCHED: 404, CONFLICT: 409}

Ip = IPv4Address | IPv6Address


class Services(Protocol):
    async def register(self, call: Call, owner: str = "") -> Result: ...

    async def unregister(self, call: Call, owner: str = "") -> Result: ...


class Client:
    """A client with the digest of its token, and its permissions. Without networks any address is allowed."""

    def __init__(self, name: str, token: str, routes: tuple[str, ...], allow: tuple[str, ...] = ()) -> None:
        self.name = name
        self.digest = _digest(token.encode())
        self.routes = frozenset(routes)
        self.networks: tuple[IPv4Network | IPv6Network, ...] = ()
        if "*" not in allow:
            self.networks = tuple(ip_network(each, strict=False) for each in allow)
        self.requests = RateLimit(_BURST, _REQUESTS_PER_SECOND)

    def has(self, ip: Ip) -> bool:
        return not self.networks or any(ip in network for network in self.networks)

    def target_problem(self, url: str, peer: Peer) -> str:
        """Why the client may not register this URL; "" if it may. Invalid URLs are refused elsewhere."""
        _, separator, place = url.partition("://")
        if not separator:
            return "a Unix socket is of this machine: register it there" if ":" in url else ""
        try:
            host = parse(place if _has_port(place) else f"{place}:80").host
        except ValueError:
            return ""
        if host == "localhost":
            host = "127.0.0.1"
        try:
            ip = _plain(ip_address(host.partition("%")[0]))
        except ValueError:
            return f"{host} is a name, which may lead elsewhere later: register the IP address"
        if not self.has(ip):
            return f"{ip} is not in the networks that {self.name} may register"
        if ip.is_loopback and not peer.is_local and not self.networks:
            return f"{ip} is this machine's own, and the client is elsewhere: register its own address"
        return ""


class Peer(NamedTuple):
    """Where a request comes from: its address, None over a Unix socket. `key` is what wrong tokens are counted by."""

    ip: Ip | None
    key: str

    @property
    def is_local(self) -> bool:
        return self.ip is None or self.ip.is_loopback


class WrongTokens:
    """Addresses that have sent too many wrong tokens lately. Bounded: the longest quiet address is forgotten."""

    def __init__(self) -> None:
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # how many wrong tokens, and when

    def __len__(self) -> int:
        return len(self._levels)

    def note(self, key: str, now: float) -> None:
        self._levels[key] = self._level(key, now) + 1, now
        self._levels.move_to_end(key)
        if len(self._levels) > _MOST_ADDRESSES:
            self._levels.popitem(last=False)

    def wait_seconds(self, key: str, now: float) -> float:
        """How long the address has to wait until its next attempt; 0 if it need not wait."""
        return max(0.0, self._level(key, now) - MOST_WRONG_TOKENS + 1) * WRONG_TOKEN_SECONDS

    def _level(self, key: str, now: float) -> float:
        level, at = self._levels.get(key, (0.0, now))
        return max(0.0, level - (now - at) / WRONG_TOKEN_SECONDS)


class Refused(Exception):
    """A request that is refused, with the status of its answer."""

    def __init__(self, status: int, message: str, **fields: str) -> None:
        super().__init__(message)
        self.status = status
        self.fields = [(name.replace("_", "-"), value) for name, value in fields.items()]


class RegistrationEndpoint(HttpEndpoint):
    """Answers `POST /v1/register` and `/v1/unregister`. `clients` and `tls` may be changed at any time."""

    def __init__(self, services: Services, events: Events) -> None:
        super().__init__(LIMITS, "registrations")
        self.clients: tuple[Client, ...] = ()
        self.clock = Clock()
        self._services = services
        self._events = events
        self._wrong = WrongTokens()
        self._refused = 0
        self._refused_again = 0.0

    def refuse(self, error: BadMessage) -> tuple[int, str, bytes]:
        return error.status, "application/json", _message(f"not a request: {error}")

    async def handle(self, request: Received, response: Responder) -> None:
        fields = [("content-type", "application/json")]
        try:
            status, body = await self._answer(request)
        except Refused as refused:
            status, body = refused.status, _message(str(refused))
            fields += refused.fields
        await response.send(status, fields, body)

    async def _answer(self, request: Received) -> tuple[int, bytes]:
        """Status and body of the answer to the request. Raises Refused."""
        peer = peer_of(request.sock)
        client = self._client(request, peer)
        if not client.requests.take(1, self.clock.monotonic()):
            raise Refused(429, "too many requests", retry_after="1")
        head = request.head
        path = head.path.decode()
        verb = path.removeprefix("/v1/")
        if verb not in _OPTIONS or not path.startswith("/v1/"):
            raise Refused(404, "the endpoints are /v1/register and /v1/unregister")
        if head.method != b"POST":
            raise Refused(405, "only POST", allow="POST")
        options = read_options(request.body, verb)
        if options["name"] not in client.routes:
            raise Refused(403, f"{client.name} may not register for the route {options['name'][:200]!r}")
        if problem := client.target_problem(options["to"], peer) if "to" in options else "":
            raise Refused(403, problem)
        by = {"user": client.name, "command": "registration", "address": str(peer.ip or "")}
        call = Call(Selector(), options, lambda line: None, lambda: by)
        if verb == "register":
            call.options.setdefault("ttl", DEFAULT_TTL)
            result = await self._services.register(call, client.name)
        else:
            result = await self._services.unregister(call, client.name)
        return _STATUSES.get(result.exit_code, 500), json.dumps({"result": to_json(result)}).encode() + b"\n"

    def _client(self, request: Received, peer: Peer) -> Client:
        """The client that sent the request. Raises Refused."""
        now = self.clock.monotonic()
        if wait := self._wrong.wait_seconds(peer.key, now):
            raise Refused(429, "too many wrong tokens", retry_after=str(int(wait) + 1))
        given = request.head.get(b"authorization")
        found = None
        if given[:7].lower() == _BEARER:
            digest = _digest(given[7:].strip())
            # Compare all of them, so that the time reveals nothing.
            for each in self.clients:
                if hmac.compare_digest(digest, each.digest):
                    found = each
        if found is None:
            self._wrong.note(peer.key, now)
            self._report_refusal(peer, "token missing or wrong")
            raise Refused(401, "token missing or wrong", www_authenticate="Bearer")
        if peer.ip is not None and not found.has(peer.ip):
            self._report_refusal(peer, f"{found.name} may not use it from there")
            raise Refused(403, f"{found.name} may not register from {peer.ip}")
        return found

    def _report_refusal(self, peer: Peer, why: str) -> None:
        """Report at most one refusal a minute as an event."""
        self._refused += 1
        now = self.clock.monotonic()
        if now < self._refused_again:
            return
        self._refused_again = now + EVENT_SECONDS
        where = peer.ip or "a Unix socket"
        message = f"{self._refused} registrations refused, the last one from {where}: {why}"
        self._refused = 0
        self._events.record("audit", "registration client refused", message=message, severity="warning")


class RegistrationAddress(HeldAddress[RegistrationEndpoint]):
    """Serves the endpoint as `[registration]` says."""

    def __init__(self, environment: PoolEnvironment, events: Events, services: Services) -> None:
        super().__init__(environment.keeper, events, fd_store.REGISTRATION_ADDRESS, "registration")
        self._environment = environment
        self._recorder = events
        self._services = services
        self._table: RegistrationTable | None = None

    def follow(self, table: RegistrationTable | None) -> None:
        """Serve as the table says from now on, or nowhere."""
        self._table = table
        if table is None:
            self.serve_at(None)
        else:
            self.serve_at(table.bind, table.mode)

    def make_server(self) -> RegistrationEndpoint:
        return RegistrationEndpoint(self._services, self._recorder)

    async def configure(self, server: RegistrationEndpoint) -> None:
        """See HeldAddress. An unusable token or certificate leaves the previous one in force."""
        if self._table is not None:
            env = self._environment.configuration.environment
            clients = clients_of(self._table, env)
            await self.use_certificate(server, self._table.tls, env)
            server.clients = clients


def clients_of(table: RegistrationTable, env: Mapping[str, str]) -> tuple[Client, ...]:
    """The clients with their tokens. Raises ServerError for a token that is not there."""
    found = []
    for each in table.client:
        token = env.get(each.token_env, "").strip()
        if not token:
            message = f"the environment variable {each.token_env} is not set"
            raise ServerError(message, hint=f"export {each.token_env}=… before poolctl start")
        found.append(Client(each.label, token, each.routes, each.allow))
    return tuple(found)


def read_options(body: bytes, verb: str) -> Table:
    """The options of a request. Raises Refused."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is no JSON") from None
    options = document.get("options") if isinstance(document, dict) else None
    if not isinstance(options, dict):
        raise Refused(400, 'the body is not {"options": {…}}')
    options = {key: value for key, value in options.items() if value is not None}
    if other := options.keys() - set(_OPTIONS[verb]):
        known = ", ".join(_OPTIONS[verb])
        raise Refused(400, f"{min(other)[:60]!r} cannot be given here; the options are {known}")
    needed = ("name", "to") if verb == "register" else ("name",)
    for key in needed:
        if not isinstance(options.get(key), str):
            raise Refused(400, f"{key!r} is missing")
    if not isinstance(options.get("to", ""), str):
        raise Refused(400, "'to' is no URL")
    if "ttl" in options and options["ttl"] in (0, "0", "0s"):
        raise Refused(400, "a service that is elsewhere needs a ttl")
    return options


def peer_of(sock: socket.socket) -> Peer:
    """The client of a connection. All addresses of one 64-bit IPv6 network count as one client."""
    if sock.family == socket.AF_UNIX:
        return Peer(None, f"uid {peer_credentials(sock)[1]}")
    try:
        ip = _plain(ip_address(str(sock.getpeername()[0]).partition("%")[0]))
    except (OSError, ValueError):
        raise Refused(400, "the client has left") from None
    key = str(ip_network((ip, 64), strict=False)) if isinstance(ip, IPv6Address) else str(ip)
    return Peer(ip, key)


def _plain(ip: Ip) -> Ip:
    return (ip.ipv4_mapped or ip) if isinstance(ip, IPv6Address) else ip


def _has_port(place: str) -> bool:
    return ":" in (place.rpartition("]")[2] if place.startswith("[") else place)


def _digest(token: bytes) -> bytes:
    # Equal lengths, so that the time of a comparison does not reveal the token's length.
    return hashlib.sha256(token).digest()


def _message(text: str) -> bytes:
    return json.dumps({"error": text}).encode() + b"\n"


HINT = "name the service's own address"
# Names of this machine that a resolver may not know.
_LOOPBACK_NAMES = ("localhost", ".localhost", "ip6-localhost", "ip6-loopback")


def target_problem(url: str, tables: Tables) -> str:
    """Why no service may be registered at this URL; "" if one may. Blocks: a host name is resolved.

    It must not be an address of the pool's own, or one where no service is. A route would lead everyone who may use it
    there: to commands over the control socket, to the metrics, to the credentials that cloud providers serve on
    link-local addresses, or in a circle.
    """
    target = parse(url.rpartition("://")[2])
    if target.kind == "unix":
        return _socket_problem(url, target, tables)
    ips = addresses_of(target.host)
    for ip in ips:
        if ip.is_link_local:
            return f"{url} is a link-local address"
        if ip.is_multicast or ip.is_unspecified:
            return f"{url} is no address of a service"
    for name, own in named_addresses(tables):
        if own is not None and own.kind == "tcp" and own.port == target.port and _may_reach(target, ips, own):
            return f"{url} is an address of {_words(name)}"
    return ""


def addresses_of(host: str) -> list[Ip]:
    """The addresses of a host; empty for a name that cannot be resolved. Blocks."""
    with contextlib.suppress(ValueError):
        return [_plain(ip_address(host.partition("%")[0]))]
    if host.endswith(_LOOPBACK_NAMES):
        return [IPv4Address("127.0.0.1"), IPv6Address("::1")]
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [_plain(ip_address(str(sockaddr[0]).partition("%")[0])) for *_, sockaddr in found]


def _may_reach(target: Address, ips: list[Ip], own: Address) -> bool:
    """Whether a connection to the target may reach this address of the pool itself, which has the same port."""
    if target.host == own.host:
        return True
    if own.is_wildcard:
        return any(map(_is_of_this_machine, ips))
    return not set(ips).isdisjoint(addresses_of(own.host))


def _is_of_this_machine(ip: Ip) -> bool:
    if ip.is_loopback:
        return True
    family = socket.AF_INET6 if ip.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((str(ip), 0))
        except OSError:
            return False
    return True


def _socket_problem(url: str, target: Address, tables: Tables) -> str:
    path = os.path.realpath(target.key.removeprefix("unix:"))
    # A directory with a control socket is a pool's runtime directory.
    if os.path.lexists(os.path.join(os.path.dirname(path), SOCKET_NAME)):
        return f"{url} is a socket of poolctl's own"
    for name, own in named_addresses(tables):
        if own is not None and own.kind == "unix" and _is_same(path, own.key.removeprefix("unix:")):
            return f"{url} is an address of {_words(name)}"
    return ""


def _is_same(path: str, other: str) -> bool:
    try:
        return os.path.realpath(other) == path or os.path.samefile(path, other)
    except OSError:
        return False


def _words(table: str) -> str:
    return "the gateway itself" if table == "[gateway]" else f"the pool's own {table}"
