"""The keys of one server, validated and immutable."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

from pydantic import Field, ModelWrapValidatorHandler, PrivateAttr, Strict, Tag, model_validator

from poolctl.address import Address
from poolctl.config.model import server_tables
from poolctl.config.model.section import (
    Section,
    checked,
    forms_of,
    is_within_validation,
    long_form,
    refuse,
    with_feature_keys,
)
from poolctl.config.model.server_tables import (
    Dependency,
    EnvFile,
    Health,
    Hooks,
    Http,
    Limits,
    Log,
    Recovery,
    RecoveryStrategy,
    Restart,
    RestartPolicy,
    TLSConfig,
    Watch,
)
from poolctl.config.values.normalise import add_derived_values, nul_findings
from poolctl.config.values.plain import (
    EMPTY,
    HOOKS,
    MAX_WORKERS,
    PLACEHOLDERS,
    PROBES,
    PROXIED,
    binds_itself,
    exposed_url,
    number_if_interpolated,
    placeholders,
)
from poolctl.config.values.problems import (
    Finding,
    KeyPath,
    Tree,
    key_of_another_tool,
    reset_suggestions,
    shown,
)
from poolctl.config.values.secrets import masked_arguments
from poolctl.config.values.toml_text import json_text
from poolctl.config.values.value_types import (
    TABLE,
    TEXT,
    TRUTH,
    Accepts,
    Account,
    App,
    ArgumentOrNone,
    Duration,
    Environment,
    Expose,
    Expression,
    FileMode,
    FilePath,
    Interpreter,
    Labels,
    Name,
    OrSingle,
    Positive,
    Schedule,
    ServerBind,
    Short,
    Text,
    Truth,
    Umask,
    UrlPath,
    Words,
    by_form,
)

if TYPE_CHECKING:
    from poolctl.config.model.server_tables import Scale as Scale
else:
    Scale = with_feature_keys(server_tables.Scale)


class AutomaticPort:
    """The choice of a port in place of `auto`, which all copies of a configuration share.

    It `is_reserved` until a server has been started on it.
    """

    __slots__ = ("__weakref__", "is_reserved", "port_range")

    def __init__(self, port_range: str) -> None:
        self.port_range = port_range
        self.is_reserved = True

    def __repr__(self) -> str:
        return f"<AutomaticPort of {self.port_range}>"


def _names_or_table(names: Any) -> str:
    return ", ".join(f'"{name}"' for name in get_args(names)) + ", or a table"


# Keys set only by poolctl, not by files.
_INTERNAL_KEYS = frozenset({"address", "base_dir", "handlers", "derived_expose", "lacks_environment"})
WORKERS_ALLOWED = f"at least 1, at most {MAX_WORKERS}"
_NAME = Short("name", 'the name of a server, or { name = "db", condition = "started" }')
_PROBED_PATH = Short("readiness.http", 'a path such as "/ready", or a table', UrlPath)
_POLICY = Short("policy", _names_or_table(RestartPolicy), RestartPolicy, "no")
_STRATEGY = Short("strategy", _names_or_table(RecoveryStrategy), RecoveryStrategy)
_ServerTLS = Annotated[
    Annotated[Truth, Tag(TRUTH)] | Annotated[TLSConfig, Tag(TABLE)],
    by_form('true, false, or { cert = "FILE", key = "FILE" }'),
]
_EnvFile = Annotated[
    Annotated[FilePath, Tag(TEXT)] | Annotated[EnvFile, Tag(TABLE)],
    by_form('a path, or { path = "FILE", expand = false }'),
]


class ServerConfig(Section, frozen=True):
    """One server of the pool. All paths are absolute, durations in seconds, sizes in bytes.

    The constructor resolves relative paths from the working directory. For invalid values and unknown keywords it
    raises PoolValidateError, which lists every problem.
    """

    name: Name = Field(examples=["web"])
    """Unique in the pool; letters, digits, dots, underscores and hyphens."""
    bind: ServerBind = Field(default_factory=str)
    """The address that it listens on, unique in the pool. A job has no address, nor has a program without a port."""
    expose: Expose = Field(default_factory=str)
    """The address that clients use: a URL. Left out: derived from bind and tls."""
    app: App = None
    """The ASGI or WSGI application: "module:attribute"."""
    factory: Truth = False
    """Whether app is a function that returns the application."""
    interface: Literal["auto", "asgi", "wsgi"] = "auto"
    """How the app is called; auto takes an app that requires two arguments for one of WSGI."""
    app_dir: FilePath = "."
    """The directory, or ZIP archive, that goes first on the import path."""
    python: Interpreter | None = None
    """The interpreter or virtual environment of the app, and of the programs that a command finds. Left out: an active
    environment below the file, then .venv beside the file, then another active one, then poolctl's own.
    """
    command: ArgumentOrNone = Field(default=None, validate_default=True)
    """A program to run instead of an app; {fd}, {port}, {host}, {bind} and {name} are replaced."""
    socket: Literal["pool", "program", "proxied"] = "pool"
    """Who opens the listening socket of a command: the pool, or a program that is given its address and opens it
    itself. proxied: each process opens a port of its own ({port}, PORT), and HAProxy forwards connections to those
    that are ready.
    """
    backend_protocol: Literal["http/1.1", "h2"] = "http/1.1"
    """What the gateway speaks with a command: "h2" for HTTP/2, such as gRPC, also without TLS."""
    forward: Literal["http", "tcp"] = "http"
    """What HAProxy forwards to a proxied command: requests of HTTP, or connections."""
    socket_mode: FileMode = "0666"
    """The mode of the file of a Unix socket, whatever the umask. Who can enter its directory, and may write by this
    mode, can connect.
    """
    socket_owner: Account | None = None
    """The user, or "user:group", that the file of a Unix socket belongs to. Left out: the user that the server runs
    as.
    """
    stdin: Literal["null", "open"] = "null"
    """The standard input of a command: /dev/null, or a pipe that never ends."""
    notify: Truth = False
    """The command reports READY=1 on NOTIFY_SOCKET when it is ready."""
    ready_line: Annotated[Expression, Field(min_length=1)] | None = None
    """A regular expression: a command is ready when it has printed a line that matches, within the first 4 KiB of the
    line and without colors.
    """
    ready_after: Duration = Field(default="1s", validate_default=True)
    """How long a program without a port, a probe, notify and ready_line has to run until it is ready."""
    job: Truth = False
    """The command runs to completion and has no address."""
    every: Schedule | None = None
    """When a job runs: minute, hour, day, month and weekday as in cron, such as "0 3 * * *", in the pool's time zone
    (TZ).
    """
    overlap: Truth = True
    """Whether old and new workers may run at the same time during a restart."""
    handler_key: str = ""
    """The key of the application that [pool] handlers returns for this server."""
    env: Environment = Field(default=EMPTY, validate_default=True)
    """Environment variables; they take precedence over env_file. For a command, {port}, {host} and {bind} are
    replaced.
    """
    env_file: Accepts[
        Annotated[tuple[_EnvFile, ...], Strict(False), OrSingle()], str | Sequence[str | EnvFile]
    ] = Field(default=(), validate_default=True)
    """Files of environment variables; later files take precedence. ${NAME} and ${NAME:-default} are replaced, except
    in files of the form { path, expand = false }. Left out: .env next to the file, if it exists.
    """
    cwd: FilePath = "."
    """The working directory. Left out: the directory of the file."""
    user: Account | None = None
    """The user, or "user:group", that the server runs as; needs root."""
    umask: Umask | None = None
    """The umask of its processes, such as "0027". Left out: the umask of the shell that started the pool."""
    scale: Scale = Scale()
    """The number of workers."""
    preload: Truth = False
    """Import the app once, and fork the workers from that process."""
    tags: Words = Field(default=(), validate_default=True)
    """Words by which commands select the server."""
    labels: Labels = Field(default=EMPTY, validate_default=True)
    """Names and values for other tools; labels that begin with route. define a route of the gateway."""
    disabled: Truth = False
    """The server is listed and never started."""
    on_demand: Truth = False
    """The server is started by its name, or by a server that depends on it, but not with all others."""
    mandatory: Truth = False
    """Whether the whole pool stops when this server has failed."""
    depends_on: Accepts[
        Annotated[
            tuple[
                Annotated[
                    Dependency,
                    _NAME,
                ],
                ...,
            ],
            Strict(False),
        ],
        Sequence[str | Dependency],
    ] = Field(default=(), validate_default=True)
    """The servers that this one waits for when it starts."""
    tls: _ServerTLS = False
    """false, true for the certificate of [defaults.tls] or set_default_tls, or a table of its own."""
    http: Http = Http()
    """How HTTP is served."""
    start_timeout: Positive = Field(default="30s", validate_default=True)
    """Maximum time until the server is ready."""
    stop_timeout: Duration = Field(default="10s", validate_default=True)
    """Maximum time that its processes take to end; after that they are killed."""
    stop_signal: (
        Literal["SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH"] | None
    ) = None
    """The signal that asks a command to stop. Left out: SIGTERM."""
    reload_signal: (
        Literal["SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH"] | None
    ) = None
    """The signal by which its processes read their own files again: `reload NAME` sends it if the keys of the server
    are unchanged, and `--watch` instead of a restart.
    """
    stop_group: Literal["after", "together", "leader"] = "after"
    """Which processes of a command get its stop signal: its leader, and after that has ended the rest of its group;
    all of them together; or the leader alone.
    """
    drain_timeout: Duration = Field(default="30s", validate_default=True)
    """Maximum time for its connections to end when a worker is stopped."""
    hooks: Hooks | None = None
    """Commands that run once at an ordered start and stop of the server, not at a restart, a crash or a wake."""
    health: Annotated[Accepts[Health, Health | str], _PROBED_PATH] = Field(
        default=Health(), validate_default=True
    )
    """The probes; a string is the path of the readiness probe: "/ready"."""
    restart: Annotated[
        Accepts[Restart, Restart | RestartPolicy],
        _POLICY,
    ] = Field(default=Restart(), validate_default=True)
    """Whether a worker is started again after it has ended; a string is the policy: "always"."""
    recovery: Annotated[
        Accepts[Recovery, Recovery | RecoveryStrategy],
        _STRATEGY,
    ] = Field(default=Recovery(), validate_default=True)
    """What is done when liveness is ko or a worker is stuck; a string is the strategy: "replace"."""
    limits: Limits = Limits()
    """Resources that a worker may use."""
    log: Log = Log()
    """Where its output is written."""
    watch: Watch | None = None
    """The files besides code that `--watch` watches, and the files that it ignores."""

    image: Text | None = None
    """The image with the application, for an export to a cluster."""

    _address: Address = PrivateAttr()
    _base_dir: str = PrivateAttr("")
    _handlers: str | None = PrivateAttr(None)
    _derived_expose: bool = PrivateAttr(False)
    _lacks_environment: bool = PrivateAttr(False)
    _automatic_port: AutomaticPort | None = PrivateAttr(None)
    _before_references: dict[str, Any] = PrivateAttr({})

    if TYPE_CHECKING:
        # The minimum number of workers while the server is awake: scale.min, or 1 if scale.min is 0. As an argument,
        # it is short for a scale of as many workers.
        workers: int = 1
    else:

        @property
        def workers(self) -> int:
            return max(self.scale.min, 1)

    @model_validator(mode="wrap")
    @classmethod
    def _refuse_with_every_problem(cls, data: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(data, dict):
            return validate(data)
        if is_within_validation():
            return cls._filled(data, validate)
        reset_suggestions()
        findings = nul_findings(data)
        base_dir = os.getcwd()
        table = normalised(data, base_dir, findings)
        add_derived_values(table, base_dir, findings)
        server = checked(cls, table, findings, lambda values: cls._filled(values, validate))
        if findings or server is None:
            name, bind = data.get("name"), data.get("bind", data.get("listen"))
            who = name if name and isinstance(name, str) else "the server"
            refuse(who[:60], findings, who if name else "", bind if isinstance(bind, str) else "")
        return server

    @classmethod
    def _filled(cls, table: dict[str, Tree], validate: ModelWrapValidatorHandler[Self]) -> Self:
        server = validate({key: value for key, value in table.items() if key not in _INTERNAL_KEYS})
        return server._set_by_program(**{name: table[name] for name in _INTERNAL_KEYS & table.keys()})

    def rules(self) -> Iterable[Iterable[Finding]]:
        return (rule(self) for rule in RULES)

    def _set_by_program(self, **values: Any) -> Self:
        for name, value in values.items():
            setattr(self, f"_{name}", value)
        return self

    @property
    def address(self) -> Address:
        """The address of `bind`."""
        return self._address

    @property
    def automatic_port(self) -> AutomaticPort | None:
        """The choice of the port in a Python program; None if the port was given, or is not chosen yet."""
        return self._automatic_port

    @property
    def base_dir(self) -> str:
        """The directory of the server's file."""
        return self._base_dir

    @property
    def handlers(self) -> str | None:
        """The `handlers` of [pool], for a server without an app."""
        return self._handlers

    @property
    def derived_expose(self) -> bool:
        """Whether `expose` follows from the address, because it was not given."""
        return self._derived_expose

    @property
    def lacks_environment(self) -> bool:
        """Whether a server of a file runs in poolctl's own environment, because there is no other."""
        return self._lacks_environment

    @property
    def values_of_program(self) -> dict[str, Any]:
        """The values that the program sets, as the table of a server has them before it is validated."""
        return {name: getattr(self, f"_{name}") for name in sorted(_INTERNAL_KEYS)}

    @classmethod
    def keys_in_files(cls) -> tuple[str, ...]:
        """The keys that files can set, including the short form `workers` and the other name `listen`."""
        names = list(super().keys_in_files())
        names.insert(names.index("scale"), "workers")
        names.insert(names.index("bind") + 1, "listen")
        return tuple(names)

    @property
    def stop_signal_number(self) -> int:
        """The number of the signal that stops the server's processes."""
        return signal.Signals[self.stop_signal or "SIGTERM"]

    @property
    def key(self) -> str:
        """The server's key in the pool: its canonical bind address, `job:NAME` or `process:NAME`."""
        return self.bind

    @property
    def idle_seconds(self) -> float:
        """The seconds without traffic after which the server sleeps; 0 means never."""
        return 0.0 if self.scale.min else self.scale.idle

    @property
    def restart_policy(self) -> RestartPolicy:
        """The exits after which a worker is started again: `restart.policy` or, if left out, its default.

        A server with an address is expected to serve for ever; a job or a program without one may come to its end.
        """
        return self.restart.policy or ("always" if self.listens else "on-failure")

    @property
    def listens(self) -> bool:
        """Whether the server has an address. A job, or a program that runs indefinitely without a port, has none."""
        return self.address.listens

    @property
    def is_ready_by_running(self) -> bool:
        """Whether the only sign that the server's program is ready is that it keeps running."""
        has_sign = self.notify or self.ready_line is not None or self.health.gated
        return bool(self.command) and not (self.listens or self.job or has_sign)

    @property
    def binds_itself(self) -> bool:
        """Whether the server's command is given the address, and opens the listening socket itself."""
        return binds_itself(self.command, self.env, self.socket)

    @property
    def is_proxied(self) -> bool:
        """Whether each process of the command listens at a port of its own, to which HAProxy forwards."""
        return self.socket == PROXIED

    def at_private_address(self, address: Address) -> Self:
        """A copy of a proxied server for one of its processes, which opens this address itself."""
        return self.at(address).model_copy(update={"socket": "program"})

    @property
    def env_file_paths(self) -> tuple[str, ...]:
        """The paths of its env files."""
        return tuple(file if isinstance(file, str) else file.path for file in self.env_file)

    @property
    def probe_and_hook_commands(self) -> dict[KeyPath, tuple[str, ...]]:
        """The commands of the probes and hooks, each by the path of its key."""
        probes = ((kind, getattr(self.health, kind)) for kind in PROBES)
        commands: dict[KeyPath, Any] = {
            ("health", kind, "exec"): probe.exec for kind, probe in probes if probe
        }
        commands |= {("hooks", name): getattr(self.hooks, name) for name in HOOKS if self.hooks}
        return {path: command for path, command in commands.items() if command}

    @property
    def address_variables(self) -> dict[str, str]:
        """The environment variables that tell a command its address; {} if it has no host and port."""
        if not self.command or self.address.kind != "tcp":
            return {}
        return {"HOST": self.address.host, "PORT": str(self.address.port)}

    @property
    def takes_pool_socket(self) -> bool:
        """Whether the server's command accepts connections from the pool's listener, which all its workers share."""
        return bool(self.command) and self.listens and not (self.binds_itself or self.is_proxied)

    @property
    def may_overlap(self) -> bool:
        """Return whether old and new workers may run together during a restart. False if `overlap` is false.

        A program that binds its address itself may not overlap, because both workers need the same address. A program
        without a port and with one worker may overlap only if it notifies when it is ready: it may be a scheduler.
        """
        if self.command and not (self.takes_pool_socket or self.is_proxied):
            return self.overlap and not self.listens and (self.workers > 1 or self.notify)
        return self.overlap

    def to_dict(self) -> dict[str, Tree]:
        """The complete configuration as it would be written in a file: seconds, bytes, absolute paths, no None."""
        table = super().to_dict()
        if self.app is not None:
            app = self.app if isinstance(self.app, str) else repr(self.app)
            table = {"name": self.name, "app": app} | table | {"app": app}
        if not self.listens:
            del table["bind"], table["expose"]
        if self.lacks_environment and not self.command:
            table.setdefault("python", sys.executable)
        if not self.command:
            del table["stop_group"], table["stdin"], table["backend_protocol"]
        if not self.is_proxied:
            del table["forward"]
        if self.address.kind != "unix":
            del table["socket_mode"]
        if not self.is_ready_by_running:
            del table["ready_after"]
        table["restart"] = {"policy": self.restart_policy, **table["restart"]}
        return table

    def replace(self, /, **changes: Any) -> Self:
        """Return a validated copy of the server, with the given keywords as new values. Raises PoolValidateError."""
        written = self.before_references()
        values = {key: getattr(written, key) for key in self.model_fields_set}
        if self.derived_expose:
            values.pop("expose", None)
        if "listen" in changes or not self.listens:
            values.pop("bind", None)
        if "workers" in changes:
            values.pop("scale", None)
        server = type(self)(**(values | changes))
        preserved: dict[str, Any] = {"base_dir": self.base_dir, "handlers": self.handlers}
        preserved["lacks_environment"] = server.python is None and self.lacks_environment
        if server.bind == self.bind and not changes.keys() & {"bind", "listen"}:
            # Keep the address: `:8080` and `0.0.0.0:8080` have the same key, but differ.
            preserved["address"], preserved["automatic_port"] = self.address, self.automatic_port
        return server._set_by_program(**preserved)

    def validate(self, *, import_app: bool = True) -> None:  # type: ignore[override]
        """Check references outside the file: other files, certificates, interpreter, importable app.

        Blocks for as long as the app takes to import. Raises PoolValidateError with every problem.
        """
        # Imported here, because loading files does not need it.
        from poolctl.config import ExternalChecks, Tables, secret_variable_names

        checks = ExternalChecks(os.environ, withheld=secret_variable_names([self], Tables()))
        checks.check([self], import_apps=import_app)
        if checks.problems:
            refuse(self.name, [finding for _, finding in checks.problems], self.name, self.bind)

    def at(self, address: Address, automatic_port: AutomaticPort | None = None) -> Self:
        """A copy of the server with another address, for example with the port that was chosen for `auto`."""
        changes: dict[str, Tree] = {"bind": address.key}
        if self.derived_expose:
            changes["expose"] = exposed_url(address, bool(self.tls))
        return self.model_copy(update=changes)._set_by_program(address=address, automatic_port=automatic_port)

    def with_references_replaced(self, changes: Mapping[str, Any]) -> Self:
        """A copy with these values, from which references are resolved. `before_references` returns the original."""
        before = self._before_references or {name: getattr(self, name) for name in changes}
        return self.model_copy(update=changes)._set_by_program(before_references=before)

    def before_references(self) -> Self:
        """The server with its references to other servers instead of their addresses, which may have changed."""
        before = self._before_references
        return self.model_copy(update=before)._set_by_program(before_references={}) if before else self

    def __hash__(self) -> int:
        return hash((self.name, self.bind))

    def __repr__(self) -> str:
        serves = f"app={self.app}" if self.app is not None else ""
        if self.command:
            serves = f"command={' '.join(masked_arguments(self.command))}"
        elif self.handler_key:
            serves = f"handler_key={self.handler_key}"
        return f"<ServerConfig {' '.join(part for part in (self.name, self.bind, serves) if part)}>"

    __str__ = __repr__


