"""HAProxy's answers for servers that sleep or start: to probes, to requests for icons, and the waiting page.

The map SLEEPING has the backend sections with such answers, and whether their servers sleep. HAProxy adds sections to
the map WAKING when their waiting page is requested.
"""

from __future__ import annotations

from collections.abc import Iterator

from poolctl.routing.route import Route

from .syntax import line_groups, quoted

SLEEPING, WAKING, PAGE_FILE = "sleeping.map", "waking.map", "waiting.html"
ASLEEP, STARTS, AWAKE = "asleep", "starts", "awake"
_RELOAD_SECONDS = 1
PAGE = f"""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="robots" content="noindex">
<meta http-equiv="refresh" content="{_RELOAD_SECONDS}">
<link rel="icon" href="data:,">
<title>Starting…</title>
<style>
  :root {{ color-scheme: light dark }}
  body {{ font: 1rem/1.5 system-ui, sans-serif; display: grid; place-content: center; min-height: 90vh; margin: 1rem }}
</style>
<main role="status">
  <h1>Starting…</h1>
  <p>This page reloads by itself until the application answers.</p>
</main>
</html>
"""
# Not stored, so that an icon is requested again later.
_NOT_STORED = "hdr cache-control no-store hdr x-content-type-options nosniff"
_HTML = "(^|,)[[:blank:]]*text/html[[:blank:]]*([;,]|$)"
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def answers_for_sleeping(route: Route) -> bool:
    """Whether HAProxy needs to know whether the route's servers sleep."""
    return route.waiting_page or bool(route.probe_responses)


def sleeping_rules(route: Route, section: str) -> Iterator[str]:
    """The rules of the route's backend `section` for requests while its servers sleep or start."""
    if not answers_for_sleeping(route):
        return
    is_read = "{ method -m str -- GET HEAD }"
    is_asleep = f"{{ var(txn.sleep) -m str {ASLEEP} }}"
    yield f"    http-request set-var(txn.sleep) str({section}),map_str({SLEEPING})"
    if route.probe_responses:
        for paths in line_groups(route.probe_responses):
            yield f"    acl probes path -m str -- {paths}"
        answer = f'status 200 content-type text/plain string "sleeping\\n" {_NOT_STORED}'
        yield f"    http-request return {answer} if {is_asleep} {is_read} probes"
    answer = f"status 404 content-type text/plain string 'Not Found' {_NOT_STORED}"
    yield f"    http-request return {answer} if {is_asleep} {is_read} {{ path -m end /favicon.ico }}"
    if route.waiting_page:
        yield "    acl navigates req.fhdr(sec-fetch-mode) -m str navigate"
        yield "    acl navigates req.fhdr_cnt(sec-fetch-mode) eq 0"
        page = (
            f"{{ var(txn.sleep) -m str {ASLEEP} {STARTS} }} {{ method GET }} navigates "
            f"{{ req.fhdr(accept) -m reg -i {quoted(_HTML)} }}"
            " !{ req.fhdr(upgrade) -m found } !{ req.body_size gt 0 }"
        )
        # HAProxy loads a map only if a rule reads it.
        is_new = f"!{{ str({section}),map_str({WAKING}) -m found }}"
        yield f"    http-request set-map({WAKING}) {section} 1 if {is_asleep} {page} {is_new}"
        fields = (
            f"{_NOT_STORED} hdr retry-after {_RELOAD_SECONDS} hdr content-security-policy {quoted(_POLICY)}"
        )
        kind = "content-type 'text/html; charset=utf-8'"
        yield f"    http-request return status 503 {kind} file {PAGE_FILE} {fields} if {page}"
