"""Files of Compose, with their overrides, included files and Dockerfiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .case import Case

# Keys of a service beside `command: serve`, those of its server beside `command` and `restart`, and comments.
_SERVICES: list[tuple[str, dict[str, Any], list[str]]] = [
    ("command: serve --port 80, ports: ['8080:80']", {"bind": ":8080", "command": ["serve", "--port", "{port}"]}, []),
    ("command: serve 127.0.0.1:80, ports: ['8080:80']",
     {"bind": ":8080", "command": ["serve", "127.0.0.1:{port}"]}, []),
    ("command: serve --host 0.0.0.0 --port 80, ports: ['10.0.0.1:8080:80']",
     {"bind": "10.0.0.1:8080", "command": ["serve", "--host", "{host}", "--port", "{port}"]}, []),
    ("command: serve 80, ports: ['80']", {"bind": ":80", "command": ["serve", "{port}"]}, []),
    ("command: serve --port 80, ports: [{published: 8080, target: 80, host_ip: 10.0.0.1}]",
     {"bind": "10.0.0.1:8080", "command": ["serve", "--port", "{port}"]},
     ["ports: 10.0.0.1:8080:80: see that it listens on that address alone"]),
    ("command: serve --port 80, ports: ['8080:80/udp']",
     {"command": ["serve", "--port", "80"]}, ["ports: 8080:80/udp: a server has no port of UDP"]),
    ("command: serve --port 80, ports: ['8000-8010:80']",
     {"bind": ":8000", "command": ["serve", "--port", "{port}"]}, []),
    ("command: serve --port 81, ports: ['8000-8002:80-82']",
     {"command": ["serve", "--port", "81"]}, ["ports: 8000-8002:80-82: give it a bind once it takes {port}"]),
    ("command: flask run --port 81, ports: ['8000-8002:80-82']",
     {"bind": ":8001", "command": ["flask", "run", "--port", "{port}", "--host", "{host}"]}, []),
    ("command: serve --port 80, ports: ['a:b']",
     {"command": ["serve", "--port", "80"]}, ["ports: a:b: not understood as ports"]),
    ("command: serve --port 8800, ports: ['8080:80']",
     {"command": ["serve", "--port", "8800"]}, ["ports: 8080:80: give it a bind once it takes {port}"]),
    ("command: serve 80 80, ports: ['8080:80']",
     {"command": ["serve", "80", "80"]}, ["ports: 8080:80: give it a bind once it takes {port}"]),
    ("command: serve --port 80, ports: ['8080:80', '9090:90']",
     {"bind": ":8080", "command": ["serve", "--port", "{port}"]}, ["ports: 9090:90: a server has one address"]),
    ("command: serve --port 80, ports: ['${WEB:-8080}:80']",
     {"bind": ":8080", "command": ["serve", "--port", "{port}"]}, []),
    ("ports: 80", {}, ["ports: 80: a value of another type than expected"]),
    ("environment: {WEB_PORT: '80', OTHER: '80', B_PORT: '8'}, ports: ['8080:80', '9090:90']",
     {"bind": ":8080", "env": {"WEB_PORT": "{port}", "OTHER": "80", "B_PORT": "8"}},
     ["ports: 9090:90: a server has one address"]),
    ("environment: {A_PORT: '80', B_PORT: '80'}, ports: ['81:80']",
     {"env": {"A_PORT": "80", "B_PORT": "80"}}, ["ports: 81:80: give it a bind once it takes {port}"]),
    ("command: [80, -p, 80], ports: ['82:80']", {"bind": ":82", "command": ["80", "-p", "{port}"]}, []),
    ("command: serve 1.80 80.1 :80, ports: ['127.0.0.1:83:80']",
     {"bind": "127.0.0.1:83", "command": ["serve", "1.80", "80.1", ":{port}"]},
     ["ports: 127.0.0.1:83:80: see that it listens on that address alone"]),
    ("command: serve 80, ports: ['[::1]:84:80']",
     {"bind": "[::1]:84", "command": ["serve", "{port}"]},
     ["ports: [::1]:84:80: see that it listens on that address alone"]),
    ("command: serve 80, ports: [{target: 80, published: 85, protocol: udp}, {target: 80, published: 86}]",
     {"bind": ":86", "command": ["serve", "{port}"]}, ["ports: 85:80/udp: a server has no port of UDP"]),
    ("ports: ['5678:90', '8000:8000']",
     {"bind": ":8000", "socket": "program"}, ["ports: 5678:90: a server has one address"]),
    ("ports: ['127.0.0.1:8000:8000']",
     {"bind": "127.0.0.1:8000", "socket": "program"},
     ["ports: 127.0.0.1:8000:8000: see that it listens on that address alone"]),
    ("ports: ['127.0.0.1:8000:8000'], environment: {PORT: 8000, HOST: 0.0.0.0}",
     {"bind": "127.0.0.1:8000", "env": {"PORT": "{port}", "HOST": "{host}"}}, []),
    ("deploy: {resources: {limits: {memory: 512m}}}", {"limits": {"memory": "512MiB"}}, []),
    ("deploy: {resources: {limits: {memory: 100b}}}", {"limits": {"memory": "100B"}}, []),
    ("deploy: {resources: {limits: {memory: '1048576'}}}", {"limits": {"memory": "1048576B"}}, []),
    ("deploy: {resources: {limits: {memory: 1.5gb}}}", {"limits": {"memory": "1.5GiB"}}, []),
    ("deploy: {resources: {limits: {cpus: '0', memory: '0'}}}", {}, []),
    ("deploy: {replicas: 3, mode: replicated}", {"workers": 3}, []),
    ("deploy: {replicas: 2, resources: {limits: {memory: 1G}}}, scale: 3, mem_limit: 2g",
     {"workers": 2, "limits": {"memory": "1GiB"}}, ["mem_limit: 2g: no equivalent", "scale: 3: no equivalent"]),
    ("restart: unless-stopped", {"restart": "always"}, []),
    ("restart: false", {}, []),
    ("restart: 'on-failure:3'", {"restart": {"policy": "on-failure", "limit": 3}}, []),
    ("restart: sometimes", {}, ["restart: sometimes: no equivalent"]),
    ("deploy: {restart_policy: {condition: on-failure, delay: 5s, max_attempts: 3, window: 2m}}",
     {"restart": {"policy": "on-failure", "limit": 3, "backoff": {"initial": "5s"}, "window": "2m"}}, []),
    ("deploy: {restart_policy: {condition: any}}", {"restart": "always"}, []),
    ("deploy: {restart_policy: {condition: none}}", {}, []),
    ("restart: on-failure, deploy: {restart_policy: {condition: any}}",
     {"restart": "on-failure"}, ["deploy.restart_policy.condition: any: no equivalent"]),
    ("labels: 5", {}, ["labels: 5: a value of another type than expected"]),
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
    ("user: 1000", {}, ["user: 1000: no equivalent"]),
    ("labels: {traefik.enable: true, com.docker.a: 1, team: $TEAM, note: }",
     {"labels": {"team": "${TEAM:-}", "note": ""}},
     ["TEAM is set neither here nor in .env: it is empty",
      "traefik.enable=true: [gateway] and [[route]] do this here"]),
    ("labels: [a=1, traefik.b=2, c], tty: true",
     {"labels": {"a": "1", "c": ""}}, ["traefik.b=2: [gateway] and [[route]] do this here"]),
    ("stdin_open: true", {"stdin": "open"}, []),
    ("command: uvicorn a:b --port 81, stdin_open: true", {"bind": "127.0.0.1:81", "app": "a:b"}, []),
    ("privileged: true, cap_add: [A, B]", {}, ["cap_add: A, B: no equivalent", "privileged: true: no equivalent"]),
    ("mem_limit: 1g, scale: 3, stop_signal: INT, stop_grace_period: 10s",
     {"stop_timeout": "10s", "stop_signal": "SIGINT", "workers": 3, "limits": {"memory": "1GiB"}}, []),
    ("scale: -1", {}, ["workers = -1: -1 is not allowed here"]),
    ("env_file: [{path: a.env}, {path: c.env, required: false}, {path: b.env, required: true}]",
     {"env_file": ["a.env", "b.env"]}, ["env_file: c.env: the file does not exist here"]),
    ("env_file: {path: there.env, required: false}", {"env_file": ["there.env"]}, []),
    ("env_file: $DIR/a.env", {"env_file": ["${DIR:-}/a.env"]}, ["DIR is set neither here nor in .env: it is empty"]),
    ("deploy: {replicas: two, placement: {a: b}, resources: {limits: {cpus: '0.5', pids: 5}}}",
     {},
     ["deploy.placement: a: b: no equivalent", "deploy.replicas: two: no equivalent",
      "deploy.resources.limits.cpus: 0.5: no equivalent", "deploy.resources.limits.pids: 5: no equivalent"]),
    ("deploy: {resources: {limits: {memory: lots}}}",
     {},
     ['limits.memory = "lots": \'lots\' is not a size; write a number of bytes, or a string such as "64KiB", "10MB"']),
    ("build: 'https://example.org/a.git', command: serve", {"command": ["serve"]}, []),
    ("build: {context: app, dockerfile: Other}, entrypoint: [run], command: [it]",
     {"command": ["run", "it"], "env": {"A": "1"}, "cwd": "app"}, []),
    ("build: {context: app, dockerfile: Other}, command: it", {"command": ["it"], "env": {"A": "1"}, "cwd": "app"}, []),
    ("build: app", {"command": ["sh", "-c", "run", "sh", "-c", '["a'], "env": {"C": "d e"}, "cwd": "app"}, []),
    ("build: app, image: 'shop:1', entrypoint: uvicorn, command: 'x:y --port 83'",
     {"bind": "127.0.0.1:83", "app": "x:y", "env": {"C": "d e"}, "cwd": "app", "app_dir": "app"}, []),
    ("profiles: [dev tools, b]", {"tags": ["dev-tools", "b"], "on_demand": True}, []),
]  # fmt: skip
# A check of a service that listens on port 80, its probe, and comments.
_CHECKS: list[tuple[str, dict[str, Any] | None, list[str]]] = [
    ("test: [CMD, curl, -f, 'http://localhost:80/up'], interval: 5s, timeout: 2s, retries: 4",
     {"http": "/up", "interval": "5s", "timeout": "2s", "fall_count_ko": 3}, []),
    ("test: [CMD, curl, 'http://localhost'], timeout: 3s, retries: many",
     {"http": "/", "timeout": "3s"}, ["healthcheck.retries: many: no equivalent"]),
    ("test: curl http://localhost:80 || exit 1", {"http": "/"}, []),
    ("test: curl http://localhost:81/up", {"exec": ["sh", "-c", "curl http://localhost:81/up"]}, []),
    ("test: [CMD, check, 'http://localhost:80/up']", {"exec": ["check", "http://localhost:{port}/up"]}, []),
    ("test: [CMD-SHELL, 'check it']", {"exec": ["sh", "-c", "check it"]}, []),
    ("test: [NONE]", None, []),
    ("test: NONE", None, []),
    ('test: [CMD-SHELL, "curl -f \'http://[::1]:80/up\' || exit 1"]', {"http": "/up"}, []),
    ('test: [CMD, python, -c, "a\\nu.urlopen(\'http://localhost:80/z\')"]', {"http": "/z"}, []),
    ("test: [CMD, /usr/bin/wget, -q, 'http://0.0.0.0'], disable: false", {"http": "/"}, []),
    ("test: [CMD, curl, 'https://localhost/x']", {"exec": ["curl", "https://localhost/x"]}, []),
    ("test: [CMD, curl, 'http://localhost:80'], disable: true", None, []),
    ("interval: 5s", None, ["healthcheck.interval: 5s: no equivalent"]),
    ("test: [CMD, curl, -H, 'Host: b', 'http://localhost:80/up']",
     {"exec": ["curl", "-H", "Host: b", "http://localhost:{port}/up"]}, []),
    ("test: curl -s http://localhost:80/up | grep ok",
     {"exec": ["sh", "-c", "curl -s http://localhost:{port}/up | grep ok"]}, []),
    ("test: 'curl -fs http://localhost:80/up || exit 1'", {"http": "/up"}, []),
    ("test: [CMD, nc, -z, localhost, '80']", {"exec": ["nc", "-z", "localhost", "{port}"]}, []),
]  # fmt: skip
_EMPTY = ["A is set neither here nor in .env: it is empty"]
_BUILT = {
    "app/Other": "FROM x\nENV A=1\nCMD no\n",
    "app/Dockerfile": "FROM x\nENV PATH=/x A=$B C='d e'\nENV broken 'x\nRUN x\nENTRYPOINT run\nCMD [\"a\n",
    "there.env": "",
}
_BASE = """\
services:
  web:
    command: ["python3", "-m", "http.server", "8000"]
    ports: ["8080:8000"]
    environment: {A: "1", B: "2"}
    depends_on: [db]
    cap_add: [A]
  db:
    command: sleep 5
