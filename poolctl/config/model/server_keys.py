"""The keys of one server, validated and immutable."""

# ruff: noqa: F403, F405 (the types of keys)
from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Annotated, Literal, Self

from poolctl.address import Address
from poolctl.config.model import section
from poolctl.config.model.section import (
    Dependency,
    EnvFile,
    Health,
    Hooks,
    Http,
    Limits,
    Log,
    Recovery,
    Restart,
    Section,
    TLSConfig,
    Watch,
    field,
    hidden,
    refuse,
    required,
    validated,
    with_feature_keys,
)
from poolctl.config.values.plain import EMPTY, INTERNAL, PROXIED, binds_itself, exposed_url
from poolctl.config.values.problems import Finding, Tree, reset_suggestions
from poolctl.config.values.secrets import masked_arguments

if TYPE_CHECKING:
    from poolctl.config.model.section import Scale as Scale
    from poolctl.config.values.value_types import *
else:
    Scale = with_feature_keys(section.Scale)


class ServerKeys(Section):
    """One server of the pool. All paths are absolute, durations in seconds, sizes in bytes.

    The constructor resolves relative paths from the working directory. For invalid values and unknown keywords it
    raises PoolValidateError, which lists every problem.
    """

    name: Name = required(description="Unique in the pool; letters, digits, dots, underscores and hyphens.")
    bind: OsText = required(
        description="The address that it listens on, unique in the pool. A job has no address, nor has a program "
        "without a port.",
        derived=True,
    )
    expose: OsText = required(
        description="The address that clients use: a URL. Left out: derived from bind and tls.", derived=True
    )
    app: Tree = field(None, 'The ASGI or WSGI application: "module:attribute".')
    factory: Truth = field(False, "Whether app is a function that returns the application.")
    interface: Literal["auto", "asgi", "wsgi"] = field(
        "auto",
        "How the app is called; auto takes an app that requires two arguments for one of WSGI.",
    )
    app_dir: FilePath = field(".", "The directory, or ZIP archive, that goes first on the import path.")
    python: FilePath | None = field(
        None,
        "The interpreter or virtual environment of the app. Left out: $VIRTUAL_ENV, then .venv next to "
        "the file, then poolctl's own interpreter.",
    )
    command: Argument | None = field(
        None, "A program to run instead of an app; {fd}, {port}, {host}, {bind} and {name} are replaced."
    )
    socket: Literal["pool", "program", "proxied"] = field(
        "pool",
        "Who opens the listening socket of a command: the pool, or a program that is given its address "
        "and opens it itself. proxied: each process opens a port of its own ({port}, PORT), and HAProxy forwards "
        "connections to those that are ready.",
    )
    backend_protocol: Literal["http/1.1", "h2"] = field(
        "http/1.1", 'What the gateway speaks with a command: "h2" for HTTP/2, such as gRPC, also without TLS.'
    )
    forward: Literal["http", "tcp"] = field(
        "http", "What HAProxy forwards to a proxied command: requests of HTTP, or connections."
    )
    socket_mode: FileMode = field(
        "0666",
        "The mode of the file of a Unix socket, whatever the umask. Who can enter its directory, and may write by this "
        "mode, can connect.",
    )
    socket_owner: Text | None = field(
        None,
        'The user, or "user:group", that the file of a Unix socket belongs to. Left out: the user that the server runs '
        "as.",
    )
    stdin: Literal["null", "open"] = field(
        "null", "The standard input of a command: /dev/null, or a pipe that never ends."
    )
    notify: Truth = field(False, "The command reports READY=1 on NOTIFY_SOCKET when it is ready.")
    ready_after: Duration = field(
        1.0, "How long a program without a port, a probe and notify has to run until it is ready."
    )
    job: Truth = field(False, "The command runs to completion and has no address.")
    every: Schedule | None = field(
        None,
        'When a job runs: minute, hour, day, month and weekday as in cron, such as "0 3 * * *", in the '
        "pool's time zone (TZ).",
    )
    overlap: Truth = field(True, "Whether old and new workers may run at the same time during a restart.")
    handler_key: str = field("", "The key of the application that [pool] handlers returns for this server.")
    env: Environment = field(
        EMPTY,
        "Environment variables; they take precedence over env_file. For a command, {port}, {host} and "
        "{bind} are replaced.",
    )
    env_file: tuple[Annotated[FilePath | EnvFile, PathOr()], ...] = field(
        (),
        "Files of environment variables; later files take precedence. ${NAME} and ${NAME:-default} are replaced, "
        "except in files of the form { path, expand = false }. Left out: .env next to the file, if it exists.",
    )
    cwd: FilePath = field(".", "The working directory. Left out: the directory of the file.")
    user: Text | None = field(None, 'The user, or "user:group", that the server runs as; needs root.')
    umask: Umask | None = field(
        None,
        'The umask of its processes, such as "0027". Left out: the umask of the shell that started the pool.',
    )
    scale: Scale = field(Scale.with_defaults(), "The number of workers.")
    preload: Truth = field(False, "Import the app once, and fork the workers from that process.")
    tags: Words = field((), "Words by which commands select the server.")
    labels: Labels = field(
        EMPTY,
        "Names and values for other tools; labels that begin with route. define a route of the gateway.",
    )
    disabled: Truth = field(False, "The server is listed and never started.")
    on_demand: Truth = field(
        False,
        "The server is started by its name, or by a server that depends on it, but not with all others.",
    )
    mandatory: Truth = field(False, "Whether the whole pool stops when this server has failed.")
    depends_on: tuple[Dependency, ...] = field((), "The servers that this one waits for when it starts.")
    tls: Annotated[TLSConfig | bool, TRUTH_OR_TLS] = field(
        False, "false, true for the certificate of [defaults.tls] or set_default_tls, or a table of its own."
    )
    http: Http = field(Http.with_defaults(), "How HTTP is served.")
    start_timeout: Positive = field(30.0, "Maximum time until the server is ready.")
    stop_timeout: Duration = field(
        10.0, "Maximum time that its processes take to end; after that they are killed."
    )
    stop_signal: (
        Literal["SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH"] | None
    ) = field(None, "The signal that asks a command to stop. Left out: SIGTERM.")
    stop_group: Literal["after", "together", "leader"] = field(
        "after",
        "Which processes of a command get its stop signal: its leader, and after that has ended the rest of its"
        " group; all of them together; or the leader alone.",
    )
    drain_timeout: Duration = field(30.0, "Maximum time for its connections to end when a worker is stopped.")
    hooks: Hooks | None = field(
        None,
        "Commands that run once at an ordered start and stop of the server, not at a restart, a crash or a wake.",
    )
    health: Health = field(
        Health.with_defaults(), 'The probes; a string is the path of the readiness probe: "/ready".'
    )
    restart: Restart = field(
        Restart.with_defaults(),
        'Whether a worker is started again after it has ended; a string is the policy: "always".',
    )
    recovery: Recovery = field(
        Recovery.with_defaults(),
        'What is done when liveness is ko or a worker is stuck; a string is the strategy: "replace".',
    )
    limits: Limits = field(Limits.with_defaults(), "Resources that a worker may use.")
    log: Log = field(Log.with_defaults(), "Where its output is written.")
    watch: Watch | None = field(
        None, "The files besides code that `--watch` watches, and the files that it ignores."
    )

    image: Text | None = field(None, "The image with the application, for an export to a cluster.")

    address: KnownAddress = hidden()
    base_dir: str = hidden("")
    handlers: str | None = hidden(None)
    derived_expose: bool = hidden(False)
    origins: Tree = hidden(None)

    def __init__(self, /, **data: Tree) -> None:
        from poolctl.config.values.normalise import add_derived_values, normalise, nul_findings

        reset_suggestions()
        base_dir = os.getcwd()
        findings: list[Finding] = nul_findings(data)
        table = normalise(data, base_dir, findings)
        add_derived_values(table, base_dir, findings)
        findings += Scale.rules(table)
        made = validated(ServerKeys, table, findings)
        if findings or made is None:
            name, bind = data.get("name"), data.get("bind", data.get("listen"))
            who = name if isinstance(name, str) else "the server"
            refuse(who[:60], findings, who if name else "", bind if isinstance(bind, str) else "")
        self.__setstate__((vars(made), made.given))

    @classmethod
    def keys_allowed_in_files(cls) -> tuple[str, ...]:
        """The keys that files can set, including the short form `workers` and the other name `listen`."""
        names = list(super().keys_allowed_in_files())
        names.insert(names.index("scale"), "workers")  # of scale
        names.insert(names.index("bind") + 1, "listen")  # golib's word
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
    def workers(self) -> int:
        """The minimum number of workers while the server is awake: scale.min, or 1 if scale.min is 0."""
        return max(self.scale.min, 1)

    @property
    def idle_seconds(self) -> float:
        """The seconds without traffic after which the server sleeps; 0 means never."""
        return 0.0 if self.scale.min else self.scale.idle

    @property
    def restart_policy(self) -> Literal["no", "on-failure", "always"]:
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
        """Whether the server is a program that shows in no other way that it is ready than by running for a while."""
        shows = self.notify or self.health.gated
        return bool(self.command) and not (self.listens or self.job or shows)

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
        return self.at(address).with_values(socket="program")

    @property
    def env_file_paths(self) -> tuple[str, ...]:
        """The paths of its env files."""
        return tuple(each if isinstance(each, str) else each.path for each in self.env_file)

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

    @property
    def origin(self) -> dict[str, str] | None:
        """`{"http.loop": "/etc/pool.toml:7", …}` for the keys that files set; None if the files are not known here.

        They are unknown for a server that was made in Python, or sent by another process.
        """
        if self.origins is None:
            return None
        ignored = self.ignored_log_keys
        return {key: place for key, place in self.origins.of(self.name).items() if key not in ignored}

    @property
    def ignored_log_keys(self) -> tuple[str, ...]:
        """The keys that files set of its log, but that a log which is printed does not heed; () if that is unknown."""
        if self.origins is None or self.log.path is not None or not {"max_size", "keep"} <= self.log.given:
            return ()
        found = self.origins.of(self.name)
        return tuple(key for key in ("log.max_size", "log.keep") if "log.path" in found and key in found)

    def to_dict(self) -> dict[str, Tree]:
        """The complete configuration as it would be written in a file: seconds, bytes, absolute paths, no None."""
        found = super().to_dict()
        if self.app is not None:
            app = self.app if isinstance(self.app, str) else repr(self.app)
            found = {"name": self.name, "app": app} | found | {"app": app}
        if not self.listens:
            del found["bind"], found["expose"]
        if not self.command:
            del found["stop_group"], found["stdin"], found["backend_protocol"]
        if not self.is_proxied:
            del found["forward"]
        if self.address.kind != "unix":
            del found["socket_mode"]
        if not self.is_ready_by_running:
            del found["ready_after"]
        found["restart"] = {"policy": self.restart_policy, **found["restart"]}
        return found

    def replace(self, /, **changes: Tree) -> Self:
        """Return a validated copy of the server, with the given keywords as new values. Raises PoolValidateError."""
        given = {key: getattr(self, key) for key in self.given - INTERNAL}
        if self.derived_expose and (not self.listens or changes.keys() & {"bind", "listen", "tls"}):
            given.pop("expose", None)
        if "listen" in changes or not self.listens:
            given.pop("bind", None)
        if "workers" in changes:
            given.pop("scale", None)
        made = type(self)(**(given | changes))
        kept = {key: getattr(self, key) for key in ("base_dir", "handlers", "origins")}
        if made.bind == self.bind and not changes.keys() & {"bind", "listen"}:
            # `:8080` and `0.0.0.0:8080` are different addresses with the same key.
            kept["address"] = self.address
        return made.with_values(**kept)

    def at(self, address: Address) -> Self:
        """A copy of the server with another address, for example with the port that was chosen for `auto`."""
        changes: dict[str, Tree] = {"address": address, "bind": address.key}
        if self.derived_expose:
            changes["expose"] = exposed_url(address, bool(self.tls))
        return self.with_values(**changes)

    def __getstate__(self) -> tuple[dict[str, Tree], set[str]]:
        # The texts of the files stay where they were read.
        return vars(self) | {"origins": None}, self.given

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
