"""The base class of a configuration's tables, and the tables within a server's table. Instances are immutable.

Tables are validated by pydantic models, which are made from these classes on first use: a process that only uses
validated tables does not import pydantic.
"""

# ruff: noqa: F403, F405 (the types of keys)
from __future__ import annotations

import importlib
import re
import sys
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from threading import RLock
from typing import (
    TYPE_CHECKING,
    ClassVar,
    Literal,
    NamedTuple,
    NoReturn,
    Self,
    TypeVar,
    dataclass_transform,
    get_type_hints,
)

from poolctl.app_interface import THREADS
from poolctl.config.values.plain import EMPTY
from poolctl.config.values.problems import Finding, KeyPath, Tree, problem_of, reset_suggestions
from poolctl.errors import PoolValidateError
from poolctl.feature import features

if TYPE_CHECKING:
    from inspect import Signature

    from pydantic import BaseModel
    from pydantic_core import CoreSchema

    from poolctl.config.values.value_types import *


REQUIRED = object()


class Key(NamedTuple):
    """A key of a table: its default, and its description in the JSON Schema.

    A hidden key is set by the program, and neither shown nor suggested. A derived key, if left out, is computed from
    other keys.
    """

    default: Tree
    description: str = ""
    hidden: bool = False
    derived: bool = False


def field(default: Tree, description: str) -> Tree:
    """Declare an optional key of a table."""
    return Key(default, description)


def required(*, description: str, derived: bool = False) -> Tree:
    """Declare a key that must be given, unless it can be derived from other keys."""
    return Key(REQUIRED, description, derived=derived)


def hidden(default: Tree = REQUIRED) -> Tree:
    """Declare a key of a table. The key cannot be set in files."""
    return Key(default, hidden=True)


