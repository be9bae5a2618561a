"""Files of Compose become servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.features.import_foreign.test_foreign_pool import FILES

from .conftest import Import


def test_public_apps_of_gunicorns_asgi_worker_are_served(imported: Import) -> None:
    file = "gunicorn/asgi_framework_compat/docker-compose.yml"
    table = imported((FILES / file).read_text(), "compose.yml").servers["fastapi"]
    probe = {"http": "/health", "interval": "5s", "timeout": "3s", "fall_count_ko": 10}
    assert (table["bind"], table["app"], table["health"]) == (":8002", "app:app", {"readiness": probe})


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
        "health": {"readiness": {"http": "/health", "interval": "10s", "fall_count_ko": 5}},
        "workers": 2,
        "limits": {"memory": "512MiB"},
        "depends_on": [{"name": "migrate", "condition": "completed"}],
    }
    assert servers["front"] == {
        "bind": ":3000",
        "command": ["npm", "start"],
        "cwd": "front",
        "env": {"NODE_ENV": "production", "API": "http://127.0.0.1:8080/v1", "PORT": "{port}"},
        "stop_timeout": "1m30s",
        "depends_on": [{"name": "api", "condition": "started"}],
    }
    assert servers["migrate"] == {"command": ["python", "migrate.py"], "cwd": "./api", "job": True}
    for remark in (
        "docker-compose.yml:10: ports: 9000:9000: a server has one address",
        "docker-compose.yml:12: depends_on db: it is not among the servers",
        "docker-compose.yml:22: volumes: data:/data: no equivalent",
        'name = "db"',
    ):
        assert remark in said.remarks, remark
    assert "warning: left out: docker-compose.yml:32: db: no command" in said.err


@pytest.mark.parametrize(
    ("ports", "command", "bind", "remarks"),
    [
        ('["8080:80"]', "serve --port 80", "127.0.0.1:8080", []),
        ('["8080:80"]', "serve 127.0.0.1:80", ":8080", []),
        ('["10.0.0.1:8080:80"]', "serve --port 80", "10.0.0.1:8080", []),
        ('["80"]', "serve --port 80", ":80", []),
        ('[{published: 8080, target: 80, host_ip: 10.0.0.1}]', "serve --port 80", "10.0.0.1:8080", []),
        ('["8080:80/udp"]', "serve --port 80", None, []),
        ('["8000-8010:80"]', "serve --port 80", None, []),
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
        ("replicas: 0", {"disabled": True}),
        ("mode: global", {}),
    ],
)
def test_replicas_are_workers(imported: Import, deploy: str, keys: dict[str, object]) -> None:
    text = f"services: {{a: {{command: serve, deploy: {{{deploy}}}}}, b: {{command: other}}}}\n"
    said = imported(text, "compose.yml")
    assert said.servers["a"] == {"command": ["serve"], **keys}
    assert said.remarks == []


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
        ("${A:+b}", "${A:-}"), ("$$A", "$A"), ("$${A}", "$${A}"),
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
        ("[CMD, check, 'http://localhost:80/up']", {"exec": ["check", "http://localhost:80/up"]}),
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
    times = {"interval": "5s", "timeout": "2s", "fall_count_ko": 4}
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
