"""Files of Compose become servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.features.import_foreign.test_foreign_pool import FILES

from .conftest import Import


def test_public_apps_of_gunicorns_asgi_worker_are_served(imported: Import) -> None:
    file = "gunicorn/asgi_framework_compat/docker-compose.yml"
    table = imported((FILES / file).read_text(), "compose.yml").servers["fastapi"]
    probe = {"http": "/health", "interval": "5s", "timeout": "3s", "fall_count_ko": 9}
    assert (table["bind"], table["app"], table["health"]) == (":8002", "app:app", {"readiness": probe})


A_SIZE = 'write a number of bytes, or a string such as "64KiB", "10MB"'
COMPOSE = """\
x-defaults: &defaults
  restart: unless-stopped
  environment: {LEVEL: "${LEVEL:-info}", TOKEN: , COST: "5$$"}

services:
  api:
    <<: *defaults
    build: ./api
    command: uvicorn api:app --host 0.0.0.0 --port 80
    ports: ["127.0.0.1:8080:80", "9000:9000"]
    env_file: [api.env]
    depends_on:
      db: {condition: service_healthy}
      migrate: {condition: service_completed_successfully}
    healthcheck:
      test: curl -f http://localhost:80/health || exit 1
      interval: 10s
      retries: 5
    deploy:
      replicas: 2
      resources: {limits: {memory: 512M}}
    volumes: ["data:/data"]
  front:
    build: {context: front}
    environment: ["API=http://api:80/v1", "PORT=3000"]
    ports: [3000:3000]
    depends_on: [api]
    stop_grace_period: 1m30s
  migrate:
    build: ./api
    command: ["python", "migrate.py"]
  db:
    image: postgres:16