TAKE_THE_SOCKET = (
    'let the program take the socket ({fd}, or LISTEN_FDS), write socket = "proxied", or write workers = 1'
)
# Keys of a server for the file of a Unix socket.
SOCKET_FILE_KEYS = ("socket_mode", "socket_owner")


def _keys_of_apps_and_commands(server: ServerConfig) -> Iterator[Finding]:
    written = server.model_fields_set
    if server.command is None:
        for key, without in (("notify", False), ("job", False), ("socket", "pool"), ("stdin", "null")):
            if key in written and (value := getattr(server, key)) != without:
                text = f"{key} = {json_text(value)}"
                yield Finding((key,), f"{text} needs a command", 'add command = ["prog", …]')
        for key in ("stop_signal", "stop_group"):
            if key in written and getattr(server, key) is not None:
                fix = "take it out: the worker of an app ends in order by itself"
                yield Finding((key,), f"{key} is for a command", fix)
        if "backend_protocol" in written:
            message = "backend_protocol is for a command: an app speaks HTTP/1.1 with the gateway"
            yield Finding(("backend_protocol",), message, "take it out")
    else:
        if "app" in written and server.app is not None:
            yield Finding(("command",), "both 'app' and 'command' are given", "keep one of them")
        if "handler_key" in written and server.handler_key:
            yield Finding(("handler_key",), "a command has no handler", "keep 'command' or 'handler_key'")
        if "tls" in written and server.tls:
            fix = "take tls out, and give the program its certificates in its own way"
            yield Finding(("tls",), "a command speaks TLS itself, or does not", fix)


