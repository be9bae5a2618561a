"""A docker-compose.yml (https://docs.docker.com/reference/compose-file/): each service with a command is a server."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
from collections.abc import Iterator
from typing import Any, NamedTuple

from poolctl.config import Document, escaped, read_text
from poolctl.config.values.problems import Problem

from ._command_lines import apply_command_words, apply_shell_command
from ._foreign_pool import PORT, ForeignPool, ForeignServer, Keys, bind_address, signal_name
from ._settings import Meaningless, Settings, text_of

_CONDITIONS = {
    "service_started": "started", "service_healthy": "ready", "service_completed_successfully": "completed",
}  # fmt: skip
_RESTART = {"always": "always", "unless-stopped": "always", "on-failure": "on-failure", "no": "no"}
MEANINGLESS: Meaningless = {
    "x-*": "an extension, which compose ignores as well",
    "*.x-*": "an extension, which compose ignores as well",
    "version": "compose ignores it",
    "name": "of the project: poolctl names a pool after its directory",
    "networks": "servers share the network of this machine",
    "expose": "of networks between containers: here servers reach each other at 127.0.0.1",
    "init": "the keeper reaps the processes that a program leaves behind",
    "tty": "the output of a server goes to its log",
}
DEFAULTS = {"deploy.mode": "replicated"}  # values that change nothing
# Variables of a Dockerfile that concern the container itself.
OF_CONTAINERS = ("PATH", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "DEBIAN_FRONTEND", "VIRTUAL_ENV", "HOME")
_variable = re.compile(r"\$(?:\$\{?|([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?:(:?[-?+])([^}]*))?\})")
_url = re.compile(r"https?://(?:localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1\])(?::(\d+))?(/[^\s'\"|]*)?")


class _Reader:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.pool = ForeignPool()
        self.published: dict[str, dict[str, str]] = {}  # by service and inner port

    def line(self, *path: str | int) -> int:
        return self.document.place(path).line

    def read(self) -> ForeignPool:
        """The pool with a server for each service; a service without a command is marked as left out."""
        file = Settings(self.pool, self.document.data, self.line)
        tables = file.table("services")
        services = {}
        for name in tables:
            server = self.pool.add(name, self.line("services", name))
            values = tables.take(name, dict) or {}
            line = functools.partial(self.line, "services", name)
            services[server.name] = Settings(server, values, line)
            self._apply_service(server, services[server.name])
        for server in self.pool.servers:
            self._apply_dependencies(server, services[server.name])
            services[server.name].remark_unread(MEANINGLESS, defaults=DEFAULTS)
            self._replace_service_hosts(server)
        file.remark_unread(MEANINGLESS)
        return self.pool

    def _apply_service(self, server: ForeignServer, service: Settings) -> None:
        inner = self._apply_command_returning_port(server, service)
        service.carry(server, _KEYS)
        self._environment(server, service.take("environment", dict, list))
        if files := service.take("env_file", str, list, dict):
            self._env_files(server, files)
        if (restart := service.take("restart")) is not None:
            policy, _, limit = ("no" if restart is False else str(restart)).partition(":")
            server.set("restart", {"policy": _RESTART.get(policy, "on-failure")})
            if limit.isdigit():
                server.set("restart.limit", int(limit))
        self._apply_deploy(server, service)
        self._labels(server, service.take("labels", dict, list))
        if service.take("stdin_open") and "command" in server.keys:
            server.set("stdin", "open")
        if profiles := service.take("profiles", list):
            server.set("tags", [re.sub(r"[\s,]+", "-", str(each)) for each in profiles])
            server.set("on_demand", True)
        networks = service.table("networks")
        for name in networks:
            networks.table(name)
        self._ports(server, service.take("ports", list), inner)
        self._health(server, service.table("healthcheck"), inner)

    def _apply_command_returning_port(self, server: ForeignServer, service: Settings) -> str:
        """Set the server's app or command; returns the port that it has within the container, "" if unknown."""
        entrypoint, command = service.take("entrypoint", str, list), service.take("command", str, list)
        build = service.table("build")
        context = (
            service.take("build", str) or build.take("context", str) or ("." if "build" in service else "")
        )
        dockerfile = build.take("dockerfile", str) or "Dockerfile"
        target = build.take("target", str) or ""
        image = service.take("image", str)
        server.at = service.line("command" if command else "entrypoint")
        words = [*_words(entrypoint), *_words(command)]
        if context and not entrypoint:
            words = self._image_words_applying_env(server, os.path.join(context, dockerfile), target, words)
        if not words or words[0].startswith("-"):
            of_image = f"the command of the image {image}" if image else "one"
            what = "the CMD of its Dockerfile" if context else of_image
            server.set("command", ["…"])
            server.leave_out(f"no command: write {what}, if that program is on this machine")
            return ""
        if words[:2] == ["sh", "-c"] and len(words) == 3:
            apply_shell_command(server, words[2].replace("$${", "${"))
        else:
            apply_command_words(server, words)
        if image and not context:
            server.remark(f"image: {image}: its programs have to be on this machine", service.line("image"))
        if context and "://" not in context:
            for key in ("cwd", "app_dir") if "app" in server.keys else ("cwd",):
                server.keys.setdefault(key, _converted_variables(context))
        bind = str(server.keys.get("bind", ""))
        return bind.rpartition(":")[2] if bind and not bind.startswith("unix:") else ""

    def _image_words_applying_env(
        self, server: ForeignServer, dockerfile: str, target: str, command: list[str]
    ) -> list[str]:
        """The Dockerfile's ENTRYPOINT, and `command` or else its CMD; adds the variables of its ENV to the server."""
        path = os.path.join(self.document.base_dir, dockerfile)
        entrypoint, own, env = read_dockerfile(path, target)
        for variable, text in env.items():
            if variable not in OF_CONTAINERS and "$" not in text:
                server.add_env(variable, text)
        return [*map(escaped, entrypoint), *(command or map(escaped, own))]

    def _ports(self, server: ForeignServer, ports: Any, inner: str) -> None:
        """Set `bind` to the published address of the container port `inner`.

        If that is not published, use the first port that `_with_port` accepts. Other published ports become remarks.
        """
        found = [
            each for each in map(_parse_published_port, ports if isinstance(ports, list) else []) if each
        ]
        chosen = next((each for each in found if each[2] == inner), None)
        if chosen is not None:
            server.set("bind", bind_address(*chosen[:2]))
        elif "bind" not in server.keys and not server.unusable:
            chosen = next((each for each in found if _replace_container_port(server, *each)), None)
        why = "a server has one address" if "bind" in server.keys else "give it a bind once it takes {port}"
        for each in found:
            if each != chosen:
                server.remark(f"ports: {each[1]}:{each[2]}: {why}")
        if not found and "bind" in server.keys and inner:
            server.set("bind", f"127.0.0.1:{inner}")  # it was reachable only from other containers
        self.published[server.name] = {target: published for _, published, target in found}

    def _labels(self, server: ForeignServer, value: Any) -> None:
        labels = {name: _converted_variables(text or "") for name, text in _pairs(value)}
        for name in [name for name in labels if name.startswith(("traefik.", "com.docker."))]:
            if name.startswith("traefik."):
                server.remark(f"{name}={labels[name]}: [gateway] and [[route]] do this here")
            del labels[name]
        if labels:
            server.set("labels", labels)

    def _environment(self, server: ForeignServer, value: Any) -> None:
        env = {}
        for name, text in _pairs(value):
            if text is None or text in (f"${name}", f"${{{name}}}"):
                continue  # it is in the environment of the pool, or in .env
            env[name] = _converted_variables(text)
        if env:
            server.set("env", {**server.keys.get("env", {}), **env})

    def _replace_service_hosts(self, server: ForeignServer) -> None:
        """In the server's variables, replace hosts named after services by 127.0.0.1 and the published port."""
        for name, text in server.keys.get("env", {}).items():
            for other, ports in self.published.items():
                host = re.escape(other)
                found = re.fullmatch(rf"(|.*(?://|@)){host}(?::(\d+))?((?:[/?].*)?)", str(text), re.DOTALL)
                if found and (found[1] or not found[3]):
                    port = f":{ports.get(found[2], found[2])}" if found[2] else ""
                    server.keys["env"][name] = f"{found[1]}127.0.0.1{port}{found[3]}"
                    line = server.lines.get("env", server.line)
                    server.remark(f"{name}: the service {other} is 127.0.0.1{port} here", line)

    def _env_files(self, server: ForeignServer, value: Any) -> None:
        entries = value if isinstance(value, list) else [value]
        files = []
        for each in entries:
            path = each.get("path") if isinstance(each, dict) else each
            is_optional = isinstance(each, dict) and each.get("required") is False
            if is_optional and not os.path.exists(os.path.join(self.document.base_dir, str(path))):
                server.remark(f"env_file: {path}: the file does not exist here")
            elif isinstance(path, str):
                path = _converted_variables(path)
                is_raw = isinstance(each, dict) and each.get("format") == "raw"
                files.append({"path": path, "expand": False} if is_raw else path)
        server.set("env_file", files)

    def _apply_deploy(self, server: ForeignServer, service: Settings) -> None:
        deploy = service.table("deploy")
        for replicas in (service.take("scale", int), deploy.take("replicas", int)):
            if replicas == 0:
                server.set("disabled", True)
            elif replicas is not None:
                server.set("workers", replicas)
        deploy.table("resources").table("limits").carry(server, {"memory": ("limits.memory", _size)})

    def _health(self, server: ForeignServer, check: Settings, inner: str) -> None:
        disabled, test = check.take("disable"), check.take("test", str, list)
        times = {
            key: text_of(value) for key in ("interval", "timeout") if (value := check.take(key)) is not None
        }
        retries = check.take("retries", int)
        if disabled or test in (None, "NONE", ["NONE"]):
            return
        words = test if isinstance(test, list) else ["CMD-SHELL", str(test)]
        line, shell = " ".join(map(str, words[1:])), words[0] == "CMD-SHELL"
        url = _url.search(line)
        probe: dict[str, Any]
        asks = re.match(r"(\S*/)?(curl|wget)\s|.*\burlopen\(", line, re.DOTALL)
        if url and asks and "bind" in server.keys and url[1] in (None, inner):
            probe = {"http": url[2] or "/"}
        else:
            probe = {
                "exec": ["sh", "-c", _converted_variables(line)]
                if shell
                else [_converted_variables(str(each)) for each in words[1:]]
            }
        probe |= times
        if retries is not None:
            probe["fall_count_ko"] = retries
        server.set("health", {"readiness": probe})

    def _apply_dependencies(self, server: ForeignServer, service: Settings) -> None:
        names = [str(name) for name in service.take("depends_on", list) or []]
        table = service.table("depends_on")
        found = []
        for name in (*names, *table):
            given = table.table(name).take("condition", str)
            condition = _CONDITIONS.get(given or "", "started")
            if condition == "completed":
                for other in self.pool.servers:
                    if other.name == name:
                        other.set("job", True)
            found.append({"name": name, "condition": condition})
        if found:
            server.at = service.line("depends_on")
            server.set("depends_on", found)


