"""Over generated files of each kind: taking out any setting changes what is imported, a key or a comment.

Settings without a meaning here are those that the table of the kind names with a reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poolctl.config import Document, load, required_variables
from poolctl.features.import_foreign import _command_lines, _compose, _pm2, _supervisord, _systemd
from poolctl.features.import_foreign._foreign_pool import ForeignPool, pool_text
from poolctl.features.import_foreign._settings import Table, row_of
from tests.examples import examples

# The settings of a file by their paths, each with values that are not the defaults of the other tool.
Values = Mapping[str, Sequence[Any]]
File = dict[str, Any]


class Kind(NamedTuple):
    """A kind of file: its settings, how a file of them is read, and the tables that say what becomes of them."""

    values: Values
    read: Callable[[File, Path], ForeignPool]
    tables: Sequence[Table]

    def is_meaningless(self, path: str) -> bool:
        section, _, name = path.rpartition(".")
        names = (path.removeprefix("services.a."), section, name)
        return any(row_of(each, table).meaningless for table in self.tables for each in names)


SECONDS = ("5", "7s", "soon")
TEXTS = ("other", "two words", "5", "/srv/x")

UNIT: Values = {
    "Unit.Description": TEXTS, "Unit.After": ("network.target db.service", "x.socket"),
    "Unit.Requires": ("db.service",), "Unit.ConditionPathExists": TEXTS, "Unit.StartLimitBurst": ("4", "many"),
    "Unit.StartLimitIntervalSec": ("30", "1min", "soon"), "Unit.Before": ("x.service",),
    "Service.Type": ("notify", "oneshot", "forking", "dbus"), "Service.User": ("nobody", "no-such-user"),
    "Service.Group": ("root",), "Service.WorkingDirectory": ("/srv", "-/srv", "~", "/srv/%H"),
    "Service.Environment": ("A=1", "A=%i B='x y'", "A='", "'A=%m'"), "Service.EnvironmentFile": ("/e", "-/e"),
    "Service.ExecStartPre": ("/bin/b", "-/bin/b $X", "+/bin/b"), "Service.ExecStopPost": ("/bin/c %n", "@/bin/c"),
    "Service.ExecReload": ("/bin/kill -HUP $MAINPID",), "Service.ExecStop": ("/bin/d",),
    "Service.Restart": ("always", "on-failure", "on-abort", "sometimes"), "Service.RestartSec": SECONDS,
    "Service.TimeoutStopSec": (*SECONDS, "infinity"), "Service.TimeoutStartSec": (*SECONDS, "infinity"),
    "Service.KillMode": ("process", "mixed", "none"), "Service.KillSignal": ("INT", "SIGQUIT", "2", "NOTHING"),
    "Service.UMask": ("0077", "wrong"), "Service.LimitNOFILE": ("4096", "infinity"), "Service.Nice": ("5",),
    "Service.MemoryMax": ("1G", "50%"), "Service.MemoryHigh": ("2G", "50%"), "Service.PrivateTmp": ("yes",),
    "Service.StandardOutput": ("append:/log", "null", "tty"), "Service.StandardError": ("file:/errors", "null"),
    "Service.RemainAfterExit": ("yes",), "Service.SyslogIdentifier": TEXTS, "Service.ProtectSystem": ("full",),
    "Service.X-Own": TEXTS, "Service.UnheardOf": TEXTS, "Install.WantedBy": ("multi-user.target",),
    "Service.Sockets": ("y.socket",),
}  # fmt: skip
SUPERVISORD: Values = {
    "supervisord.user": ("root",), "supervisord.environment": ("Z=1",), "supervisord.umask": ("077",),
    "supervisord.logfile": TEXTS, "supervisord.minfds": ("4096",), "supervisord.unheard_of": TEXTS,
    "supervisord.nodaemon": ("true",), "supervisord.directory": ("/srv",),
    "program:a.directory": ("/srv/a", "%(here)s", "%(nothing)s"), "program:a.user": ("nobody", "no-such-user"),
    "program:a.environment": ("A=1,B='x'", "A=%(ENV_HOME)s", "A=1,B", "N=%(process_num)d"),
    "program:a.autostart": ("false", "no"), "program:a.autorestart": ("true", "false", "maybe"),
    "program:a.startsecs": ("0", "5", "soon"), "program:a.startretries": ("5", "many"),
    "program:a.exitcodes": ("0,2",), "program:a.stopsignal": ("INT", "NOTHING"), "program:a.stopwaitsecs": ("5", "x"),
    "program:a.stopasgroup": ("true",), "program:a.killasgroup": ("true",), "program:a.numprocs": ("2", "two"),
    "program:a.process_name": ("a_%(process_num)02d",), "program:a.priority": ("5", "high"),
    "program:a.stdout_logfile": ("/log", "syslog", "%(program_name)s.log"), "program:a.umask": ("22", "wrong"),
    "program:a.stdout_logfile_maxbytes": ("1MB", "0", "x"), "program:a.stdout_logfile_backups": ("3", "many"),
    "program:a.stderr_logfile": ("/errors", "syslog"), "program:a.stderr_logfile_maxbytes": ("1MB",),
    "program:a.redirect_stderr": ("true",), "program:a.stdout_events_enabled": ("true",),
    "program:a.serverurl": TEXTS, "program:a.unheard_of": TEXTS, "group:g.programs": ("a,b",),
    "group:g.priority": ("3",), "include.other": TEXTS, "include.files": ("none/*.conf", "x.conf y.conf"),
}  # fmt: skip
PM2: Values = {
    "args": ("x", ["x", "y z"]), "cwd": ("/srv", "api"), "env": ({"A": 1}, {"PORT": 80}, {"A": "${x}"}, 5),
    "env_production": ({"A": 2},), "env_file": (".env",), "interpreter": ("python3", "none", "node@18"),
    "node_args": ("--x", ["-a", "b"]), "instances": (2, "max", -1, 0, "some"), "exec_mode": ("fork", "cluster"),
    "watch": (True, ["src"]), "ignore_watch": (["x"],), "max_memory_restart": ("300M", 1000, "much"),
    "kill_timeout": (3000, "5s", "soon"), "treekill": (False,), "autorestart": (False,), "autostart": (False,),
    "max_restarts": (3, "few"), "restart_delay": (100, "soon"), "min_uptime": ("10s",), "cron_restart": ("0 0 * * *",),
    "out_file": ("x.log", "/dev/null"), "error_file": ("y.log",), "log_date_format": ("YYYY",), "time": (True,),
    "merge_logs": (True,), "uid": ("nobody", 1), "gid": ("root",), "wait_ready": (True,), "listen_timeout": (5,),
    "shutdown_with_message": (True,), "source_map_support": (True,), "instance_var": ("N",), "namespace": TEXTS,
    "vizion": (False,), "unheard_of": (1, "x", {"a": [1]}),
}  # fmt: skip
COMPOSE: Values = {
    "services.a.image": ("quiet:1",), "services.a.build": (".", {"context": ".", "args": {"V": "3"}}, 5),
    "services.a.environment": ({"A": 1}, ["A=1"], {"A": "$B"}, 5), "services.a.env_file": ("e", ["e"]),
    "services.a.ports": (["8080:80"], ["9000-9001:9000-9001"], ["53:53/udp"], [{"target": 80, "published": 81}], 80),
    "services.a.restart": ("always", "on-failure:3", "${POLICY:-always}", "sometimes"),
    "services.a.depends_on": (["b"], {"b": {"condition": "service_healthy"}}, {"b": {"restart": True}}, ["none"], 5),
    "services.a.healthcheck.test": (["CMD", "true"], "curl localhost"),
    "services.a.healthcheck.start_period": ("60s",), "services.a.deploy.replicas": (2, 0, "two"),
    "services.a.deploy.mode": ("global",), "services.a.deploy.resources.limits.memory": ("1G", "much"),
    "services.a.deploy.resources.limits.cpus": ("0.5",), "services.a.deploy.resources.reservations.memory": ("1G",),
    "services.a.stop_grace_period": ("1m", "soon"), "services.a.stop_signal": ("INT", "NOTHING"),
    "services.a.user": ("root", 1000), "services.a.labels": ({"a": 1}, {"traefik.b": 2}, 5), "services.a.tty": (True,),
    "services.a.profiles": (["x"],), "services.a.stdin_open": (True,), "services.a.mem_limit": ("1g",),
    "services.a.networks": ({"n": {"aliases": ["www"]}},), "services.a.container_name": ("shop-a",),
    "services.a.volumes": (["x:/y"],), "services.a.working_dir": ("/srv",), "services.a.cap_add": (["A"],),
    "services.a.logging": ({"driver": "x"},), "services.a.x-own": TEXTS, "services.a.unheard_of": (1, {"a": [1]}),
    "services.a.logging.options": ({"max-size": "10m", "max-file": "3"}, {"max-size": "much"}, {"labels": "a"}),
    "services.a.ulimits.nofile": (4096, {"soft": 1024, "hard": 2048}, "all"), "services.a.ulimits.core": (0,),
    "secrets.s.file": ("x",), "volumes.x.driver": ("local",), "unheard_of": (1,),
    "x-own": ({"a": 1},), "version": ("3",),
}  # fmt: skip
UVICORN: Values = {
    "--host": ("0.0.0.0", "::1"), "--port": ("80", "auto"), "--uds": ("/run/a",), "--workers": ("2", "some"),
    "--root-path": ("/x",), "--app-dir": ("src",), "--env-file": ("e",), "--log-level": ("debug", "loud"),
    "--no-access-log": (True,), "--factory": (True,), "--reload": (True,),
    "--no-date-header": (True,), "--header": ("A:b",), "--backlog": ("5",), "--timeout-keep-alive": ("5", "soon"),
    "--timeout-graceful-shutdown": ("5", "soon"), "--limit-concurrency": ("5",), "--ws-max-size": ("5",),
    "--ssl-certfile": ("c",), "--ssl-keyfile-password": ("secret",), "--interface": ("wsgi", "asgi3"),
    "--lifespan": ("off",), "--forwarded-allow-ips": ("*",), "--unheard-of": (True,), "--use-colors": (True,),
}  # fmt: skip
GUNICORN: Values = {
    "--bind": ("0.0.0.0:80", "unix:/run/a"), "--workers": ("2", "some"), "--timeout": ("60", "soon"),
    "--graceful-timeout": ("5", "soon"), "--keep-alive": ("5",), "--max-requests": ("5",), "--user": ("root",),
    "--threads": ("5",), "--config": ("c.py",), "--chdir": ("src",), "--pythonpath": ("x", "x,y"), "--name": ("n",),
    "--env": ("A=1",), "--preload": (True,), "--reload": (True,), "--daemon": (True,), "--pid": ("p",),
    "--access-logfile": ("-", "/log"), "--error-logfile": ("/log",), "--certfile": ("c",), "--umask": ("007",),
    "--log-level": ("debug",), "--worker-tmp-dir": ("/dev/shm",), "--unheard-of": (True,), "--capture-output": (True,),
}  # fmt: skip


def sections(file: File) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for path, value in file.items():
        section, _, name = path.rpartition(".")
        found.setdefault(section, {})[name] = value
    return found


def ini(tables: Mapping[str, Mapping[str, str]]) -> str:
    return "".join(
        f"[{section}]\n" + "".join(f"{name}={value}\n" for name, value in values.items())
        for section, values in tables.items()
    )


def read_unit(file: File, directory: Path) -> ForeignPool:
    tables = sections(file)
    tables["Service"] = {"ExecStart": "/bin/a", **tables.get("Service", {})}
    unit = directory / "a.service"
    unit.write_text(ini(tables))
    return _systemd.pool_of_units([str(unit)])


def read_supervisord(file: File, directory: Path) -> ForeignPool:
    tables = sections(file)
    tables["program:a"] = {"command": "a", **tables.get("program:a", {})}
    return _supervisord.pool_of_supervisord(ini(tables | {"program:b": {"command": "b"}}), str(directory))


def document(data: object, directory: Path) -> Document:
    path = directory / "a.json"
    path.write_text(json.dumps(data))
    return Document(str(path))


def read_pm2(file: File, directory: Path) -> ForeignPool:
    return _pm2.pool_of_pm2(document({"apps": [{"name": "a", "script": "a.sh", **file}]}, directory))


def read_compose(file: File, directory: Path) -> ForeignPool:
    data: dict[str, Any] = {"services": {"a": {"command": "serve 80"}, "b": {"command": "other"}}}
    for path, value in sorted(file.items()):  # a table before its settings
        *tables, last = path.split(".")
        table = data
        for name in tables:
            inner = table.get(name)
            table[name] = table = inner if isinstance(inner, dict) else {}
        table[last] = deepcopy(value)  # settings of a table are added to it
    return _compose.pool_of_compose(document(data, directory))


def read_line(*words: str) -> Callable[[File, Path], ForeignPool]:
    def read(file: File, directory: Path) -> ForeignPool:
        options = [
            word for name, value in file.items() for word in ((name,) if value is True else (name, value))
        ]
        return _command_lines.pool_of_command([*words, *options])

    return read


KINDS = {
    "systemd": Kind(UNIT, read_unit, [_systemd.SERVICE, _systemd.SECTIONS]),
    "supervisord": Kind(
        SUPERVISORD,
        read_supervisord,
        [_supervisord.SETTINGS, _supervisord.SUPERVISORD, _supervisord.SECTIONS],
    ),
    "pm2": Kind(PM2, read_pm2, [_pm2.APP]),
    "compose": Kind(COMPOSE, read_compose, [_compose.SERVICE, _compose.FILE]),
    "uvicorn": Kind(UVICORN, read_line("uvicorn", "a:b"), [_command_lines.UVICORN]),
    "gunicorn": Kind(GUNICORN, read_line("gunicorn", "a:b"), []),
    "gunicorn for ASGI": Kind(
        GUNICORN, read_line("gunicorn", "a:b", "-k", "asgi"), [_command_lines.GUNICORN]
    ),
}


def files(values: Values) -> st.SearchStrategy[File]:
    """Files with any of the settings, each with any of its values."""
    optional = {path: st.sampled_from(list(allowed)) for path, allowed in values.items()}
    return st.lists(st.sampled_from(list(values)), unique=True, max_size=8).flatmap(
        lambda paths: st.fixed_dictionaries({path: optional[path] for path in paths})
    )


def imported(kind: Kind, file: File, directory: Path) -> object:
    """What is written of a file, without the lines of comments."""
    pool = kind.read(file, directory)
    servers = [
        (server.name, server.keys, server.unusable, sorted(text for _, text in server.remarks))
        for server in pool.servers
    ]
    return servers, sorted(text for _, text in pool.remarks)


def check(kind: Kind, file: File, directory: Path) -> None:
    whole = imported(kind, file, directory)
    lost = [
        path
        for path in file
        if not kind.is_meaningless(path)
        and imported(kind, {each: value for each, value in file.items() if each != path}, directory) == whole
    ]
    assert not lost, (lost, whole)
    target = str(directory / "pool.toml")
    text = pool_text(kind.read(file, directory), "source", str(directory), target).text
    problems = load(target, dict.fromkeys(required_variables(text), "1"), {target: text}).problems
    assert not problems, (problems, text)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(
    "limits",
    [
        examples(60),
        pytest.param(
            settings(max_examples=10_000, deadline=None, database=None),
            marks=[pytest.mark.heavy, pytest.mark.timeout(1800)],
        ),
    ],
    ids=["some", "ten thousand"],
)
def test_each_setting_is_carried_or_remarked_and_the_result_is_valid(
    kind: Kind, limits: settings, tmp_path: Path
) -> None:
    @limits
    @given(files(kind.values))
    def holds(file: File) -> None:
        check(kind, file, tmp_path)

    holds()