"""
_WEB = {
    "bind": ":8080", "command": ["python3", "-m", "http.server", "{port}", "--bind", "{host}"],
    "env": {"A": "1", "B": "2"}, "restart": "no", "depends_on": [{"name": "db", "condition": "started"}],
}  # fmt: skip
_DB = {"command": ["sleep", "5"], "restart": "no"}
_IMAGE = "image: x: its programs have to be on this machine"
_OF_EXTENDED = ["6: cap_add: A: no equivalent", f"7: {_IMAGE}"]
_OF_BASE = "7: cap_add: A: no equivalent"


def _service(text: str, keys: dict[str, Any], comments: Sequence[str] = (), **more: Any) -> Case:
    """A service in one line, which is the server `a`."""
    if "command:" not in text and "build:" not in text:
        text, keys = f"command: serve, {text}", {"command": ["serve"], **keys}
    comments = [f"1: {comment}" for comment in comments]
    return Case(
        "compose.yml", f"services: {{a: {{{text}}}}}\n", {"a": {"restart": "no", **keys}}, comments, **more
    )


def _image(dockerfile: str, keys: dict[str, Any], comments: Sequence[str] = (), service: str = "") -> Case:
    """A service with this Dockerfile, and others of its keys."""
    text = f"services:\n  a: {{build: .{service}}}\n"
    return Case(
        "compose.yml",
        text,
        {"a": {"cwd": ".", "restart": "no", **keys}},
        comments,
        {"Dockerfile": dockerfile},
    )


CASES = {
    **{text: _service(text, keys, comments, files=_BUILT) for text, keys, comments in _SERVICES},
    **{
        check: _service(
            f"command: uvicorn a:b --port 80, healthcheck: {{{check}}}",
            {
                "bind": "127.0.0.1:80", "app": "a:b",
                **({"health": {"readiness": probe}} if probe else {}),
                **({"start_timeout": "90s"} if probe and "interval" not in check else {}),
            },
            comments,
        )
        for check, probe, comments in _CHECKS
    },
    "check without a port": _service(
        "command: uvicorn a:b --port 8000, healthcheck: {test: [CMD, curl, 'http://localhost/x']}",
        {
            "bind": "127.0.0.1:8000", "app": "a:b", "health": {"readiness": {"exec": ["curl", "http://localhost/x"]}},
            "start_timeout": "90s",
        },
    ),
    "check of a service without an address": _service(
        "healthcheck: {test: curl http://localhost/x}",
        {"health": {"readiness": {"exec": ["sh", "-c", "curl http://localhost/x"]}}, "start_timeout": "90s"},
    ),
    "check that may take longer": _service(
        "healthcheck: {test: [CMD, 'true'], interval: 10s, retries: 3, start_period: 2m}",
        {"health": {"readiness": {"exec": ["true"], "interval": "10s", "fall_count_ko": 2}}, "start_timeout": "150s"},
    ),
    **{
        f"reference {text}": _service(f"command: [serve, '{text}']", {"command": ["serve", becomes]}, comments)
        for text, becomes, comments in [
            ("$A", "${A:-}", _EMPTY), ("${A}", "${A:-}", _EMPTY), ("${A:-b}", "${A:-b}", []), ("${A-b}", "${A:-b}", []),
            ("${A:?b}", "${A}", []), ("${A:+b}", "", []), ("${A-${B:-c}}", "${A:-c}", []), ("${A:-{}}", "{}", []),
            ("$${A", "$${A", []), ("${A:-80}", "80", []), ("$$A", "$A", []), ("$${A}", "$${A}", []),
        ]
    },
    **{
        f"profile a with {profiles} enabled": _service(
            "profiles: [a]", {"tags": ["a"], **keys}, env={"COMPOSE_PROFILES": profiles}
        )
        for profiles, keys in [("b", {"on_demand": True}), ("a,x", {}), ("*", {})]
    },
    **{
        dockerfile: _image(f"FROM python\n{dockerfile}\n", {"command": command, **env})
        for dockerfile, command, env in [
            ("CMD serve it && that", ["sh", "-c", "serve it && that"], {}),
            ('ENTRYPOINT ["serve"]\nCMD ["it"]', ["serve", "it"], {}),
            ('CMD ["it"]\nENTRYPOINT ["serve"]', ["serve"], {}),
            ('# CMD no\nENV A=1 B=2\nENV C the rest\nCMD ["serve", \\\n"it"]', ["serve", "it"],
             {"env": {"A": "1", "B": "2", "C": "the rest"}}),
            ("CMD first\nFROM base\nCMD [\"last\"]", ["last"], {}),
        ]
    },
    **{
        f"image with{service}": _image(
            'FROM x\nENV A=1\nENTRYPOINT ["/entry"]\nCMD ["serve"]\nSTOPSIGNAL INT\n',
            {"command": command, "env": {"A": "1"}, "stop_signal": "SIGINT", **keys}, [], service,
        )
        for service, command, keys in [
            ("", ["/entry", "serve"], {}),
            (", command: other", ["/entry", "other"], {}),
            (", entrypoint: [], command: other, stop_signal: QUIT", ["other"], {"stop_signal": "SIGQUIT"}),
            (", entrypoint: ''", ["serve"], {}),
            (", entrypoint: [/own]", ["/own"], {}),
        ]
    },
    "image in the file": _service(
        "build: {context: ., dockerfile_inline: 'CMD [\"inner\"]'}",
        {"command": ["inner"], "cwd": "."},
        files={"Dockerfile": "CMD x"},
    ),
    **{
        f"HEALTHCHECK {check}": _image(
            f'FROM x\nHEALTHCHECK {check}\nCMD ["python3", "-m", "http.server", "8000"]\n',
            {"bind": "127.0.0.1:8000", "command": _WEB["command"], **keys}, comments, service,
        )
        for check, service, keys, comments in [
            ("--interval=5s --retries=4 \\\n  CMD curl -f http://localhost:8000/up || exit 1", "",
             {"health": {"readiness": {"http": "/up", "interval": "5s", "fall_count_ko": 3}}}, []),
            ('--timeout=2s CMD ["check", "$X"]', "",
             {"health": {"readiness": {"exec": ["check", "$X"], "timeout": "2s"}}, "start_timeout": "90s"}, []),
            ("CMD test -e ${Y}/x", "",
             {"health": {"readiness": {"exec": ["sh", "-c", "test -e $${Y}/x"]}}, "start_timeout": "90s"}, []),
            ("--start-interval=1s CMD check", "",
             {"health": {"readiness": {"exec": ["sh", "-c", "check"]}}, "start_timeout": "90s"},
             ["2: HEALTHCHECK start_interval: 1s: no equivalent"]),
            ("NONE", "", {}, []),
            ("CMD check", ", healthcheck: {test: [CMD, own]}",
             {"health": {"readiness": {"exec": ["own"]}}, "start_timeout": "90s"}, []),
        ]
    },
    "stages of an image": Case(
        "compose.yml",
        "services: {a: {build: {context: ., target: web}}, b: {build: .}}\n",
        {name: {"command": ["run", job], "cwd": ".", "restart": "no"} for name, job in (("a", "web"), ("b", "job"))},
        files={
            "Dockerfile": 'FROM python AS base\nENTRYPOINT ["run"]\nFROM base AS web\nCMD ["web"]\nFROM base AS job\n'
            'CMD ["job"]\n'
        },
    ),
    "a whole file": Case(
        "docker-compose.yml",
        """\
