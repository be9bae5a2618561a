"""The rules by which HAProxy chooses the route of a request, as `poolctl.routing.match` does.

A path may have several readings (see `poolctl.routing.normal_path`); it matches a route only if all readings match it.
Three readings suffice, because routes have unambiguous paths: every other reading equals one of the three up to the
first ambiguous place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from poolctl.routing import match
from poolctl.routing.route import Route

from .syntax import VALUES_A_LINE, argument, criterion, line_groups, matches, quoted

# HAProxy has already decoded unreserved characters, and writes escapes in upper case.
_AMBIGUOUS = r"//|;|%2F|%5C"
_HIDDEN_DOTS = r"(/|%2F|%5C)\.\.?(/|%2F|%5C|;|$)"
_DECODE_SEPARATORS, _STRIP_PARAMETERS, _MERGE_SLASHES = (
    'regsub("%2F|%5C",/,g)',
    'regsub(";[^/]*",,g)',
    'regsub("//+",/,g)',
)
# The variables of the readings: the path itself, and with separators decoded before or after parameters are stripped.
# For an unambiguous path only the first is set.
_PATH, _OTHER_READINGS = "txn.path", ("txn.separated", "txn.cut")
_READING_CONVERTERS = (
    f"{_DECODE_SEPARATORS},{_STRIP_PARAMETERS},{_MERGE_SLASHES}",
    f"{_STRIP_PARAMETERS},{_DECODE_SEPARATORS},{_MERGE_SLASHES}",
)
_IS_AMBIGUOUS = f"{{ var({_OTHER_READINGS[0]}) -m found }}"
# Traefik and others say wss for a WebSocket.
_IS_HTTPS = "{ req.hdr(x-forwarded-proto,1) -m str -i -- https wss }"
_IP_ADDRESS = r"(^\[|(^|\.)[0-9]+$)"
ROUTES = "routes.map"
_NO_ENTRY = "-"
# How keys of the map begin, for each kind of host pattern: with the host, or "*".
_KEY_OF_REQUEST = {
    match.EXACT: "str(//),concat(,txn.host)",
    match.LABEL: "str(//),concat(,txn.label,.*)",
    match.DOMAIN: "str(//*.),concat(,txn.domain)",
    match.DEFAULT: "str(//*)",
}
_SECURE = ":443"  # after the host in the keys of requests that came over TLS
# A line has room for this many header conditions beside all others.
_FEW_HEADERS = 8

Sections = Sequence[tuple[Route, str]]


def reading_rules() -> Iterator[str]:
    """Rules that set the variables of the path's readings, and refuse a path with a hidden dot segment."""
    yield f"    http-request deny deny_status 400 if {{ path -m reg {quoted(_HIDDEN_DOTS)} }}"
    yield f"    http-request set-var({_PATH}) path,concat(/)"
    yield f"    http-request set-var({_PATH}) str(/) unless {{ path -m found }}"  # OPTIONS *
    condition = f"{{ path -m reg {quoted(_AMBIGUOUS)} }}"
    for variable, steps in zip(_OTHER_READINGS, _READING_CONVERTERS, strict=True):
        yield f"    http-request set-var({variable}) {quoted(f'var({_PATH}),{steps}')} if {condition}"
        condition = _IS_AMBIGUOUS


