"""The rules by which HAProxy chooses the route of a request, as `poolctl.routing.match` does.

A path may have several readings (see `poolctl.routing.normal_path`): a request with such a path takes a route only if
all readings take it. Three readings are enough, because no route has such a path itself: the other readings agree with
one of these up to the first place that may be read in two ways.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set

from poolctl.routing import match
from poolctl.routing.route import HTTPS, Route

from .syntax import argument, line_groups, matches, quoted

# HAProxy has decoded what need not be escaped, and writes escapes in upper case.
_AMBIGUOUS = r"//|;|%2F|%5C"
_HIDDEN_DOTS = r"(/|%2F|%5C)\.\.?(/|%2F|%5C|;|$)"
_SEPARATED, _CUT, _MERGED = 'regsub("%2F|%5C",/,g)', 'regsub(";[^/]*",,g)', 'regsub("//+",/,g)'
# The variables of the readings: as it is, and as servers read it that decode separators before or after they cut
# parameters off. Without a place that may be read in two ways only the first is set.
_AS_IT_IS, _OTHERS = "txn.path", ("txn.separated", "txn.cut")
_STEPS = (f"{_SEPARATED},{_CUT},{_MERGED}", f"{_CUT},{_SEPARATED},{_MERGED}")
_SEVERAL = "{ var(txn.cut) -m found }"
# Up to this number, trying one route after the other is as fast, and needs no file for a map.
_FEW_ROUTES = 16
_MAP = "routes.map"

Sections = Sequence[tuple[Route, str]]


def reading_rules(routes: Iterable[Route]) -> Iterator[str]:
    """Rules that set the variables of the path's readings, and refuse a path in which servers see a dot segment."""
    yield f"    http-request deny deny_status 400 if {{ path -m reg {quoted(_HIDDEN_DOTS)} }}"
    yield f"    http-request set-var({_AS_IT_IS}) path,concat(/)"
    if any(each.path != "/" for each in routes):
        for variable, steps in zip(_OTHERS, _STEPS, strict=True):
            value = quoted(f"var({_AS_IT_IS}),{steps}")
            yield f"    http-request set-var({variable}) {value} if {{ path -m reg {quoted(_AMBIGUOUS)} }}"


def choice_rules(sections: Sections, mapped: Set[str], no_route: str) -> Iterator[str]:
    """Lines that send each request to the section of its route; `sections` are in the order of the routes' precedence.

    Those whose readings differ go to the section `no_route`, those without a route nowhere. `mapped` are the aliases of
    the routes that are looked up in a file (see `mapped_aliases` and `map_files`).
    """
    has_paths = any(match.normal_prefix(route.path) != "/" for route, _ in sections)
    unless = f"!{_SEVERAL}" if has_paths else ""
    tried = [(route, section) for route, section in sections if route.alias not in mapped]
    if mapped:
        yield from _rules_of_map(no_route, has_paths=has_paths)
    for route, section in tried:
        yield from use_backend_rules(section, route, last=unless)
    if has_paths:
        for route, section in tried:
            yield from _rules_for_readings(route, section, no_route)


def map_files(sections: Sections, mapped: Set[str]) -> Mapping[str, str]:
    """The files that the lines of `choice_rules` read, by name."""
    lines = [f"{_map_key(route)} {section}\n" for route, section in sections if route.alias in mapped]
    return {_MAP: "".join(lines)} if lines else {}


def use_backend_rules(section: str, route: Route, scope: str = "txn", last: str = "") -> Iterator[str]:
    """Lines that send requests which meet the conditions of the route, and the condition `last`, to this section."""
    conditions = [*_host_conditions(route, scope)]
    if (prefix := match.normal_prefix(route.path)) != "/":
        conditions.append(matches(f"var({_AS_IT_IS})", "beg", f"{prefix}/"))
    for number, header in enumerate(route.headers):
        value = f"str -- {quoted(header.value)}" if header.value else "found"
        yield f"    acl {section}:header:{number} {quoted(f'req.fhdr({argument(header.name)})')} -m {value}"
    for methods in line_groups(route.methods):
        yield f"    acl {section}:method method -m str -- {methods}"
    yield _use_backend(section, *conditions, *_other_conditions(section, route), last)


def _rules_for_readings(route: Route, section: str, no_route: str) -> Iterator[str]:
    """Lines for paths with several readings, after those of `use_backend_rules`, which define the conditions' names."""
    conditions = [*_host_conditions(route), *_other_conditions(section, route)]
    if (prefix := match.normal_prefix(route.path)) == "/":
        yield _use_backend(section, _SEVERAL, *conditions)
        return
    each = [matches(f"var({variable})", "beg", f"{prefix}/") for variable in (_AS_IT_IS, *_OTHERS)]
    yield _use_backend(section, _SEVERAL, *conditions, *each)
    for test in each:
        yield f"    acl {section}:reading {test.strip('{} ')}"
    yield _use_backend(no_route, _SEVERAL, *conditions, f"{section}:reading")


def _rules_of_map(no_route: str, *, has_paths: bool) -> Iterator[str]:
    """Lines that send requests to the section in the map, if it is the same for all readings."""
    variables = (_AS_IT_IS, *_OTHERS) if has_paths else (_AS_IT_IS,)
    for number, variable in enumerate(variables):
        condition = f" if {_SEVERAL}" if number else ""
        yield f"    http-request set-var(txn.place) var(txn.host),concat(,{variable}){condition}"
        yield f"    http-request set-var(txn.section{number}) var(txn.place),map_beg({_MAP},-){condition}"
    for number in range(1, len(variables)):
        same = f"{{ var(txn.section0),strcmp(txn.section{number}) eq 0 }}"
        yield _use_backend(no_route, _SEVERAL, f"!{same}")
    yield _use_backend("%[var(txn.section0)]", "!" + matches("var(txn.section0)", "str", "-"))


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
        yield "!" + matches("req.hdr(x-forwarded-proto,1)", "str -i", HTTPS)
    # There may be many of these, and a line has room for their names.
    if route.methods:
        yield f"{section}:method"
    for number in range(len(route.headers)):
        yield f"{section}:header:{number}"


def _use_backend(section: str, *conditions: str) -> str:
    given = " ".join(filter(None, conditions))
    return f"    use_backend {section}{' if ' if given else ''}{given}"


def mapped_aliases(routes: Sequence[Route]) -> frozenset[str]:
    """The aliases of the routes that HAProxy looks up in a map file; empty if too few routes are suitable.

    A route is suitable if its host has no wildcard, and no route of the host has a condition other than the path.
    """
    exact = [each for each in routes if match.host_pattern(each.host).tier == match.EXACT]
    conditioned = {
        match.normal_host(each.host)
        for each in exact
        if each.methods or each.headers or each.redirects_to_https
    }
    found = [each.alias for each in exact if match.normal_host(each.host) not in conditioned]
    return frozenset(found if len(found) > _FEW_ROUTES else ())


def _map_key(route: Route) -> str:
    """Return the key of the route in HAProxy's map file, a prefix of requests: host and path, ending in a slash."""
    prefix = match.normal_prefix(route.path)
    return f"{match.normal_host(route.host)}{prefix if prefix == '/' else f'{prefix}/'}"