class _ConstructorSignature:
    """The signature of a table's constructor for help() and inspect: its keys, instead of `**data`."""

    def __get__(self, instance: object, owner: type[Section]) -> Signature:
        from inspect import Parameter, Signature  # not needed by commands

        annotations = {
            name: text
            for each in reversed(owner.__mro__)
            for name, text in vars(each).get("__annotations__", {}).items()
        }
        defaults = {
            name: "" if key.derived else key.default for name, key in owner.keys_of.items() if not key.hidden
        }
        return Signature(
            [
                Parameter(
                    name,
                    Parameter.KEYWORD_ONLY,
                    default=Parameter.empty if default is REQUIRED else default,
                    annotation=annotations[name],
                )
                for name, default in defaults.items()
            ]
        )


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(required,))
class Section:
    """An immutable table; the constructor raises PoolValidateError with every problem for bad values.

    `given` are the keys that have been given; the others have their defaults.
    """

    __slots__ = ("__dict__", "given")
    __signature__ = _ConstructorSignature()

    keys_of: ClassVar[Mapping[str, Key]] = {}
    # The class that declares the keys and their validation.
    declaration: ClassVar[type[Section]]
    # The name of the table in files, by which `OTHER_TOOLS` lists keys of other tools; "" for a server's.
    table: ClassVar[str] = ""
    given: set[str]

    def __init_subclass__(cls) -> None:
        own = {name: vars(cls)[name] for name in cls.__annotations__ if isinstance(vars(cls).get(name), Key)}
        for name in own:
            delattr(cls, name)
        if own or not hasattr(cls, "declaration"):
            cls.declaration, cls.keys_of = cls, {**cls.keys_of, **own}

    def __init__(self, /, **data: Tree) -> None:
        reset_suggestions()
        findings: list[Finding] = []
        made = validated(type(self), data, findings)
        if made is None:
            refuse(type(self).__name__, findings)
        self.__setstate__((vars(made), made.given))

    @classmethod
    def with_defaults(cls) -> Self:
        """A table with the default value of every key."""
        return cls.unchecked({})

    @classmethod
    def unchecked(cls, values: Mapping[str, Tree]) -> Self:
        """A table with these values, which are known to be valid, and the defaults of the other keys."""
        found = {name: values.get(name, key.default) for name, key in cls.keys_of.items()}
        return cls.from_values(
            {name: each for name, each in found.items() if each is not REQUIRED}, set(values)
        )

    @classmethod
    def from_values(cls, values: dict[str, Tree], given: set[str]) -> Self:
        """Create a table from the values of all keys, without a copy. `given` names the keys not set by default."""
        made = cls.__new__(cls)
        made.__setstate__((values, given))
        return made

    @classmethod
    def keys_at(cls, path: KeyPath) -> tuple[str, ...]:
        """The keys that files can set at a path within the table; () if there is no table."""
        here: type[Section] | None = cls
        for part in path:
            if isinstance(part, str) and here is not None:
                here = sections_of(here).get(part)
        return () if here is None else here.keys_allowed_in_files()

    @classmethod
    def keys_allowed_in_files(cls) -> tuple[str, ...]:
        """The keys that files can set."""
        return tuple(name for name, key in cls.keys_of.items() if not key.hidden)

    def with_values(self, **changes: Tree) -> Self:
        """A copy of the table with some values replaced. The new values must be valid: they are not checked."""
        return self.from_values({**vars(self), **changes}, self.given | changes.keys())

    def to_dict(self) -> dict[str, Tree]:
        """The table as it would be written in a file: defaults filled in, unset keys left out."""
        values, keys = vars(self), self.keys_of
        return {
            name: _as_written(value, only_given=False)
            for name in keys
            if (value := values.get(name)) is not None and not keys[name].hidden
        }

    def as_given(self) -> dict[str, Tree]:
        """The keys that were given, as they would be written in a file."""
        return {
            name: _as_written(value, only_given=True)
            for name, value in self
            if name in self.given and not self.keys_of[name].hidden
        }

    def __setattr__(self, name: str, value: Tree) -> None:
        raise AttributeError(f"{type(self).__name__} does not change: make another one with other values")

    def __delattr__(self, name: str) -> None:
        self.__setattr__(name, None)

    def __iter__(self) -> Iterator[tuple[str, Tree]]:
        return iter(vars(self).items())

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))

    def __repr__(self) -> str:
        shown = (f"{name}={value!r}" for name, value in self if not self.keys_of[name].hidden)
        return f"{type(self).__name__}({', '.join(shown)})"

    def __getstate__(self) -> tuple[dict[str, Tree], set[str]]:
        return vars(self), self.given

    def __setstate__(self, state: tuple[dict[str, Tree], set[str]]) -> None:
        object.__setattr__(self, "__dict__", state[0])
        object.__setattr__(self, "given", state[1])

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(cls.nested)

    @classmethod
    def nested(cls, value: Tree) -> Self:
        """The value as an instance of this class: a table is validated and converted, an instance returned unchanged.

        Raises pydantic's ValidationError.
        """
        return value if isinstance(value, cls) else _build_validated(cls, value)


def _as_written(value: Tree, *, only_given: bool) -> Tree:
    if isinstance(value, Section):
        return value.as_given() if only_given else value.to_dict()
    if isinstance(value, (list, tuple)):
        return [_as_written(each, only_given=only_given) for each in value]
    return dict(value) if isinstance(value, dict) else value


def refuse(what: str, findings: list[Finding], name: str = "", bind: str = "") -> NoReturn:
    """Raise PoolValidateError with the findings; `what` names the invalid object in the message."""
    problems = [problem_of(finding, name=name, bind=bind) for finding in findings]
    raise PoolValidateError(
        f"{what} has {len(problems)} problem{'s' * (len(problems) > 1)}", problems
    ) from None


