"""The tables within a server's table."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field, Tag

from poolctl.app_interface import THREADS
from poolctl.config.model.section import Section
from poolctl.config.values.plain import EMPTY
from poolctl.config.values.problems import Finding, Tree
from poolctl.config.values.value_types import (
    TABLE,
    TEXT,
    TRUTH,
    ArgumentOrNone,
    AtLeastOne,
    Count,
    Duration,
    Expression,
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
    PositiveOrNone,
    RequestLog,
    Restarts,
    RootPath,
    Share,
    Size,
    SizeOrNone,
    Statuses,
    Text,
    TimeZone,
    TrustedPeers,
    Truth,
    UrlPath,
    Windows,
    by_form,
)

RestartPolicy = Literal["no", "on-failure", "always"]
RecoveryStrategy = Literal["restart", "replace", "disable", "notify", "none"]
SLEEP_KEYS = ("idle", "awake", "asleep", "timezone")


class Scale(Section, frozen=True):
    """How many workers a server has, and when it sleeps. A feature may add keys (see `with_feature_keys`)."""

    min: LeastWorkers = 1
    """Minimum number of workers; 0 lets the server sleep."""
    max: MostWorkers = 1
    """Maximum number of workers. Left out: the same as min, at least 1."""
    idle: Duration = Field(default="0s", validate_default=True)
    """How long the server has no traffic before it sleeps; 0 is never."""
    awake: Windows = Field(default=(), validate_default=True)
    """When the server is kept awake: minutes in cron's notation, such as "* 8-17 * * mon-fri"."""
    asleep: Windows = Field(default=(), validate_default=True)
    """When the server is kept asleep: no request wakes it. It takes precedence over awake."""
    timezone: TimeZone = ""
    """The time zone of awake and asleep, such as "Europe/Berlin". Left out: the pool's time zone (TZ)."""

    def to_dict(self) -> dict[str, Tree]:
        """Return the keys and values of the table `scale`, as a file would contain them.

        The keys `awake`, `asleep` and `timezone` are left out if empty.
        """
        return {key: value for key, value in super().to_dict().items() if value not in ([], "")}

    @property
    def is_automatic(self) -> bool:
        """Whether a feature changes the number of workers between min and max."""
        return False

    def findings(self) -> Iterator[Finding]:
        if self.min > self.max:
            message = f"scale.max = {self.max} is below scale.min = {self.min}"
            yield Finding(("max",), message, "raise scale.max, or lower scale.min")
        for key in ("awake", "asleep"):
            if self.min and key in self.model_fields_set and getattr(self, key):
                message = f"{key} is for a server that can sleep, and scale.min is {self.min}"
                yield Finding((key,), message, f"write min = 0, or take {key} out")

    def findings_in_server(self, *, is_command: bool, may_overlap: bool) -> Iterable[Finding]:
        """Return contradictions between the keys that a feature adds to `scale`, and other keys of the server."""
        return ()

    @classmethod
    def not_inherited(cls, server: Mapping[str, Tree], table: Mapping[str, Tree]) -> Collection[str]:
        """The keys that the server does not inherit from the defaults; `table` is its table without defaults."""
        return ()


class EnvFile(Section, frozen=True):
    """A file of environment variables."""

    path: FilePath
    """The file."""
    expand: Truth = True
    """Whether ${NAME} and ${NAME:-default} in its values are replaced."""


class Dependency(Section, frozen=True):
    """Another server that this one waits for."""

    name: Text
    """The name of the other server."""
    condition: Literal["started", "ready", "completed"] = "ready"
    """The state to wait for: started, ready, or (a job) completed."""