"""


def test_compose(imported: Import, tmp_path: Path) -> None:
    (tmp_path / "front").mkdir()
    (tmp_path / "front" / "Dockerfile").write_text(
        'FROM node AS build\nCMD ["false"]\nFROM node\nENV NODE_ENV=production\nCMD ["npm", \\\n "start"]\n'
    )
    said = imported(COMPOSE, "docker-compose.yml")
    servers = said.servers
    assert list(servers) == ["api", "front", "migrate"]
    assert servers["api"] == {
        "bind": "127.0.0.1:8080",
        "app": "api:app",
        "cwd": "./api",
        "app_dir": "./api",
        "restart": "always",
        "env": {"LEVEL": "${LEVEL:-info}", "COST": "5$"},
        "env_file": ["api.env"],
        "health": {"readiness": {"http": "/health", "interval": "10s", "fall_count_ko": 4}},
        "workers": 2,
        "limits": {"memory": "512MiB"},
        "start_timeout": "50s",
        "depends_on": [{"name": "migrate", "condition": "completed"}],
    }
    assert servers["front"] == {
        "bind": ":3000",
        "command": ["npm", "start"],
        "cwd": "front",
        "env": {"NODE_ENV": "production", "API": "http://127.0.0.1:8080/v1", "PORT": "{port}"},
        "stop_timeout": "1m30s",
        "restart": "no",
        "depends_on": [{"name": "api", "condition": "started"}],
    }
    assert servers["migrate"] == {
        "command": ["python", "migrate.py"],
        "cwd": "./api",
        "restart": "no",
        "job": True,
    }
    for remark in (
        "docker-compose.yml:10: ports: 9000:9000: a server has one address",
        "docker-compose.yml:12: depends_on db: it is not among the servers",
        "docker-compose.yml:22: volumes: data:/data: its files have to be where the program looks for them",
        'name = "db"',
    ):
        assert remark in said.remarks, remark
    assert "warning: left out: docker-compose.yml:32: db: no command" in said.err


@pytest.mark.parametrize(
    ("ports", "command", "bind", "remarks"),
    [
        ('["8080:80"]', "serve --port 80", "127.0.0.1:8080", []),
        ('["8080:80"]', "serve 127.0.0.1:80", ":8080", []),
        ('["10.0.0.1:8080:80"]', "serve --host 0.0.0.0 --port 80", "10.0.0.1:8080", []),
        ('["10.0.0.1:8080:80"]', "serve --port 80", "10.0.0.1:8080",
         ["ports: 10.0.0.1:8080:80: see that it listens on that address alone"]),
        ('["80"]', "serve --port 80", ":80", []),
        ('[{published: 8080, target: 80, host_ip: 10.0.0.1}]', "serve --port 80", "10.0.0.1:8080",
         ["ports: 10.0.0.1:8080:80: see that it listens on that address alone"]),
        ('["8080:80/udp"]', "serve --port 80", None, ["ports: 8080:80/udp: a server has no port of UDP"]),
        ('[{target: 80, published: 8080, protocol: udp}]', "serve --port 80", None,
         ["ports: 8080:80/udp: a server has no port of UDP"]),
        ('["8000-8010:80"]', "serve --port 80", ":8000", []),
        ('["8000-8002:80-82"]', "serve --port 81", None,
         ["ports: 8000-8002:80-82: give it a bind once it takes {port}"]),
        ('["8000-8002:80-82"]', "flask run --port 81", ":8001", []),
        ('["a:b"]', "serve --port 80", None, ["ports: a:b: not understood as ports"]),
        ('["8080:80"]', "serve --port 8800", None, ["ports: 8080:80: give it a bind once it takes {port}"]),
        ('["8080:80"]', "serve 80 80", None, ["ports: 8080:80: give it a bind once it takes {port}"]),
        ('["8080:80", "9090:90"]', "serve --port 80", ":8080", ["ports: 9090:90: a server has one address"]),
        ('["${WEB:-8080}:80"]', "serve --port 80", ":8080", []),
    ],
)  # fmt: skip
def test_published_port_of_the_command_is_its_address(
    imported: Import, ports: str, command: str, bind: str | None, remarks: list[str]
) -> None:
    said = imported(f"services: {{a: {{command: {command}, ports: {ports}}}}}\n", "compose.yml")
    table = said.servers["a"]
    expected = None if bind is None else bind.removeprefix("127.0.0.1")
    assert table.get("bind", "").removeprefix("127.0.0.1") == (expected or "")
    assert ("{port}" in str(table["command"])) is (bind is not None)
    assert [each.partition(": ")[2] for each in said.remarks] == remarks


def test_port_in_a_variable_is_given_by_poolctl(imported: Import) -> None:
    text = 'services: {a: {command: serve, environment: {PORT: "80"}, ports: ["8080:80"]}}\n'
    table = imported(text, "compose.yml").servers["a"]
    assert (table["bind"], table["env"]) == (":8080", {"PORT": "{port}"})


@pytest.mark.parametrize(
    ("value", "size"),
    [("1G", "1GiB"), ("512m", "512MiB"), ("100b", "100B"), ("1048576", "1048576B"), ("1.5gb", "1.5GiB")],
)
def test_size_of_memory_is_a_limit(imported: Import, value: str, size: str) -> None:
    limits = "{resources: {limits: {memory: " + value + "}}}"
    table = imported(f"services: {{a: {{command: serve, deploy: {limits}}}}}\n", "compose.yml").servers["a"]
    assert table["limits"] == {"memory": size}


@pytest.mark.parametrize(
    ("deploy", "keys"),
    [
        ("replicas: 3", {"workers": 3}),
        ("replicas: 1", {}),
        ("resources: {limits: {cpus: '0', memory: '0'}}", {}),
        ("replicas: 0", {"disabled": True}),
        ("mode: replicated", {}),
    ],
)
def test_replicas_are_workers(imported: Import, deploy: str, keys: dict[str, object]) -> None:
    text = f"services: {{a: {{command: serve, deploy: {{{deploy}}}}}, b: {{command: other}}}}\n"
    said = imported(text, "compose.yml")
    assert said.servers["a"] == {"command": ["serve"], "restart": "no", **keys}
    assert said.remarks == (
        [] if "global" not in deploy else ["compose.yml:1: deploy.mode: global: no equivalent"]
    )


@pytest.mark.parametrize(
    ("restart", "found"),
    [
        ("always", "always"), ("unless-stopped", "always"), ('"no"', "no"), ("false", "no"),
        ('"on-failure:3"', {"policy": "on-failure", "limit": 3}), ("on-failure", "on-failure"),
    ],
)  # fmt: skip
def test_restart_has_its_counterpart(imported: Import, restart: str, found: object) -> None:
    text = f"services: {{a: {{command: serve, restart: {restart}}}}}\n"
    assert imported(text, "compose.yml").servers["a"]["restart"] == found


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("$A", "${A:-}"), ("${A}", "${A:-}"), ("${A:-b}", "${A:-b}"), ("${A-b}", "${A:-b}"), ("${A:?b}", "${A}"),
        ("${A:+b}", ""),
        ("${A-${B:-c}}", "${A:-c}"), ("${A:-{}}", "{}"), ("$${A", "$${A"), ("${A:-80}", "80"),
        ("$$A", "$A"), ("$${A}", "$${A}"),
    ],
)  # fmt: skip
def test_reference_to_a_variable_is_in_poolctls_notation(imported: Import, written: str, text: str) -> None:
    said = imported(f"services: {{a: {{command: [serve, '{written}']}}}}\n", "compose.yml")
    assert said.servers["a"]["command"] == ["serve", text]


@pytest.mark.parametrize(
    ("test", "probe"),
    [
        ("[CMD, curl, -f, 'http://localhost:80/up']", {"http": "/up"}),
        ("[CMD, curl, 'http://localhost']", {"http": "/"}),
        ("curl http://localhost:80 || exit 1", {"http": "/"}),
        ("curl http://localhost:81/up", {"exec": ["sh", "-c", "curl http://localhost:81/up"]}),
        ("[CMD, check, 'http://localhost:80/up']", {"exec": ["check", "http://localhost:{port}/up"]}),
        ("[CMD-SHELL, 'check it']", {"exec": ["sh", "-c", "check it"]}),
        ("[NONE]", None), ("NONE", None),
    ],
)  # fmt: skip
def test_check_of_a_container_is_a_probe(
    imported: Import, test: str, probe: dict[str, object] | None
) -> None:
    check = f"{{test: {test}, interval: 5s, timeout: 2s, retries: 4}}"
    text = (
        f"services: {{a: {{command: 'uvicorn a:b --port 80', ports: ['8080:80'], healthcheck: {check}}}}}\n"
    )
    table = imported(text, "compose.yml").servers["a"]
    times = {"interval": "5s", "timeout": "2s", "fall_count_ko": 3}
    assert table.get("health") == (None if probe is None else {"readiness": probe | times})


@pytest.mark.parametrize(
    ("lines", "command", "env"),
    [
        (["CMD serve it && that"], ["sh", "-c", "serve it && that"], {}),
        (['ENTRYPOINT ["serve"]', 'CMD ["it"]'], ["serve", "it"], {}),
        (['CMD ["it"]', 'ENTRYPOINT ["serve"]'], ["serve"], {}),
        (["# CMD no", "ENV A=1 B=2", "ENV C the rest", 'CMD ["serve", \\', '"it"]'], ["serve", "it"],
         {"A": "1", "B": "2", "C": "the rest"}),
        (["CMD first", "FROM base", 'CMD ["last"]'], ["last"], {}),
    ],
)  # fmt: skip
def test_image_says_how_it_is_started(
    imported: Import, tmp_path: Path, lines: list[str], command: list[str], env: dict[str, str]
) -> None:
    (tmp_path / "Dockerfile").write_text("\n".join(["FROM python", *lines]) + "\n")
    table = imported("services: {a: {build: .}}\n", "compose.yml").servers["a"]
    assert (table["command"], table.get("env", {})) == (command, env)


def test_image_says_how_it_is_stopped(imported: Import, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM x\nSTOPSIGNAL SIGQUIT\nCMD serve\n")
    said = imported("services: {a: {build: .}, b: {build: ., stop_signal: SIGINT}}\n", "compose.yml")
    assert [said.servers[name]["stop_signal"] for name in "ab"] == ["SIGQUIT", "SIGINT"]


@pytest.mark.parametrize(
    ("check", "readiness", "remarks"),
    [
        ("--interval=5s --retries=4 \\\n  CMD curl -f http://localhost:8000/up || exit 1",
         {"http": "/up", "interval": "5s", "fall_count_ko": 3}, []),
        ('--timeout=2s CMD ["check", "$X"]', {"exec": ["check", "$X"], "timeout": "2s"}, []),
        ("CMD test -e ${Y}/x", {"exec": ["sh", "-c", "test -e $${Y}/x"]}, []),
        ("--start-interval=1s CMD check", {"exec": ["sh", "-c", "check"]},
         ["compose.yml:2: HEALTHCHECK start_interval: 1s: no equivalent"]),
        ("NONE", None, []),
    ],
)  # fmt: skip
def test_image_says_how_it_is_checked_unless_the_service_does(
    imported: Import, tmp_path: Path, check: str, readiness: dict[str, object] | None, remarks: list[str]
) -> None:
    command = 'CMD ["python3", "-m", "http.server", "8000"]'
    (tmp_path / "Dockerfile").write_text(f"FROM x\nHEALTHCHECK {check}\n{command}\n")
    said = imported("services:\n  a: {build: .}\n", "compose.yml")
    assert said.servers["a"].get("health") == (readiness and {"readiness": readiness})
    assert said.remarks == remarks
    own = imported("services: {a: {build: ., healthcheck: {test: [CMD, own]}}}\n", "compose.yml")
    assert own.servers["a"]["health"] == {"readiness": {"exec": ["own"]}}


def test_stage_of_an_image_continues_the_one_before(imported: Import, tmp_path: Path) -> None:
    stages = [
        "FROM python AS base",
        'ENTRYPOINT ["run"]',
        "FROM base AS web",
        'CMD ["web"]',
        "FROM base AS job",
    ]
    (tmp_path / "Dockerfile").write_text("\n".join([*stages, 'CMD ["job"]']) + "\n")
    text = "services: {a: {build: {context: ., target: web}}, b: {build: .}}\n"
    servers = imported(text, "compose.yml").servers
    assert [servers[name]["command"] for name in "ab"] == [["run", "web"], ["run", "job"]]


@pytest.mark.parametrize(
    ("service", "keys", "remarks"),
    [
        ("image: quiet:1, command: [serve, it], environment: [HOME], networks: [inner], expose: [80]",
         {"command": ["serve", "it"]}, ["image: quiet:1: its programs have to be on this machine"]),
        ("command: uvicorn a:b --host 0.0.0.0 --port 81", {"bind": "127.0.0.1:81", "app": "a:b"}, []),
        ("command: 'gunicorn -b unix:/run/s.sock a:b', user: root, ports: ['82:82']",
         {"bind": "unix:/run/s.sock", "command": ["gunicorn", "a:b"], "user": "root"},
         ["ports: 82:82: a server has one address"]),
        ("command: [sh, -c, 'cd /srv && serve $$HOME $${X}']",
         {"command": ["sh", "-c", "cd /srv && serve $HOME $${X}"]}, []),
        ("command: [sh, -c, 'serve it']", {"command": ["serve", "it"]}, []),
        ("command: [sh, -c, serve, it]", {"command": ["sh", "-c", "serve", "it"]}, []),
        ("command: serve, user: 1000", {"command": ["serve"]}, ["user: 1000: no equivalent"]),
        ("command: serve, labels: {traefik.enable: true, com.docker.a: 1, team: $TEAM, note: }",
         {"command": ["serve"], "labels": {"team": "${TEAM:-}", "note": ""}},
         ["TEAM is set neither here nor in .env: it is empty",
          "traefik.enable=true: [gateway] and [[route]] do this here"]),
        ("command: serve, labels: [a=1, traefik.b=2, c], tty: true",
         {"command": ["serve"], "labels": {"a": "1", "c": ""}},
         ["traefik.b=2: [gateway] and [[route]] do this here"]),
        ("command: serve, stdin_open: true", {"command": ["serve"], "stdin": "open"}, []),
        ("command: serve, stdin_open: false", {"command": ["serve"]}, []),
        ("command: uvicorn a:b --port 81, stdin_open: true", {"bind": "127.0.0.1:81", "app": "a:b"}, []),
        ("command: serve, labels: {com.docker.a: 1}", {"command": ["serve"]}, []),
        ("command: serve, profiles: [dev tools, b]",
         {"command": ["serve"], "tags": ["dev-tools", "b"], "on_demand": True}, []),
        ("command: serve, privileged: true, cap_add: [A, B]", {"command": ["serve"]},
         ["cap_add: A, B: no equivalent", "privileged: true: no equivalent"]),
        ("command: serve, mem_limit: 1g, scale: 3, stop_signal: INT, stop_grace_period: 10s",
         {"command": ["serve"], "limits": {"memory": "1GiB"}, "workers": 3, "stop_signal": "SIGINT",
          "stop_timeout": "10s"}, []),
        ("command: serve, scale: -1", {"command": ["serve"]}, ["workers = -1: -1 is not allowed here"]),
        ("command: serve, env_file: [{path: a.env}, {path: c.env, required: false}, {path: b.env, required: true}]",
         {"command": ["serve"], "env_file": ["a.env", "b.env"]}, ["env_file: c.env: the file does not exist here"]),
        ("command: serve, env_file: {path: there.env, required: false}",
         {"command": ["serve"], "env_file": ["there.env"]}, []),
        ("command: serve, env_file: $DIR/a.env", {"command": ["serve"], "env_file": ["${DIR:-}/a.env"]},
         ["DIR is set neither here nor in .env: it is empty"]),
        ("command: serve, deploy: {replicas: two, placement: {a: b}, resources: {limits: {cpus: '0.5', pids: 5}}}",
         {"command": ["serve"]},
         ["deploy.placement: a: b: no equivalent", "deploy.replicas: two: no equivalent",
          "deploy.resources.limits.cpus: 0.5: no equivalent",
          "deploy.resources.limits.pids: 5: no equivalent"]),
        ("command: serve, deploy: {resources: {limits: {memory: lots}}}", {"command": ["serve"]},
         [f"limits.memory = \"lots\": 'lots' is not a size; {A_SIZE}"]),
        ("build: 'https://example.org/a.git', command: serve", {"command": ["serve"]}, []),
        ("build: {context: app, dockerfile: Other}, entrypoint: [run], command: [it]",
         {"command": ["run", "it"], "cwd": "app", "env": {"A": "1"}}, []),
        ("build: {context: app, dockerfile: Other}, command: it",
         {"command": ["it"], "cwd": "app", "env": {"A": "1"}}, []),
        ("build: app", {"command": ["sh", "-c", "run", "sh", "-c", '["a'], "cwd": "app", "env": {"C": "d e"}}, []),
        ("build: app, image: 'shop:1', entrypoint: uvicorn, command: 'x:y --port 83'",
         {"bind": "127.0.0.1:83", "app": "x:y", "cwd": "app", "app_dir": "app", "env": {"C": "d e"}}, []),
    ],
)  # fmt: skip
def test_service_is_a_server_with_remarks(
    imported: Import, tmp_path: Path, service: str, keys: dict[str, object], remarks: list[str]
) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "Other").write_text("FROM x\nENV A=1\nCMD no\n")
    dockerfile = "FROM x\nENV PATH=/x A=$B C='d e'\nENV broken 'x\nRUN x\nENTRYPOINT run\nCMD [\"a\n"
    (tmp_path / "app" / "Dockerfile").write_text(dockerfile)
    (tmp_path / "there.env").touch()
    said = imported(f"services: {{a: {{{service}}}}}\n", "compose.yml")
    assert said.servers == {"a": {"restart": "no", **keys}}
    assert said.remarks == [f"compose.yml:1: {each}" for each in remarks]


@pytest.mark.parametrize(
    ("service", "reason"),
    [
        ("restart: always", "no command: write one, if that program is on this machine"),
        ("image: db, command: [--fast]",
         "no command: write the command of the image db, if that program is on this machine"),
        ("build: nowhere", "no command: write the CMD of its Dockerfile, if that program is on this machine"),
        ("command: \"echo 'open\"", "the shell cannot read its command (No closing quotation)"),
    ],
)  # fmt: skip
def test_service_without_a_readable_command_is_left_out(imported: Import, service: str, reason: str) -> None:
    said = imported(f"services:\n  a: {{{service}}}\n  b: {{command: serve}}\n", "compose.yml")
    assert list(said.servers) == ["b"]
    assert said.remarks[:3] == [f"compose.yml:2: left out: {reason}", "[[server]]", 'name = "a"']
    command = '["sh", "-c", "echo \'open"]' if "open" in service else '["…"]'
    assert f"command = {command}" in said.remarks


def test_tables_beside_the_services_are_remarks(imported: Import) -> None:
    text = 'version: "3"\nname: shop\nnetworks: {}\nsecrets: {a: b}\nx-more: 1\nservices: {a: {command: serve}}\n'
    assert imported(text, "compose.yml").remarks == ["compose.yml:4: secrets: a: b: no equivalent"]


def test_host_in_a_variable_that_is_a_service_is_this_machine(imported: Import) -> None:
    said = imported(
        """\
