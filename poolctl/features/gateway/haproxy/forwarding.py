"""The header fields by which HAProxy reports the client to backends, and the client's address behind trusted proxies.

`trusted` has the networks of trusted proxies, UNIX, or EVERY.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from poolctl.routing.networks import EVERY, UNIX

from .syntax import network_groups, quoted

# Forwarding headers, and the path prefix headers of gunicorn and daphne: an application strips the prefix from the
# path, so that a client could reach a path that its route refuses.
_REPORTS = (
    "^(forwarded|proxy|client[-_]cert([-_]chain)?|x[-_](forwarded|poolctl)[-_].*|x[-_]real[-_]ip"
    "|script_name|daphne-root-path)$"
)
# Header fields that are removed even if a trusted proxy has sent them.
_ALWAYS_REMOVED = (
    "^(proxy|client_cert.*|client-cert_.*|x_forwarded[-_].*|x-forwarded_.*"
    "|x[-_]poolctl[-_].*|x[-_]real[-_]ip)$"
)
# Header fields about the client's own connection.
_HOP_BY_HOP = "^(keep-alive|proxy-connection|te|http2-settings)$"
_MAX_PROXIES = 8  # on the way from a client
# A value of Forwarded in which no quoted text looks like another parameter or element (RFC 7239 §4).
_PLAIN_FORWARDED = r'^[^"\\]*("[^"\\,;=]*"[^"\\]*)*$'
# Forwarded without blanks and quotes, and its values of `for`.
_REPORTED = 'var(txn.forwarded),lower,regsub("[^][a-z0-9=;,.:_-]",,g)'
_REPORTED_HOPS = (
    'var(txn.reported),regsub("(^|,)([^,]*;)?for=([^;,]*)[^,]*",\\1\\3,g),regsub("[^,]*=[^,]*",unknown,g),'
    'regsub(",",", ",g)'
)
_HAS_ADDRESS = "{ src -m found }"
# X-Forwarded-For without blanks, and its addresses without brackets and ports.
_PLAIN_HOPS = (
    'var(txn.hops),regsub("[[:blank:]]",,g),regsub("\\[([^],]*)\\](:[0-9]+)?",\\1,g),'
    'regsub("([0-9]\\.[0-9]+):[0-9]+",\\1,g)'
)


def forwarding_rules(
    trusted: Sequence[str], *, needs_client: bool, asks_for_certificate: bool = False
) -> Iterator[str]:
    """Rules that replace forwarding headers of clients, and extend those of trusted proxies.

    With `needs_client` they set txn.client to the client's address. With `asks_for_certificate` backends get the
    client's certificate in the field Client-Cert (RFC 9440).
    """
    yield "    acl uses_tls ssl_fc"
    # A tunnel would bypass the rules for requests.
    yield "    http-request deny deny_status 405 if { method CONNECT TRACE }"
    yield from _hop_by_hop_rules()
    for group in network_groups(trusted):
        yield f"    http-request set-var(txn.trusted) bool(true) if {{ src {group} }}"
    if UNIX in trusted or EVERY in trusted:
        yield f"    http-request set-var(txn.trusted) bool(true) if !{_HAS_ADDRESS}"
    unless = " unless { var(txn.trusted) -m bool }" if trusted else ""
    yield f"    http-request del-header {quoted(_REPORTS)} -m reg{unless}"
    if trusted:
        yield f"    http-request del-header {quoted(_ALWAYS_REMOVED)} -m reg"
        yield from _joined_lines("x-forwarded-for", "hops")
        yield from _joined_lines("forwarded", "forwarded")
        yield from _reports_of_forwarded()
    if needs_client:
        yield from _client_address(trusted)
    yield from _extended_hops()
    values = (
        ("X-Forwarded-Proto", "https", "uses_tls"),
        ("X-Forwarded-Proto", "http", "!uses_tls"),
        ("X-Forwarded-Host", "%[req.fhdr(host)]", "{ req.fhdr(host) -m found }"),
    )
    for name, value, condition in values:
        unless_sent = f" !{{ req.fhdr({name.lower()}) -m found }}" if trusted else ""
        yield f"    http-request set-header {name} '{value}' if {condition}{unless_sent}"
    if trusted:
        yield from _forwarded()
    if asks_for_certificate:
        yield "    http-request set-header Client-Cert ':%[ssl_c_der,base64]:' if { ssl_c_used }"


def _hop_by_hop_rules() -> Iterator[str]:
    """Rules that remove the options of a connection (RFC 9110 §7.6.1) except upgrades.

    A proxy behind this one would remove the fields that `Connection` names, perhaps those that are set here. With h2c
    (RFC 7540 §3.2) requests would bypass the rules.
    """
    upgrades = "{ req.hdr(connection) -m str -i upgrade }"
    yield f"    http-request set-header Connection upgrade if {upgrades}"
    yield f"    http-request del-header Connection unless {upgrades}"
    yield "    http-request del-header Upgrade if { req.hdr(upgrade) -m str -i h2c }"
    yield f"    http-request del-header {quoted(_HOP_BY_HOP)} -m reg"
    yield "    http-response del-header Keep-Alive"


def _joined_lines(field: str, variable: str) -> Iterator[str]:
    """Rules that set txn.VARIABLE to the joined lines of the field (RFC 9110 §5.3), unless it is empty."""
    yield f"    http-request set-var(txn.{variable}) req.fhdr({field},-1) if {{ req.fhdr({field}) -m len ge 1 }}"
    for line in range(2, _MAX_PROXIES + 1):
        value = f"%[req.fhdr({field},-{line})], %[var(txn.{variable})]"
        yield (
            f"    http-request set-var-fmt(txn.{variable}) {quoted(value)} if {{ req.fhdr_cnt({field}) ge {line} }}"
        )


def _reports_of_forwarded() -> Iterator[str]:
    """Rules that set missing X-Forwarded-* fields from Forwarded; scheme and host are those of its first element."""
    is_sent = "{ var(txn.forwarded) -m found }"
    is_plain = f"{{ var(txn.forwarded) -m reg {quoted(_PLAIN_FORWARDED)} }}"
    yield f"    http-request del-header Forwarded if {is_sent} !{is_plain}"
    yield f"    http-request unset-var(txn.forwarded) if !{is_plain}"
    yield f"    http-request set-var(txn.reported) {quoted(_REPORTED)} if {is_sent}"
    is_sent = "{ var(txn.reported) -m found }"
    yield f"    http-request set-var(txn.hops) {quoted(_REPORTED_HOPS)} if {is_sent} !{{ var(txn.hops) -m found }}"
    for name, parameter, values in (("Proto", "proto", "(https?|wss?)"), ("Host", "host", "[][a-z0-9.:_-]+")):
        pattern = f"^([^,]*;)?{parameter}={values}([;,]|$)"
        value = f'%[var(txn.reported),regsub("^([^,]*;)?{parameter}=([^;,]*).*$",\\2)]'
        missing = f"!{{ req.fhdr(x-forwarded-{parameter}) -m found }}"
        condition = f"{{ var(txn.reported) -m reg {quoted(pattern)} }} {missing}"
        yield f"    http-request set-header X-Forwarded-{name} {quoted(value)} if {condition}"


def _client_address(trusted: Sequence[str]) -> Iterator[str]:
    """Rules that set txn.client: the last address in X-Forwarded-For that is not a trusted proxy, else the peer."""
    yield "    http-request set-var(txn.client) src"
    if not trusted:
        return
    yield f"    http-request set-var(txn.plain) {quoted(_PLAIN_HOPS)} if {{ var(txn.trusted) -m bool }}"
    if EVERY in trusted or UNIX in trusted:
        yield f"    http-request set-var(txn.client) {_hop(1)} if {{ var(txn.trusted) -m bool }} !{_HAS_ADDRESS}"
    if EVERY in trusted:
        return  # otherwise any client could claim an address
    groups = [*network_groups(trusted)]
    for group in groups:
        yield f"    acl client_is_proxy var(txn.client) -m ip {group}"
    for hop in range(1, _MAX_PROXIES + 1) if groups else ():
        yield f"    http-request set-var(txn.client) {_hop(hop)} if client_is_proxy"


def _hop(number: int) -> str:
    """The address of this hop, counted from the last one; nothing if it is not an address."""
    return quoted(f'var(txn.plain),field(-{number},","),ipmask(32,128)')


def _extended_hops() -> Iterator[str]:
    peer = quoted("%[var(txn.hops)], %[src]")
    has_hops = "{ var(txn.hops) -m found }"
    yield f"    http-request set-var-fmt(txn.hops) {peer} if {has_hops} {_HAS_ADDRESS}"
    yield f"    http-request set-var(txn.hops) src if !{has_hops}"
    yield f"    http-request set-header X-Forwarded-For '%[var(txn.hops)]' if {has_hops}"


def _forwarded() -> Iterator[str]:
    """Rules that extend the field Forwarded of a trusted proxy by the proxy's address.

    A missing field is not added: applications that prefer it would take the proxy for the client.
    """
    yield "    http-request set-var(txn.node) src"
    yield """    http-request set-var-fmt(txn.node) '"[%[src]]"' if { src -m sub : }"""
    yield f"    http-request set-var(txn.node) str(unknown) unless {_HAS_ADDRESS}"
    extended = quoted("%[var(txn.forwarded)], for=%[var(txn.node)]")
    has_one = "{ var(txn.trusted) -m bool } { var(txn.forwarded) -m found }"
    yield f"    http-request set-header Forwarded {extended} if {has_one}"