class TLSConfig(Section, frozen=True):
    """The certificate of a server, or the default of all servers (`set_default_tls`, `[defaults.tls]`)."""

    cert: FilePath
    """The certificate and its chain, a PEM file."""
    key: FilePath | None = None
    """The private key, a PEM file. Left out: cert contains it."""
    password_env: Text | None = None
    """The environment variable that holds the key's password."""
    ca: FilePath | None = None
    """The CA certificates that certificates of clients are checked against."""
    client_auth: Literal["none", "optional", "required"] = "none"
    """Whether clients have to present a certificate."""
    min_version: Literal["1.2", "1.3"] = "1.2"
    """The oldest TLS version that is accepted."""
    ciphers: Text | None = None
    """Cipher suites of TLS 1.2, in OpenSSL's notation."""
    warn_before: Duration = Field(default="14d", validate_default=True)
    """How long before the certificate expires a warning is given; 0 is never."""

    def findings(self) -> Iterator[Finding]:
        if self.client_auth != "none" and not self.ca:
            fix = 'add ca = "FILE", the certificates that clients\' are checked against'
            yield Finding(("client_auth",), f"client_auth = {self.client_auth!r} needs ca", fix)


TLSOrFalse = Annotated[
    Annotated[Literal[False], Tag(TRUTH)] | Annotated[TLSConfig, Tag(TABLE)],
    by_form('false, or { cert = "FILE", key = "FILE" }'),
]


class Http(Section, frozen=True):
    """Settings for serving HTTP."""

    implementation: Literal["auto", "h11", "httptools"] = "auto"
    """The HTTP parser."""
    loop: Literal["auto", "asyncio", "uvloop"] = "auto"
    """The event loop."""
    keep_alive: Duration = Field(default="75s", validate_default=True)
    """How long an idle connection is kept open; 0 closes it after each response."""
    root_path: RootPath = ""
    """The path under which a proxy serves the app (ASGI root_path), without a trailing slash."""
    proxy_headers: Truth = False
    """Trust X-Forwarded-* headers from trusted_proxies."""
    trusted_proxies: TrustedPeers = Field(default=(), validate_default=True)
    """Addresses or networks of trusted proxies; "unix" trusts the clients of a Unix socket, "*" every client, whose
    first X-Forwarded-For is believed.
    """
    access_log: RequestLog = "errors"
    """Log a line for each request, with its X-Request-ID; "errors" logs only responses of 500 and above."""
    log_level: Literal["critical", "error", "warning", "info", "debug", "trace"] = "info"
    """The level of uvicorn's loggers, which applications may use too; it does not affect access_log."""
    request_id: Truth | None = None
    """Add an X-Request-ID to each request and its response. Left out: no."""
    threads: AtLeastOne = THREADS
    """Maximum number of requests that a worker with a WSGI app serves at once; further requests wait."""
    max_concurrency: AtLeastOne | None = None
    """Maximum number of requests and WebSockets of a worker at a time; further requests get 503. Left out: no limit.
    """
    max_requests: AtLeastOne | None = None
    """Number of requests, plus up to a tenth at random, after which a worker is replaced. Left out: never."""
    max_connections: AtLeastOne | None = None
    """Maximum number of open connections of a worker; new ones wait in the backlog. Left out: what its limit of
    descriptors allows, less a reserve.
    """
    head_timeout: Positive = Field(default="10s", validate_default=True)
    """Maximum time until the head of a request has arrived: the first one counts from the accept, with the TLS
    handshake, later ones from their first byte.
    """
    max_head_size: HeadSize = Field(default="64KiB", validate_default=True)
    """Maximum size of the head of a request; larger ones get 431."""
    websocket: Literal["auto", "none", "websockets", "websockets-sansio", "wsproto"] = "auto"
    """The WebSocket implementation."""

    def to_dict(self) -> dict[str, Tree]:
        """Return the table as it would be written in a file, without `log_level` and `threads` at their defaults."""
        values = super().to_dict()
        usual = {"log_level": "info", "threads": THREADS}
        return {key: value for key, value in values.items() if key not in usual or value != usual[key]}


class Backoff(Section, frozen=True):
    """The delays between consecutive restarts."""

    initial: Duration = Field(default="200ms", validate_default=True)
    """The delay before the second restart."""
    max: Duration = Field(default="30s", validate_default=True)
    """The longest delay."""
    factor: Factor = 2.0
    """The factor by which each delay is longer than the previous one."""
    jitter: Share = 0.1
    """The random share of a delay: 0.1 varies it by up to 10 %."""

    def delay_seconds(self, before: int, deviation: float) -> float:
        """The delay before the next restart; `before` is the number of earlier restarts in the window.

        `deviation`, a random number from -1 to 1, selects the jitter: -1 gives the shortest delay.
        """
        # Past this exponent the maximum is reached in any case, and a float would overflow.
        delay = min(self.max, self.initial * self.factor ** min(max(0, before - 1), 64))
        return self._varied(delay, deviation)

    def longest_seconds(self, deviation: float) -> float:
        """The longest delay, with the jitter that `deviation` selects (see `delay_seconds`)."""
        return self._varied(self.max, deviation)

    def _varied(self, delay: float, deviation: float) -> float:
        return delay * (1 + self.jitter * deviation)