services:
  db: {command: serve 5432, ports: ["15432:5432"]}
  cache: {command: serve, ports: ["6379"]}
  web:
    command: serve
    environment:
      HOST: db
      A: db
      B: db:5432
      C: db:5433/x
      D: postgres://u:p@db:5432/x?y
      E: redis://cache:6379
      F: mydb:5432
      G: db/x
      H: http://db
      I: true
      J: false
      K: 5
      L: "${L}"
      M: "$M"
      N: http://db:99
""",
        "compose.yml",
    )
    assert said.servers["web"]["env"] == {
        "HOST": "127.0.0.1",
        "A": "db",
        "B": "127.0.0.1:15432",
        "C": "127.0.0.1:5433/x",
        "D": "postgres://u:p@127.0.0.1:15432/x?y",
        "E": "redis://127.0.0.1:6379",
        "F": "mydb:5432",
        "G": "db/x",
        "H": "http://127.0.0.1",
        "I": "true",
        "J": "false",
        "K": "5",
        "N": "http://127.0.0.1:99",
    }
    assert said.remarks == [
        "compose.yml:6: A: if db is the service, write 127.0.0.1",
        "compose.yml:6: B: the service db is 127.0.0.1:15432 here",
        "compose.yml:6: C: the service db is 127.0.0.1:5433 here",
        "compose.yml:6: D: the service db is 127.0.0.1:15432 here",
        "compose.yml:6: E: the service cache is 127.0.0.1:6379 here",
        "compose.yml:6: H: the service db is 127.0.0.1 here",
        "compose.yml:6: HOST: the port 5432 of the service db is 15432 here",
        "compose.yml:6: HOST: the service db is 127.0.0.1 here",
        "compose.yml:6: N: the service db is 127.0.0.1:99 here",
    ]


@pytest.mark.parametrize(
    ("service", "keys", "remarks"),
    [
        ("environment: {WEB_PORT: '80', OTHER: '80', B_PORT: '8'}, ports: ['8080:80', '9090:90']",
         {"bind": ":8080", "command": ["serve"], "env": {"WEB_PORT": "{port}", "OTHER": "80", "B_PORT": "8"}},
         ["ports: 9090:90: a server has one address"]),
        ("environment: {A_PORT: '80', B_PORT: '80'}, ports: ['81:80']",
         {"command": ["serve"], "env": {"A_PORT": "80", "B_PORT": "80"}},
         ["ports: 81:80: give it a bind once it takes {port}"]),
        ("command: [80, -p, 80], ports: ['82:80']", {"bind": ":82", "command": ["80", "-p", "{port}"]}, []),
        ("command: serve 1.80 80.1 :80, ports: ['127.0.0.1:83:80']",
         {"bind": "127.0.0.1:83", "command": ["serve", "1.80", "80.1", ":{port}"]},
         ["ports: 127.0.0.1:83:80: see that it listens on that address alone"]),
        ("command: serve 80, ports: ['[::1]:84:80']", {"bind": "[::1]:84", "command": ["serve", "{port}"]},
         ["ports: [::1]:84:80: see that it listens on that address alone"]),
        ("command: serve 80, ports: [{target: 80, published: 85, protocol: udp}, {target: 80, published: 86}]",
         {"bind": ":86", "command": ["serve", "{port}"]}, ["ports: 85:80/udp: a server has no port of UDP"]),
    ],
)  # fmt: skip
def test_one_word_or_variable_with_the_inner_port_is_replaced(
    imported: Import, service: str, keys: dict[str, object], remarks: list[str]
) -> None:
    command = "" if "command" in service else "command: serve, "
    said = imported(f"services: {{a: {{{command}{service}}}}}\n", "compose.yml")
    assert said.servers["a"] == {"restart": "no", **keys}
    assert said.remarks == [f"compose.yml:1: {each}" for each in remarks]


@pytest.mark.parametrize(
    ("service", "probe"),
    [
        ("healthcheck: {test: [CMD-SHELL, \"curl -f 'http://[::1]:80/up' || exit 1\"], timeout: 3s, retries: many}",
         {"http": "/up", "timeout": "3s"}),
        ("healthcheck: {test: [CMD, python, -c, \"a\\nu.urlopen('http://localhost:80/z')\"]}", {"http": "/z"}),
        ("healthcheck: {test: [CMD, /usr/bin/wget, -q, 'http://0.0.0.0'], disable: false}", {"http": "/"}),
        ("healthcheck: {test: [CMD, curl, 'https://localhost/x']}", {"exec": ["curl", "https://localhost/x"]}),
        ("healthcheck: {test: [CMD, curl, 'http://localhost:80'], disable: true}", None),
        ("healthcheck: {interval: 5s}", None),
    ],
)  # fmt: skip
def test_check_of_its_own_port_asks_by_http(
    imported: Import, service: str, probe: dict[str, str] | None
) -> None:
    text = f"services: {{a: {{command: uvicorn a:b --port 80, ports: ['8080:80'], {service}}}}}\n"
    assert imported(text, "compose.yml").servers["a"].get("health", {}).get("readiness") == probe


def test_check_without_a_port_asks_another_address_than_that_of_the_program(imported: Import) -> None:
    check = "healthcheck: {test: [CMD, curl, 'http://localhost/x']}"
    text = f"services: {{a: {{command: uvicorn a:b --port 8000, ports: ['8080:8000'], {check}}}}}\n"
    health = imported(text, "compose.yml").servers["a"]["health"]
    assert health == {"readiness": {"exec": ["curl", "http://localhost/x"]}}


def test_check_of_a_service_without_an_address_is_run(imported: Import) -> None:
    text = "services: {a: {command: serve, healthcheck: {test: curl http://localhost/x}}}\n"
    probe = {"exec": ["sh", "-c", "curl http://localhost/x"]}
    assert imported(text, "compose.yml").servers["a"]["health"] == {"readiness": probe}


def test_dependencies_have_their_conditions(imported: Import) -> None:
    said = imported(
        """\