def _forwarded_connections(server: ServerConfig) -> Iterator[Finding]:
    if "forward" in server.model_fields_set and not server.is_proxied:
        message = "forward is for a command whose connections HAProxy forwards"
        yield Finding(("forward",), message, 'add socket = "proxied", or take it out')


def _factory_of_an_app(server: ServerConfig) -> Iterator[Finding]:
    if server.factory and server.app is None:
        yield Finding(("factory",), "factory = true needs an app", 'add app = "module:function"')


def _schedule(server: ServerConfig) -> Iterator[Finding]:
    if server.every is None:
        return
    if not server.job:
        command = "" if server.command else ', and command = ["prog", …] instead of an app'
        message = "every is for a job: a command that runs to its end"
        yield Finding(("every",), message, f"add job = true{command}")
        return
    if server.mandatory:
        message = "mandatory ends the pool when a server has failed, and a job with every runs again after a failed run"
        yield Finding(("mandatory",), message, "take mandatory out, and have [[notify]] report a failed run")
    if server.hooks and (server.hooks.before_start or server.hooks.after_stop):
        message = "hooks belong to a start and a stop, which runs at certain times (every) do not have"
        yield Finding(("hooks",), message, "take hooks out, and let the command do it")


def _socket_of_gunicorn(server: ServerConfig) -> Iterator[Finding]:
    words = server.command or ()
    # As in `uv run gunicorn` and `python3 -m gunicorn`.
    if any(word.rpartition("/")[2] == "gunicorn" for word in words[:3]):
        for index, word in enumerate(words):
            if "fd://" in word or "{fd}" in word:
                message = f"gunicorn takes the socket from LISTEN_FDS, and {shown(word)} would pass it a second time"
                yield Finding(("command", index), message, "leave out its --bind", word)