def choice_rules(sections: Sections, no_route: str, first_choices: Iterable[str] = ()) -> Iterator[str]:
    """Lines that send each request to the section of its route; `sections` are in the order of the routes' precedence.

    The `use_backend` lines come last, beginning with `first_choices`: HAProxy warns of other rules after them. Requests
    with different routes for their readings go to the section `no_route`. Routes are looked up in the map ROUTES (see
    `route_entries`), or tried one after the other.
    """
    mapped, choices = _mapped_aliases(sections), [*first_choices]
    redirects = any(route.redirects_to_https for route, _ in sections if route.alias in mapped)
    if redirects:
        yield f"    http-request set-var(txn.secure) str({_SECURE}) if {_IS_HTTPS}"
    tiers = {match.host_pattern(route.host).tier for route, _ in sections}
    if tiers & {match.LABEL, match.DOMAIN}:
        is_address = f"{{ var(txn.host) -m reg {quoted(_IP_ADDRESS)} }}"
        yield f"    http-request set-var(txn.name) var(txn.host) unless {is_address}"
    if match.LABEL in tiers:
        yield "    http-request set-var(txn.label) var(txn.name),field(1,.)"
    for number, (stage, members) in enumerate(groupby(sorted(sections, key=_stage), _stage)):
        routes = [*members]
        tried = [member for member in routes if member[0].alias not in mapped]
        if len(tried) < len(routes):
            yield from _lookups(number, *stage, by_scheme=redirects)
            choices += _choices_by_map(number, no_route)
        for route, section in tried:
            yield from _header_rules(section, route)
            choices += use_backend_rules(section, route, last=f"!{_IS_AMBIGUOUS}")
        for route, section in tried:
            choices += _rules_for_readings(route, section, no_route)
    yield from choices


def route_entries(sections: Sections) -> Mapping[str, str]:
    """The entries of the map ROUTES: sections by the beginning of the keys of their requests; the longest match counts.

    Left out are hosts with "*" in other places than "*.example.com", and hosts with conditions on methods or headers.
    """
    mapped, entries = _mapped_aliases(sections), dict[str, str]()
    redirects = any(route.redirects_to_https for route, _ in sections if route.alias in mapped)
    for route, section in sections:
        if route.alias in mapped:
            for secure in ("", _SECURE) if redirects and not route.redirects_to_https else ("",):
                entries.setdefault(_map_key(route, secure), section)
    return entries


def use_backend_rules(section: str, route: Route, scope: str = "txn", last: str = "") -> Iterator[str]:
    """Lines that send requests to this section if they meet the route's conditions and the condition `last`."""
    conditions = [*_host_conditions(route, scope)]
    if (prefix := match.normal_prefix(route.path)) != "/":
        conditions.append(matches(f"var({_PATH})", "beg", f"{prefix}/"))
    for methods in line_groups(route.methods):
        yield f"    acl {section}:method method -m str -- {methods}"
    yield _use_backend(section, *conditions, *_other_conditions(section, route), last)


def _rules_for_readings(route: Route, section: str, no_route: str) -> Iterator[str]:
    """Lines for paths with several readings. They use conditions that the lines of `use_backend_rules` define."""
    conditions = [*_host_conditions(route), *_other_conditions(section, route)]
    if (prefix := match.normal_prefix(route.path)) == "/":
        yield _use_backend(section, _IS_AMBIGUOUS, *conditions)
        return
    readings = [(f"var({variable})", "beg", f"{prefix}/") for variable in (_PATH, *_OTHER_READINGS)]
    yield _use_backend(section, _IS_AMBIGUOUS, *conditions, *(matches(*reading) for reading in readings))
    for reading in readings:
        yield f"    acl {section}:reading {criterion(*reading)}"
    yield _use_backend(no_route, _IS_AMBIGUOUS, *conditions, f"{section}:reading")


def _lookups(number: int, tier: int, labels: int, *, by_scheme: bool) -> Iterator[str]:
    """Lines that look up the section of each reading at a stage (see `_stage`), into numbered variables."""
    if tier == match.DOMAIN:
        domain = f"var(txn.name),field(2,.,0),field(-1,.,{-labels})"
        yield f"    http-request set-var(txn.domain) {domain} unless {{ var(txn.name) -m beg . }}"
    secure = ",concat(,txn.secure)" if by_scheme else ""
    for reading, variable in enumerate((_PATH, *_OTHER_READINGS)):
        section = f"{_KEY_OF_REQUEST[tier]}{secure},concat(,{variable}),map_beg({ROUTES},{_NO_ENTRY})"
        condition = f" if {_IS_AMBIGUOUS}" if reading else ""
        yield f"    http-request set-var(txn.section{number}_{reading}) {section}{condition}"


