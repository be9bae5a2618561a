"""Each problem states the found value, the allowed values, and for a near miss the probable intention (§2)."""

from __future__ import annotations

import subprocess

import pytest

from tests.contract.test_configuration import everything
from tests.real_pool import RealPool

SERVER = '[[server]]\nname = "web"\nbind = "127.0.0.1:8080"\napp = "hello:app"\n'

# A line of a server that has the name `web`, and what is said about it.
PROBLEMS = [
    ('depends_on = ["nobody"]', ["nobody"]),
    ('depends_on = ["web"]', ["itself"]),
    ('depends_on = [{ name = "web", condition = "redy" }]', ['did you mean "ready"?']),
    ("dependson = []", ["'depends_on'"]),
    ('tags = "api"', ["tags"]),
    ("tag = []", ["'tags'"]),
    ("workers = -1", ["workers"]),
    ('workers = "many"', ["workers"]),
    ("worker = 1", ["did you mean 'workers'?"]),
    ("numprocs = 2", ["write workers = N"]),
    ("replicas = 2", ["write workers = N"]),
    ("scale = { min = 3, max = 1 }", ["raise scale.max, or lower scale.min"]),
    ('python = "/no/such/python"', ["/no/such/python"]),
    ('log = { format = "xml" }', ["format"]),
    ("log = { maxsize = 1 }", ["'max_size'"]),
    ('log = { max_age = "-1d" }', ["max_age"]),
    ('restart = "sometimes"', ["restart"]),
    ('restart = "on_failure"', ['did you mean "on-failure"?', '"always"']),
    ("restart = true", ['"no", "on-failure", "always", or a table']),
    ('restart = { polcy = "no" }', ["policy"]),
    ('recovery = "restrt"', ['did you mean "restart"?']),
    ("recovery = 3", ['"restart"', "or a table"]),
    ('recovery = { strategy = "pray" }', ["replace"]),
    ('tls = { cert = "no-such.pem", key = "no-such.key" }', ["no-such.pem"]),
    ("tls = true", ["tls"]),
    ('tls = "yes"', ["'yes'", "true, false"]),
    ('env_file = "no-such.env"', ["no-such.env"]),
    ('command = ["sleep", "1"]', ["command"]),
    ("job = true", ["job"]),
    ('user = "no-such-user-here"', ["no-such-user-here"]),
    ("notify = 3", ["notify"]),
    ('interface = "wsg"', ["interface"]),
    ("interface = true", ["interface"]),
    ('http = { keep_alive = "soon" }', ["keep_alive"]),
    ("http = { threads = 0 }", ["threads"]),
    ('http = { lop = "auto" }', ["'loop'"]),
    ('http = { implementation = "httptool" }', ['did you mean "httptools"?']),
    ('http = { root_path = "api" }', ['"/api"']),
    ('http = { root_path = "/api/" }', ['"/api"']),
    ("limits = { open_files = 0 }", ["open_files"]),
    ('limits = { memory = "much" }', ["memory"]),
    ('max_memory_restart = "300M"', ["write limits = { memory"]),
    ("health = 3", ['a path such as "/ready"', "or a table"]),
    ('health = "ready"', ["health.readiness.http", '"/ready"']),
    ("health = { readiness = {} }", ["one of"]),
    ('health = { readiness = "/ready" }', ['readiness = { http = "/ready" }']),
    ('health = { readiness = { http = "/x", tcp = true } }', ["one of"]),
    ('health = { readiness = { http = "/a", status = "ok" } }', ['"200-399"', '"200,204"']),
    ('health = { readiness = { http = "/a", status = "399-200" } }', ["399-200", "200-399"]),
    ('health = { readiness = { http = "/a", method = "get" } }', ['"GET"']),
    ('health = { readiness = { tcp = true, body = "x" } }', ["body", "http"]),
    ('health = { live = { http = "/x" } }', ["liveness"]),
    ('health = { liveness = { exec = ["true"], status = "200" } }', ["status", "http"]),
    ('health = { liveness = { http = "/x", interval = 0 } }', ["interval"]),
    ('health = { liveness = { http = "/x", fall_count_ko = 0 } }', ["fall_count_ko"]),
    ('health = { startup = { http = "/x", body = "(" } }', ["body"]),
    ('expose = "http://example.org:99999"', ["99999", "1 to 65535"]),
    ('expose = "example.org:http"', ["port"]),
    ("start_timeout = true", ["true is not a duration"]),
    ("start-timeout = 1", ["'start_timeout'"]),
    ("stopwaitsecs = 5", ['write stop_timeout = "10s"']),
    ('Listen = ":81"', ["did you mean 'listen'?"]),
    ('lisen = ":81"', ["did you mean 'listen'?"]),
    ("binf = 1", ["'bind'"]),
    ('monitor = { interval = "5s" }', ["monitor"]),
    ("bogus = 1", ["bogus"]),
]


