"""A docker-compose.yml (https://docs.docker.com/reference/compose-file/): each service with a command is a server."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from poolctl.config import Document, escaped, read_text
from poolctl.config.values.problems import Problem

from ._command_lines import apply_command_words, apply_shell_command
from ._foreign_pool import (
    PORT,
    ForeignPool,
    ForeignServer,
    Keys,
    bind_address,
    drop_mistyped_values,
    signal_name,
)

_CONDITIONS = {
    "service_started": "started", "service_healthy": "ready", "service_completed_successfully": "completed",
}  # fmt: skip
_RESTART = {"always": "always", "unless-stopped": "always", "on-failure": "on-failure", "no": "no"}
TYPES: dict[str, tuple[type, ...]] = {
    "command": (str, list), "entrypoint": (str, list), "image": (str,), "build": (str, dict), "ports": (list,),
    "environment": (dict, list), "depends_on": (dict, list), "healthcheck": (dict,), "deploy": (dict,),
    "labels": (dict, list), "profiles": (list,),
}  # fmt: skip
# Keys that need no remark: they are read together with others, or poolctl always behaves that way.
READ = (
    "command", "entrypoint", "build", "image", "ports", "environment", "env_file", "depends_on", "healthcheck",
    "restart", "deploy", "scale", "stop_grace_period", "stop_signal", "user", "labels", "profiles", "expose",
    "mem_limit", "container_name", "init", "tty", "networks",
)  # fmt: skip
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
        data = self.document.data
        services = {}
        for name, service in data["services"].items():
            server = self.pool.add(str(name), self.line("services", name))
            of_service = functools.partial(self.line, "services", name)
            table = service if isinstance(service, dict) else {}
            services[server.name] = drop_mistyped_values(server, table, TYPES, of_service)
            self._apply_service(server, name, services[server.name])
        for key in data:
            if key not in ("services", "version", "name", "networks") and not str(key).startswith("x-"):
                self.pool.remark(f"{key}: no equivalent", self.line(key))
        for server in self.pool.servers:
            self._apply_dependencies(server, services.get(server.name, {}))
            self._replace_service_hosts(server)
        return self.pool

    def _apply_service(self, server: ForeignServer, name: str, service: Mapping[str, Any]) -> None:
        path = ("services", name)
        inner = self._apply_command_returning_port(server, name, service)
        for key, value in service.items():
            server.at = self.line(*path, key)
            self._convert_key(server, key, value)
        server.at = self.line(*path, "ports")
        self._ports(server, service.get("ports"), inner)
        if isinstance(service.get("healthcheck"), dict):
            server.at = self.line(*path, "healthcheck")
            self._health(server, service["healthcheck"], inner)

    def _apply_command_returning_port(
        self, server: ForeignServer, name: str, service: Mapping[str, Any]
    ) -> str:
        """Set the server's app or command; returns the port that it has within the container, "" if unknown."""
        words = [*_words(service.get("entrypoint")), *_words(service.get("command"))]
        server.at = self.line("services", name, "command" if service.get("command") else "entrypoint")
        image, build = service.get("image"), service.get("build")
        if build and not service.get("entrypoint"):
            words = self._image_words_applying_env(server, build, words)
        if not words or words[0].startswith("-"):
            of_image = f"the command of the image {image}" if image else "one"
            what = "the CMD of its Dockerfile" if build else of_image
            server.set("command", ["…"])
            server.leave_out(f"no command: write {what}, if that program is on this machine")
            return ""
        if words[:2] == ["sh", "-c"] and len(words) == 3:
            apply_shell_command(server, words[2].replace("$${", "${"))
        else:
            apply_command_words(server, words)
        if image and "build" not in service:
            line = self.line("services", name, "image")
            server.remark(f"image: {image}: its programs have to be on this machine", line)
        build = service.get("build")
        context = build.get("context", ".") if isinstance(build, dict) else build
        if isinstance(context, str) and "://" not in context:
            for key in ("cwd", "app_dir") if "app" in server.keys else ("cwd",):
                server.keys.setdefault(key, _converted_variables(context))
        bind = str(server.keys.get("bind", ""))
        return bind.rpartition(":")[2] if bind and not bind.startswith("unix:") else ""

    def _image_words_applying_env(self, server: ForeignServer, build: Any, command: list[str]) -> list[str]:
        """The Dockerfile's ENTRYPOINT, and `command` or else its CMD; adds the variables of its ENV to the server."""
        table = build if isinstance(build, dict) else {"context": build}
        file = os.path.join(str(table.get("context", ".")), str(table.get("dockerfile", "Dockerfile")))
        entrypoint, own, env = read_dockerfile(
            os.path.join(self.document.base_dir, file), str(table.get("target", ""))
        )
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

    def _convert_key(self, server: ForeignServer, key: str, value: Any) -> None:
        if key in _KEYS:
            name, convert = _KEYS[key]
            server.set(name, convert(str(value)))
        elif key == "environment":
            self._environment(server, value)
        elif key == "env_file":
            self._env_files(server, value)
        elif key == "restart":
            policy, _, limit = str("no" if value is False else value).partition(":")
            server.set("restart", {"policy": _RESTART.get(policy, "on-failure")})
            if limit.isdigit():
                server.set("restart.limit", int(limit))
        elif key in ("deploy", "scale"):
            self._apply_deploy(server, value if isinstance(value, dict) else {"replicas": value})
        elif key == "user" and re.fullmatch(r"[A-Za-z_].*", str(value)):
            server.set("user", _converted_variables(str(value)))
        elif key == "labels":
            pairs = value.items() if isinstance(value, dict) else map(_pair, value)
            labels = {str(name): _converted_variables(str(each or "")) for name, each in pairs}
            for name in [name for name in labels if name.startswith(("traefik.", "com.docker."))]:
                if name.startswith("traefik."):
                    server.remark(f"{name}={labels[name]}: [gateway] and [[route]] do this here")
                del labels[name]
            if labels:
                server.set("labels", labels)
        elif key == "stdin_open":
            if value is True and "command" in server.keys:
                server.set("stdin", "open")
        elif key == "profiles":
            server.set("tags", [re.sub(r"[\s,]+", "-", str(each)) for each in value])
            server.set("on_demand", True)
        elif key not in READ or (key == "user"):
            server.remark(f"{key}: {_shown(value)}: no equivalent")

    def _environment(self, server: ForeignServer, value: Any) -> None:
        pairs = value.items() if isinstance(value, dict) else map(_pair, value)
        env = {}
        for name, text in pairs:
            if text is None or str(text) in (f"${name}", f"${{{name}}}"):
                continue  # it is in the environment of the pool, or in .env
            env[str(name)] = _converted_variables(
                "true" if text is True else "false" if text is False else str(text)
            )
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

    def _apply_deploy(self, server: ForeignServer, deploy: Mapping[str, Any]) -> None:
        replicas = deploy.get("replicas")
        if replicas == 0:
            server.set("disabled", True)
        elif isinstance(replicas, int):
            server.set("workers", replicas)
        limits = (deploy.get("resources") or {}).get("limits") or {}
        for name, limit in limits.items():
            if name == "memory":
                server.set("limits.memory", _size(limit))
            else:
                server.remark(f"deploy.resources.limits.{name}: {limit}: no equivalent")
        for key in deploy:
            if key not in ("replicas", "resources", "mode"):
                server.remark(f"deploy.{key}: no equivalent")

    def _health(self, server: ForeignServer, check: Mapping[str, Any], inner: str) -> None:
        test = check.get("test")
        if check.get("disable") or test in (None, "NONE", ["NONE"]):
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
        for key in ("interval", "timeout"):
            if check.get(key) is not None:
                probe[key] = str(check[key])
        if isinstance(check.get("retries"), int):
            probe["fall_count_ko"] = check["retries"]
        server.set("health", {"readiness": probe})

    def _apply_dependencies(self, server: ForeignServer, service: Mapping[str, Any]) -> None:
        value = service.get("depends_on") or []
        wanted = value.items() if isinstance(value, dict) else ((name, {}) for name in value)
        found = []
        server.at = self.line("services", server.name, "depends_on")
        for each, how in wanted:
            name = str(each)
            given = how.get("condition", "service_started") if isinstance(how, dict) else ""
            condition = _CONDITIONS.get(given, "started")
            if condition == "completed":
                for other in self.pool.servers:
                    if other.name == name:
                        other.set("job", True)
            found.append({"name": name, "condition": condition})
        if found:
            server.set("depends_on", found)


_KEYS: Keys = {
    "stop_grace_period": ("stop_timeout", str),
    "stop_signal": ("stop_signal", signal_name),
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


def _pair(entry: Any) -> tuple[str, str | None]:
    name, equals, value = str(entry).partition("=")
    return name, value if equals else None


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


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (dict, list)) else str(value)


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