def _keys_of_jobs(server: ServerConfig) -> Iterator[Finding]:
    if not (server.job and server.command):
        return
    if "socket" in server.model_fields_set and server.is_proxied:
        yield Finding(("socket",), "a job has no address to be forwarded", "take it out")
    if server.scale.min > 1:
        message = f"a job runs once, and this is {server.scale.min} workers"
        yield Finding(("scale",), message, "write workers = 1")


def _keys_of_scaling(server: ServerConfig) -> Iterator[Finding]:
    scale, is_command = server.scale, server.command is not None
    for finding in scale.findings_in_server(is_command=is_command, may_overlap=server.overlap):
        yield finding._replace(path=("scale", *finding.path))


def _missing_address(server: ServerConfig) -> str:
    """The settings of a program without `bind` that need an address, joined for a message; "" if none does."""
    command = server.command or ()
    used = {mark for word in (*command, *server.env.values()) for mark in placeholders(word)}
    needing_address = [mark for mark in PLACEHOLDERS if mark in used]
    needing_address += ["{fd}"] * any(placeholders(word, ["{fd}"]) for word in command)
    if not server.derived_expose:
        needing_address.append("expose")
    needing_address += ["tls"] * bool(server.tls)
    needing_address += [f'socket = "{server.socket}"'] * (server.socket != "pool")
    needing_address += ["scale.idle"] * bool(server.scale.idle)
    for kind in PROBES:
        if (probe := getattr(server.health, kind)) is not None:
            needing_address += [f"health.{kind} ({key})" for key in ("http", "tcp") if getattr(probe, key)]
    return " and ".join(filter(None, (", ".join(needing_address[:-1]), *needing_address[-1:])))