def test_each_problem_is_printed_with_its_place_allowed_values_and_the_probable_intention(
    real_pool: RealPool,
) -> None:
    real_pool.write_hello()
    table = '[[server]]\nname = "{}"\nbind = "127.0.0.1:{}"\napp = "hello:app"\n{}\n'
    lines = [line.replace('"web"', f'"s{number}"') for number, (line, _) in enumerate(PROBLEMS)]
    text = "".join(table.format(f"s{number}", 8000 + number, line) for number, line in enumerate(lines))
    real_pool.write("pool.toml", text)
    done = real_pool.run("validate")
    assert done.code == 5
    printed = everything(done).splitlines()
    for number, (line, words) in enumerate(PROBLEMS):
        place = f"pool.toml:{5 * number + 5}:"
        about = "\n".join(each for each in printed if each.startswith(place))
        assert [word for word in words if word not in about] == [], (line, about)


@pytest.mark.parametrize(
    "line",
    [
        'expose = "http://example.org"',
        'expose = "https://[::1]:8443/app"',
        'expose = "example.org:8080"',
        'http = { root_path = "/api" }',
        'health = { readiness = { http = "/a", status = "200,204,300-399", method = "HEAD" } }',
    ],
)
def test_allowed_values_are_accepted(real_pool: RealPool, line: str) -> None:
    real_pool.write("pool.toml", f"{SERVER}{line}\n")
    assert real_pool.ok("validate").stdout.strip() == "1 server, ok (applications not imported: --import)"


def test_file_that_cannot_be_parsed_is_reported_with_the_fix(real_pool: RealPool) -> None:
    real_pool.write("pool.toml", '[[server]]\nname = "web"\ntags = ["a", "b"\nbind = ":8080"\n')
    done = real_pool.run("validate")
    assert done.code == 5
    assert "pool.toml:3:8: the list that begins here is not closed; put a ]" in everything(done)
    real_pool.write("pool.toml", "[[server]]\nbind = 127.0.0.1:8080\n")
    assert 'put it in quotes: "127.0.0.1:8080"' in everything(real_pool.run("validate"))


@pytest.mark.capability
def test_script_whose_interpreter_is_missing_is_named_with_it_before_and_at_the_start(
    real_pool: RealPool,
) -> None:
    script = real_pool.write("job.sh", "#!/no/such/sh\nexec sleep 600\n")
    script.chmod(0o755)
    real_pool.write("pool.toml", '[[server]]\nname = "job"\ncommand = ["./job.sh"]\n')
    problem = "is a script for /no/such/sh, which is not there"
    checked = real_pool.run("validate")
    assert (checked.code, problem in everything(checked)) == (5, True)
    started = real_pool.run("start")
    assert (started.code, problem in started.stderr) == (1, True)
    script.write_text("#!/bin/sh\r\nexec sleep 600\r\n")
    fix = real_pool.run("validate", "-o", "json").json["errors"][0]["hint"]
    subprocess.run(fix, shell=True, check=True)
    real_pool.ok("validate")
    real_pool.ok("start")