_KEYS: Keys = {
    "stop_grace_period": ("stop_timeout", str),
    "stop_signal": ("stop_signal", signal_name),
    "user": ("user", lambda value: _converted_variables(value) if re.match("[A-Za-z_]", value) else ""),
    "mem_limit": ("limits.memory", lambda value: _size(value)),
}


def pool_of_compose(document: Document) -> ForeignPool:
    """The pool of a compose file; reads the Dockerfiles of services without an entrypoint."""
    return _Reader(document).read()


def _words(value: Any) -> list[str]:
    if isinstance(value, str):
        try:
            value = shlex.split(value)
        except ValueError:
            return ["sh", "-c", _converted_variables(value)]
    return [_converted_variables(str(each)) for each in value or []]


def _replace_container_port(server: ForeignServer, host: str, published: str, target: str) -> bool:
    """Set `bind` to the published host and port, and replace the container's port `target` by {port} in the server.

    If exactly one argument of the command contains the port, the port is replaced there. Else, if the port is the value
    of exactly one variable …PORT, it is replaced there. Else nothing is changed, and False is returned.
    """
    whole = re.compile(rf"(?<![\w.]){target}(?![\w.])|(?<=:){target}(?![\w.])")
    words = [str(word) for word in server.keys["command"]]
    with_port = [index for index, word in enumerate(words) if index and whole.search(word)]
    env = server.keys.get("env", {})
    variables = [name for name, value in env.items() if name.endswith("PORT") and value == target]
    if len(with_port) == 1:
        words[with_port[0]] = whole.sub(PORT, words[with_port[0]])
    elif len(variables) == 1:
        env[variables[0]] = PORT
    else:
        return False
    server.set("command", words)
    server.set("bind", bind_address(host, published))
    return True


