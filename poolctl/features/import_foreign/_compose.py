"""A docker-compose.yml (https://docs.docker.com/reference/compose-file/): each service with a command is a server."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from poolctl.config import Document, escaped, read_text
from poolctl.config.files.read_file import EnvFileError, read_env_file
from poolctl.config.values.problems import Problem, Tree
from poolctl.units import parse_duration

from ._command_lines import apply_command_words
from ._compose_files import ComposeFile, alike
from ._foreign_pool import HOST, PORT, ForeignPool, ForeignServer, Unreadable, bind_address, signal_name
from ._settings import NO_EQUIVALENT, Becomes, Settings, Table, text_of

_CONDITIONS = {
    "service_started": "started", "service_healthy": "ready", "service_completed_successfully": "completed",
}  # fmt: skip
_RESTART = {"always": "always", "unless-stopped": "always", "on-failure": "on-failure", "no": "no"}
# In these keys, references to variables stay references.
_TEXTS = ("command", "entrypoint", "environment", "env_file", "labels", "build", "test")
# The default ports of URL schemes.
_PORTS = {
    "http": "80", "https": "443", "redis": "6379", "amqp": "5672", "postgres": "5432", "postgresql": "5432",
    "mysql": "3306", "mongodb": "27017", "nats": "4222",
}  # fmt: skip
# Variables of a Dockerfile that concern the container itself.
OF_CONTAINERS = ("PATH", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "DEBIAN_FRONTEND", "VIRTUAL_ENV", "HOME")
_reference = re.compile(r"\$(?:(\$)|([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(:?[-?+])?)")
# Options of curl and wget for more than a GET, and output that is examined.
_more_than_get = re.compile(
    r"\s(?:-[A-Za-z]*[HXudT]|--(?:header|request|user|data|post-data|method)\b)|[^|]\|[^|]|\$"
)
_LOOPBACK = r"(?:localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1\])"
_url = re.compile(rf"(?:https?://{_LOOPBACK}(?::(\d+))?|(?<=\s){_LOOPBACK}:(\d+))(/[^\s'\"|]*)?")


class _Variables:
    """The variables that compose substitutes in its file: from the environment, else from `.env` beside the file.

    `missing` collects the names of variables without a value.
    """

    def __init__(self, path: str) -> None:
        self.of_file: dict[str, str] = {}
        self.missing: list[str] = []
        if os.path.isfile(path):
            try:
                self.of_file, _ = read_env_file(path, os.environ, for_another_user=False)
            except EnvFileError as problem:
                raise Unreadable(str(problem), "correct or remove it") from None

    def resolved(self, text: str) -> str:
        """The text with the values of its references."""
        return self._replaced(text, self._value, "$")

    def resolved_tree(self, value: Any) -> Any:
        """The value of a key, of any shape, with the values of its references, except in `_TEXTS`."""
        if isinstance(value, dict):
            return {key: item if key in _TEXTS else self.resolved_tree(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.resolved_tree(item) for item in value]
        return self.resolved(value) if isinstance(value, str) else value

    def converted(self, text: str) -> str:
        """The text for pool.toml; the default of each reference is the value from `.env`, or empty as in compose."""
        return self._replaced(text, self._as_reference, "")

    def _replaced(self, text: str, value: Callable[[str, str, str], str], dollar: str) -> str:
        result, at = "", 0
        while match := _reference.search(text, at):
            result += text[at : match.start()]
            at = match.end()
            if match[1]:
                result += dollar or ("$$" if text.startswith("{", at) else "$")
                continue
            word = ""
            if match[3]:
                end = _closing_brace(text, at)
                word, at = text[at:end], end + 1
            result += value(match[2] or match[3], match[4] or "", word)
        return result + text[at:]

    def _value(self, name: str, sign: str, word: str) -> str:
        current = os.environ.get(name, self.of_file.get(name))
        is_set = bool(current) if ":" in sign else current is not None
        if "+" in sign:
            return self.resolved(word) if is_set else ""
        if not is_set and "-" in sign:
            return self.resolved(word)
        if current is None:
            self.missing.append(name)
        return current or ""

    def _as_reference(self, name: str, sign: str, word: str) -> str:
        value = self._value(name, sign, word)
        default = self.of_file.get(name) or (self.resolved(word) if "-" in sign else "")
        if "+" in sign or value.isdigit() or re.search("[{}]", default):
            return str(escaped(value))  # a port is compared with others
        if "?" in sign and not default:
            self.missing = [variable for variable in self.missing if variable != name]
            return f"${{{name}}}"
        return f"${{{name}:-{default}}}"


def _closing_brace(text: str, at: int) -> int:
    """The index of the brace that closes a reference. Its default may contain references."""
    depth = 1
    for index in range(at, len(text)):
        depth += {"{": text[index - 1] == "$", "}": -1}.get(text[index], 0)
        if not depth:
            return index
    return len(text)


class _Published(NamedTuple):
    """An entry of `ports` as written. `published_ports` maps each port of the container to the port on this machine.

    `published_ports` is empty if the entry cannot be an address of this machine; `why` has the reason.
    """

    text: str
    host: str
    here: dict[str, str]
    why: str = ""


class _Reader:
    def __init__(self, document: Document, overrides: Sequence[str] | None) -> None:
        self.document = document
        self.pool = ForeignPool()
        self.env_file = os.path.join(document.base_dir, ".env")
        self.variables = _Variables(self.env_file)
        self.file = ComposeFile(document, self.variables.resolved, overrides=overrides)
        self.ports: dict[
            str, dict[str, str]
        ] = {}  # the ports on this machine, by service and by port of the container
        self.hosts: dict[str, str] = {}  # the service of each host name
        self.checks: dict[str, dict[str, Any]] = {}  # the health check of each image, by service

    def read(self) -> ForeignPool:
        """The pool with a server for each service; a service without a command is marked as left out."""
        self.pool.env_file = ".env"
        if self.variables.of_file:
            self.pool.files.append(self.env_file)
        self.file.read()
        self.pool.files += self.file.files
        self.pool.remarks += self.file.remarks
        file = Settings(self.pool, self.file.data, self.file.line, FILE)
        tables = file.table("services")
        services = []
        for name in tables:
            server = self.pool.add(name, self.file.line("services", name))
            values = self.variables.resolved_tree(tables.take(name, dict) or {})
            service = Settings(server, values, functools.partial(self.file.line, "services", name), SERVICE)
            services.append((server, service))
            self._name_hosts(server, name, service)
            service.apply(server, self, server)
            for variable in dict.fromkeys(self.variables.missing):
                server.remark(f"{variable} is set neither here nor in .env: it is empty", server.line)
            self.variables.missing.clear()
        for server, service in services:
            self._apply_dependencies(server, service)
            service.remark_unread()
            self._replace_hosts(server)
        file.remark_unread()
        if not services:
            raise Unreadable("there is no service in it", "; ".join(text for _, text in self.file.remarks))
        return self.pool

    def _name_hosts(self, server: ForeignServer, name: str, service: Settings) -> None:
        """Record the host names by which other services reach this service."""
        names = [name, service.peek("container_name"), service.peek("hostname")]
        networks = service.table("networks")
        for network in networks:
            aliases = networks.table(network).peek("aliases")
            names += aliases if isinstance(aliases, list) else ()
        self.hosts |= {str(alias): server.name for alias in names if alias}

    def _stdin(self, server: ForeignServer, service: Settings) -> None:
        if _is_true(service.take("stdin_open")) and "command" in server.keys:
            server.set("stdin", "open")

    def _profiles(self, server: ForeignServer, service: Settings) -> None:
        if profiles := service.take("profiles", list):
            names = [str(profile) for profile in profiles]
            server.set("tags", [re.sub(r"[\s,]+", "-", name) for name in names])
            if not {*names, "*"} & {*self.variables.resolved("${COMPOSE_PROFILES:-}").split(",")}:
                server.set("on_demand", True)

    def _apply_command(self, server: ForeignServer, service: Settings) -> None:
        """Set the server's environment, and its app or command, which may read its port from the environment."""
        entrypoint, command = service.take("entrypoint", str, list), service.take("command", str, list)
        build, image = service.table("build"), service.take("image", str)
        context = service.take("build", str) or build.take("context", str) or ""
        if "build" in service:
            context = context or "."
        dockerfile, target = build.take("dockerfile", str) or "Dockerfile", build.take("target", str) or ""
        environment = service.take("environment", dict, list)
        server.at = service.line("command" if command else "entrypoint")
        is_cleared = service.peek("entrypoint") in ("", [])
        entry, words = self._words(server, entrypoint), self._words(server, command)
        if context:
            path = os.path.join(self.variables.resolved(context), self.variables.resolved(dockerfile))
            inline = build.take("dockerfile_inline", str)
            instructions = self._image(server, path, self.variables.resolved(target), inline)
            if not entry:  # else the image's CMD does not count
                entry = [] if is_cleared else escaped(_instruction_words(instructions.get("ENTRYPOINT", "")))
                words = words or escaped(_instruction_words(instructions.get("CMD", "")))
        words = [*entry, *words]
        if environment is not None:
            server.at = service.line("environment")
            self._environment(server, environment, has_env_file="env_file" in service)
        if context and "://" not in context:
            server.set("cwd", self.variables.converted(context))
        server.at = service.line("command" if command else "entrypoint")
        if not words or words[0].startswith("-"):
            what = f"the command of the image {image}" if image else "one"
            if context:
                what = "the CMD of its Dockerfile"
            server.set("command", ["…"])
            server.leave_out(f"no command: write {what}, if that program is on this machine")
            return
        apply_command_words(server, words)
        if image and not context:
            server.remark(f"image: {image}: its programs have to be on this machine", service.line("image"))

    def _words(self, server: ForeignServer, value: Any) -> list[str]:
        if isinstance(value, str):
            try:
                value = shlex.split(value)
            except ValueError as problem:
                server.leave_out(f"the shell cannot read its command ({problem})")
                value = ["sh", "-c", value]
        return [self.variables.converted(text_of(word)) for word in value or []]

    def _image(
        self, server: ForeignServer, dockerfile: str, target: str, inline: str | None
    ) -> dict[str, Any]:
        """The instructions of the server's image; `inline` is its Dockerfile's text if the compose file has it.

        Sets ENV and STOPSIGNAL, and records HEALTHCHECK.
        """
        path = os.path.join(self.document.base_dir, dockerfile)
        try:
            image = stage_of(inline or read_text(path), target)
        except Problem:
            image = {}
        env = {
            name: escaped(text)
            for name, text in image.get("ENV", {}).items()
            if name not in OF_CONTAINERS and "$" not in text
        }
        if "ENV" in image and not inline:
            self.pool.files.append(path)
        if env:
            server.set_env(env)
        if signal := image.get("STOPSIGNAL"):
            server.set("stop_signal", signal_name(signal))
        self.checks[server.name] = _health_check(image.get("HEALTHCHECK", ""))
        return image

    def _ports(self, server: ForeignServer, service: Settings) -> None:
        """Set `bind` to the published address of the command's port, and the health check, which may ask that port.

        If the command names no port, see `_bind_to_published`. Other published ports become remarks.
        """
        bind = str(server.keys.get("bind", ""))
        inner = bind.rpartition(":")[2] if bind and not bind.startswith("unix:") else ""
        entries = [_published(entry) for entry in service.take("ports", list) or ()]
        if inner:
            chosen = next((entry for entry in entries if inner in entry.here), None)
            host, port = (chosen.host, chosen.here[inner]) if chosen else ("127.0.0.1", inner)
            # An unpublished port is reachable only from other containers.
            server.set("bind", bind_address(host, port))
        elif bind or server.unusable:
            chosen = None
        else:
            chosen = _bind_to_published(server, entries)
            inner = next(iter(chosen.here)) if chosen else ""
        texts = " ".join([*server.keys.get("command", ()), *server.keys.get("env", {}).values()])
        opens_itself = ("socket" in server.keys or PORT in texts) and HOST not in texts
        if chosen is not None and chosen.host not in ("", "0.0.0.0") and opens_itself:
            server.remark(f"ports: {chosen.host}:{chosen.text}: see that it listens on that address alone")
        why = "a server has one address" if "bind" in server.keys else "give it a bind once it takes {port}"
        for entry in entries:
            if entry != chosen:
                server.remark(f"ports: {entry.text}: {entry.why or why}")
        if server.unusable:  # it may run on in its container
            self.ports[server.name] = {inner: port for entry in entries for inner, port in entry.here.items()}
        else:
            self.ports[server.name] = {inner: server.keys["bind"].rpartition(":")[2]} if inner else {}
        check = service.table("healthcheck")
        if "healthcheck" not in service:
            line = service.line("build")
            check = Settings(
                server,
                self.checks.get(server.name, {}),
                lambda *_: line,
                {},
                lambda name, value: f"HEALTHCHECK {name}: {value}",
            )
        _apply_check(server, check, self.variables, inner)
        if "healthcheck" not in service:
            check.remark_unread()

    def _labels(self, server: ForeignServer, service: Settings) -> None:
        value = service.take("labels", dict, list)
        labels = {name: self.variables.converted(text or "") for name, text in _pairs(value).items()}
        for name in [name for name in labels if name.startswith(("traefik.", "com.docker."))]:
            if name.startswith("traefik."):
                server.remark(f"{name}={labels[name]}: [gateway] and [[route]] do this here")
            del labels[name]
        if labels:
            server.set("labels", labels)

    def _environment(self, server: ForeignServer, value: Any, *, has_env_file: bool) -> None:
        """Set the variables. With an env_file, the server does not get the variables of `.env`."""
        env = {}
        for name, text in _pairs(value).items():
            if text is None or text in (f"${name}", f"${{{name}}}"):
                if not has_env_file or name not in self.variables.of_file:
                    continue  # it is in the environment of the pool, or in .env
                text = f"${{{name}}}"
            env[name] = self.variables.converted(text)
        if env:
            server.set_env(env)

    def _replace_hosts(self, server: ForeignServer) -> None:
        """Replace the names of services in the server's variables, command and probes by 127.0.0.1 and their ports."""
        env = server.keys.get("env", {})
        line = server.lines.get("env", server.line)
        for name, text in env.items():
            is_host = re.search("HOST|SERVER|ADDR|UR[IL]|ENDPOINT|BROKER|NODE|DSN", name.upper()) is not None
            env[name] = self._with_hosts(server, text, name, line, is_host=is_host)
        probe = server.keys.get("health", {}).get("readiness", {}).get("exec", [])
        for key, words in (("command", server.keys.get("command", [])), ("health", probe)):
            line = server.lines.get(key, server.line)
            for index, word in enumerate(words):
                is_host = word in self.hosts and words[index - 1] in ("-h", "--host", "--hostname")
                of_option = words[index - 1].startswith("-") and "=" not in words[index - 1]
                if index:
                    words[index] = self._with_hosts(
                        server, word, key, line, is_host=is_host, of_option=of_option
                    )

    def _with_hosts(
        self,
        server: ForeignServer,
        text: str,
        what: str,
        line: int,
        *,
        is_host: bool,
        of_option: bool = True,
    ) -> str:
        """The text with hosts replaced; a remark says where.

        `is_host` says whether a bare name is a host. A bare name in a variable or in an option's value (`of_option`)
        only gets a remark.
        """

        def replaced(match: re.Match[str]) -> str:
            before, host, colon = match.groups("")
            if len(colon) == 3 and colon != ":80" and not before.endswith(("//", "@")):
                return match[0]  # an image, such as redis:16
            ports = self.ports.get(self.hosts[host], {})
            url, separator, user = text[: match.end(1)].rpartition("://")
            scheme = re.split(r"[^\w+]", url)[-1].partition("+")[0] if separator and "/" not in user else ""
            port = colon[1:] or _PORTS.get(scheme, "")
            here = ports.get(port, port if colon else "")
            name = self.hosts[host]
            if not (colon or is_host or before.endswith(("//", "@", "/"))):
                if (match[0] == text and of_option) or re.search(r"\s--?\w+[ =]$", text[: match.end(1)]):
                    server.remark(f"{what}: if {host} is the service, write 127.0.0.1", line)
                return match[0]
            server.remark(f"{what}: the service {name} is 127.0.0.1{f':{here}' if here else ''} here", line)
            if not (port or here):
                for inner, other in ports.items():
                    if inner != other:
                        server.remark(f"{what}: the port {inner} of the service {name} is {other} here", line)
            return f"{before}127.0.0.1{f':{here}' if here else ''}"

        names = "|".join(re.escape(host) for host in sorted(self.hosts, key=len, reverse=True))
        before, after = r"^|//|@|/dev/tcp/|(?<=\w):-|[\s,;='\"(\[]", r"$|[/?\s,;'\")\]}&|]"
        return re.sub(rf"({before})({names})(:\d{{2,5}})?(?={after})", replaced, text)

    def _env_files(self, server: ForeignServer, service: Settings) -> None:
        value = service.take("env_file", str, list, dict)
        if not value:
            return
        files = []
        for entry in value if isinstance(value, list) else [value]:
            table = entry if isinstance(entry, dict) else {"path": entry}
            path = table.get("path")
            is_there = os.path.exists(os.path.join(self.document.base_dir, str(path)))
            if not (is_there or _is_true(table.get("required", True))):
                server.remark(f"env_file: {path}: the file does not exist here")
            elif isinstance(path, str):
                path = self.variables.converted(path)
                files.append({"path": path, "expand": False} if table.get("format") == "raw" else path)
        server.set("env_file", files)

    def _apply_dependencies(self, server: ForeignServer, service: Settings) -> None:
        names = [str(name) for name in service.take("depends_on", list) or []]
        table = service.table("depends_on")
        dependencies = []
        for name in (*names, *table):
            condition = _CONDITIONS.get(table.table(name).take("condition", str) or "", "started")
            if condition == "completed":
                for other in self.pool.servers:
                    if other.name == name:
                        other.set("job", True)
                        if other.keys.pop("socket", ""):
                            del other.keys["bind"]
            dependencies.append({"name": name, "condition": condition})
        if dependencies:
            server.at = service.line("depends_on")
            server.set("depends_on", dependencies)