version: "3"
name: shop
networks: {}
secrets: {a: b}
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
    ports: ["80:80"]
  db:
    image: postgres:16
""",
        {
            "api": {
                "bind": "127.0.0.1:8080", "app": "api:app", "cwd": "./api", "app_dir": "./api", "restart": "always",
                "env": {"LEVEL": "${LEVEL:-info}", "COST": "5$"}, "env_file": ["api.env"], "workers": 2,
                "limits": {"memory": "512MiB"},
                "health": {"readiness": {"http": "/health", "interval": "10s", "fall_count_ko": 4}},
                "start_timeout": "50s", "depends_on": [{"name": "migrate", "condition": "completed"}],
            },
            "front": {
                "bind": ":3000", "command": ["npm", "start"], "cwd": "front", "restart": "no",
                "env": {"NODE_ENV": "production", "API": "http://127.0.0.1:8080/v1", "PORT": "{port}"},
                "stop_timeout": "1m30s", "depends_on": [{"name": "api", "condition": "started"}],
            },
            "migrate": {"command": ["python", "migrate.py"], "cwd": "./api", "restart": "no", "job": True},
        },
        [
            "4: secrets: a: b: no equivalent",
            "14: ports: 9000:9000: a server has one address",
            "16: depends_on db: it is not among the servers",
            "26: volumes: data:/data: its files have to be where the program looks for them",
            "29: API: the service api is 127.0.0.1:8080 here",
            "37: left out: no command: write the command of the image postgres:16, if that program is on this machine",
            *("[[server]]", 'name = "db"', 'command = ["…"]', 'restart = "no"'),
        ],
        {
            "front/Dockerfile":
                'FROM node AS build\nCMD ["false"]\nFROM node\nENV NODE_ENV=production\nCMD ["npm", \\\n "start"]\n'
        },
        warning="warning: left out: docker-compose.yml:37: db: no command",
    ),
    "services that are left out": Case(
        "compose.yml",
        "services:\n  a: {restart: always}\n  c: {image: db, command: [--fast]}\n  d: {build: nowhere}\n"
        "  e: {command: \"echo 'open\"}\n  b: {command: serve}\n",
        {"b": {"command": ["serve"], "restart": "no"}},
        [
            "2: left out: no command: write one, if that program is on this machine",
            *("[[server]]", 'name = "a"', 'command = ["…"]', 'restart = "always"'),
            "3: left out: no command: write the command of the image db, if that program is on this machine",
            *("[[server]]", 'name = "c"', 'command = ["…"]', 'restart = "no"'),
            "4: left out: no command: write the CMD of its Dockerfile, if that program is on this machine",
            *("[[server]]", 'name = "d"', 'command = ["…"]', 'cwd = "nowhere"', 'restart = "no"'),
            "5: left out: the shell cannot read its command (No closing quotation)",
            *("[[server]]", 'name = "e"', """command = ["sh", "-c", "echo 'open"]""", 'restart = "no"'),
        ],
    ),
    "hosts in variables": Case(
        "compose.yml",
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
        {
            "db": {"bind": ":15432", "command": ["serve", "{port}"], "restart": "no"},
            "cache": {"bind": ":6379", "command": ["serve"], "restart": "no", "socket": "program"},
            "web": {
                "command": ["serve"], "restart": "no",
                "env": {
                    "HOST": "127.0.0.1", "A": "db", "B": "127.0.0.1:15432", "C": "127.0.0.1:5433/x",
                    "D": "postgres://u:p@127.0.0.1:15432/x?y", "E": "redis://127.0.0.1:6379", "F": "mydb:5432",
                    "G": "db/x", "H": "http://127.0.0.1", "I": "true", "J": "false", "K": "5",
                    "N": "http://127.0.0.1:99",
                },
            },
        },
        [
            "6: A: if db is the service, write 127.0.0.1",
            "6: B: the service db is 127.0.0.1:15432 here",
            "6: C: the service db is 127.0.0.1:5433 here",
            "6: D: the service db is 127.0.0.1:15432 here",
            "6: E: the service cache is 127.0.0.1:6379 here",
            "6: H: the service db is 127.0.0.1 here",
            "6: HOST: the port 5432 of the service db is 15432 here",
            "6: HOST: the service db is 127.0.0.1 here",
            "6: N: the service db is 127.0.0.1:99 here",
        ],
    ),
    "hosts in other places": Case(
        "compose.yml",
        """\