services:
  a: {command: serve}
  b: {command: serve}
  c: {command: serve}
  d: {command: serve}
  f:
    command: serve
    depends_on: {a: {condition: service_started}, b: {condition: service_healthy}, c: , d: {}}
  g: {command: serve, depends_on: [f]}
""",
        "compose.yml",
    )
    waits = {name: keys["depends_on"] for name, keys in said.servers.items() if "depends_on" in keys}
    assert waits == {
        "f": [
            {"name": "a", "condition": "started"}, {"name": "b", "condition": "ready"},
            {"name": "c", "condition": "started"}, {"name": "d", "condition": "started"},
        ],
        "g": [{"name": "f", "condition": "started"}],
    }  # fmt: skip
    assert not any("job" in keys for keys in said.servers.values())


def test_remark_of_a_service_is_at_the_line_of_its_key(imported: Import) -> None:
    said = imported(
        """\
services:
  a:
    image: a:1
    healthcheck: {test: [CMD, check], interval: soon}
    command: uvicorn a:b --port 80 --reload
  b:
    profiles: [x]
    entrypoint: [uvicorn, "b:b", --port, "81", --reload]
    stop_grace_period: soon
  c:
    entrypoint: [uvicorn]
    command: ["c:b", --port, "82", --reload]
    ports: ["83:84"]
    depends_on: [nothing]