PathOrFalse = Annotated[
    Annotated[Literal[False], Tag(TRUTH)] | Annotated[UrlPath, Tag(TEXT)],
    by_form('false, or a path such as "/up"'),
]


class Restart(Section, frozen=True):
    """When and how often a worker that has exited is restarted."""

    policy: RestartPolicy | None = None
    """The exits after which a worker is started again. Left out: always for a server with an address, else on-failure.
    """
    backoff: Backoff = Backoff()
    """The delays between restarts within the window."""
    limit: Restarts = 8
    """Maximum number of restarts within the window; the next exit makes the server failed. Left out: a server that was
    ready before is not given up, but tried every backoff.max.
    """
    window: Positive = Field(default="5m", validate_default=True)
    """The time over which restarts are counted."""
    check: PathOrFalse | None = None
    """The path that the first new process is asked for when a command replaces a server without a readiness probe; if
    it fails where the old process answers, the old one stays. false asks nothing. Left out: /.
    """

    @property
    def is_limited(self) -> bool:
        """Whether `limit` was given, so that it applies to a server that was ready before, too."""
        return "limit" in self.model_fields_set

    def __eq__(self, other: object) -> bool:
        # The default, written out, is another limit.
        return super().__eq__(other) and isinstance(other, Restart) and self.is_limited is other.is_limited

    __hash__ = Section.__hash__


PROBE_KINDS = ("http", "tcp", "exec")


class Probe(Section, frozen=True):
    """A check of a server: exactly one of http, tcp and exec."""

    http: UrlPath | None = None
    """The path that is requested; the status of the response decides."""
    tcp: Truth = False
    """Whether a connection can be opened decides."""
    exec: ArgumentOrNone = Field(default=None, validate_default=True)
    """A command; its exit status decides. {port}, {host}, {bind} and {name} are replaced."""
    interval: Positive = Field(default="5s", validate_default=True)
    """The time between two probes."""
    timeout: Positive = Field(default="2s", validate_default=True)
    """Maximum time until the response."""
    interval_fall: PositiveOrNone = Field(default=None, validate_default=True)
    """The interval while probes fail. Left out: interval."""
    interval_rise: PositiveOrNone = Field(default=None, validate_default=True)
    """The interval while probes succeed again. Left out: interval."""
    fall_count_warn: Count = 1
    """Consecutive failures that turn ok into warn."""
    fall_count_ko: Count = 3
    """Consecutive failures that turn warn into ko."""
    rise_count_warn: Count = 1
    """Consecutive successes that turn warn into ok."""
    rise_count_ko: Count = 1
    """Consecutive successes that turn ko into warn."""
    jitter: Share = 0.1
    """The random share of an interval: 0.1 varies it by up to 10 %."""
    method: Method = "GET"
    """The method of the request."""
    headers: Headers = Field(default=EMPTY, validate_default=True)
    """Headers of the request. Host, unless it is given, is the server's expose."""
    status: Statuses = Field(default="200-399", validate_default=True)
    """The statuses that count as success."""
    body: Expression | None = None
    """A regular expression that must match within the body."""

    @property
    def kinds(self) -> list[str]:
        """The kinds of probe that are given; a valid probe has one."""
        return [kind for kind in PROBE_KINDS if getattr(self, kind)]

    def findings(self) -> Iterator[Finding]:
        kinds = self.kinds
        if len(kinds) != 1:
            allowed = f"{', '.join(PROBE_KINDS[:-1])} and {PROBE_KINDS[-1]}"
            message = f"a probe is one of {allowed}, and this is {' and '.join(kinds) or 'none'}"
            yield Finding((), message, "keep one of them" if kinds else 'add http = "/path"')
        elif kinds != ["http"]:
            for key in [
                key for key in ("status", "body", "method", "headers") if key in self.model_fields_set
            ]:
                message = f"{key} is for a probe with http, and this is one with {kinds[0]}"
                yield Finding((key,), message, f"take it out, or probe with http instead of {kinds[0]}")


