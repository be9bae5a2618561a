"""The types of keys: which values they take, and the problem of others with its fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.config_files import SERVER, told

WRONG: list[tuple[str, str, str]] = [
    # line to add, what the problem names, what the fix says
    ('tags = "api"', "tags", '["…"]'),
    ('tags = ["a b"]', "tags[0]", "without blanks"),
    ('tags = ["a,b"]', "tags[0]", "commas"),
    ('tags = [""]', "tags[0]", "word"),
    ("labels = { a = 1 }", "labels.a", "quotes"),
    ("env = { A = true }", "env.A", "quotes"),
    ("env = { A = 1.10 }", "env.A", "quotes"),
    ('env = { "A=B" = "x" }', "A=B", "env"),
    ('env = "A=B"', "env", "a table"),
    ("workers = 0", "workers", "at least"),
    ("workers = -1", "workers", "at least"),
    ("workers = 1.5", "workers", "whole number"),
    ("workers = true", "workers", "whole number"),
    ('workers = "two"', "workers", "whole number"),
    ("workers = 1000000", "workers", "10000"),
    ("scale = { min = -1 }", "scale.min", "at least 0"),
    ('disabled = "yes"', "disabled", "without quotes"),
    ("disabled = 1", "disabled", "true or false"),
    ('start_timeout = "5 parsecs"', "start_timeout", "500ms"),
    ("start_timeout = 0", "start_timeout", "out of range"),
    ("stop_timeout = -1", "stop_timeout", "cannot be negative"),
    ("drain_timeout = nan", "drain_timeout", "finite"),
    ("drain_timeout = inf", "drain_timeout", "finite"),
    ('drain_timeout = "400d"', "drain_timeout", "out of range"),
    ("drain_timeout = true", "drain_timeout", "duration"),
    ('log = { max_size = "huge" }', "log.max_size", "64KiB"),
    ("log = { max_size = 0 }", "log.max_size", "out of range"),
    ('log = { format = "xml" }', "log.format", '"text"'),
    ("log = { keep = -1 }", "log.keep", "at least 0"),
    ('log = "web.log"', "log", "a table"),
    ('restart = "sometimes"', "restart", '"on-failure"'),
    ("restart = { backoff = { factor = 0.5 } }", "restart.backoff.factor", "at least 1"),
    ("restart = { backoff = { jitter = 2 } }", "restart.backoff.jitter", "at most 1"),
    ("restart = { window = 0 }", "restart.window", "out of range"),
    ("restart = true", "restart", "a table"),
    ('http = { implementation = "nginx" }', "http.implementation", '"httptools"'),
    ("http = { max_requests = 0 }", "http.max_requests", "at least 1"),
    ("http = { trusted_proxies = ['10.0.0.0/8', 'proxy'] }", "http.trusted_proxies", "10.0.0.0/8"),
    ("http = { trusted_proxies = '*' }", "http.trusted_proxies", '["…"]'),
    ('tls = "yes"', "tls", "true, false"),
    ("tls = { key = 'k' }", "tls.cert", "add cert"),
    ("tls = { cert = 'c', min_version = '1.1' }", "tls.min_version", '"1.2"'),
    ("tls = { cert = 'c', min_version = 1.2 }", "tls.min_version", '"1.2"'),
    ("limits = { open_files = 0 }", "limits.open_files", "at least 16"),
    ('cwd = ""', "cwd", "not empty"),
    ("cwd = 3", "cwd", "quotes"),
    ("env_file = 3", "env_file", "list"),
    ("env_file = [3]", "env_file[0]", "quotes"),
    ("depends_on = 'db'", "depends_on", '["…"]'),
    ("depends_on = [3]", "depends_on[0]", "a table"),
    ("depends_on = [{ name = 'web', condition = 'up' }]", "depends_on[0].condition", '"started"'),
    ("depends_on = [{ condition = 'ready' }]", "depends_on[0].name", "add name"),
    ("handler_key = 3", "handler_key", "quotes"),
    ("health = { readiness = { http = 'ready' } }", "health.readiness.http", "a path such as"),
    ("health = { readiness = { http = '/', status = '2xx' } }", "health.readiness.status", "ranges"),
    ("health = { readiness = { http = '/', body = '(' } }", "health.readiness.body", "regular expression"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "named", "fix"), WRONG)
def test_wrong_value_is_named_with_its_fix(tmp_path: Path, line: str, named: str, fix: str) -> None:
    text = told(tmp_path, SERVER + line + "\n")
    assert named in text
    assert fix in text
    assert "pool.toml:5:" in text or "pool.toml:6:" in text