def _pairs(value: dict[Any, Any] | list[Any] | None) -> Iterator[tuple[str, str | None]]:
    """The names and texts of a table, or of a list of `NAME=VALUE`; None for a name alone."""
    for entry in value or ():
        name, equals, text = str(entry).partition("=")
        if isinstance(value, dict):
            yield str(entry), None if value[entry] is None else text_of(value[entry])
        else:
            yield name, text if equals else None


def _converted_variables(text: str) -> str:
    """The text with compose's references to variables in poolctl's notation; an unset one is empty, as in compose."""

    def replaced(match: re.Match[str]) -> str:
        if match[0].startswith("$$"):
            return "$" if match[0] == "$$" else "$${"
        name = match[1] or match[2]
        sign, word = match[3] or "", match[4] or ""
        if "?" in sign:
            return f"${{{name}}}"
        return f"${{{name}:-{'' if '+' in sign else word}}}"

    return _variable.sub(replaced, text)


def _parse_published_port(entry: Any) -> tuple[str, str, str] | None:
    """Host, published and inner port of an entry of `ports`; None for UDP and ranges."""
    if isinstance(entry, dict):
        host, published, target = entry.get("host_ip", ""), entry.get("published"), entry.get("target")
        protocol = entry.get("protocol", "tcp")
    else:
        # ${PORT:-8000} holds colons.
        text = re.sub(r"\$\{\w+(?::?-(\d*))?\}", r"\1", str(entry))
        parts = text.partition("/")[0].rsplit(":", 2)
        protocol = text.partition("/")[2] or "tcp"
        target = parts[-1]
        published = parts[-2] if len(parts) > 1 else target
        host = parts[0] if len(parts) > 2 else ""
    if protocol != "tcp" or not str(published).isdigit() or not str(target).isdigit():
        return None
    return str(host), str(published), str(target)