def _choices_by_map(number: int, no_route: str) -> Iterator[str]:
    """Lines that send requests to the section of this stage, if it is the same for all readings."""
    variable = f"txn.section{number}"
    for reading in range(1, 1 + len(_OTHER_READINGS)):
        same = f"{{ var({variable}_0),strcmp({variable}_{reading}) eq 0 }}"
        yield _use_backend(no_route, _IS_AMBIGUOUS, f"!{same}")
    yield _use_backend(f"%[var({variable}_0)]", "!" + matches(f"var({variable}_0)", "str", _NO_ENTRY))


def _host_conditions(route: Route, scope: str = "txn") -> Iterator[str]:
    pattern = match.host_pattern(route.host)
    if pattern.tier == match.EXACT:
        yield matches(f"var({scope}.host)", "str", pattern.text)
    elif pattern.tier == match.LABEL:
        yield matches(f"var({scope}.label)", "str", pattern.text)
    elif pattern.tier == match.DOMAIN:
        yield matches(f"var({scope}.name)", "end", f".{pattern.text}")
        yield "!" + matches(f"var({scope}.name)", "beg", ".")
    elif pattern.tier != match.DEFAULT:
        expression = ".+".join(map(re.escape, pattern.text.split("*")))
        yield matches(f"var({scope}.host)", "reg", f"^{expression}$")


def _other_conditions(section: str, route: Route) -> Iterator[str]:
    if route.redirects_to_https:
        yield f"!{_IS_HTTPS}"
    # By the name of an ACL, because a line has room for few values.
    if route.methods:
        yield f"{section}:method"
    if _has_many_headers(route):
        yield matches(f"var({_headers_variable(section)})", "int", str(len(route.headers)))
    else:
        yield from _names_of_headers(section, route)


def _header_rules(section: str, route: Route) -> Iterator[str]:
    """Lines that name the route's conditions for headers; with many, a variable counts the met ones."""
    names = _names_of_headers(section, route)
    for name, header in zip(names, route.headers, strict=True):
        value = f"str -- {quoted(header.value)}" if header.value else "found"
        yield f"    acl {name} {quoted(f'req.fhdr({argument(header.name)})')} -m {value}"
    if _has_many_headers(route):
        variable, before = _headers_variable(section), ""
        for start in range(0, len(names), VALUES_A_LINE):
            met = names[start : start + VALUES_A_LINE]
            count = str(start + len(met))
            yield f"    http-request set-var({variable}) int({count}) if {before}{' '.join(met)}"
            before = f"{matches(f'var({variable})', 'int', count)} "


def _has_many_headers(route: Route) -> bool:
    return len(route.headers) > _FEW_HEADERS


def _names_of_headers(section: str, route: Route) -> list[str]:
    return [f"{section}:header:{number}" for number in range(len(route.headers))]


def _headers_variable(section: str) -> str:
    return f"txn.headers_{section.encode().hex()}"


def _use_backend(section: str, *conditions: str) -> str:
    condition = " ".join(filter(None, conditions))
    return f"    use_backend {section}{' if ' if condition else ''}{condition}"


def _stage(member: tuple[Route, str]) -> tuple[int, int]:
    """The sort key for the order in which host patterns are tried: by tier; domains with more labels first."""
    pattern = match.host_pattern(member[0].host)
    return pattern.tier, -1 - pattern.text.count(".") if pattern.tier == match.DOMAIN else 0


def _mapped_aliases(sections: Sections) -> frozenset[str]:
    """The aliases of the routes that are looked up in the map."""
    conditioned = {match.host_pattern(route.host) for route, _ in sections if route.methods or route.headers}
    return frozenset(
        route.alias
        for route, _ in sections
        if (pattern := match.host_pattern(route.host)).tier in _KEY_OF_REQUEST and pattern not in conditioned
    )


def _map_key(route: Route, secure: str) -> str:
    """The prefix of the map keys of the route's requests; it ends in a slash."""
    tier, text = match.host_pattern(route.host)
    host = {match.LABEL: f"{text}.*", match.DOMAIN: f"*.{text}", match.DEFAULT: "*"}.get(tier, text)
    prefix = match.normal_prefix(route.path)
    return f"//{host}{secure}{prefix if prefix == '/' else f'{prefix}/'}"