class Table(Section):
    """The base class of a file's optional tables, with methods that check such a table."""

    # Its name in files.
    table_name: ClassVar[str] = ""
    # Whether files define a list of such tables; a later file's list replaces earlier ones, unless `merged_by` is set.
    listed: ClassVar[bool] = False
    # In a list, a later file's table is merged into the earlier table with the same value of this key, or added.
    merged_by: ClassVar[str] = ""
    # The keys that hold paths.
    paths: ClassVar[tuple[str, ...]] = ()
    # Whether it is a route to a server or elsewhere.
    is_route: ClassVar[bool] = False

    @property
    def stop_seconds(self) -> float:
        """Return the maximum time that the feature of this table needs to stop after every server has stopped."""
        return 0.0

    @property
    def label(self) -> str:
        """The name that distinguishes a table in a list for display; "" for a table that exists only once."""
        return ""

    @classmethod
    def with_absolute_paths(
        cls, table: Mapping[str, Tree], written: Mapping[str, Tree], base_dir: str
    ) -> dict[str, Tree]:
        """The table with absolute paths; relative paths start at `base_dir`, the directory of its file.

        `written` is the table before references to variables were replaced.
        """
        from poolctl.config.values.normalise import NORMALISERS, absolute

        found = dict(table)
        for key, value in table.items():
            if key in cls.paths:
                found[key] = absolute(value, base_dir)
            elif key in ("bind", "tls"):
                found[key] = NORMALISERS[key](value, base_dir)
        return found

    @classmethod
    def with_derived_values(cls, table: dict[str, Tree]) -> dict[str, Tree]:
        """The table, merged from all files, with values that are derived from other keys."""
        return table

    def findings(self) -> Iterable[Finding]:
        """Contradictions between the table's keys; their paths are relative to the table."""
        return ()

    def findings_against_other_tables(self, tables: Mapping[str, Tree]) -> Iterable[Finding]:
        """Return contradictions between this table and other tables. The path of each finding starts in this table.

        `tables` has the other tables by name, with None for an invalid table.
        """
        return ()

    @property
    def has_startup_warnings(self) -> bool:
        """Whether `check` may find something to warn about at startup."""
        return False

    def check(self, env: Mapping[str, str], names: Collection[str]) -> tuple[list[Finding], list[Finding]]:
        """Check files, variables and the like to which the table refers; return (problems, warnings).

        `names` has the names of all tables in the pool's files. Blocks on the disk.
        """
        return [], []


Kind = TypeVar("Kind", bound=Section)


def with_feature_keys(kind: type[Kind]) -> type[Kind]:
    """Return the subclass of section class `kind` with which a feature adds keys; `kind` itself if there is none."""
    name = kind.__name__
    found = (feature.load(feature.sections[name]) for feature in features() if name in feature.sections)
    return next(found, kind)


_sections: dict[type[Section], dict[str, type[Section]]] = {}


def sections_of(kind: type[Section]) -> dict[str, type[Section]]:
    """Return {key: class of the nested table} for each key of `kind` whose value is a table or a list of tables."""
    if kind not in _sections:
        found: dict[str, type[Section]] = {}
        for owner in reversed(kind.__mro__):
            annotations = vars(owner).get("__annotations__", {})
            for key in annotations.keys() & kind.keys_of.keys():
                for word in re.findall(r"\w+", annotations[key]):
                    named = getattr(sys.modules[owner.__module__], word, None)
                    if isinstance(named, type) and issubclass(named, Section):
                        found[key] = named
        _sections[kind] = found
    return _sections[kind]


_lock = RLock()  # the first servers may be made by several threads at once


def validated(kind: type[Kind], table: dict[str, Tree], findings: list[Finding]) -> Kind | None:
    """Return the table as an instance of `kind`; if it is invalid, add its problems to `findings` and return None."""
    from pydantic import ValidationError

    try:
        return _build_validated(kind, table)
    except ValidationError as error:
        from poolctl.config.values.value_types import findings_of

        reported = {finding.path for finding in findings}
        found = findings_of(error, kind.keys_at, kind.table)
        findings += [finding for finding in found if finding.path not in reported]
        return None