class Health(Section, frozen=True):
    """The probes of a server."""

    startup: Probe | None = None
    """Repeated until it succeeds once; the other probes start after that."""
    readiness: Probe | None = None
    """Decides whether the server receives traffic."""
    liveness: Probe | None = None
    """Decides whether the server is alive; ko starts the recovery."""

    @property
    def gated(self) -> bool:
        """Whether a worker has to pass a probe before it is ready."""
        return self.startup is not None or self.readiness is not None

    @property
    def probed(self) -> bool:
        """Whether a worker that is ready is probed."""
        return self.readiness is not None or self.liveness is not None


class RecoveryBackoff(Backoff, frozen=True):
    """The delays between consecutive recoveries of a worker."""

    initial: Duration = Field(default="5s", validate_default=True)
    """The delay before the second recovery."""
    max: Duration = Field(default="5m", validate_default=True)
    """The longest delay."""


class Recovery(Section, frozen=True):
    """How a hung server is detected, and what is done about it."""

    strategy: RecoveryStrategy = "restart"
    """restart stops it and starts it again, replace starts a new worker first, disable takes it out, notify only
    reports it, none does nothing.
    """
    heartbeat: Duration = Field(default="5s", validate_default=True)
    """The time between two heartbeats of an app's worker; 0 turns them off."""
    stuck_after: Positive = Field(default="15s", validate_default=True)
    """How long a worker's event loop may leave a heartbeat unanswered before the worker counts as stuck."""
    limit: Restarts = 5
    """Maximum number of recoveries within the window; after that the server is left alone."""
    window: Positive = Field(default="10m", validate_default=True)
    """The time over which recoveries are counted."""
    backoff: RecoveryBackoff = RecoveryBackoff()
    """The delays between recoveries within the window."""


class Limits(Section, frozen=True):
    """Resources that a worker may use."""

    memory: SizeOrNone = Field(default=None, validate_default=True)
    """Maximum memory of a worker with all of its processes (PSS); a worker that exceeds it is replaced."""
    open_files: OpenFiles | None = None
    """Maximum number of open descriptors (RLIMIT_NOFILE). Left out: the limit of the shell that started the pool."""


class Hooks(Section, frozen=True):
    """Commands that run once for the server, as its user, however many workers it has."""

    before_start: ArgumentOrNone = Field(default=None, validate_default=True)
    """Run before the first worker starts, within start_timeout. If it fails, the start fails."""
    after_stop: ArgumentOrNone = Field(default=None, validate_default=True)
    """Run after the last worker has ended, within stop_timeout."""


class Watch(Section, frozen=True):
    """Files watched by `--watch`. A pattern without a slash matches names anywhere below the pool file's directory."""

    include: Patterns = Field(default=(), validate_default=True)
    """Files besides code, such as "*.html" or "templates/**"; ** matches any number of directories."""
    exclude: Patterns = Field(default=(), validate_default=True)
    """Files and directories whose changes are ignored."""
    poll: PositiveOrNone = Field(default=None, validate_default=True)
    """How often all watched files are looked at, for file systems that do not report changes to inotify(7). The
    shortest interval of all servers counts.
    """


class Log(Section, frozen=True):
    """The file to which the output of the workers is written, its format and its rotation."""

    path: FilePath | None = None
    """The file. Left out: logs/NAME.log in the state directory; "-", "/dev/stdout" and "/dev/stderr": the same, of at
    most 2 MiB.
    """
    format: Literal["text", "json"] = "text"
    """text puts the time before each line, json writes JSON lines."""
    max_size: Size = Field(default="10MiB", validate_default=True)
    """The size at which the file is rotated."""
    keep: FileCount = 5
    """Number of rotated files that are kept."""
    max_age: PositiveOrNone = Field(default=None, validate_default=True)
    """The age at which the file is rotated. Left out: never."""
