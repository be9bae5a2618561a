"""HAProxy's rules for the access log: a line for each request, flushed immediately.

The logger prefixes text lines with the time, as it does for a server's output.
"""

from __future__ import annotations

from collections.abc import Iterator

from .syntax import quoted

# Writes of up to this size to a pipe are atomic (PIPE_BUF, pipe(7)); no line of this log is longer.
_MAX_LINE_BYTES = 4096
_MAX_TARGET_BYTES, _MAX_METHOD_BYTES, _MESSAGE_BYTES = 900, 32, 100

_TIME = "%[date,utime(%Y-%m-%dT%H:%M:%S)].%[date(0,us),mod(1000000),add(1000000),regsub(^1,)]Z"
_METHOD = f"%[capture.req.method,bytes(0,{_MAX_METHOD_BYTES})]"
_TARGET = f"var(txn.target),bytes(0,{_MAX_TARGET_BYTES})"
_STATUS, _ID, _WHY = "%[var(txn.status)]", "%[var(txn.id)]", "%{-M}[var(txn.why)]"
_MEMBERS = {
    "time": f'"{_TIME}"',
    "level": '"INFO"',
    "message": f'"{_METHOD} %[var(txn.target),bytes(0,{_MESSAGE_BYTES}),json(utf8s)] {_STATUS}{_WHY}"',
    "request_id": f'"{_ID}"',
    "client": '"%[var(txn.client)]"',
    "method": f'"{_METHOD}"',
    "target": f'"%[{_TARGET},json(utf8s)]"',
    "http_version": '"%[var(txn.version)]"',
    "status": _STATUS,
    "duration_seconds": "%Ta%[str(e-3)]",
}
# A request that could not be parsed has only a client and a status.
_MALFORMED_MEMBERS = {
    "time": _MEMBERS["time"],
    "level": _MEMBERS["level"],
    "message": '"no valid request %ST"',
    "client": '"%ci"',
    "status": "%ST",
}
# HAProxy reduces several blanks of a format to one.
_LEVEL = 'INFO:%[str("     ")]'
_TEXT = (
    f'{_LEVEL}%[var(txn.client)] - "{_METHOD} %{{+E}}[{_TARGET}] HTTP/%[var(txn.version)]" '
    f"{_STATUS} %Ta%[str(ms)] {_ID}{_WHY}"
)
_MALFORMED_TEXT = f'{_LEVEL}%ci - "no valid request" %ST'
# Request IDs of clients that are logged and forwarded.
_PRINTABLE_ID = "^[A-Za-z0-9._~:/+=@-]{1,128}$"


def access_log_rules(target: str, *, as_json: bool) -> Iterator[str]:
    """The frontend's lines that log each request to this target of HAProxy's directive `log`.

    They come first, as requests are logged as sent by the client.
    """
    # HAProxy's own messages, such as that it stops, are less severe than errors.
    yield f"    log {target} len {_MAX_LINE_BYTES} format raw local0 err"
    yield "    option log-separate-errors"
    yield "    http-request set-log-level err"
    log_format, malformed_format = (
        (_object(_MEMBERS), _object(_MALFORMED_MEMBERS)) if as_json else (_TEXT, _MALFORMED_TEXT)
    )
    yield f"    log-format {quoted(log_format)}"
    yield f"    error-log-format {quoted(malformed_format)}"
    yield "    option dontlognull"
    yield "    http-request set-var(txn.client) src"
    yield "    http-request set-var(txn.target) pathq"
    yield "    http-request set-var(txn.version) req.ver"
    # 499: nginx's status for a client that disconnected before the response; HAProxy itself may log 400.
    yield "    http-request set-var(txn.status) int(499)"
    yield "    http-response set-var(txn.answered) bool(true)"
    yield "    http-after-response set-var(txn.status) status"
    client_left = "{ status 400 } { srv_id gt 0 } !{ var(txn.answered) -m bool }"
    yield f"    http-after-response set-var(txn.status) int(499) if {client_left}"
    request_id = "req.fhdr(x-request-id)"
    is_one = "{ req.fhdr_cnt(x-request-id) eq 1 }"
    yield f"    http-request set-var(txn.id) {request_id} if {is_one} {{ {request_id} -m reg {quoted(_PRINTABLE_ID)} }}"
    yield "    http-request set-var(txn.id) uuid,regsub(-,,g) if !{ var(txn.id) -m found }"
    yield f"    http-request set-header X-Request-ID '{_ID}'"


def _object(members: dict[str, str]) -> str:
    return "{" + ", ".join(f'"{name}": {value}' for name, value in members.items()) + "}"
