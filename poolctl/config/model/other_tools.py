"""Keys that other tools write, and what to write here instead."""

from __future__ import annotations

_TLS = 'write tls = { cert = "FILE", key = "FILE" }, or tls = true for what [defaults.tls] says'
_NO_HTTP2 = "it has no equal here: take it out"

# Keyed by the last key, within its table where that matters.
FIXES = {
    # golib's httpserver.Config
    "monitor": 'write health = "/path", or health = { readiness = { http = "/path" } }',
    "tls_mandatory": "take it out: a server with tls never starts without it",
    "read_timeout": "poolctl has no equivalent: remove it; http.head_timeout limits slow clients",
    "read_header_timeout": 'write http = { head_timeout = "10s" }',
    "write_timeout": "it has no equal here: take it out; drain_timeout limits the end of a connection",
    "idle_timeout": 'write http = { keep_alive = "75s" }',
    "disable_keep_alive": 'write http = { keep_alive = "0s" }',
    "max_header_bytes": 'write http = { max_head_size = "64KiB" }',
    "max_handlers": "write http = { max_concurrency = N }",
    "max_concurrent_streams": _NO_HTTP2,
    "max_read_frame_size": _NO_HTTP2,
    "permit_prohibited_cipher_suites": _NO_HTTP2,
    "max_upload_buffer_per_connection": _NO_HTTP2,
    "max_upload_buffer_per_stream": _NO_HTTP2,
    "logger": 'write log = { path = "FILE" }',
    "tls.certs": _TLS,
    "tls.inherit_default": "write tls = true",
    "tls.root_ca": 'write tls = { ca = "FILE" }',
    "tls.root_ca_file": 'write tls = { ca = "FILE" }',
    "tls.client_ca": 'write tls = { ca = "FILE", client_auth = "required" }',
    "tls.client_ca_file": 'write tls = { ca = "FILE", client_auth = "required" }',
    "tls.auth_client": 'write tls = { client_auth = "none", "optional" or "required" }',
    "tls.version_min": 'write tls = { min_version = "1.2" }',
    "tls.version_max": "it has no equal here: take it out",
    "tls.cipher_list": 'write tls = { ciphers = "…" }, in OpenSSL\'s notation',
    "tls.curve_list": "it has no equal here: take it out",
    "tls.dynamic_sizing_disable": "it has no equal here: take it out",
    "tls.session_ticket_disable": "it has no equal here: take it out",
    # uvicorn, gunicorn, supervisord, docker compose
    "host": 'write bind = "HOST:PORT"',
    "port": 'write bind = "HOST:PORT"',
    "environment": 'write env = { NAME = "value" }',
    "directory": 'write cwd = "PATH"',
    "working_dir": 'write cwd = "PATH"',
    "autostart": "write disabled = true for a server that is not started",
    "autorestart": 'write restart = "always"',
    "ssl_certfile": _TLS,
    "ssl_keyfile": _TLS,
    "healthcheck": 'write health = "/path"',
    "numprocs": "write workers = N",
    "instances": "write workers = N",
    "replicas": "write workers = N",
    "startsecs": 'take it out: started is what has answered; start_timeout = "30s" says how long it may take',
    "startretries": "write restart = { limit = N }",
    "stopwaitsecs": 'write stop_timeout = "10s"',
    "stopasgroup": "take it out: a server's whole process group is ended",
    "killasgroup": "take it out: a server's whole process group is ended",
    "priority": 'write depends_on = ["NAME"]',
    "stdout_logfile": 'write log = { path = "FILE" }',
    "stderr_logfile": 'write log = { path = "FILE" }, which takes both streams',
    "max_memory_restart": 'write limits = { memory = "300MB" }',
    "script": 'write command = ["node", "app.js"]',
    "ports": 'write bind = ":8081"',
    "reload": "take it out, and start it with poolctl run --watch",
    "root_path": 'write http = { root_path = "/path" }',
    "proxy_headers": "write http = { proxy_headers = true }",
    "timeout_keep_alive": 'write http = { keep_alive = "75s" }',
    "limit_concurrency": "write http = { max_concurrency = N }",
    "limit_max_requests": "write http = { max_requests = N }",
}


def fix_of(key: str, table: str) -> str | None:
    """What to write instead of another tool's key in a table of a server ("": in the server's own)."""
    # golib's certificates are spelt in camel case, its servers in snake case.
    squashed = key.replace("_", "").lower()
    return _SQUASHED.get((table, squashed)) if len(key) < 60 else None


_SQUASHED = {
    (key.rpartition(".")[0], key.rpartition(".")[2].replace("_", "").lower()): fix
    for key, fix in FIXES.items()
}
