"""Errors of pydantic as findings: the value that was found, the values that are allowed, and a fix."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from poolctl.config.model.problems import Finding, Path, printable, shown, unreported
from poolctl.config.model.value_types import (
    COOKIE_PATTERN,
    HEADER_PATTERN,
    HOST_HEADER_PATTERN,
    METHOD_PATTERN,
    NAME_PATTERN,
    PATH_PATTERN,
    STATUS_PATTERN,
    WORD_PATTERN,
)

Model = TypeVar("Model", bound=BaseModel)

# By pydantic's names of errors, to the first underscore; of those with several meanings, the whole name.
EXPECTED = {
    "string": "a string",
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "tuple": "a list",
    "dict": "a table",
    "mapping": "a table",
    "model": "a table",
    "too": "a value that is not empty",
    "string_too_short": "a value that is not empty",
}
FIX_BY_TYPE = {
    "a string": 'put it in quotes: "…"',
    "a list": 'put it in brackets: ["…"]',
    "true or false": "write true or false, without quotes",
}
BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than_equal": ("le", "at most"),
}
PATTERNS = {
    NAME_PATTERN: "letters, digits, dots, underscores and hyphens, at most 200 of them",
    WORD_PATTERN: "a word without blanks and commas",
    PATH_PATTERN: 'a path such as "/ready"',
    METHOD_PATTERN: 'a method such as "GET"',
    HEADER_PATTERN: 'the name of a header, such as "X-Beta"',
    HOST_HEADER_PATTERN: 'a host such as "example.com"',
    COOKIE_PATTERN: 'the name of a cookie, such as "backend"',
    STATUS_PATTERN: 'statuses and ranges of them, such as "200-399" or "200,204"',
}
# Tables with a short form.
SHORT_FORMS = {
    "restart": '"no", "on-failure", "always", or a table',
    "recovery": '"restart", "replace", "disable", "notify", "none", or a table',
    "health": 'a path such as "/ready", or a table',
    "timeouts": 'a table such as { connect = "5s", idle = "60s" }',
    "limit": "a table such as { concurrency = 100 }",
    "backend_limit": "a table such as { concurrency = 100 }",
    "breaker": "a table such as { failures = 5 }",
    "headers": 'a table such as { "X-Beta" = "1" }',
    "add_headers": 'a table such as { "X-Beta" = "1" }',
}
PROBES = ("startup", "readiness", "liveness")
# What to write instead of keys of golib, uvicorn, gunicorn, supervisord, docker compose and pm2, of nginx, HAProxy,
# Traefik and Caddy for routes, in a table that has them. Capitals and underscores do not count: golib mixes two
# spellings.
OTHER_TOOLS = {
    "": {
        'health = "/path", or health = { readiness = { http = "/path" } }': "monitor healthcheck",
        'http = { head_timeout = "10s" }': "readtimeout readheadertimeout",
        'drain_timeout = "30s"': "writetimeout",
        'http = { keep_alive = "75s" }': "idletimeout timeoutkeepalive disablekeepalive",
        'http = { max_head_size = "64KiB" }': "maxheaderbytes",
        "http = { max_concurrency = N }": "maxhandlers limitconcurrency",
        "http = { max_requests = N }": "limitmaxrequests",
        'http = { root_path = "/path" }': "rootpath",
        "http = { proxy_headers = true }": "proxyheaders",
        'log = { path = "FILE" }, which takes both streams': "logger stdoutlogfile stderrlogfile",
        'tls = { cert = "FILE", key = "FILE" }': "sslcertfile sslkeyfile",
        'bind = "HOST:PORT"': "host port ports",
        'cwd = "PATH"': "directory workingdir",
        "workers = N": "numprocs instances replicas",
        'env = { NAME = "value" }': "environment",
        "disabled = true for a server that is not started": "autostart",
        'restart = "always"': "autorestart",
        "restart = { limit = N }": "startretries",
        'stop_timeout = "10s"': "stopwaitsecs killtimeout stopgraceperiod timeoutstopsec",
        "take it out: a program is ended by SIGTERM": "stopsignal killsignal",
        'depends_on = ["NAME"]': "priority",
        'limits = { memory = "300MB" }': "maxmemoryrestart",
        'command = ["node", "app.js"]': "script execstart entrypoint",
        "take it out: a server with tls never starts without it": "tlsmandatory",
        "take it out: a server's whole process group is ended": "stopasgroup killasgroup",
        "take it out: start_timeout limits the time until it answers": "startsecs",
        "take it out, and start it with poolctl run --watch": "reload",
        "take it out: poolctl has no equal": "maxconcurrentstreams maxreadframesize permitprohibitedciphersuites"
        " maxuploadbufferperconnection maxuploadbufferperstream",
    },
    "tls": {
        'tls = { cert = "FILE", key = "FILE" }, or tls = true for what [defaults.tls] says': "certs",
        "tls = true": "inheritdefault",
        'tls = { ca = "FILE" }': "rootca rootcafile",
        'tls = { ca = "FILE", client_auth = "required" }': "clientca clientcafile",
        'tls = { client_auth = "none", "optional" or "required" }': "authclient",
        'tls = { min_version = "1.2" }': "versionmin",
        'tls = { ciphers = "…" }, in OpenSSL\'s notation': "cipherlist",
        "take it out: poolctl has no equal": "versionmax curvelist dynamicsizingdisable sessionticketdisable",
    },
    "gateway": {
        'bind = ":80", or [":80", { bind = ":443", tls = { cert = "FILE", key = "FILE" } }]': "listen listeners"
        " address port entrypoints tls certificate sslcertificate sslcertificatekey",
        "[[route]] tables": "routes route server location rules",
        'trusted_proxies = ["10.0.0.0/8"]': "setrealipfrom forwardedallowips",
        'keep_alive = "75s"': "keepalivetimeout",
        'head_timeout = "10s"': "clientheadertimeout readheadertimeout",
        'max_head_size = "64KiB"': "largeclientheaderbuffers clientheaderbuffersize",
    },
    "route": {
        'to = "SERVER", or ["http://HOST:PORT", …]': "proxypass upstream backend backends server servers service target"
        " targets url destination usebackend reverseproxy",
        'host = "HOST"': "servername domain domains hostname hostregexp",
        'path = "/PREFIX"': "location prefix pathprefix paths rule",
        "strip_path = true": "stripprefix rewrite",
        'timeouts = { connect = "5s", head = "60s" }': "timeout proxyconnecttimeout proxyreadtimeout proxysendtimeout",
        'add_headers = { NAME = "value" }': "proxysetheader setheader setheaders requestheaders",
        'max_body_size = "1MiB"': "clientmaxbodysize",
        'alias = "NAME"': "name id",
        'policy = "least-connections"': "balance lbpolicy loadbalancer algorithm",
        'to = [{ to = "SERVER", weight = 2 }]': "weight weights",
        'tls of an address of [gateway]: bind = [{ bind = ":443", tls = { cert = "FILE", key = "FILE" } }]': "tls"
        " certificate sslcertificate",
    },
    "stream": {
        'bind = ":5432"': "listen address port",
        'to = "HOST:PORT"': "proxypass upstream backend backends server servers target targets",
        'timeouts = { connect = "5s", idle = "10m" }': "timeout proxyconnecttimeout proxytimeout",
        'alias = "NAME"': "name id",
        "take it out: TLS is copied as it is, from the client to the target": "tls certificate sslcertificate",
    },
}
_FIXES = {
    (table, key): fix
    for table, fixes in OTHER_TOOLS.items()
    for fix, keys in fixes.items()
    for key in keys.split()
}
MOST_SUGGESTIONS = 2000


def validated(model: type[Model], table: dict[str, Any], findings: list[Finding]) -> Model | None:
    """The model of a table; None if it is invalid: the reasons are added to the findings, one for each value."""
    try:
        made: Model = model.__pydantic_validator__.validate_python(table)
    except ValidationError as error:
        findings += unreported(findings_of(error, model), findings)
        return None
    return made


def findings_of(error: ValidationError, model: type[BaseModel]) -> list[Finding]:
    """Every error as a finding, in the order of the file's keys."""
    return [_finding(details, model) for details in error.errors(include_url=False)]