def _build_validated(kind: type[Kind], table: Tree) -> Kind:
    """The table as an instance of `kind`. Raises pydantic's ValidationError."""
    if table == {} and not any(key.default is REQUIRED for key in kind.keys_of.values()):
        return kind.with_defaults()  # without a model, which takes milliseconds to make
    made = model_of(kind).__pydantic_validator__.validate_python(table)
    return kind.from_values(made.__dict__, made.__pydantic_fields_set__)


def model_of(kind: type[Section]) -> type[BaseModel]:
    """The pydantic model of the keys of a class."""
    return _declared_model(kind.declaration)  # type: ignore[arg-type]


@cache
def _declared_model(kind: type[Section]) -> type[BaseModel]:
    from pydantic import ConfigDict, Field, create_model
    from pydantic.json_schema import SkipJsonSchema

    from poolctl.config.values import value_types

    kinds = vars(value_types)
    if more := getattr(sys.modules[kind.__module__], "KINDS", ""):
        kinds = kinds | vars(importlib.import_module(more))
    annotations = get_type_hints(kind, localns=kinds, include_extras=True)
    keys: dict[str, Tree] = {}
    for name, key in kind.keys_of.items():
        default = ... if key.default is REQUIRED else key.default
        described: Tree = Field(default, description=key.description or None)
        kind_of_key = annotations[name]
        if key.hidden:
            kind_of_key = SkipJsonSchema[kind_of_key]  # type: ignore[misc, valid-type]
        keys[name] = kind_of_key, described
    rules = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)
    with _lock, warnings.catch_warnings():
        # The warning is about a method `register` of pydantic's metaclass, which no table uses.
        warnings.filterwarnings("ignore", 'Field name "register"')
        return create_model(kind.__name__, __config__=rules, __doc__=kind.__doc__, **keys)


SLEEP_KEYS = ("idle", "awake", "asleep", "timezone")


class Scale(Section):
    """How many workers a server has, and when it sleeps. A feature may add keys (see `with_feature_keys`)."""

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
        """Return the keys and values of the table `scale`, as a file would contain them.

        The keys `awake`, `asleep` and `timezone` are left out if empty.
        """
        return {key: value for key, value in super().to_dict().items() if value not in ([], "")}

    @property
    def is_automatic(self) -> bool:
        """Whether a feature changes the number of workers between min and max."""
        return False

    @classmethod
    def rules(cls, server: Mapping[str, Tree]) -> Iterable[Finding]:
        """Return problems of the keys that a feature adds to `scale`; `server` is the server's unvalidated table."""
        return ()

    @classmethod
    def not_inherited(cls, server: Mapping[str, Tree], own: Mapping[str, Tree]) -> Collection[str]:
        """The keys that this server does not inherit from the defaults; `own` is its own table without defaults."""
        return ()


