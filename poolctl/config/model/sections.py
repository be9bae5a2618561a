"""The base of every table of the configuration, and the tables within a server's table."""

from __future__ import annotations

from typing import Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from poolctl.config.model.explain import findings_of, reset_suggestions
from poolctl.config.model.problems import Finding, problem_of
from poolctl.config.model.value_types import (
    EMPTY,
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
    Positive,
    Proxies,
    Restarts,
    Share,
    Size,
    Statuses,
    Text,
    Truth,
    UrlPath,
)
from poolctl.errors import PoolValidateError


class Section(BaseModel):
    """A table that does not change; made with a bad value it raises PoolValidateError with every problem."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True)

    def __init__(self, /, **data: Any) -> None:
        try:
            self.__pydantic_validator__.validate_python(data, self_instance=self)
        except ValidationError as error:
            reset_suggestions()
            refuse(type(self).__name__, findings_of(error, type(self)))

    # pydantic then does not call it for the tables of a file, which need no second validation.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} does not change: make another one with other values")

    def __delattr__(self, name: str) -> None:
        self.__setattr__(name, None)


def refuse(what: str, findings: list[Finding], name: str = "", bind: str = "") -> NoReturn:
    """Raise the findings of a value that was made in Python."""
    problems = [problem_of(finding, name=name, bind=bind) for finding in findings]
    raise PoolValidateError(
        f"{what} has {len(problems)} problem{'s' * (len(problems) > 1)}", problems
    ) from None


class Scale(Section):
    """How many workers."""

    min: LeastWorkers = Field(default=1, description="Workers at least; 0 lets it sleep.")
    max: MostWorkers = Field(default=1, description="Workers at most; left out: the same as min, at least 1.")
    idle: Duration = Field(default=0.0, description="How long without traffic until it sleeps; 0 is never.")


class Dependency(Section):
    """Another server that this one waits for."""

    name: Text = Field(description="The name of the other server.")
    condition: Literal["started", "ready", "completed"] = Field(
        default="ready", description="The state to wait for: started, ready, or (a job) completed."
    )


class TLSConfig(Section):
    """Certificates of a server, or of all that ask for it (`set_default_tls`, `[defaults.tls]`)."""

    cert: FilePath = Field(description="The certificate and its chain, a PEM file.")
    key: FilePath | None = Field(
        default=None, description="The private key, a PEM file; left out: it is in cert."
    )
    password_env: Text | None = Field(
        default=None, description="The environment variable with the key's password."
    )
    ca: FilePath | None = Field(
        default=None, description="The CA certificates that clients' are checked against."
    )
    client_auth: Literal["none", "optional", "required"] = Field(
        default="none", description="Whether clients present a certificate of their own."
    )
    min_version: Literal["1.2", "1.3"] = Field(
        default="1.2", description="The oldest TLS version that is accepted."
    )
    ciphers: Text | None = Field(default=None, description="Cipher suites in OpenSSL's notation (TLS 1.2).")
    warn_before: Duration = Field(
        default=1_209_600.0, description="Warn when the certificate expires within this time; 0 is never."
    )


class Http(Section):
    """How uvicorn speaks HTTP."""

    implementation: Literal["auto", "h11", "httptools", "zttp"] = Field(
        default="auto", description="The HTTP parser; auto never selects zttp."
    )
    http2: Truth = Field(default=False, description="Serve HTTP/2 too; needs the parser zttp.")
    loop: Literal["auto", "asyncio", "uvloop"] = Field(default="auto", description="The event loop.")
    keep_alive: Duration = Field(default=75.0, description="How long an idle connection is kept.")
    root_path: str = Field(
        default="",
        description="The path below which a proxy serves the app (ASGI root_path): no / at its end.",
        json_schema_extra={"pattern": r"^(?:/.*[^/]|.*\$\{.*)?$"},
    )
    proxy_headers: Truth = Field(default=False, description="Believe X-Forwarded-* of the trusted proxies.")
    trusted_proxies: Proxies = Field(
        default=(), description='Addresses or networks of trusted proxies, or "*".'
    )
    access_log: Truth = Field(
        default=False, description="A log line for each request, with its X-Request-ID."
    )
    request_id: Truth | None = Field(
        default=None, description="Give each request and its response an X-Request-ID. Left out: no."
    )
    max_concurrency: AtLeastOne | None = Field(
        default=None,
        description="Connections and requests at once; above it the answer is 503. Left out: no limit.",
    )
    max_requests: AtLeastOne | None = Field(
        default=None, description="A worker is replaced after so many requests. Left out: never."
    )
    max_connections: AtLeastOne | None = Field(
        default=None,
        description="Open connections of a worker; above it new ones wait in the backlog. Left out: as many as its"
        " descriptors allow, less a reserve.",
    )
    head_timeout: Positive = Field(
        default=10.0,
        description="Time for the head of a request to arrive: the first one from the accept, a TLS handshake"
        " included, later ones from their first byte.",
    )
    max_head_size: HeadSize = Field(
        default=64 * 1024, description="Largest head of a request; a larger one is answered with 431."
    )
    websocket: Literal["auto", "none", "websockets", "websockets-sansio", "wsproto"] = Field(
        default="auto", description="The WebSocket implementation."
    )


class Backoff(Section):
    """The delays between consecutive restarts."""

    initial: Duration = Field(default=0.2, description="The delay before the second restart.")
    max: Duration = Field(default=30.0, description="The longest delay.")
    factor: Factor = Field(default=2.0, description="Each delay is so many times the one before.")
    jitter: Share = Field(default=0.1, description="The random part of a delay.")


class Restart(Section):
    """When a server that ended is started again."""

    policy: Literal["no", "on-failure", "always"] = Field(
        default="on-failure", description="After which ends."
    )
    backoff: Backoff = Field(default=Backoff(), description="The delays of the restarts within the window.")
    limit: Restarts = Field(
        default=10, description="After so many restarts in the window the next end is a failure."
    )
    window: Positive = Field(default=60.0, description="The time in which restarts are counted together.")


class Probe(Section):
    """A check of a server: exactly one of http, tcp and exec."""

    http: UrlPath | None = Field(default=None, description="A path; the status of the response decides.")
    tcp: Truth = Field(default=False, description="A connection decides.")
    exec: Argument | None = Field(default=None, description="A command; its exit status decides.")
    interval: Positive = Field(default=5.0, description="The time between two probes.")
    timeout: Positive = Field(default=2.0, description="How long a response may take.")
    interval_fall: Positive | None = Field(
        default=None, description="The interval while it falls; default: interval."
    )
    interval_rise: Positive | None = Field(
        default=None, description="The interval while it rises; default: interval."
    )
    fall_count_warn: Count = Field(default=1, description="Failures in a row from ok to warn.")
    fall_count_ko: Count = Field(default=3, description="Failures in a row from warn to ko.")
    rise_count_warn: Count = Field(default=1, description="Successes in a row from warn to ok.")
    rise_count_ko: Count = Field(default=1, description="Successes in a row from ko to warn.")
    jitter: Share = Field(default=0.1, description="The random part of an interval.")
    method: Method = Field(default="GET", description="The method of the request.")
    headers: Headers = Field(
        default=EMPTY, description="Headers of the request; Host is the server's expose."
    )
    status: Statuses = Field(default="200-399", description="The statuses that are a success.")
    body: str | None = Field(default=None, description="A regular expression that the body has to contain.")


class Health(Section):
    """The probes of a server."""

    startup: Probe | None = Field(
        default=None, description="Sent until it succeeds once; the others wait for it."
    )
    readiness: Probe | None = Field(default=None, description="Whether it takes part in the traffic.")
    liveness: Probe | None = Field(default=None, description="Whether it is alive; ko sets off the recovery.")

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

    initial: Duration = Field(default=5.0, description="The delay before the second recovery.")
    max: Duration = Field(default=300.0, description="The longest delay.")


class Recovery(Section):
    """The action on a hung server."""

    strategy: Literal["restart", "replace", "disable", "notify", "none"] = Field(
        default="restart", description="Stop and start, swap, disable, only notify, or nothing."
    )
    heartbeat: Duration = Field(
        default=5.0, description="The time between two heartbeats of an app's worker; 0 is never."
    )
    stuck_after: Positive = Field(
        default=15.0, description="A worker whose event loop answers no heartbeat for so long is stuck."
    )
    limit: Restarts = Field(
        default=5, description="After so many recoveries within the window it is left alone."
    )
    window: Positive = Field(default=600.0, description="The time in which recoveries are counted together.")
    backoff: Patience = Field(
        default=Patience(), description="The delays of the recoveries within the window."
    )


class Limits(Section):
    """Resources that a worker may use."""

    memory: Size | None = Field(default=None, description="PSS of a worker; exceeded means a swap.")
    open_files: OpenFiles | None = Field(
        default=None, description="Open descriptors (RLIMIT_NOFILE). Left out: the launching shell's limit."
    )


class Log(Section):
    """Where the output of the workers goes."""

    path: FilePath | None = Field(
        default=None, description="The file. Left out: logs/NAME.log in the state directory."
    )
    format: Literal["text", "json"] = Field(
        default="text", description="A time before each line, or JSON lines."
    )
    max_size: Size = Field(default=10 * 1024 * 1024, description="The file is rotated when it is larger.")
    keep: FileCount = Field(default=5, description="Number of rotated files.")
    max_age: Positive | None = Field(
        default=None, description="The file is rotated when it is older. Left out: never."
    )
