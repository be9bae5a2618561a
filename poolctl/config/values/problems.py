"""Describes a problem of a configuration: its place, the value found, the allowed values, and the fix.

For an unknown key, the fix is a similar key, or the equivalent of another tool's key.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from typing import Any, NamedTuple

from poolctl.config.values.secrets import MASK, is_secret_key, masked_text
from poolctl.errors import PoolValidateError, ServerError

SHOWN_CHARACTERS = 60
# The model is five levels deep.
DEEPEST = 100
# Enough for 10,000 servers of 25 keys; hostile files are rejected before they cost seconds.
MOST_VALUES = 300_000

# The keys and indexes that lead to a value.
KeyPath = tuple[str | int, ...]
# A value from a parser or from Python, before the model has checked it: it may have any type.
Tree = Any

_parts = re.compile(r"\.|\[\d+\]\.?")


class ParseError(ValueError):
    """A text that cannot be parsed; line and column count from 1, 0 is unknown."""

    def __init__(self, message: str, line: int = 0, column: int = 0, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.column = column
        self.hint = hint


class Place(NamedTuple):
    """A position in a file; lines and columns count from 1, 0 is unknown. `key` is the dotted path of the key."""

    file: str = ""
    line: int = 0
    column: int = 0
    key: str = ""

    def __str__(self) -> str:
        if not self.file:
            return self.key
        numbers = [str(number) for number in (self.line, self.column) if number]
        return ":".join([path_from_working_directory(self.file), *numbers])


NOWHERE = Place()


class Finding(NamedTuple):
    """A problem of a value, before file and line of the value are known.

    `path` has the keys that lead to the value from its server's table, such as `("http", "loop")`.
    """

    path: KeyPath
    message: str
    hint: str = ""
    found: str = ""
    allowed: str = ""


class Problem(ServerError):
    """A finding with its place. `str()` is the line that an operator reads."""

    def __init__(
        self,
        message: str,
        *,
        place: Place = NOWHERE,
        name: str = "",
        bind: str = "",
        hint: str = "",
        found: str = "",
        allowed: str = "",
    ) -> None:
        message, hint, found = _without_secrets(place.key, message, hint, found)
        code, error = PoolValidateError.code, PoolValidateError.error
        super().__init__(message, name=name, bind=bind, hint=hint, code=code, error=error)
        self.place = place
        self.file, self.line, self.column, self.key = place
        self.found = found
        self.allowed = allowed

    def __str__(self) -> str:
        who = "" if self.file or not self.name else shortened_printable(self.name)
        where = ": ".join(part for part in (str(self.place) if self.file else who, self.key) if part)
        text = f"{where}: {self.message}" if where else self.message
        return f"{text}; {self.hint}" if self.hint else text

    def to_dict(self) -> dict[str, Any]:
        """The problem as JSON, as the command line prints it."""
        return super().to_dict() | self.place._asdict() | {"found": self.found, "allowed": self.allowed}


def _without_secrets(key: str, message: str, hint: str, found: str) -> tuple[str, str, str]:
    """Message, hint and found value of a problem, masked if the value is a secret."""
    names = _parts.split(key)
    if not is_secret_key(names) or found == names[-1] or found.startswith("${"):
        return masked_text(message), masked_text(hint), masked_text(found)
    for value in (found, found.strip("'")):
        if value:
            message, hint = message.replace(value, MASK), hint.replace(value, MASK)
    return message, hint, MASK if found else ""


def problem_of(finding: Finding, place: Place | None = None, *, name: str = "", bind: str = "") -> Problem:
    """The finding as a Problem: at `place` (None if it is in no file), of the server `name` ("" if of no server)."""
    path, message, hint, found, allowed = finding
    place = place if place and place.key else (place or NOWHERE)._replace(key=dotted(path))
    return Problem(message, place=place, name=name, bind=bind, hint=hint, found=found, allowed=allowed)


def dotted(path: KeyPath) -> str:
    """`("server", 1, "http", "root_path")` as `server[1].http.root_path`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{shortened_printable(str(part))}" for part in path)
    return "".join(parts).removeprefix(".")