def _address(server: ServerConfig) -> Iterator[Finding]:
    address = server.address
    if address.kind == "process":
        if server.command is None:
            fix = 'add bind = "127.0.0.1:8080", or another address'
            yield Finding(("bind",), "'bind' is missing", fix)
            return
        if listed := _missing_address(server):
            is_one = " and " not in listed
            message = f"'bind' is missing, and {listed} need{'s' * is_one} an address"
            fix = 'add bind = "127.0.0.1:8080"'
            if server.socket == "pool":
                probed = ", and is probed with exec" * ("health." in listed)
                fix = f"{fix}, or take {listed} out: a program without a port needs no bind{probed}"
            yield Finding(("bind",), message, fix)
            return
    if address.kind != "unix":
        for key in SOCKET_FILE_KEYS:
            if key in server.model_fields_set and getattr(server, key) is not None:
                yield no_socket_file((key,), address)
    yield from _unfilled_placeholders(server)


def _readiness_by_running(server: ServerConfig) -> Iterator[Finding]:
    obstacle = ""
    if "ready_after" not in server.model_fields_set:
        return
    if server.command is None:
        obstacle = "an app is ready when it has started"
    elif server.job:
        obstacle = "a job is ready when it has ended"
    elif server.listens:
        obstacle = "a program with an address is ready when it accepts connections"
    elif server.notify:
        obstacle = "with notify, a program is ready when it says so"
    elif server.ready_line is not None:
        obstacle = "with ready_line, a program is ready when it has printed that line"
    elif server.health.gated:
        obstacle = "with a startup or readiness probe, a program is ready when it has passed"
    if obstacle:
        yield Finding(("ready_after",), f"ready_after has no effect: {obstacle}", "take it out")