def pool_of_compose(document: Document, overrides: Sequence[str] | None = None) -> ForeignPool:
    """The pool of a compose file with its overrides, includes and Dockerfiles. Raises Problem and Unreadable.

    `overrides` are files merged into it; None stands for compose's defaults, such as compose.override.yaml.
    """
    return _Reader(document, overrides).read()


def _bind_to_published(server: ForeignServer, ports: Iterable[_Published]) -> _Published | None:
    """Set `bind` to the first single port that can be passed to the server, or on which it listens anyway.

    Returns None if there is no such port.
    """
    single = [(port, *next(iter(port.here.items()))) for port in ports if len(port.here) == 1]
    for port, inner, published in single:
        if _replace_container_port(server, port.host, published, inner):
            return port
    for port, inner, published in single:
        if inner == published:
            server.set("bind", bind_address(port.host, inner))
            server.set("socket", "program")
            return port
    return None


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
    # Otherwise it would listen on all addresses, although it was published on one.
    server.set("command", [word.replace("0.0.0.0", HOST) for word in words])
    for name, value in env.items():
        if re.fullmatch(r"0\.0\.0\.0|\$\{\w+:-0\.0\.0\.0\}", value):
            env[name] = HOST
    server.set("bind", bind_address(host, published))
    return True


def _pairs(value: Tree) -> dict[str, str | None]:
    """The names and texts of a table, or of a list of `NAME=VALUE`; None for a name alone."""
    pairs = alike("labels", value or {})
    return {str(name): None if text is None else text_of(text) for name, text in pairs.items()}