def _finding(details: Any, model: type[BaseModel]) -> Finding:
    kind: str = details["type"]
    path: Path = tuple(details["loc"])
    context = details.get("ctx", {})
    value = details.get("input")
    if kind == "extra_forbidden":
        return unknown_key(path, keys_at(model, path[:-1]), getattr(model, "table", ""))
    if kind == "missing":
        return Finding(path, f"{path[-1]!r} is missing", f"add {path[-1]} = …")
    if kind == "value_error":
        cause = context["error"]
        allowed = getattr(cause, "allowed", "")
        hint = f"allowed is {allowed}" if allowed and allowed not in str(cause) else ""
        return Finding(path, str(cause), hint, shown(value), allowed)
    found, allowed = shown(value), _allowed(kind, context)
    if allowed == "a table":
        allowed = SHORT_FORMS.get(str(path[-1]) if path else "", allowed)
    message, hint = f"{found} is not allowed here", f"allowed is {allowed}"
    if not allowed:
        message, hint = f"{found}: {details['msg'][:1].lower()}{details['msg'][1:]}", ""
    if kind == "literal_error" and isinstance(value, str):
        near = nearest(value, tuple(re.findall(r"'([^']*)'", context["expected"])))
        hint = f'did you mean "{near}"? {hint}' if near else hint
    if allowed == "a table" and path[-2:-1] == ("health",) and path[-1] in PROBES and isinstance(value, str):
        hint = f'write {path[-1]} = {{ http = "{printable(value)}" }}'
    if allowed in FIX_BY_TYPE and isinstance(value, (str, int, float)):
        hint = f"expected {allowed}: {FIX_BY_TYPE[allowed]}"
    return Finding(path, message, hint, found, allowed)


