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

    min: LeastWorkers = field(1, "Workers at least; 0 lets it sleep.")
    max: MostWorkers = field(1, "Workers at most; left out: the same as min, at least 1.")
    idle: Duration = field(0.0, "How long without traffic until it sleeps; 0 is never.")
    awake: Windows = field(
        (), 'When it is kept awake: minutes in cron\'s notation, such as "* 8-17 * * mon-fri".'
    )
    asleep: Windows = field((), "When it is kept asleep, whatever awake says: no request wakes it.")
    timezone: TimeZone = field(
        "", 'The time zone of awake and asleep, such as "Europe/Berlin". Left out: that of the pool (TZ).'
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
    """Certificates of a server, or of all servers that use the default (`set_default_tls`, `[defaults.tls]`)."""

    if TYPE_CHECKING:

        def __init__(self, /, *, cert: str, **keys: Tree) -> None: ...

    cert: FilePath = required(description="The certificate and its chain, a PEM file.")
    key: FilePath | None = field(None, "The private key, a PEM file; left out: it is in cert.")
    password_env: Text | None = field(None, "The environment variable with the key's password.")
    ca: FilePath | None = field(None, "The CA certificates that clients' are checked against.")
    client_auth: Literal["none", "optional", "required"] = field(
        "none", "Whether clients present a certificate of their own."
    )
    min_version: Literal["1.2", "1.3"] = field("1.2", "The oldest TLS version that is accepted.")
    ciphers: Text | None = field(None, "Cipher suites in OpenSSL's notation (TLS 1.2).")
    warn_before: Duration = field(
        1_209_600.0, "Warn when the certificate expires within this time; 0 is never."
    )


class Http(Section):
    """How uvicorn speaks HTTP."""

    implementation: Literal["auto", "h11", "httptools", "zttp"] = field(
        "auto", "The HTTP parser; auto never selects zttp."
    )
    http2: Truth = field(False, "Serve HTTP/2 too; needs the parser zttp.")
    loop: Literal["auto", "asyncio", "uvloop"] = field("auto", "The event loop.")
    keep_alive: Duration = field(
        75.0, "How long an idle connection is kept; 0: it is closed after its response."
    )
    root_path: str = field(
        "",
        "The path below which a proxy serves the app (ASGI root_path): no / at its end.",
        json_schema_extra={"pattern": r"^(?:/.*[^/]|.*\$\{.*)?$"},
    )
    proxy_headers: Truth = field(False, "Believe X-Forwarded-* of the trusted proxies.")
    trusted_proxies: Proxies = field((), 'Addresses or networks of trusted proxies, or "*".')
    access_log: RequestLog = field(
        "errors",
        'A log line for each request, with its X-Request-ID; "errors": for answers of 500 and above.',
    )
    log_level: Literal["critical", "error", "warning", "info", "debug", "trace"] = field(
        "info", "The level of uvicorn's loggers, to which applications may write; access_log is apart."
    )
    request_id: Truth | None = field(
        None, "Give each request and its response an X-Request-ID. Left out: no."
    )
    max_concurrency: AtLeastOne | None = field(
        None, "Connections and requests at once; above it the answer is 503. Left out: no limit."
    )
    max_requests: AtLeastOne | None = field(
        None, "A worker is replaced after so many requests. Left out: never."
    )
    max_connections: AtLeastOne | None = field(
        None,
        "Open connections of a worker; above it new ones wait in the backlog. Left out: as many as its descriptors "
        "allow, less a reserve.",
    )
    head_timeout: Positive = field(
        10.0,
        "Time for the head of a request to arrive: the first one from the accept, a TLS handshake included, later "
        "ones from their first byte.",
    )
    max_head_size: HeadSize = field(
        64 * 1024, "Largest head of a request; a larger one is answered with 431."
    )
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
    factor: Factor = field(2.0, "Each delay is so many times the one before.")
    jitter: Share = field(0.1, "The random part of a delay.")

    def delay_seconds(self, before: int, chance: float) -> float:
        """The delay before the next restart; `before` counts those within the window, `chance` is from -1 to 1."""
        # Past this exponent the maximum is reached in any case, and a float would overflow.
        delay = min(self.max, self.initial * self.factor ** min(max(0, before - 1), 64))
        return delay * (1 + self.jitter * chance)


class Restart(Section):
    """When a server that ended is started again."""

    policy: Literal["no", "on-failure", "always"] = field("on-failure", "After which ends.")
    backoff: Backoff = field(Backoff.usual(), "The delays of the restarts within the window.")
    limit: Restarts = field(10, "After so many restarts in the window the next end is a failure.")
    window: Positive = field(60.0, "The time in which restarts are counted together.")


class Probe(Section):
    """A check of a server: exactly one of http, tcp and exec."""

    http: UrlPath | None = field(None, "A path; the status of the response decides.")
    tcp: Truth = field(False, "A connection decides.")
    exec: Argument | None = field(None, "A command; its exit status decides.")
    interval: Positive = field(5.0, "The time between two probes.")
    timeout: Positive = field(2.0, "How long a response may take.")
    interval_fall: Positive | None = field(None, "The interval while it falls; default: interval.")
    interval_rise: Positive | None = field(None, "The interval while it rises; default: interval.")
    fall_count_warn: Count = field(1, "Failures in a row from ok to warn.")
    fall_count_ko: Count = field(3, "Failures in a row from warn to ko.")
    rise_count_warn: Count = field(1, "Successes in a row from warn to ok.")
    rise_count_ko: Count = field(1, "Successes in a row from ko to warn.")
    jitter: Share = field(0.1, "The random part of an interval.")
    method: Method = field("GET", "The method of the request.")
    headers: Headers = field(EMPTY, "Headers of the request; Host is the server's expose.")
    status: Statuses = field("200-399", "The statuses that are a success.")
    body: str | None = field(None, "A regular expression that the body has to contain.")


class Health(Section):
    """The probes of a server."""

    startup: Probe | None = field(None, "Sent until it succeeds once; the others wait for it.")
    readiness: Probe | None = field(None, "Whether it takes part in the traffic.")
    liveness: Probe | None = field(None, "Whether it is alive; ko sets off the recovery.")

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
        "restart", "Stop and start, swap, disable, only notify, or nothing."
    )
    heartbeat: Duration = field(5.0, "The time between two heartbeats of an app's worker; 0 is never.")
    stuck_after: Positive = field(
        15.0, "A worker whose event loop answers no heartbeat for so long is stuck."
    )
    limit: Restarts = field(5, "After so many recoveries within the window it is left alone.")
    window: Positive = field(600.0, "The time in which recoveries are counted together.")
    backoff: Patience = field(Patience.usual(), "The delays of the recoveries within the window.")