def _published(entry: Any) -> _Published:
    if isinstance(entry, dict):
        host, target = text_of(entry.get("host_ip") or ""), text_of(entry.get("target"))
        published, protocol = text_of(entry.get("published") or target), entry.get("protocol", "tcp")
        text = f"{published}:{target}" + (f"/{protocol}" if protocol != "tcp" else "")
    else:
        text = str(entry)
        address, _, protocol = text.partition("/")
        parts = address.rsplit(":", 2)
        target = parts[-1]
        published = (parts[-2] if len(parts) > 1 else "") or target
        host = parts[0] if len(parts) > 2 else ""
        text = text if protocol or "-" in text else f"{published}:{target}"
    if protocol not in ("", "tcp"):
        return _Published(text, host, {}, f"a server has no port of {protocol.upper()}")
    here, inner = _port_range(published), _port_range(target)
    if not here or not inner or (len(here) != len(inner) and len(inner) > 1):
        return _Published(text, host, {}, "not understood as ports")
    return _Published(text, host, dict(zip(inner, here, strict=False)))


def _port_range(text: str) -> list[str]:
    """The ports of `80` and `80-82`; [] for another text."""
    match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", text)
    if not match:
        return []
    first, last = int(match[1]), int(match[2] or match[1])
    return [str(port) for port in range(first, last + 1)]