class EnvFile(Section):
    """A file of environment variables."""

    path: FilePath = required(description="The file.")
    expand: Truth = field(True, "Whether ${NAME} and ${NAME:-default} in its values are replaced.")


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
    """Settings for serving HTTP."""

    implementation: Literal["auto", "h11", "httptools"] = field("auto", "The HTTP parser.")
    loop: Literal["auto", "asyncio", "uvloop"] = field("auto", "The event loop.")
    keep_alive: Duration = field(
        75.0, "How long an idle connection is kept open; 0 closes it after each response."
    )
    root_path: RootPath = field(
        "", "The path under which a proxy serves the app (ASGI root_path), without a trailing slash."
    )
    proxy_headers: Truth = field(False, "Trust X-Forwarded-* headers from trusted_proxies.")
    trusted_proxies: TrustedPeers = field(
        (),
        'Addresses or networks of trusted proxies; "unix" trusts the clients of a Unix socket, "*" every client,'
        " whose first X-Forwarded-For is believed.",
    )
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
    threads: AtLeastOne = field(
        THREADS,
        "Maximum number of requests that a worker with a WSGI app serves at once; further requests wait.",
    )
    max_concurrency: AtLeastOne | None = field(
        None,
        "Maximum number of requests and WebSockets of a worker at a time; further requests get 503."
        " Left out: no limit.",
    )
    max_requests: AtLeastOne | None = field(
        None,
        "Number of requests, plus up to a tenth at random, after which a worker is replaced. Left out: never.",
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
        """Return the table as it would be written in a file, without `log_level` and `threads` at their defaults."""
        values = super().to_dict()
        usual = {"log_level": "info", "threads": THREADS}
        return {key: value for key, value in values.items() if key not in usual or value != usual[key]}


class Backoff(Section):
    """The delays between consecutive restarts."""

    initial: Duration = field(0.2, "The delay before the second restart.")
    max: Duration = field(30.0, "The longest delay.")
    factor: Factor = field(2.0, "The factor by which each delay is longer than the previous one.")
    jitter: Share = field(0.1, "The random share of a delay: 0.1 varies it by up to 10 %.")

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


class Restart(Section):
    """When and how often a worker that has exited is restarted."""

    policy: Literal["no", "on-failure", "always"] | None = field(
        None,
        "The exits after which a worker is started again. Left out: always for a server with an address, else "
        "on-failure.",
    )
    backoff: Backoff = field(Backoff.with_defaults(), "The delays between restarts within the window.")
    limit: Restarts = field(
        8,
        "Maximum number of restarts within the window; the next exit makes the server failed. Left out: a server that "
        "was ready before is not given up, but tried every backoff.max.",
    )
    window: Positive = field(300.0, "The time over which restarts are counted.")

    @property
    def is_limited(self) -> bool:
        """Whether `limit` was given, so that it applies to a server that was ready before, too."""
        return "limit" in self.given

    def __eq__(self, other: object) -> bool:
        # The default, written out, is another limit.
        return super().__eq__(other) and isinstance(other, Restart) and self.is_limited is other.is_limited

    __hash__ = Section.__hash__


class Probe(Section):
    """A check of a server: exactly one of http, tcp and exec."""

    http: UrlPath | None = field(None, "The path that is requested; the status of the response decides.")
    tcp: Truth = field(False, "Whether a connection can be opened decides.")
    exec: Argument | None = field(
        None, "A command; its exit status decides. {port}, {host}, {bind} and {name} are replaced."
    )
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


class RecoveryBackoff(Backoff):
    """The delays between consecutive recoveries of a worker."""

    initial: Duration = field(5.0, "The delay before the second recovery.")
    max: Duration = field(300.0, "The longest delay.")


class Recovery(Section):
    """How a hung server is detected, and what is done about it."""

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
    backoff: RecoveryBackoff = field(
        RecoveryBackoff.with_defaults(), "The delays between recoveries within the window."
    )


class Limits(Section):
    """Resources that a worker may use."""

    memory: Size | None = field(
        None,
        "Maximum memory of a worker with all of its processes (PSS); a worker that exceeds it is replaced.",
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
    """Files watched by `--watch`. A pattern without a slash matches names anywhere below the pool file's directory."""

    include: Patterns = field(
        (), 'Files besides code, such as "*.html" or "templates/**"; ** matches any number of directories.'
    )
    exclude: Patterns = field((), "Files and directories whose changes are ignored.")
    poll: Positive | None = field(
        None,
        "How often all watched files are looked at, for file systems that do not report changes to inotify(7). The "
        "shortest interval of all servers counts.",
    )


class Log(Section):
    """The file to which the output of the workers is written, its format and its rotation."""

    path: FilePath | None = field(
        None,
        "The file. Left out: logs/NAME.log in the state directory; "
        '"-", "/dev/stdout" and "/dev/stderr": the same, of at most 2 MiB.',
    )
    format: Literal["text", "json"] = field(
        "text", "text puts the time before each line, json writes JSON lines."
    )
    max_size: Size = field(10 * 1024 * 1024, "The size at which the file is rotated.")
    keep: FileCount = field(5, "Number of rotated files that are kept.")
    max_age: Positive | None = field(None, "The age at which the file is rotated. Left out: never.")