def shortened_printable(text: str) -> str:
    """The text shortened and escaped to fit on one line of a terminal."""
    cut = text[:SHOWN_CHARACTERS] + ("…" if len(text) > SHOWN_CHARACTERS else "")
    return cut if cut.isprintable() else repr(cut)


def shown(value: object) -> str:
    """The value as a text short enough for a line, even if it is deeply nested or long."""
    if isinstance(value, str):
        cut = value[:SHOWN_CHARACTERS]
        return repr(cut) + ("…" if len(value) > SHOWN_CHARACTERS else "")
    if isinstance(value, (dict, list, tuple)):
        return "a table" if isinstance(value, dict) else "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and value.bit_length() > 200:
        return "a very large number"
    try:
        text = repr(value)
    except Exception:
        return f"a {type(value).__name__}"
    return text[:SHOWN_CHARACTERS] + ("…" if len(text) > SHOWN_CHARACTERS else "")


def path_from_working_directory(file: str) -> str:
    """The path, relative to the working directory if it is below that."""
    try:
        here = os.getcwd()
    except OSError:
        return file
    return file[len(here) + 1 :] if here != "/" and file.startswith(here + "/") else file


# Replacements for keys of golib, uvicorn, gunicorn, supervisord, docker compose and pm2, of nginx, HAProxy, Traefik and
# Caddy for routes, in their tables. Case and underscores are ignored, because golib mixes two spellings.
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
        "http = { threads = N }": "threads",
        "workers = N": "numprocs instances replicas",
        'env = { NAME = "value" }': "environment",
        "on_demand = true for a server that is started by its name alone": "autostart profiles",
        'restart = "always"': "autorestart",
        "restart = { limit = N }": "startretries",
        'stop_timeout = "10s"': "stopwaitsecs killtimeout stopgraceperiod timeoutstopsec",
        'stop_signal = "SIGINT"': "killsignal",
        'stdin = "open"': "stdinopen",
        'stop_group = "together"': "stopasgroup",
        'stop_group = "after", "together" or "leader"': "killmode",
        "take it out: the rest of a process group is killed at stop_timeout": "killasgroup",
        'hooks = { before_start = ["prog", "argument"] }': "prestart beforestart execstartpre",
        'hooks = { after_stop = ["prog", "argument"] }': "poststop afterstop execstoppost",
        'every = "0 3 * * *", and job = true': "schedule cron crontab oncalendar timer",
        "take it out: a crontab may call `poolctl restart NAME`": "cronrestart",
        'tags = ["WORD"]': "group groups",
        "limits = { open_files = N }": "limitnofile minfds ulimits",
        'watch = { include = ["*.html"] }': "reloadinclude reloadincludes reloaddir reloaddirs",
        'watch = { exclude = ["tests"] }': "reloadexclude reloadexcludes ignorewatch",
        "take it out: the log has both streams": "redirectstderr",
        'depends_on = ["NAME"]': "priority",
        'limits = { memory = "300MB" }': "maxmemoryrestart",
        'command = ["node", "app.js"]': "script execstart entrypoint",
        "take it out: a server with tls never starts without it": "tlsmandatory",
        'ready_after = "10s", for a program without an address': "startsecs",
        "take it out, and start it with poolctl run --watch": "reload",
        "take it out: poolctl has no equal": "maxconcurrentstreams maxreadframesize permitprohibitedciphersuites"
        " maxuploadbufferperconnection maxuploadbufferperstream",
    },
    "hooks": {
        'before_start = ["prog", "argument"]': "prestart execstartpre",
        'after_stop = ["prog", "argument"]': "poststop execstoppost",
    },
    "triggers": {"requests_per_second = N": "rps qps rate"},
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
        'bind = [{ bind = ":80", accept_proxy_protocol = true }], and trusted_proxies': "proxyprotocol acceptproxy",
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
        'set_headers = { NAME = "value" }': "proxysetheader setheader setheaders requestheaders"
        " requestheader customrequestheaders",
        'add_headers = { NAME = "value" }': "addrequestheader addrequestheaders",
        'remove_headers = ["NAME"]': "removeheader deleteheader deleteheaders delheader",
        'response_headers = { NAME = "value" }': "addheader responseheader customresponseheaders proxyhideheader hsts"
        " stsseconds cors",
        'redirect = "https", or "https://HOST"': "return redirects redirectscheme httpsredirect sslredirect forcessl",
        'allow = ["10.0.0.0/8"]': "ipallowlist ipwhitelist allowlist whitelist sourcerange deny remoteip",
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
MOST_SUGGESTIONS = 2000
MOST_NEAR = 5
SIMILAR = 0.75


