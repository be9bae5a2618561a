"""The tables within a server's table."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Literal

from poolctl.config.model.section import Section, field, required
from poolctl.config.values.plain import EMPTY
from poolctl.config.values.problems import Finding, Tree

if TYPE_CHECKING:
    from poolctl.config.values.value_types import (
        Argument,
        AtLeastOne,
        Count,
        Duration,
        Factor,
        FileCount,
        FilePath,
        Headers,
        HeadSize,
        LeastWorkers,
        Method,
        MostWorkers,
        OpenFiles,
        Patterns,
        Positive,
        Proxies,
        RequestLog,
        Restarts,
        Share,
        Size,
        Statuses,
        Text,
        TimeZone,
        Truth,
        UrlPath,
        Windows,
    )


OF_SLEEP = ("idle", "awake", "asleep", "timezone")


class Scale(Section):
    """The number of workers. A feature that changes the number has a subclass: see `extended`."""

    min: LeastWorkers = field(1, "Minimum number of workers; 0 lets the server sleep.")
    max: MostWorkers = field(1, "Maximum number of workers. Left out: the same as min, at least 1.")
    idle: Duration = field(0.0, "How long the server has no traffic before it sleeps; 0 is never.")
    awake: Windows = field(
        (), 'When the server is kept awake: minutes in cron\'s notation, such as "* 8-17 * * mon-fri".'
    )
    asleep: Windows = field(
        (), "When the server is kept asleep: no request wakes it. It takes precedence over awake."
    )
    timezone: TimeZone = field(
        "",
        'The time zone of awake and asleep, such as "Europe/Berlin". Left out: the pool\'s time zone (TZ).',
    )

    def to_dict(self) -> dict[str, Tree]:
        """See Section; without empty windows and time zone, because most servers have none."""
        return {key: value for key, value in super().to_dict().items() if value not in ([], "")}

    @property
    def is_automatic(self) -> bool:
        """Whether a feature changes the number of workers between min and max."""
        return False

    @classmethod
    def rules(cls, server: Mapping[str, Tree]) -> Iterable[Finding]:
        """The problems of a feature's keys in a server's table, whose values are not validated yet."""
        return ()

    @classmethod
    def not_inherited(cls, server: Mapping[str, Tree], own: Mapping[str, Tree]) -> Collection[str]:
        """The keys that this server does not inherit from the defaults; `own` is its own table without defaults."""
        return ()


class Dependency(Section):
    """Another server that this one waits for."""

    name: Text = required(description="The name of the other server.")
    condition: Literal["started", "ready", "completed"] = field(
        "ready", "The state to wait for: started, ready, or (a job) completed."
    )


class TLSConfig(Section):
    """The certificate of a server, or the default of all servers (`set_default_tls`, `[defaults.tls]`)."""

    if TYPE_CHECKING:

        def __init__(self, /, *, cert: str, **keys: Tree) -> None: ...

    cert: FilePath = required(description="The certificate and its chain, a PEM file.")
    key: FilePath | None = field(None, "The private key, a PEM file. Left out: cert contains it.")
    password_env: Text | None = field(None, "The environment variable that holds the key's password.")
    ca: FilePath | None = field(None, "The CA certificates that certificates of clients are checked against.")
    client_auth: Literal["none", "optional", "required"] = field(
        "none", "Whether clients have to present a certificate."
    )
    min_version: Literal["1.2", "1.3"] = field("1.2", "The oldest TLS version that is accepted.")
    ciphers: Text | None = field(None, "Cipher suites of TLS 1.2, in OpenSSL's notation.")
    warn_before: Duration = field(
        1_209_600.0, "How long before the certificate expires a warning is given; 0 is never."
    )


class Http(Section):
    """How HTTP is served."""

    implementation: Literal["auto", "h11", "httptools", "zttp"] = field(
        "auto", "The HTTP parser; auto never selects zttp."
    )
    http2: Truth = field(False, "Serve HTTP/2 too; needs the parser zttp.")
    loop: Literal["auto", "asyncio", "uvloop"] = field("auto", "The event loop.")
    keep_alive: Duration = field(
        75.0, "How long an idle connection is kept open; 0 closes it after each response."
    )
    root_path: str = field(
        "",
        "The path under which a proxy serves the app (ASGI root_path), without a trailing slash.",
        json_schema_extra={"pattern": r"^(?:/.*[^/]|.*\$\{.*)?$"},
    )
    proxy_headers: Truth = field(False, "Trust X-Forwarded-* headers from trusted_proxies.")
    trusted_proxies: Proxies = field((), 'Addresses or networks of trusted proxies; "*" trusts every client.')
    access_log: RequestLog = field(
        "errors",
        'Log a line for each request, with its X-Request-ID; "errors" logs only responses of 500 and above.',
    )
    log_level: Literal["critical", "error", "warning", "info", "debug", "trace"] = field(
        "info",
        "The level of uvicorn's loggers, which applications may use too; it does not affect access_log.",
    )
    request_id: Truth | None = field(
        None, "Add an X-Request-ID to each request and its response. Left out: no."
    )
    max_concurrency: AtLeastOne | None = field(
        None,
        "Maximum number of connections and requests at a time; further requests get 503. Left out: no limit.",
    )
    max_requests: AtLeastOne | None = field(
        None, "Number of requests after which a worker is replaced. Left out: never."
    )
    max_connections: AtLeastOne | None = field(
        None,
        "Maximum number of open connections of a worker; new ones wait in the backlog. Left out: what its"
        " limit of descriptors allows, less a reserve.",
    )
    head_timeout: Positive = field(
        10.0,
        "Maximum time until the head of a request has arrived: the first one counts from the accept, with"
        " the TLS handshake, later ones from their first byte.",
    )
    max_head_size: HeadSize = field(64 * 1024, "Maximum size of the head of a request; larger ones get 431.")
    websocket: Literal["auto", "none", "websockets", "websockets-sansio", "wsproto"] = field(
        "auto", "The WebSocket implementation."
    )

    def to_dict(self) -> dict[str, Tree]:
        """See Section; without the log level if it has its default, as in most servers."""
        values = super().to_dict()
        if self.log_level == "info":
            values.pop("log_level", None)
        return values


class Backoff(Section):
    """The delays between consecutive restarts."""

    initial: Duration = field(0.2, "The delay before the second restart.")
    max: Duration = field(30.0, "The longest delay.")
    factor: Factor = field(2.0, "The factor by which each delay is longer than the previous one.")
    jitter: Share = field(0.1, "The random share of a delay: 0.1 varies it by up to 10 %.")

    def delay_seconds(self, before: int, chance: float) -> float:
        """The delay before the next restart; `before` counts those within the window, `chance` is from -1 to 1."""
        # Past this exponent the maximum is reached in any case, and a float would overflow.
        delay = min(self.max, self.initial * self.factor ** min(max(0, before - 1), 64))
        return delay * (1 + self.jitter * chance)


class Restart(Section):
    """Whether a server that has ended is started again."""

    policy: Literal["no", "on-failure", "always"] = field(
        "on-failure", "The exits after which it is started again."
    )
    backoff: Backoff = field(Backoff.usual(), "The delays between restarts within the window.")
    limit: Restarts = field(
        10, "Maximum number of restarts within the window; the next exit makes the server failed."
    )
    window: Positive = field(60.0, "The time over which restarts are counted.")


class Probe(Section):
    """A check of a server: exactly one of http, tcp and exec."""

    http: UrlPath | None = field(None, "The path that is requested; the status of the response decides.")
    tcp: Truth = field(False, "Whether a connection can be opened decides.")
    exec: Argument | None = field(None, "A command; its exit status decides.")
    interval: Positive = field(5.0, "The time between two probes.")
    timeout: Positive = field(2.0, "Maximum time until the response.")
    interval_fall: Positive | None = field(None, "The interval while probes fail. Left out: interval.")
    interval_rise: Positive | None = field(
        None, "The interval while probes succeed again. Left out: interval."
    )
    fall_count_warn: Count = field(1, "Consecutive failures that turn ok into warn.")
    fall_count_ko: Count = field(3, "Consecutive failures that turn warn into ko.")
    rise_count_warn: Count = field(1, "Consecutive successes that turn warn into ok.")
    rise_count_ko: Count = field(1, "Consecutive successes that turn ko into warn.")
    jitter: Share = field(0.1, "The random share of an interval: 0.1 varies it by up to 10 %.")
    method: Method = field("GET", "The method of the request.")
    headers: Headers = field(
        EMPTY, "Headers of the request. Host, unless it is given, is the server's expose."
    )
    status: Statuses = field("200-399", "The statuses that count as success.")
    body: str | None = field(None, "A regular expression that must match within the body.")


class Health(Section):
    """The probes of a server."""

    startup: Probe | None = field(None, "Repeated until it succeeds once; the other probes start after that.")
    readiness: Probe | None = field(None, "Decides whether the server receives traffic.")
    liveness: Probe | None = field(None, "Decides whether the server is alive; ko starts the recovery.")

    @property
    def gated(self) -> bool:
        """Whether a worker has to pass a probe before it is ready."""
        return self.startup is not None or self.readiness is not None

    @property
    def probed(self) -> bool:
        """Whether a worker that is ready is probed."""
        return self.readiness is not None or self.liveness is not None


class Patience(Backoff):
    """The delays between consecutive recoveries."""

    initial: Duration = field(5.0, "The delay before the second recovery.")
    max: Duration = field(300.0, "The longest delay.")


class Recovery(Section):
    """The action taken on a hung server."""

    strategy: Literal["restart", "replace", "disable", "notify", "none"] = field(
        "restart",
        "restart stops it and starts it again, replace starts a new worker first, disable takes it out, "
        "notify only reports it, none does nothing.",
    )
    heartbeat: Duration = field(5.0, "The time between two heartbeats of an app's worker; 0 turns them off.")
    stuck_after: Positive = field(
        15.0,
        "How long a worker's event loop may leave a heartbeat unanswered before the worker counts as stuck.",
    )
    limit: Restarts = field(
        5, "Maximum number of recoveries within the window; after that the server is left alone."
    )
    window: Positive = field(600.0, "The time over which recoveries are counted.")
    backoff: Patience = field(Patience.usual(), "The delays between recoveries within the window.")


class Limits(Section):
    """Resources that a worker may use."""

    memory: Size | None = field(
        None, "Maximum memory of a worker (PSS); a worker that exceeds it is replaced."
    )
    open_files: OpenFiles | None = field(
        None,
        "Maximum number of open descriptors (RLIMIT_NOFILE). Left out: the limit of the shell that "
        "started the pool.",
    )


class Hooks(Section):
    """Commands that run once for the server, as its user, however many workers it has."""

    before_start: Argument | None = field(
        None, "Run before the first worker starts, within start_timeout. If it fails, the start fails."
    )
    after_stop: Argument | None = field(None, "Run after the last worker has ended, within stop_timeout.")


class Watch(Section):
    """Files that `--watch` watches. Patterns without a slash match names anywhere below the file's directory."""

    include: Patterns = field(
        (), 'Files besides code, such as "*.html" or "templates/**"; ** matches any number of directories.'
    )
    exclude: Patterns = field((), "Files and directories whose changes are ignored.")


class Log(Section):
    """Where the output of the workers is written."""

    path: FilePath | None = field(None, "The file. Left out: logs/NAME.log in the state directory.")
    format: Literal["text", "json"] = field(
        "text", "text puts the time before each line, json writes JSON lines."
    )
    max_size: Size = field(10 * 1024 * 1024, "The size at which the file is rotated.")
    keep: FileCount = field(5, "Number of rotated files that are kept.")
    max_age: Positive | None = field(None, "The age at which the file is rotated. Left out: never.")