services:
  db: {image: postgres, ports: ["5433:5432"]}
  queue: {command: redis-server, ports: ["6380:6379"], container_name: my-redis, hostname: q}
  api:
    command: flask run -p 5000
    networks: {inner: {aliases: [www]}}
  wait: {command: "bash -c 'until echo > /dev/tcp/db/5432; do :; done'", environment: {DB_HOST: $DB, URL: $DB_URL}}
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
        {
            "queue": {
                "bind": ":6380", "command": ["redis-server", "--port", "{port}", "--bind", "{host}"], "restart": "no",
            },
            "api": {
                "bind": "127.0.0.1:5000", "command": ["flask", "run", "-p", "{port}", "--host", "{host}"],
                "restart": "no",
            },
            "wait": {
                "command": ["bash", "-c", "until echo > /dev/tcp/127.0.0.1/5432; do :; done"], "restart": "no",
                "env": {"DB_HOST": "${DB:-127.0.0.1}", "URL": "${DB_URL:-postgres://u@127.0.0.1:5433/x}"},
            },
            "worker": {
                "command":
                    ["worker", "--broker", "redis://127.0.0.1:6380/0", "-h", "127.0.0.1", "--log", "queue", "redis:16"],
                "env": {
                    "NODES": "127.0.0.1:6380,127.0.0.1:6380", "ALIAS": "redis://127.0.0.1:6380/0",
                    "API": "http://127.0.0.1:5000/v1", "API_URL": "http://127.0.0.1", "POSTGRES_USER": "queue",
                },
                "health": {"readiness": {"exec":
                    ["sh", "-c", "nc -z queue 6379 && redis-cli -h queue ping || curl 127.0.0.1:5000"]}},
                "restart": "no", "start_timeout": "90s",
            },
        },
        [
            "2: left out: no command: write the command of the image postgres, if that program is on this machine",
            *("[[server]]", 'name = "db"', 'command = ["…"]', 'restart = "no"'),
            "2: ports: 5433:5432: give it a bind once it takes {port}",
            "3: container_name: my-redis: a server is called by the name of its service",
            "3: hostname: q: other services reach it at 127.0.0.1",
            "6: networks.inner.aliases: www: no equivalent",
            "7: DB_HOST: the port 5432 of the service db is 5433 here",
            "7: DB_HOST: the service db is 127.0.0.1 here",
            "7: URL: the service db is 127.0.0.1:5433 here",
            "7: command: the port 5432 of the service db is 5433 here",
            "7: command: the service db is 127.0.0.1 here",
            "9: command: if queue is the service, write 127.0.0.1",
            "9: command: the port 6379 of the service queue is 6380 here",
            "9: command: the service queue is 127.0.0.1 here",
            "9: command: the service queue is 127.0.0.1:6380 here",
            "10: ALIAS: the service queue is 127.0.0.1:6380 here",
            "10: API: the service api is 127.0.0.1:5000 here",
            "10: API_URL: the service api is 127.0.0.1 here",
            "10: NODES: the service queue is 127.0.0.1:6380 here",
            "10: POSTGRES_USER: if queue is the service, write 127.0.0.1",
            "16: health: if queue is the service, write 127.0.0.1",
            "16: health: the service api is 127.0.0.1:5000 here",
        ],
        {".env": "DB=db\nDB_URL=postgres://u@db/x\n"},
    ),
    "conditions of dependencies": Case(
        "compose.yml",
        """\
services:
  a: {command: serve}
  b: {command: serve}
  c: {command: serve}
  f:
    command: serve
    depends_on: {a: {condition: service_started}, b: {condition: service_healthy}, c: , d: {}}
  g: {command: serve, depends_on: [f]}
""",
        {
            **{name: {"command": ["serve"], "restart": "no"} for name in "abc"},
            "f": {
                "command": ["serve"], "restart": "no",
                "depends_on": [
                    {"name": name, "condition": condition}
                    for name, condition in (("a", "started"), ("b", "ready"), ("c", "started"))
                ],
            },
            "g": {"command": ["serve"], "restart": "no", "depends_on": [{"name": "f", "condition": "started"}]},
        },
        ["7: depends_on d: it is not among the servers"],
    ),
    "lines of comments": Case(
        "compose.yml",
        """\
services:
  a:
    image: a:1
    healthcheck: {test: [CMD, check], interval: soon}
    command: uvicorn a:b --port 80 --reload
  b:
    profiles: [x]
    entrypoint: [uvicorn, "b:b", --port, "81", --reload]
    user: a b
  c:
    entrypoint: [uvicorn]
    command: ["c:b", --port, "82", --reload]
    ports: ["83:84"]
    depends_on: [nothing]
""",
        {
            "a": {
                "bind": "127.0.0.1:80", "app": "a:b", "health": {"readiness": {"exec": ["check"]}}, "restart": "no",
                "start_timeout": "90s",
            },
            "b": {"bind": "127.0.0.1:81", "app": "b:b", "restart": "no", "tags": ["x"], "on_demand": True},
            "c": {"bind": "127.0.0.1:82", "app": "c:b", "restart": "no"},
        },
        [
            "3: image: a:1: its programs have to be on this machine",
            "4: healthcheck.interval: soon: no equivalent",
            "5: --reload: poolctl run --watch reloads the code",
            "8: --reload: poolctl run --watch reloads the code",
            "9: user = \"a b\": 'a b' is not name[:group]",
            "12: --reload: poolctl run --watch reloads the code",
            "13: ports: 83:84: a server has one address",
            "14: depends_on nothing: it is not among the servers",
        ],
    ),
    "variables of the environment and of .env": Case(
        "compose.yml",
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
  b: {command: serve, env_file: a.env, environment: [SECRET, OTHER]}
""",
        {
            "a": {
                "bind": "127.0.0.1:8090",
                "command": ["flask", "run", "--port", "{port}", "--host", "{host}"],
                "env": {"A": "a}b", "B": "${SECRET:-s}", "C": "${UNSET:-x}", "D": "${UNSET}"},
                "restart": "always",
                "stop_timeout": "5s",
                "limits": {"memory": "1GiB"},
                "health": {"readiness": {"exec": ["true"], "interval": "5s", "timeout": "5s", "fall_count_ko": 1}},
            },
            "b": {"command": ["serve"], "env_file": ["a.env"], "env": {"SECRET": "${SECRET:-s}"}, "restart": "no"},
        },
        files={
            "a.env": "",
            ".env": "WEB_PORT=8080\nIP=127.0.0.1\nPASSWORD='a}b'\nSECRET=s\nEVERY=5s\nPOLICY=always\n",
        },
        env={"WEB_PORT": "8090"},
        warning="not set here: UNSET",
    ),
    "words for true and numbers in variables": _service(
        "environment: {A: yes, B: On, C: true, D: 1.0, E: 1e3, F: 2020-01-01, G: 0x10, H: off}, stdin_open: no",
        {"env": {
            "A": "yes", "B": "On", "C": "true", "D": "1", "E": "1000", "F": "2020-01-01", "G": "16", "H": "off",
        }},
    ),
    **{
        f"{name} beside {file}": Case(
            file,
            _BASE,
            {
                "web": {
                    **_WEB,
                    "command": ["python3", "-m", "http.server", "{port}", "-d", "x", "--bind", "{host}"],
                    "env": {"A": "1", "B": "3", "C": "4"},
                    "depends_on": [{"name": "db", "condition": "ready"}, {"name": "mail", "condition": "started"}],
                },
                "db": _DB,
                "mail": {"command": ["sleep", "6"], "restart": "no"},
            },
            [f"{name}:6: read_only: true: no equivalent", _OF_BASE],
            {
                name: "services:\n  web:\n    command: [python3, -m, http.server, '8000', -d, x]\n"
                "    environment: ['B=3', 'C=4']\n"
                "    depends_on: {db: {condition: service_healthy}, mail: {condition: service_started}}\n"
                "    read_only: true\n  mail: {command: sleep 6}\n"
            },
        )
        for file, name in [
            ("compose.yaml", "compose.override.yaml"), ("docker-compose.yml", "docker-compose.override.yml"),
        ]
    },
    "no override beside another name": Case(
        "prod.yaml", _BASE, {"web": _WEB, "db": _DB}, [_OF_BASE], {"compose.override.yaml": "services: {x: {}}"}
    ),
    "given overrides instead of the one beside": Case(
        "compose.yaml",
        _BASE,
        {"web": {**_WEB, "env": {"A": "1", "B": "p", "C": "l"}}, "db": _DB},
        ["last.yaml:1: read_only: true: no equivalent", _OF_BASE],
        {
            "compose.override.yaml": "services: {x: {}}",
            "env/prod.yaml": "services: {web: {environment: {B: p, C: p}}}",
            "last.yaml": "services: {web: {environment: {C: l}, read_only: true}}",
        },
        given=("env/prod.yaml", "last.yaml"),
    ),
    "tags of an override": Case(
        "compose.yaml",
        _BASE,
        {
            "web": {
                "bind": "127.0.0.1:8000", "command": _WEB["command"], "env": {"X": "9"}, "restart": "no",
            }
        },
        ["compose.override.yaml:5: cap_add: B: no equivalent", "6: depends_on db: it is not among the servers"],
        {
            "compose.override.yaml":
                "services:\n  web:\n    ports: !reset []\n    environment: !override {X: '9'}\n"
                "    cap_add: !override\n      - B\n  db: !reset null\n"
        },
    ),
    "tag of a single file": Case(
        "alone.yaml",
        "services:\n  a:\n    command: serve\n    user: !reset root\n",
        {"a": {"command": ["serve"], "restart": "no"}},
    ),
    "extended services": Case(
        "compose.yaml",
        "services:\n  a:\n    extends: {file: ./common/base.yaml, service: base}\n    environment: [B=3]\n"
        "  b:\n    extends: a\n    command: sleep 2\n    privileged: true\n",
        {
            name: {
                "command": ["sleep", seconds], "env": {"A": "1", "B": "3"}, "env_file": ["common/base.env"],
                "restart": "always",
            }
            for name, seconds in (("a", "1"), ("b", "2"))
        },
        [*[f"common/base.yaml:{each}" for each in _OF_EXTENDED * 2], "8: privileged: true: no equivalent"],
        {
            "common/base.yaml":
                "services:\n  base:\n    extends: root\n    environment: {A: '1', B: '2'}\n    env_file: base.env\n"
                "    cap_add: [A]\n  root: {image: x, restart: always, command: sleep 1}\n",
            "common/base.env": "",
        },
    ),
    "included files": Case(
        "compose.yaml",
        "include:\n  - sub/b.yaml\n  - path: [c.yaml]\n    env_file: c.env\n",
        {
            "b": {"command": ["sleep", "2"], "cwd": "sub", "restart": "no"},
            "c": {"command": ["sleep", "3"], "restart": "no"},
        },
        [
            "3: include: env_file: c.env: no equivalent",
            "sub/b.yaml:1: cap_add: A: no equivalent",
            f"c.yaml:1: {_IMAGE}",
        ],
        {
            "sub/b.yaml": "services: {b: {build: ., command: sleep 2, cap_add: [A]}}\n",
            "c.yaml": "services: {c: {image: x, command: sleep 3}}\n",
        },
    ),
    **{
        text: Case(
            "compose.yaml",
            text + "services:\n  a: {command: serve}\n",
            {"a": {"command": ["serve"], "restart": "no"}},
            comments,
            {"bad.yaml": "services: [a\n", "list.yaml": "- a\n"},
        )
        for text, comments in [
            ("include: [none.yaml]\n", ["1: include: none.yaml: there is no such file"]),
            ("include: [bad.yaml]\n",
             ["1: include: bad.yaml: line 1: the list that begins here is not closed, or lacks a comma"]),
            ("include: list.yaml\n", []),
        ]
    },
    **{
        f"extends: {reference}": Case(
            "compose.yaml",
            f"services:\n  b: {{extends: {reference}, command: serve}}\n",
            {"b": {"command": ["serve"], "restart": "no"}},
            [f"2: extends: {comment}"],
        )
        for reference, comment in [
            ("{file: none.yaml, service: x}", "none.yaml: x: there is no such file"),
            ("c", "c: there is no such service"),
            ("b", "b: it extends itself"),
            ("[c]", "['c']: there is no such service"),
        ]
    },
    "no service": Case(
        "compose.yaml", "include: [none.yaml]\n",
        error="compose.yaml: there is no service in it\n  hint: include: none.yaml: there is no such file",
    ),
    ".env that cannot be read": Case(
        "compose.yaml", "services: {a: {command: serve}}\n", files={".env": "A='open\n"},
        error="compose.yaml: DIRECTORY/.env:1: the quote of A is not closed, or text follows it\n"
        "  hint: correct or remove it",
    ),
}  # fmt: skip