""",
        "compose.yml",
    )
    places = [" ".join(each.split()[:2]) for each in said.remarks]
    assert places == [
        "compose.yml:3: image:", "compose.yml:4: healthcheck.interval:", "compose.yml:5: --reload:",
        "compose.yml:8: --reload:",
        "compose.yml:9: stop_timeout", "compose.yml:12: --reload:", "compose.yml:13: ports:",
        "compose.yml:14: depends_on",
    ]  # fmt: skip


def test_variables_are_those_of_the_environment_or_of_the_env_file_beside(
    imported: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEB_PORT", "8090")
    (tmp_path / ".env").write_text(
        "WEB_PORT=8080\nIP=127.0.0.1\nPASSWORD='a}b'\nSECRET=s\nEVERY=5s\nPOLICY=always\n"
    )
    said = imported(
        """\
services:
  a:
    command: flask run --port ${INNER:-80}
    ports: ["${IP:-0.0.0.0}:${WEB_PORT}:${INNER:-80}"]
    environment: {A: "$PASSWORD", B: "${SECRET}", SECRET: "${SECRET}", C: "${UNSET:-x}", D: "${UNSET?needed}"}
    restart: $POLICY
    stop_grace_period: ${GRACE:-${EVERY}}
    deploy: {replicas: "${N:-1}", resources: {limits: {memory: "${MEMORY:-1g}"}}}
    healthcheck: {test: [CMD, "true"], interval: $EVERY, timeout: "$EVERY", retries: "${R:-2}"}