def _readiness_by_output(server: ServerConfig) -> Iterator[Finding]:
    if server.ready_line is None:
        return
    if server.command is None:
        message = "ready_line is for a command: an app is ready when it has started"
        yield Finding(("ready_line",), message, "take it out")
    elif server.job:
        message = "ready_line is for a program that runs on: a job is ready when it has ended"
        yield Finding(("ready_line",), message, "take it out")
    elif server.notify:
        message = "ready_line and notify are two ways to say that a program is ready"
        yield Finding(("ready_line",), message, "keep one of them")


def _processes_of_commands(server: ServerConfig) -> Iterator[Finding]:
    if not server.command or not (server.listens or server.job or server.scale.min == 0):
        return
    address, min_workers = server.address, server.scale.min
    if min_workers == 0:
        if not server.listens:
            what = "a job" if server.job else "a program without 'bind'"
            yield Finding(("scale", "min"), f"{what} is not woken by a request", "write workers = 1")
        elif server.binds_itself:
            message = "a program that binds by itself has no listener while it sleeps"
            yield Finding(("scale", "min"), message, TAKE_THE_SOCKET)
        elif server.scale.idle:
            message = (
                "the traffic of a command is not seen, so that it can wake, but not go to sleep when idle"
            )
            yield Finding(("scale", "idle"), message, "write idle = 0, or leave it out")
    if server.listens and server.binds_itself:
        if address.kind != "tcp":
            yield _missing_port(server)
        if min_workers > 1:
            message = f"{min_workers} processes cannot all bind {address.key}"
            yield Finding(("scale",), message, TAKE_THE_SOCKET)


