"""The limits of a route in HAProxy's rules: requests in flight, requests a second, queued requests, sizes of requests.

The rate is limited by GCRA, as redis-cell does: `gpt0` in a stick table is the time at which the whole burst is
available again. Refused requests are not counted. HAProxy reads and writes the table in two steps, so that the limit is
only exact with one thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from math import ceil
from typing import NamedTuple

from poolctl.routing.route import Route, TrafficLimits

from .syntax import duration, quoted

# Responses by which HAProxy refuses a request.
_TOO_MANY = "status 429 content-type text/plain string 'Too Many Requests'"
UNAVAILABLE = "status 503 content-type text/plain string 'Service Unavailable'"
_HEAD_TOO_LARGE = "status 431 content-type text/plain string 'Request Header Fields Too Large'"
_LENGTH_REQUIRED = "status 411 content-type text/plain string 'Length Required'"
# The maximum time until the first byte of a body of unknown size.
_BODY_TIMEOUT = "10s"
_LOG_LINE_BYTES = 1024
_MAX_CLIENTS = 32_768
# An IPv6 client has its own /64 network, and may use any address in it (RFC 6177).
_CLIENT = "var(txn.client),ipmask(32,64)"
# gpt0 has 32 bits: the highest bit marks a stored time, the others are the time, which wraps around.
_HAS_TIME = 1 << 31
_TIME = _HAS_TIME - 1
_MAX_FACTOR = 4000  # with which microseconds since 1970 fit into 64 bits until 2043
_MAX_EXPIRY_SECONDS = 24 * 86_400


REFUSE_FILE = "refuse.lua"
REFUSE_UPLOADS = """\
-- Refuses an upload at once, and reads the rest of it. Rules that refuse requests close the connection: then a client
-- that sends everything before it reads reports a broken connection instead of the response (RFC 9112, 9.6).
core.register_service("refuse_upload", "http", function(applet)
    local status, reason = applet:get_var("txn.refusal"):match("^(%d+) (.*)$")
    applet:set_status(tonumber(status))
    applet:add_header("content-type", "text/plain")
    applet:add_header("content-length", tostring(#reason))
    applet:start_response()
    applet:send(reason)
    while #applet:receive(65536) > 0 do end
end)
"""


class _RateLimit(NamedTuple):
    """A limit of requests a second for each `key`; `name` is part of variables, `table` the stick table's section.

    `interval` is the time between two requests at the limit, in units that make it a whole number.
    """

    name: str
    limit: TrafficLimits
    key: str
    table: str
    refusal: str

    @property
    def burst(self) -> float:
        """The maximum burst: the configured one, or the requests of one second; at least 1."""
        return max(1.0, self.limit.burst or self.limit.requests_per_second)

    @property
    def interval(self) -> int:
        return min(1000, int((1 << 29) / (self.burst + self.limit.requests_per_second)))

    @property
    def expiry_seconds(self) -> int:
        """The time after which an entry has no more effect."""
        return min(_MAX_EXPIRY_SECONDS, ceil(self.burst / self.limit.requests_per_second) + 1)

    def refusing_rules(self) -> Iterator[str]:
        """Rules that refuse a request above the limit, and set variables for `counting_rules`."""
        now, due, ahead = (f"txn.{self.name}_{word}" for word in ("now", "due", "ahead"))
        rate = self.limit.requests_per_second
        units = Fraction(rate * self.interval / 1_000_000)
        units = units.limit_denominator(max(1, int(_MAX_FACTOR / units)))
        yield f"    http-request set-var({now}) date(0,us),mul({units.numerator}),div({units.denominator})"
        yield f"    http-request set-var({due}) {self.key},table_gpt0({self.table})"
        yield f"    http-request set-var({ahead}) var({due}),sub({now}),and({_TIME})"
        # Times wrap around: a difference larger than the burst is negative, of a time in the past.
        burst = int(self.burst * self.interval)
        past = f"{{ var({due}) -m int lt {_HAS_TIME} }} or {{ var({ahead}) -m int gt {burst} }}"
        yield f"    http-request set-var({ahead}) int(0) if {past}"
        retry = ceil(1 / rate)
        yield f"{_refuse(self.refusal, retry)} if {{ var({ahead}) -m int gt {burst - self.interval} }}"

    def counting_rule(self, counter: int) -> str:
        """The rule that counts a request with the key that this counter tracks."""
        ahead = f"add(txn.{self.name}_ahead),add({self.interval})"
        return (
            f"    http-request sc-set-gpt0({counter}) var(txn.{self.name}_now),{ahead},"
            f"and({_TIME}),or({_HAS_TIME})"
        )


def head_rules(max_bytes: int, log: str, *, has_access_log: bool = False) -> Iterator[str]:
    """The rules that refuse a request with a larger head, and log that to the access log, or else to `log`.

    A head that does not fit into the buffer is refused before any rule.
    """
    yield "    http-request set-var(txn.head) req.hdrs,length"
    yield "    http-request set-var(txn.head) url,length,add(txn.head)"
    if_larger = f"if {{ var(txn.head) -m int gt {max_bytes} }}"
    why = f"its head has %[var(txn.head)] bytes, and max_head_size of [gateway] is {max_bytes}"
    if has_access_log:
        yield f"    http-request set-var-fmt(txn.why) {quoted(f': {why}')} {if_larger}"
    else:
        host_and_path = "%[req.fhdr(host),bytes(0,255)]%[path,bytes(0,512)]"
        # HAProxy's own messages are less severe.
        yield f"    log {log} len {_LOG_LINE_BYTES} format raw local0 emerg"
        yield f"    log-format {quoted(f'[WARNING] %t: %HM %{{+E}}[var(txn.asked)] of %ci gets 431: {why}')}"
        yield "    http-request set-log-level silent"
        yield f"    http-request set-var-fmt(txn.asked) {quoted(host_and_path)} {if_larger}"
        yield f"    http-request set-log-level emerg {if_larger}"
    yield f"    http-request deny {_HEAD_TOO_LARGE} {if_larger}"


def _refuse(refusal: str, retry_seconds: int = 1) -> str:
    # HAProxy counts denied requests as denied; requests answered by `return` are not counted.
    return f"    http-request deny {refusal} hdr retry-after {retry_seconds}"


def _rate_of_route(route: Route, section: str) -> _RateLimit | None:
    if route.limit is None or not route.limit.requests_per_second:
        return None
    return _RateLimit("route", route.limit, "int(1)", f"rate:{section}", UNAVAILABLE)


def route_table(route: Route, section: str) -> Iterator[str]:
    """The section with the stick table of the whole route, if its rate is limited.

    A section can have only one table: that of the route's backend, `section`, is for each client.
    """
    if (rate := _rate_of_route(route, section)) is not None:
        yield f"backend {rate.table}"
        yield f"    stick-table type integer size 1 expire {rate.expiry_seconds}s store gpt0"


def limit_rules(route: Route, section: str) -> Iterator[str]:
    """The rules of the route's backend, called `section`, that refuse requests above the limits."""
    clients, rates = route.client_limit, list[_RateLimit]()
    if clients is not None:
        expiry, stored = 1, "conn_cur"
        if clients.requests_per_second:
            rates.append(_RateLimit("client", clients, _CLIENT, section, _TOO_MANY))
            expiry, stored = rates[0].expiry_seconds, "gpt0,conn_cur"
        yield f"    stick-table type ipv6 size {_MAX_CLIENTS} expire {expiry}s store {stored}"
        if clients.concurrency:
            yield (
                f"{_refuse(_TOO_MANY)} if {{ {_CLIENT},table_conn_cur({section}) ge {clients.concurrency} }}"
            )
    if route.limit is not None and route.limit.concurrency:
        yield f"{_refuse(UNAVAILABLE)} if {{ be_conn gt {route.limit.concurrency} }}"
    if (rate_of_route := _rate_of_route(route, section)) is not None:
        rates.append(rate_of_route)
    for rate in rates:
        yield from rate.refusing_rules()
    if clients is not None:
        yield f"    http-request track-sc0 {_CLIENT}"
    if rate_of_route is not None:
        yield f"    http-request track-sc1 {rate_of_route.key} table {rate_of_route.table}"
    for rate in rates:
        yield rate.counting_rule(int(rate is rate_of_route))


def queue_rules(limit: TrafficLimits | None, backends: int) -> Iterator[str]:
    """Lines that limit how many requests wait for busy backends, and how long; nothing without a concurrency limit.

    HAProxy's `maxqueue` does not refuse requests: further ones wait in the queue of the backend.
    """
    if limit is None or not limit.concurrency:
        return
    yield f"    timeout queue {duration(limit.queue_seconds if limit.queue else 0.001)}"
    if limit.queue:
        yield f"{_refuse(UNAVAILABLE)} if {{ queue ge {limit.queue * backends} }}"


def body_rules(max_bytes: int) -> Iterator[str]:
    """Rules that refuse a larger body, and a body of unknown size: HAProxy cannot count its bytes."""
    if max_bytes:
        too_large, unknown = f"{{ req.body_size gt {max_bytes} }}", "!{ req.fhdr(content-length) -m found }"
        began = f"{unknown} {{ req.body_len gt 0 }}"
        yield from _refuse_upload("413 Payload Too Large", too_large)
        yield f"    http-request deny deny_status 413 if {too_large}"
        yield f"    http-request wait-for-body time {_BODY_TIMEOUT} at-least 1 if {unknown}"
        yield from _refuse_upload("411 Length Required", began)
        yield f"    http-request return {_LENGTH_REQUIRED} if {began}"


def _refuse_upload(response: str, condition: str) -> Iterator[str]:
    """Rules for the service in REFUSE_UPLOADS. The rule after them is for a HAProxy without Lua.

    It also refuses a client that waits for 100 (Continue), which the service would send.
    """
    yield "    .if feature(LUA)"
    yield f"    http-request set-var(txn.refusal) str('{response}') if {condition} !{{ req.fhdr(expect) -m found }}"
    yield "    http-request use-service lua.refuse_upload if { var(txn.refusal) -m found }"
    yield "    .endif"


def loads_refusal() -> Iterator[str]:
    """Lines for the section `global` that load REFUSE_UPLOADS."""
    yield "    .if feature(LUA)"
    yield "    .if version_atleast(3.1)"
    yield "    tune.lua.bool-sample-conversion normal"
    yield "    .endif"
    yield f"    lua-load {REFUSE_FILE}"
    yield "    .endif"