""",
        "compose.yml",
    )
    assert said.servers["a"] == {
        "bind": "127.0.0.1:8090",
        "command": ["flask", "run", "--port", "{port}", "--host", "{host}"],
        "env": {"A": "a}b", "B": "${SECRET:-s}", "C": "${UNSET:-x}", "D": "${UNSET}"},
        "restart": "always",
        "stop_timeout": "5s",
        "limits": {"memory": "1GiB"},
        "health": {"readiness": {"exec": ["true"], "interval": "5s", "timeout": "5s", "fall_count_ko": 1}},
    }
    assert said.remarks == []
    assert "not set here: UNSET" in said.err


def test_variable_of_the_env_file_beside_reaches_a_service_with_files_of_its_own(
    imported: Import, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("TOKEN=t\n")
    (tmp_path / "a.env").touch()
    text = "services: {a: {command: serve, env_file: a.env, environment: [TOKEN, OTHER]}}\n"
    assert imported(text, "compose.yml").servers["a"]["env"] == {"TOKEN": "${TOKEN:-t}"}


def test_variable_without_a_value_is_a_remark(imported: Import) -> None:
    said = imported("services: {a: {command: serve, environment: {A: $NO_PLACE}}}\n", "compose.yml")
    assert said.servers["a"]["env"] == {"A": "${NO_PLACE:-}"}
    assert said.remarks == ["compose.yml:1: NO_PLACE is set neither here nor in .env: it is empty"]


def test_env_file_that_cannot_be_read_is_an_error(imported: Import, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("A='open\n")
    said = imported("services: {a: {command: serve}}\n", "compose.yml", valid=False)
    assert (said.code, "the quote of A is not closed" in said.err) == (5, True)


def test_name_of_a_service_becomes_the_address_at_which_it_listens(imported: Import) -> None:
    said = imported(
        """\
