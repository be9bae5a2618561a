"""The types of keys: which values they take, and the problem of others with its fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from poolctl import ServerConfig
from poolctl.errors import PoolValidateError
from tests.config_files import SERVER, assert_named_with_its_fix, told

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
    ('env = "A=B"', "'A=B'", "a table"),
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
    ('restart = "allways"', "restart", 'did you mean "always"? allowed is'),
    ("restart = { limit = 1000001 }", "restart.limit", "at most 1000000"),
    ("restart = { limit = -1 }", "restart.limit", "at least 0"),
    ("restart = { backoff = { factor = 101 } }", "restart.backoff.factor", "at most 100"),
    ("restart = { backoff = { jitter = -0.1 } }", "restart.backoff.jitter", "at least 0"),
    ("restart = { window = '0.5ms' }", "restart.window", "out of range"),
    ("restart = { backoff = { factor = 0.5 } }", "restart.backoff.factor", "at least 1"),
    ("restart = { backoff = { jitter = 2 } }", "restart.backoff.jitter", "at most 1"),
    ("restart = { window = 0 }", "restart.window", "out of range"),
    ("restart = true", "restart", "a table"),
    ('http = { implementation = "nginx" }', "http.implementation", '"httptools"'),
    ("http = { max_head_size = 4095 }", "http.max_head_size", "4KiB to 1GiB"),
    ("http = { max_head_size = 1073741825 }", "http.max_head_size", "4KiB to 1GiB"),
    ("http = { max_requests = 0 }", "http.max_requests", "at least 1"),
    ("http = { trusted_proxies = ['10.0.0.0/8', 'proxy'] }", "http.trusted_proxies", "10.0.0.0/8"),
    ("http = { trusted_proxies = '*' }", "http.trusted_proxies", '["…"]'),
    ('tls = "yes"', "tls", "true, false"),
    ("tls = { key = 'k' }", "tls.cert", "add cert"),
    ("tls = { cert = 'c', min_version = '1.1' }", "tls.min_version", '"1.2"'),
    ("tls = { cert = 'c', min_version = 1.2 }", "tls.min_version", '"1.2"'),
    ("limits = { open_files = 15 }", "limits.open_files", "at least 16"),
    ("limits = { open_files = 1073741825 }", "limits.open_files", "at most 1073741824"),
    ("hooks = { before_start = [] }", "hooks.before_start", "not empty"),
    ('cwd = ""', "cwd", "not empty"),
    ("cwd = 3", "cwd", "quotes"),
    ("env_file = 3", "env_file", "a path, or"),
    ("env_file = [3]", "env_file[0]", "a path, or"),
    ("depends_on = 'db'", "depends_on", '["…"]'),
    ("depends_on = [3]", "depends_on[0]", "the name of a server"),
    ("depends_on = [{ name = 'web', condition = 'up' }]", "depends_on[0].condition", '"started"'),
    ("depends_on = [{ condition = 'ready' }]", "depends_on[0].name", "add name"),
    ("handler_key = 3", "handler_key", "quotes"),
    ("health = { readiness = { http = 'ready' } }", "health.readiness.http", "a path such as"),
    ("health = { readiness = { tcp = true, fall_count_ko = 0 } }", "fall_count_ko", "at least 1"),
    ("health = { readiness = { tcp = true, fall_count_ko = 1001 } }", "fall_count_ko", "at most 1000"),
    ("health = { readiness = { http = '/', status = '2xx' } }", "health.readiness.status", "ranges"),
    ("health = { readiness = { http = '/', body = '(' } }", "health.readiness.body", "regular expression"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "named", "fix"), WRONG)
def test_wrong_value_is_named_with_its_fix(tmp_path: Path, line: str, named: str, fix: str) -> None:
    assert_named_with_its_fix(tmp_path, line, named, fix)


UNIX = '[[server]]\nname = "a"\nbind = "unix:/run/a"\napp = "a:b"\n'
JOB = '[[server]]\nname = "nightly"\njob = true\ncommand = ["sleep", "1"]\n'


@pytest.mark.parametrize(
    ("text", "named", "fix"),
    [
        (SERVER + "umask = 22\n", "umask", "22 may be octal or decimal"),
        (SERVER + "umask = '9'\n", "umask", "octal digits"),
        (UNIX + "socket_mode = 440\n", "socket_mode", 'a mode of files in quotes, such as "0660"'),
        (UNIX + 'socket_mode = "rw"\n', "socket_mode", 'a mode of files in quotes, such as "0660"'),
        (UNIX + 'socket_owner = "a b"\n', "socket_owner", "is not name[:group]"),
        (SERVER + 'socket_mode = "0660"\n', "socket_mode", "or bind a Unix socket: unix:/PATH"),
        (UNIX.replace("unix:/run/a", "fd:web") + 'socket_owner = "a"\n', "socket_owner", "SocketMode="),
        (JOB + 'socket_mode = "0660"\n', "socket_mode", "and it has no address"),
        (SERVER + 'http = { access_log = "x" }\n', "http.access_log", 'true, false, or "errors"'),
        (SERVER + 'scale = { min = 0, awake = ["* 24 * * *"] }\n', "scale.awake", "allowed is 0 to 23"),
        (SERVER + 'scale = { min = 0, awake = "x" }\n', "scale.awake", '["…"]'),
        (SERVER + 'scale = { min = 0, timezone = "Europe/Atlantis" }\n', "scale.timezone", "tzselect"),
        (JOB + 'every = "@daily"\n', "every", 'allowed is "0 0 * * *"'),
        (JOB + 'every = "@Hourly"\n', "every", 'allowed is "0 * * * *"'),
        (JOB + 'every = "0 0 30 2 *"\n', "every", "never comes"),
        (JOB + 'every = "0 25 * * *"\n', "every", "0 to 23"),
        ('[metrics]\nbind = "fd:3"\n', "metrics.bind", "is no fixed address"),
        ('[metrics]\nbind = "127.0.0.1:auto"\n', "metrics.bind", "is no fixed address"),
        ('[metrics]\nbind = "x"\n', "metrics.bind", '"HOST:PORT", ":PORT" or "unix:/PATH"'),
        ('[metrics]\npath = "x?y"\n', "metrics.path", "/"),
        ('[pool]\nport_range = "0-9"\n', "pool.port_range", "is not within 1-65535"),
        ('[pool]\nport_range = "1-65536"\n', "pool.port_range", "is not within 1-65535"),
        ('[pool]\nport_range = "9-8"\n', "pool.port_range", "the smaller first"),
        ('[pool]\nport_range = "all"\n', "pool.port_range", '"FIRST-LAST"'),
        ('[pool]\nhandlers = "apps"\n', "pool.handlers", '"module:function"'),
        ("[events]\nkeep = 10001\n", "events.keep", "at most 10000"),
        ("[events]\nkeep = -1\n", "events.keep", "at least 0"),
        ("[events]\nmax_size = 1152921504606846977\n", "events.max_size", "is out of range"),
        ("[events]\nmax_age = 0\n", "events.max_age", "out of range"),
    ],
)
def test_value_out_of_range_is_named_with_what_is_allowed(
    tmp_path: Path, text: str, named: str, fix: str
) -> None:
    found = told(tmp_path, text)
    assert named in found
    assert fix in found


@pytest.mark.parametrize(
    "text",
    [
        SERVER + "tls = false\n", SERVER + "tls = { cert = 'c' }\n", SERVER + "workers = 10000\n",
        SERVER + 'hooks = { before_start = ["true"] }\n',
        SERVER + "restart = { limit = 0, window = 0.001, backoff = { factor = 1, jitter = 0 } }\n",
        SERVER + "restart = { limit = 1000000, backoff = { factor = 100, jitter = 1 } }\n",
        SERVER + "http = { max_head_size = 4096, max_requests = 1 }\n",
        SERVER + "http = { max_head_size = 1073741824 }\n",
        SERVER + "limits = { open_files = 16 }\n", SERVER + "limits = { open_files = 1073741824 }\n",
        SERVER + "health = { readiness = { tcp = true, fall_count_ko = 1 } }\n",
        SERVER + "health = { readiness = { tcp = true, fall_count_ko = 1000 } }\n",
        UNIX + 'socket_mode = "660"\nsocket_owner = "www-data:www-data"\n',
        SERVER + 'umask = "022"\n', SERVER + 'http = { access_log = true }\n',
        SERVER + 'scale = { min = 0, awake = ["* 8-17 * * mon-fri"], timezone = "Europe/Berlin" }\n',
        JOB + 'every = "0 0 29 2 *"\n', JOB + 'every = "0 0 31 * mon"\n', JOB + 'every = "0 0 30 1,2 *"\n',
        '[metrics]\nbind = "unix:m.sock"\n', "[events]\nkeep = 10000\n", "[events]\nkeep = 0\n",
        '[events]\nmax_size = 1152921504606846976\n',
        '[events]\nmax_age = "1ms"\n', '[pool]\nport_range = " 1 - 65535 "\n',
        '[pool]\nport_range = "9-9"\n', '[pool]\nhandlers = "a:b"\n',
        SERVER + 'http = { trusted_proxies = ["10.0.0.7/8", "*", "::1"] }\n',
    ],
)  # fmt: skip
def test_value_at_the_edge_of_its_range_is_taken(tmp_path: Path, text: str) -> None:
    assert told(tmp_path, text) == ""


def test_paths_arguments_and_variables_may_hold_bytes_that_are_not_utf_8() -> None:
    there = "/srv/caf\udce9"
    server = ServerConfig(
        name="web",
        bind="unix:a.sock",
        command=[f"{there}/bin/web"],
        cwd=there,
        env={"HERE": there},
        env_file=f"{there}/.env",
        log={"path": f"{there}/web.log"},
        watch={"include": [f"{there}/*.html"]},
    )
    assert (server.command, server.cwd, server.env) == ((f"{there}/bin/web",), there, {"HERE": there})
    assert (server.env_file, server.log.path) == ((f"{there}/.env",), f"{there}/web.log")
    assert server.watch.include == (f"{there}/*.html",)
    with pytest.raises(PoolValidateError):
        ServerConfig(name="web", bind=":1", app="a:b", cwd="/\ud800")
