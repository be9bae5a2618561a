"""The limits of a route in HAProxy's rules: requests in flight, requests a second, queued requests, sizes of bodies."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

from poolctl.routing.route import TrafficLimits

from ._syntax import duration

# How long the first byte of a body may take whose size is not known.
_BODY_BEGINS = "10s"
# Responses that HAProxy itself sends.
_TOO_MANY = "status 429 content-type text/plain string 'Too Many Requests'"
UNAVAILABLE = "status 503 content-type text/plain string 'Service Unavailable'"
_LENGTH_REQUIRED = "status 411 content-type text/plain string 'Length Required'"
_MOST_CLIENTS = 32_768


def client_limit_rules(limit: TrafficLimits | None, table: str) -> Iterator[str]:
    """Rules that limit each client, by IPv4 address or /64 IPv6 network. Refused requests are not counted."""
    if limit is None:
        return
    client = "var(txn.client),ipmask(32,64)"
    refuse = f"    http-request return {_TOO_MANY} hdr retry-after 1"
    rate = limit.requests_per_second
    seconds = ceil(1 / rate) if 0 < rate < 1 else 1
    stored = f"expire {seconds + 1}s store http_req_rate({seconds}s),conn_cur"
    yield f"    stick-table type ipv6 size {_MOST_CLIENTS} {stored}"
    if limit.concurrency:
        yield f"{refuse} if {{ {client},table_conn_cur({table}) ge {limit.concurrency} }}"
    if rate:
        yield f"{refuse} if {{ {client},table_http_req_rate({table}) ge {max(1, round(rate * seconds))} }}"
    yield f"    http-request track-sc0 {client}"


def route_limit_rules(limit: TrafficLimits | None) -> Iterator[str]:
    refuse = f"    http-request return {UNAVAILABLE} hdr retry-after 1"
    if limit is not None and limit.concurrency:
        yield f"{refuse} if {{ be_conn gt {limit.concurrency} }}"
    if limit is not None and limit.requests_per_second:
        yield f"{refuse} if {{ be_sess_rate gt {max(1, round(limit.requests_per_second))} }}"


def queue_limit_lines(limit: TrafficLimits | None, backends: int) -> Iterator[str]:
    """Lines that limit how many requests wait for busy backends, and how long; nothing without a concurrency limit.

    HAProxy's `maxqueue` refuses none: what does not fit into a server's queue waits in that of all servers.
    """
    if limit is None or not limit.concurrency:
        return
    yield f"    timeout queue {duration(limit.queue_seconds if limit.queue else 0.001)}"
    if limit.queue:
        refuse = f"    http-request return {UNAVAILABLE} hdr retry-after 1"
        yield f"{refuse} if {{ queue ge {limit.queue * backends} }}"


def body_limit_rules(most_bytes: int) -> Iterator[str]:
    """Rules that refuse a larger body, and one whose head does not have its size, as HAProxy does not count it."""
    if most_bytes:
        unknown = "!{ req.fhdr(content-length) -m found }"
        yield f"    http-request deny deny_status 413 if {{ req.body_size gt {most_bytes} }}"
        yield f"    http-request wait-for-body time {_BODY_BEGINS} at-least 1 if {unknown}"
        yield f"    http-request return {_LENGTH_REQUIRED} if {unknown} {{ req.body_len gt 0 }}"