services:
  queue: {command: redis-server, ports: ["6380:6379"], container_name: my-redis, hostname: q}
  api:
    command: flask run -p 5000
    networks: {inner: {aliases: [www]}}
  worker:
    command: worker --broker redis://queue:6379/0 -h queue --log queue redis:16
    environment:
      NODES: queue:6379,q:6379
      ALIAS: redis://my-redis/0
      API: http://www:5000/v1
      API_URL: http://api
      POSTGRES_USER: queue
    healthcheck: {test: "nc -z queue 6379 && redis-cli -h queue ping || curl api:5000"}
""",
        "compose.yml",
    )
    worker = said.servers["worker"]
    assert said.servers["queue"]["bind"] == ":6380"
    assert worker["command"] == [
        "worker", "--broker", "redis://127.0.0.1:6380/0", "-h", "127.0.0.1", "--log", "queue", "redis:16",
    ]  # fmt: skip
    assert worker["env"] == {
        "NODES": "127.0.0.1:6380,127.0.0.1:6380",
        "ALIAS": "redis://127.0.0.1:6380/0",
        "API": "http://127.0.0.1:5000/v1",
        "API_URL": "http://127.0.0.1",
        "POSTGRES_USER": "queue",
    }
    probe = "nc -z queue 6379 && redis-cli -h queue ping || curl 127.0.0.1:5000"
    assert worker["health"]["readiness"]["exec"] == ["sh", "-c", probe]
    for remark in (
        "compose.yml:2: container_name: my-redis: a server is called by the name of its service",
        "compose.yml:7: command: the service queue is 127.0.0.1:6380 here",
        "compose.yml:7: command: the port 6379 of the service queue is 6380 here",
        "compose.yml:7: command: if queue is the service, write 127.0.0.1",
        "compose.yml:8: POSTGRES_USER: if queue is the service, write 127.0.0.1",
        "compose.yml:14: health: if queue is the service, write 127.0.0.1",
    ):
        assert remark in said.remarks, (remark, said.remarks)


@pytest.mark.parametrize(
    ("service", "restart"),
    [
        ("restart: unless-stopped", "always"),
        ("restart: sometimes", "no"),
        ("deploy: {restart_policy: {condition: on-failure, delay: 5s, max_attempts: 3, window: 2m}}",
         {"policy": "on-failure", "limit": 3, "backoff": {"initial": "5s"}, "window": "2m"}),
        ("deploy: {restart_policy: {condition: any}}", "always"),
        ("deploy: {restart_policy: {condition: none}}", "no"),
        ("restart: on-failure, deploy: {restart_policy: {condition: any}}", "on-failure"),
    ],
)  # fmt: skip
def test_policy_of_a_restart(imported: Import, service: str, restart: object) -> None:
    said = imported(f"services: {{a: {{command: serve, {service}}}}}\n", "compose.yml")
    assert said.servers["a"]["restart"] == restart


@pytest.mark.parametrize(("profiles", "keys"), [("b", {"on_demand": True}), ("a,x", {}), ("*", {})])
def test_profile_that_is_enabled_starts_with_the_pool(
    imported: Import, monkeypatch: pytest.MonkeyPatch, profiles: str, keys: dict[str, object]
) -> None:
    monkeypatch.setenv("COMPOSE_PROFILES", profiles)
    said = imported("services: {a: {command: serve, profiles: [a]}}\n", "compose.yml")
    assert said.servers["a"] == {"command": ["serve"], "restart": "no", "tags": ["a"], **keys}


@pytest.mark.parametrize(
    ("check", "keys"),
    [
        ("test: [CMD, curl, -H, 'Host: b', 'http://localhost:80/up']",
         {"exec": ["curl", "-H", "Host: b", "http://localhost:{port}/up"]}),
        ("test: curl -s http://localhost:80/up | grep ok",
         {"exec": ["sh", "-c", "curl -s http://localhost:{port}/up | grep ok"]}),
        ("test: 'curl -fs http://localhost:80/up || exit 1'", {"http": "/up"}),
        ("test: [CMD, nc, -z, localhost, '80']", {"exec": ["nc", "-z", "localhost", "{port}"]}),
    ],
)  # fmt: skip
def test_check_that_is_more_than_a_request_is_run_with_the_port_of_the_server(
    imported: Import, check: str, keys: dict[str, object]
) -> None:
    text = (
        f"services: {{a: {{command: uvicorn a:b --port 80, ports: ['8080:80'], healthcheck: {{{check}}}}}}}\n"
    )
    said = imported(text, "compose.yml")
    assert said.servers["a"]["health"] == {"readiness": keys}
    assert said.servers["a"]["start_timeout"] == "90s"


def test_time_of_a_check_to_begin_is_the_limit_of_a_start(imported: Import) -> None:
    check = "{test: [CMD, 'true'], interval: 10s, retries: 3, start_period: 2m}"
    said = imported(f"services: {{a: {{command: serve, healthcheck: {check}}}}}\n", "compose.yml")
    assert said.servers["a"]["start_timeout"] == "150s"
    assert said.remarks == []


@pytest.mark.parametrize(
    ("service", "keys", "remarks"),
    [
        ("ports: ['8000:8000']", {"bind": ":8000", "socket": "program"}, []),
        ("ports: ['5678:90', '8000:8000']", {"bind": ":8000", "socket": "program"},
         ["ports: 5678:90: a server has one address"]),
        ("ports: ['127.0.0.1:8000:8000']", {"bind": "127.0.0.1:8000", "socket": "program"},
         ["ports: 127.0.0.1:8000:8000: see that it listens on that address alone"]),
        ("ports: ['81:8000']", {}, ["ports: 81:8000: give it a bind once it takes {port}"]),
        ("ports: ['127.0.0.1:8000:8000'], environment: {PORT: 8000, HOST: 0.0.0.0}",
         {"bind": "127.0.0.1:8000", "env": {"PORT": "{port}", "HOST": "{host}"}}, []),
        ("ports: ['127.0.0.1:80:8000'], environment: {PORT: 8000}",
         {"bind": "127.0.0.1:80", "env": {"PORT": "{port}"}},
         ["ports: 127.0.0.1:80:8000: see that it listens on that address alone"]),
    ],
)  # fmt: skip
def test_program_that_does_not_name_its_port_listens_where_it_was_published(
    imported: Import, service: str, keys: dict[str, object], remarks: list[str]
) -> None:
    said = imported(f"services: {{a: {{command: python3 app.py, {service}}}}}\n", "compose.yml")
    assert said.servers["a"] == {"command": ["python3", "app.py"], "restart": "no", **keys}
    assert said.remarks == [f"compose.yml:1: {each}" for each in remarks]


def test_job_has_no_address(imported: Import) -> None:
    said = imported(
        """\
