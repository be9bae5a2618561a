"""Files of Compose become servers."""

from __future__ import annotations

from pathlib import Path

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