def _allowed(kind: str, context: dict[str, Any]) -> str:
    if kind == "literal_error":
        return str(context["expected"]).replace("'", '"')
    if kind in BOUNDS:
        key, words = BOUNDS[kind]
        return f"{words} {context[key]}"
    if kind == "string_pattern_mismatch":
        return PATTERNS.get(context["pattern"], f"what matches {context['pattern']}")
    return EXPECTED.get(kind) or EXPECTED.get(kind.partition("_")[0], "")


def unknown_key(path: Path, known: tuple[str, ...], table: str) -> Finding:
    """The finding of a key that the model does not have; `table` is the model's, "" for a server's."""
    key = str(path[-1])
    parent = next((part for part in reversed(path[:-1]) if isinstance(part, str)), table)
    fix = _FIXES.get((parent, key[:60].replace("_", "").lower()))
    if fix:
        fix = fix if fix.startswith("take it out") else f"write {fix}"
        return Finding(path, f"{key[:60]!r} is a key of another tool", fix, key[:60])
    near = nearest(key, known)
    hint = f"did you mean {near!r}?" if near else f"known here: {', '.join(known)}"
    return Finding(path, f"unknown key {key[:60]!r}", hint, key[:60], ", ".join(known))


@lru_cache(maxsize=MOST_SUGGESTIONS)
def _nearest(word: str, known: tuple[str, ...]) -> str:
    from difflib import get_close_matches

    plain = {name.replace("_", ""): name for name in known}
    direct = plain.get(word.lower().replace("-", "").replace("_", ""))
    return direct or next(iter(get_close_matches(word.lower(), known, n=1, cutoff=0.6)), "")


def nearest(word: str, known: tuple[str, ...]) -> str:
    """The known word that was probably meant, or "".

    A file of nothing but unknown keys must not take minutes: after many suggestions there are no more, until
    `reset_suggestions`.
    """
    if len(word) > 60 or _nearest.cache_info().currsize >= MOST_SUGGESTIONS:
        return ""
    return _nearest(word, known)


def reset_suggestions() -> None:
    """Begin with another file, or another server that was made in Python."""
    _nearest.cache_clear()


def keys_at(model: type[BaseModel], path: Path) -> tuple[str, ...]:
    """The keys that the model knows at a path, internal ones left out."""
    here: type[BaseModel] | None = model
    for part in path:
        if isinstance(part, str) and here is not None:
            field = here.model_fields.get(part)
            here = _model_in(field.annotation) if field else None
    if here is None:
        return ()
    names = [name for name, field in here.model_fields.items() if not field.exclude]
    if "scale" in names:
        names.insert(names.index("scale"), "workers")  # its short form, which no model has
        names.insert(names.index("bind") + 1, "listen")  # golib's word for it
    return tuple(names)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)