def _duration(text: str) -> str:
    """The duration if it is one, else ""; one wrong value is to cost its key, not all of the probe."""
    return text if _seconds(text) else ""


def _seconds(text: str) -> float:
    """The seconds of a duration such as `1m30s`; 0 for another text."""
    try:
        return parse_duration(text)
    except ValueError:
        return 0.0


def _is_true(value: Any) -> bool:
    return text_of(value).lower() in ("true", "yes", "on", "y", "1")


def _size(value: Any) -> str:
    """A size such as `1G`, `512m` or `1073741824` in the notation of pool.toml."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([bkmgBKMG]?)[bB]?", str(value))
    if not match:
        return str(value)
    unit = match[2].upper().strip("B")
    if not float(match[1]):
        return ""  # no limit
    return f"{match[1]}{unit}iB" if unit else f"{match[1]}B"


def _restart(reader: _Reader, server: ForeignServer, service: Settings) -> None:
    server.at = service.line("restart")
    restart = service.take("restart")
    policy, _, limit = ("no" if restart in (None, False) else str(restart)).partition(":")
    server.set("restart", {"policy": _RESTART.get(policy, "no")})
    if policy not in _RESTART:
        service.remark("restart", NO_EQUIVALENT)
    if limit.isdigit():
        server.set("restart.limit", int(limit))
    of_deploy = service.table("deploy").table("restart_policy")
    if restart is None and [*of_deploy]:
        server.set("restart.policy", "always")
        of_deploy.apply(server, rows=_RESTART_POLICY)


def _disable(reader: _Reader, server: ForeignServer, service: Settings) -> None:
    if server.keys.get("workers") == 0:
        del server.keys["workers"]
        server.set("disabled", True)


def _apply_check(server: ForeignServer, check: Settings, variables: _Variables, inner: str) -> None:
    """Set the probe of a health check, by HTTP if it is no more than a request to the port `inner` of the container."""
    disabled, test = _is_true(check.take("disable")), check.take("test", str, list)
    if disabled or test in (None, "NONE", ["NONE"]):
        return
    words = [text_of(word) for word in test] if isinstance(test, list) else ["CMD-SHELL", str(test)]
    line = variables.resolved(" ".join(words[1:]))
    url = _url.search(line)
    asks = re.match(r"(\S*/)?(curl|wget)\s|.*\burlopen\(", line, re.DOTALL)
    plain = not _more_than_get.search(line.replace("||", "")) or not re.match(r"\S*(curl|wget)", line)
    port = url and (url[1] or url[2] or ("443" if url[0].startswith("https") else "80"))
    if url and asks and plain and "bind" in server.keys and port == inner:
        probe: dict[str, Any] = {"http": url[3] or "/"}
    else:
        texts = [variables.converted(word) for word in words[1:]]
        if inner and "bind" in server.keys:  # not its port in the container
            texts = [re.sub(rf"(?<![\w.-]){inner}(?![\w.])", PORT, text) for text in texts]
        probe = {"exec": ["sh", "-c", *texts] if words[0] == "CMD-SHELL" else texts}
    server.set("health", {"readiness": probe})
    check.apply(server, rows=_PROBE)
    readiness = server.keys["health"]["readiness"]
    period = _seconds(server.keys.pop("start_timeout", ""))
    interval = _seconds(readiness.get("interval", "")) or DEFAULT_INTERVAL
    limit = period + interval * (readiness.get("fall_count_ko", DEFAULT_RETRIES - 1) + 1)
    if limit > START_TIMEOUT:  # until then, the container is not called unhealthy
        server.set("start_timeout", f"{limit:g}s")


START_TIMEOUT = 30  # of poolctl, in seconds
DEFAULT_INTERVAL, DEFAULT_RETRIES = 30, 3  # of a health check
FILE: Table = {
    **Becomes.nothing("an extension, which compose ignores as well", "x-*", "*.x-*"),
    **Becomes.nothing("compose ignores it", "version"),
    **Becomes.nothing("of the project: poolctl names a pool after its directory", "name"),
    **Becomes.nothing("servers share the network of this machine", "networks"),
}
SERVICE: Table = {
    "command": _Reader._apply_command,
    "stop_grace_period": Becomes("stop_timeout"),
    "stop_signal": Becomes("stop_signal", signal_name),
    "user": Becomes("user", lambda value: escaped(value) if re.match("[A-Za-z_]", value) else ""),
    "env_file": _Reader._env_files,
    "restart": _restart,
    "deploy.replicas": Becomes("workers", int),
    "deploy.resources.limits.memory": Becomes("limits.memory", _size, default="0"),
    # Compose refuses a file in which these have other values.
    "scale": Becomes("workers", int, unless_set=True),
    "mem_limit": Becomes("limits.memory", _size, unless_set=True),
    "ulimits.nofile": Becomes("limits.open_files", int),
    "ulimits.nofile.soft": Becomes("limits.open_files", int),
    "logging.options.max-size": Becomes("log.max_size", _size),
    "logging.options.max-file": Becomes("log.keep", int),
    "deploy": _disable,
    "labels": _Reader._labels,
    "stdin_open": _Reader._stdin,
    "profiles": _Reader._profiles,
    "ports": _Reader._ports,
    "deploy.mode": Becomes(default="replicated"),
    "deploy.resources.limits.cpus": Becomes(default="0"),
    "logging.driver": Becomes(default="json-file"),
    "privileged": Becomes(default=False),
    "read_only": Becomes(default=False),
    **Becomes.advised("a server is called by the name of its service", "container_name"),
    **Becomes.advised("its files have to be where the program looks for them", "volumes"),
    **Becomes.advised("other services reach it at 127.0.0.1", "hostname"),
    **Becomes.advised("a directory of the container; cwd is the working directory", "working_dir"),
    **Becomes.nothing("an extension, which compose ignores as well", "x-*", "*.x-*"),
    **Becomes.nothing("the name of the image that is built; a remark names one that is not", "image"),
    **Becomes.nothing("servers share the network of this machine", "networks"),
    **Becomes.nothing("of networks between containers: here servers reach each other at 127.0.0.1", "expose"),
    **Becomes.nothing("the keeper reaps the processes that a program leaves behind", "init"),
    **Becomes.nothing("the output of a server goes to its log", "tty"),
}
_RESTART_POLICY: Table = {
    "condition": Becomes("restart.policy", {"none": "no", "any": "always", "on-failure": "on-failure"}.get),
    "max_attempts": Becomes("restart.limit", int),
    "delay": Becomes("restart.backoff.initial", _duration),
    "window": Becomes("restart.window", _duration),
}
_PROBE: Table = {
    "interval": Becomes("health.readiness.interval", _duration),
    "timeout": Becomes("health.readiness.timeout", _duration),
    # Here the first failure is only a warning; later failures count.
    "retries": Becomes("health.readiness.fall_count_ko", lambda value: max(int(value) - 1, 1)),
    "start_period": Becomes("start_timeout", _duration),
}
_instruction = re.compile(r"(?i)(FROM|CMD|ENTRYPOINT|ENV|STOPSIGNAL|HEALTHCHECK)\s+(.*)", re.DOTALL)
_option_of_check = re.compile(r"--([a-z-]+)=(\S+)\s+")
_from = re.compile(r"(?i)(?:--\S+\s+)*(\S+)(?:\s+AS\s+(\S+))?\s*")


def stage_of(text: str, target: str) -> dict[str, Any]:
    """The instructions of stage `target` of a Dockerfile, else of its last stage: the last of each, and all of ENV."""
    text = re.sub(r"(?m)^[ \t]*#.*\n?", "", text)
    stages: dict[str, dict[str, Any]] = {}
    name, stage = "", {}
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
            stage = stages.get(image, {})
        elif kind == "ENV":
            stage = {**stage, "ENV": {**stage.get("ENV", {}), **_image_variables(rest)}}
        elif kind == "ENTRYPOINT":
            stage = {**stage, "ENTRYPOINT": rest, "CMD": ""}
        else:
            stage = {**stage, kind: rest}
        stages[name] = stage
    return stage


def _health_check(instruction: str) -> dict[str, Any]:
    """A HEALTHCHECK in the form that it has in a compose file; {} for none."""
    check: dict[str, Any] = {}
    while option := _option_of_check.match(instruction):
        check[option[1].replace("-", "_")] = option[2]
        instruction = instruction[option.end() :]
    kind, _, command = instruction.partition(" ")
    if kind.upper() != "CMD":
        return {}
    words = _instruction_words(command.strip())
    words = ["CMD-SHELL", words[2]] if words[:2] == ["sh", "-c"] else ["CMD", *words]
    return {**check, "test": [word.replace("$", "$$") for word in words]}


def _instruction_words(text: str) -> list[str]:
    """The words of CMD, ENTRYPOINT and the command of a HEALTHCHECK; [] for none."""
    if text.startswith("["):
        try:
            return [str(word) for word in json.loads(text)]
        except ValueError:
            pass
    return ["sh", "-c", text] if text else []


def _image_variables(env_arguments: str) -> dict[str, str]:
    try:
        words = shlex.split(env_arguments)
    except ValueError:
        return {}
    if words and "=" not in words[0]:
        return {words[0]: " ".join(words[1:])}
    return dict(word.partition("=")[::2] for word in words if "=" in word)
