"""Keys that other tools write, and what to write here instead."""

from __future__ import annotations

_CERTIFICATE = 'write tls = { cert = "FILE", key = "FILE" }, or tls = true for what [defaults.tls] says'
_CA = 'write tls = { ca = "FILE" }'
_CLIENT_CA = 'write tls = { ca = "FILE", client_auth = "required" }'
_NONE = "it has no equal here: take it out"

# By key, within its table where that matters. Capitals and underscores do not count: golib mixes two spellings.
FIXES = {
    # golib
    "monitor": 'write health = "/path", or health = { readiness = { http = "/path" } }',
    "tls_mandatory": "take it out: a server with tls never starts without it",
    "read_timeout": "poolctl has no equivalent: remove it; http.head_timeout limits slow clients",
    "read_header_timeout": 'write http = { head_timeout = "10s" }',
    "write_timeout": "it has no equal here: take it out; drain_timeout limits the end of a connection",
    "idle_timeout": 'write http = { keep_alive = "75s" }',
    "disable_keep_alive": 'write http = { keep_alive = "0s" }',
    "max_header_bytes": 'write http = { max_head_size = "64KiB" }',
    "max_handlers": "write http = { max_concurrency = N }",
    "logger": 'write log = { path = "FILE" }',
    **dict.fromkeys(
        ("max_concurrent_streams", "max_read_frame_size", "permit_prohibited_cipher_suites"), _NONE
    ),
    **dict.fromkeys(("max_upload_buffer_per_connection", "max_upload_buffer_per_stream"), _NONE),
    **dict.fromkeys(("tls.version_max", "tls.curve_list"), _NONE),
    **dict.fromkeys(("tls.dynamic_sizing_disable", "tls.session_ticket_disable"), _NONE),
    **dict.fromkeys(("tls.root_ca", "tls.root_ca_file"), _CA),
    **dict.fromkeys(("tls.client_ca", "tls.client_ca_file"), _CLIENT_CA),
    "tls.inherit_default": "write tls = true",
    "tls.auth_client": 'write tls = { client_auth = "none", "optional" or "required" }',
    "tls.version_min": 'write tls = { min_version = "1.2" }',
    "tls.cipher_list": 'write tls = { ciphers = "…" }, in OpenSSL\'s notation',
    # uvicorn, gunicorn, supervisord, docker compose, pm2
    **dict.fromkeys(("tls.certs", "ssl_certfile", "ssl_keyfile"), _CERTIFICATE),
    **dict.fromkeys(("host", "port"), 'write bind = "HOST:PORT"'),
    **dict.fromkeys(("directory", "working_dir"), 'write cwd = "PATH"'),
    **dict.fromkeys(("numprocs", "instances", "replicas"), "write workers = N"),
    **dict.fromkeys(("stopasgroup", "killasgroup"), "take it out: a server's whole process group is ended"),
    "environment": 'write env = { NAME = "value" }',
    "autostart": "write disabled = true for a server that is not started",
    "autorestart": 'write restart = "always"',
    "healthcheck": 'write health = "/path"',
    "startsecs": "take it out: a server is started when it answers; start_timeout limits the time until then",
    "startretries": "write restart = { limit = N }",
    "stopwaitsecs": 'write stop_timeout = "10s"',
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
_BY_TABLE = {
    (table, key.replace("_", "")): fix
    for name, fix in FIXES.items()
    for table, _, key in [name.rpartition(".")]
}


def fix_of(key: str, table: str) -> str | None:
    """What to write instead of another tool's key in a table of a server ("": in the server's own)."""
    return _BY_TABLE.get((table, key.replace("_", "").lower())) if len(key) < 60 else None
