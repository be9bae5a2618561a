"""The fields in which HAProxy tells backends about the client, and the client's address behind trusted proxies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from poolctl.routing.decision import EVERY

from ._syntax import network_groups, quoted

# Header fields in which applications expect a proxy's report.
_REPORTS = "^(forwarded|proxy|x[-_](forwarded|poolctl)[-_].*|x[-_]real[-_]ip)$"  # see http.client_report
# Header fields that are removed even if a trusted proxy has sent them.
_NEVER_BELIEVED = "^(proxy|x_forwarded[-_].*|x-forwarded_.*|x[-_]poolctl[-_].*|x[-_]real[-_]ip)$"
_MOST_PROXIES = 8  # on the way from a client


def forwarding_rules(trusted: Sequence[str]) -> Iterator[str]:
    """Rules that replace forwarding headers sent by clients, and extend those sent by trusted proxies."""
    for networks in network_groups(trusted):
        yield f"    http-request set-var(txn.trusted) bool(true) if {{ src {networks} }}"
    unless = " unless { var(txn.trusted) -m bool }" if trusted else ""
    yield f"    http-request del-header {quoted(_REPORTS)} -m reg{unless}"
    if trusted:
        yield f"    http-request del-header {quoted(_NEVER_BELIEVED)} -m reg"
    yield "    http-request add-header X-Forwarded-For '%[src]' if { src -m found }"
    values = (
        ("X-Forwarded-Proto", "https", "{ ssl_fc }"),
        ("X-Forwarded-Proto", "http", "!{ ssl_fc }"),
        ("X-Forwarded-Host", "%[req.fhdr(host)]", "{ req.fhdr(host) -m found }"),
    )
    for name, value, condition in values:
        there = f" !{{ req.fhdr({name.lower()}) -m found }}" if trusted else ""
        yield f"    http-request set-header {name} '{value}' if {condition}{there}"
    yield "    http-request set-var(txn.node) src"
    yield """    http-request set-var-fmt(txn.node) '"[%[src]]"' if { src -m sub : }"""
    yield "    http-request set-var(txn.node) str(unknown) unless { src -m found }"
    yield "    http-request set-var(txn.scheme) str(http)"
    yield "    http-request set-var(txn.scheme) str(https) if { ssl_fc }"
    host = quoted('regsub("[^][A-Za-z0-9._:-]",,g)')
    yield f"    http-request set-var(txn.said) req.fhdr(host),{host}"
    forwarded = 'for=%[var(txn.node)];proto=%[var(txn.scheme)];host="%[var(txn.said)]"'
    yield f"    http-request add-header Forwarded {quoted(forwarded)}"


def client_address_rules(trusted: Sequence[str]) -> Iterator[str]:
    """Rules that set txn.client to the client's address: the peer's, or the one that trusted proxies report."""
    yield "    http-request set-var(txn.client) src"
    if EVERY in trusted:
        return  # otherwise any client could claim an address
    for networks in network_groups(trusted):
        yield f"    acl client_is_proxy var(txn.client) -m ip {networks}"
    for hop in range(2, _MOST_PROXIES + 2) if trusted else ():
        # The last address belongs to this connection's peer.
        yield f"    http-request set-var(txn.client) req.hdr_ip(x-forwarded-for,-{hop}) if client_is_proxy"