class Limits(Section):
    """Resources that a worker may use."""

    memory: Size | None = field(None, "PSS of a worker; exceeded means a swap.")
    open_files: OpenFiles | None = field(
        None, "Open descriptors (RLIMIT_NOFILE). Left out: the launching shell's limit."
    )


class Hooks(Section):
    """Commands that run once a server, as its user, whatever the number of its workers."""

    before_start: Argument | None = field(
        None, "Run before the first worker, within start_timeout; if it fails, so does the start."
    )
    after_stop: Argument | None = field(None, "Run after the last worker has ended, within stop_timeout.")


class Watch(Section):
    """Files that `--watch` looks at; without a slash, a name anywhere below the directory of the file."""

    include: Patterns = field(
        (), 'Files besides code: "*.html", "templates/**"; ** stands for any directories.'
    )
    exclude: Patterns = field((), "Files and directories whose changes restart nothing.")


class Log(Section):
    """Where the output of the workers goes."""

    path: FilePath | None = field(None, "The file. Left out: logs/NAME.log in the state directory.")
    format: Literal["text", "json"] = field("text", "A time before each line, or JSON lines.")
    max_size: Size = field(10 * 1024 * 1024, "The file is rotated when it is larger.")
    keep: FileCount = field(5, "Number of rotated files.")
    max_age: Positive | None = field(None, "The file is rotated when it is older. Left out: never.")