def is_of_shared_address(finding: Finding) -> bool:
    """Whether the problem is that several processes of a program would bind one address of this machine."""
    return finding.path == ("scale",) and finding.hint == TAKE_THE_SOCKET


def _missing_port(server: ServerConfig) -> Finding:
    key, fix = server.address.key, "let it take the socket: {fd}, or LISTEN_FDS"
    named = [("env", name) for name, value in server.env.items() if placeholders(value)]
    if any(map(placeholders, server.command or ())) or named:
        message = f"{key} has no host and port for {{port}}, {{host}} and {{bind}}"
        return Finding(named[0] if named else ("command",), message, fix)
    return Finding(("socket",), f'socket = "program" is for a host and port, and this is {key}', fix)


def _unfilled_placeholders(server: ServerConfig) -> Iterator[Finding]:
    """The problems of probes and hooks that ask for a host and a port of an address without them."""
    if server.address.kind == "tcp":
        return
    needed = [mark for mark in PLACEHOLDERS if mark != "{bind}" or not server.listens]
    for path, words in server.probe_and_hook_commands.items():
        unfilled = {mark for word in words for mark in placeholders(word, needed)}
        if unfilled:
            marks = " and ".join(mark for mark in needed if mark in unfilled)
            message = f"{server.address.key} has no host and port for {marks}"
            yield Finding(path, message, "take it out, or double the braces to pass it on as it is")