services:
  init: {command: init, ports: ["80:80"]}
  a: {command: serve, depends_on: {init: {condition: service_completed_successfully}}}
""",
        "compose.yml",
    )
    assert said.servers["init"] == {"command": ["init"], "restart": "no", "job": True}


def test_name_of_a_service_that_is_the_value_of_a_variable_is_replaced(
    imported: Import, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("DB=db\nDB_URL=postgres://u@db/x\n")
    said = imported(
        """\
services:
  db: {image: postgres, ports: ["5433:5432"]}
  a: {command: "bash -c 'until echo > /dev/tcp/db/5432; do :; done'", environment: {DB_HOST: $DB, URL: $DB_URL}}
""",
        "compose.yml",
    )
    assert said.servers["a"]["env"] == {
        "DB_HOST": "${DB:-127.0.0.1}",
        "URL": "${DB_URL:-postgres://u@127.0.0.1:5433/x}",
    }
    assert "/dev/tcp/127.0.0.1/5432" in said.servers["a"]["command"][2]


def test_program_that_was_published_on_one_address_listens_on_it_alone(imported: Import) -> None:
    text = "services: {a: {command: serve --host 0.0.0.0 --port 80, ports: ['127.0.0.1:8080:80']}}\n"
    table = imported(text, "compose.yml").servers["a"]
    assert (table["bind"], table["command"][1:]) == (
        "127.0.0.1:8080",
        ["--host", "{host}", "--port", "{port}"],
    )


def test_second_key_for_one_setting_is_a_remark(imported: Import) -> None:
    deploy = "{replicas: 2, resources: {limits: {memory: 1G}}}"
    said = imported(
        f"services: {{a: {{command: serve, scale: 3, mem_limit: 2g, deploy: {deploy}}}}}\n", "compose.yml"
    )
    assert (said.servers["a"]["workers"], said.servers["a"]["limits"]) == (2, {"memory": "1GiB"})
    assert said.remarks == [
        "compose.yml:1: mem_limit: 2g: no equivalent",
        "compose.yml:1: scale: 3: no equivalent",
    ]