def _size(value: Any) -> str:
    """A size such as `1G`, `512m` or `1073741824` in the notation of pool.toml."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([bkmgBKMG]?)[bB]?", str(value))
    if not found:
        return str(value)
    unit = found[2].upper().strip("B")
    return f"{found[1]}{unit}iB" if unit else f"{found[1]}B"


_instruction = re.compile(r"(?i)(FROM|CMD|ENTRYPOINT|ENV)\s+(.*)", re.DOTALL)
_from = re.compile(r"(?i)(?:--\S+\s+)*(\S+)(?:\s+AS\s+(\S+))?\s*")


class ImageStart(NamedTuple):
    """ENTRYPOINT, CMD and ENV of a Dockerfile's stage."""

    entrypoint: list[str]
    command: list[str]
    env: dict[str, str]


NO_START = ImageStart([], [], {})


def read_dockerfile(path: str, target: str = "") -> ImageStart:
    """Return ENTRYPOINT, CMD and ENV of stage `target`, else of the last stage; NO_START if the file is unreadable."""
    try:
        text = read_text(path)
    except Problem:
        return NO_START
    text = re.sub(r"(?m)^[ \t]*#.*\n?", "", text)
    stages: dict[str, ImageStart] = {}
    name, stage = "", NO_START
    for row in re.sub(r"\\\s*\n", " ", text).splitlines():
        instruction = _instruction.fullmatch(row.strip())
        if instruction is None:
            continue
        kind, rest = instruction[1].upper(), instruction[2].strip()
        if kind == "FROM":
            if name and name == target:
                break
            base = _from.fullmatch(rest)
            image, name = base.groups("") if base else ("", "")
            stage = stages.get(image, NO_START)
        elif kind == "CMD":
            stage = stage._replace(command=_instruction_words(rest))
        elif kind == "ENTRYPOINT":
            stage = stage._replace(entrypoint=_instruction_words(rest), command=[])
        else:
            stage = stage._replace(env={**stage.env, **_image_variables(rest)})
        stages[name] = stage
    return stage


def _instruction_words(text: str) -> list[str]:
    if text.startswith("["):
        try:
            return [str(word) for word in json.loads(text)]
        except ValueError:
            pass
    return ["sh", "-c", text]


def _image_variables(env_arguments: str) -> dict[str, str]:
    try:
        words = shlex.split(env_arguments)
    except ValueError:
        return {}
    if words and "=" not in words[0]:
        return {words[0]: " ".join(words[1:])}
    return dict(word.partition("=")[::2] for word in words if "=" in word)