def unknown_key(path: KeyPath, known: tuple[str, ...], table: str) -> Finding:
    """Return the finding about the key at `path`, which is not one of the `known` keys of its table.

    `table` is the table's name, or "" for a server. OTHER_TOOLS lists by this name which keys other tools have.
    """
    key = str(path[-1])
    parent = next((part for part in reversed(path[:-1]) if isinstance(part, str)), table)
    word = key[:60].replace("_", "").lower()
    fix = next((each for each, words in OTHER_TOOLS.get(parent, {}).items() if word in words.split()), "")
    if fix:
        fix = fix if fix.startswith("take it out") else f"write {fix}"
        return Finding(path, f"{key[:60]!r} is a key of another tool", fix, key[:60])
    near = nearest(key, known)
    if near and _is_misspelt(key, near):
        hint = f"did you mean {near!r}?"
    elif len(known) <= MOST_NEAR:
        hint = f"known here: {', '.join(known)}"
    else:
        found = similar(key[:60], known, MOST_NEAR, 0.5)
        hint = f"similar keys: {', '.join(found)}" if found else "`poolctl schema` lists every key"
    return Finding(path, f"unknown key {key[:60]!r}", hint, key[:60], ", ".join(known))


def _is_misspelt(word: str, known: str) -> bool:
    """Whether the word may be a typo of the known key; few typos change the first letter."""
    from difflib import SequenceMatcher

    word, known = _plain(word), _plain(known)
    same = sorted(word) == sorted(known) or SequenceMatcher(None, word, known).ratio() >= SIMILAR
    return word[:1] == known[:1] and same


def _plain(word: str) -> str:
    return word.lower().replace("-", "").replace("_", "")


@lru_cache(maxsize=MOST_SUGGESTIONS)
def _similar(word: str, known: tuple[str, ...], number: int, cutoff: float) -> list[str]:
    from difflib import get_close_matches

    direct = {_plain(name): name for name in known}.get(_plain(word))
    return [direct] if direct else get_close_matches(word.lower(), known, n=number, cutoff=cutoff)


def similar(word: str, known: tuple[str, ...], number: int, cutoff: float) -> list[str]:
    """At most `number` known words that resemble `word`; `cutoff` is the least similarity, from 0 to 1 (difflib).

    Empty after MOST_SUGGESTIONS different searches, until `reset_suggestions` is called: a file full of unknown keys
    would take minutes.
    """
    if len(word) > SHOWN_CHARACTERS or _similar.cache_info().currsize >= MOST_SUGGESTIONS:
        return []
    return _similar(word, known, number, cutoff)


def nearest(word: str, known: tuple[str, ...]) -> str:
    """The known word that was probably meant, or ""."""
    return next(iter(similar(word, known, 1, 0.6)), "")


def reset_suggestions() -> None:
    """Set the count of searches by `similar` back to 0. Called before each file, and for each server made in Python."""
    _similar.cache_clear()