def no_socket_file(path: KeyPath, address: Address) -> Finding:
    """The problem of a key for the file of a Unix socket, where the address is another."""
    fix = "take it out, or bind a Unix socket: unix:/PATH"
    if address.kind == "fd":
        fix = "take it out, and write SocketMode=, SocketUser= and SocketGroup= into the .socket unit"
    actual = f"the address is {address.key}" if address.listens else "it has no address"
    return Finding(path, f"{path[-1]} is for the file of a Unix socket, and {actual}", fix)


# Rules about several keys of a server. A rule is skipped if it reads an invalid key, so each reads only a few.
RULES: tuple[Callable[[ServerConfig], Iterable[Finding]], ...] = (
    _keys_of_apps_and_commands,
    _forwarded_connections,
    _factory_of_an_app,
    _schedule,
    _socket_of_gunicorn,
    _keys_of_jobs,
    _keys_of_scaling,
    _address,
    _readiness_by_running,
    _readiness_by_output,
    _processes_of_commands,
)


def normalised(table: Mapping[str, Tree], base_dir: str, findings: list[Finding]) -> dict[str, Tree]:
    """The table of a server (or of the defaults) of a file in `base_dir`, with every key in its long form."""
    normal = dict(table)
    for key in _INTERNAL_KEYS & normal.keys():
        unknown = Finding((key,), f"unknown key {key!r}", "take it out", shown(normal.pop(key)))
        findings.append(key_of_another_tool((key,), "") or unknown)
    if "listen" in normal:
        bind = normal.pop("listen")
        if "bind" in normal:
            message = "both 'listen' and 'bind' are given"
            findings.append(Finding(("listen",), message, "they mean the same: keep 'bind'"))
        normal.setdefault("bind", bind)
    normal = long_form(ServerConfig, normal, base_dir)
    if "workers" in normal:
        findings += _expand_workers(normal)
    return normal


def _expand_workers(table: dict[str, Tree]) -> Iterator[Finding]:
    written = table.pop("workers")
    workers = number_if_interpolated(written)
    number = isinstance(workers, int) and not isinstance(workers, bool)
    if "scale" in table:
        yield Finding(("workers",), "both 'workers' and 'scale' are given", "keep one of them")
    elif number and 1 <= workers <= MAX_WORKERS:
        table["scale"] = {"min": workers, "max": workers}
    else:
        hint = f"allowed is {WORKERS_ALLOWED}" if number else "expected a whole number"
        if workers in ("auto", "max"):
            count = len(os.sched_getaffinity(0))
            hint = f"one for each processor of this machine is workers = {count}"
        message = f"{shown(written)} is not allowed here"
        yield Finding(("workers",), message, hint, shown(written), WORKERS_ALLOWED)


def relocated(table: dict[str, Tree], base_dir: str, new_dir: str) -> dict[str, Tree]:
    """Return a server's table for a file in `new_dir` instead of `base_dir`: relative paths are made absolute."""
    if os.path.abspath(base_dir) == os.path.abspath(new_dir):
        return table
    moved = dict(table)
    forms = forms_of(ServerConfig)
    for key, value in table.items():
        form = forms.get("bind" if key == "listen" else key)
        # The value of a reference is not known yet.
        if form is not None and form.has_paths and "${" not in str(value):
            moved[key] = form.long(value, base_dir)
    # Their defaults depend on the directory.
    moved.setdefault("cwd", base_dir)
    if "command" not in moved:
        moved.setdefault("app_dir", base_dir)
    return moved
