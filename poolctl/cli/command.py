"""Declarations of commands, with their help, options and examples, and options shared by several commands.

Every module of `poolctl.cli.commands`, and each feature's command module, declares one `COMMAND`. The fast lane, the
Typer application, the help and the shell completions are all generated from it, so a new command needs only one new
file. Standard library only, without `typing` and `dataclasses`, because every command imports it at its start.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

FORMATS = ("table", "wide", "json", "jsonl", "name")
LINE_FORMATS = FORMATS[:4]  # for commands that print lines as they arrive; both JSON forms are JSON lines
# The fields of an Item that are always there, in the column order of `-o wide`, with the empty value of each; the class
# would take as long to import as everything else that a command needs.
EMPTY_SERVER = {
    "name": "", "bind": "", "expose": "", "state": "", "ready": False, "health": "", "pids": [], "workers": 0,
    "uptime_seconds": 0.0, "restarts": 0, "tags": [],
}  # fmt: skip
FIELDS = tuple(EMPTY_SERVER)
OPTIONAL_FIELDS = ("address", "kept", "kept_until", "next_run_at", "last_run")
UPTIME = "uptime"  # also a field of `-o`: `uptime_seconds` for people
STATES = (
    "disabled",
    "stopped",
    "completed",
    "sleeping",
    "starting",
    "running",
    "draining",
    "stopping",
    "backoff",
    "failed",
)
ENDED = ("stopped", "completed", "disabled", "failed")  # without a process, and not about to get one
HEALTH = ("unknown", "ok", "warn", "ko")
GOALS = ("ready", "stopped", "healthy", "running", *(s for s in STATES if s not in ("stopped", "running")))

FLAG, VALUE, LIST = "flag", "value", "list"
# Values completed by a shell: names from the pool in the working directory, or files.
SERVERS, TARGETS, TAGS, POOLS, BACKENDS = "servers", "targets", "tags", "pools", "backends"
FILES, DIRECTORIES = "files", "directories"
BACKEND_ACTIONS = ("disable", "enable", "drain")
# Aliases of commands, hidden from help and completion.
ALIASES = {"hosts": "backends"}
# Headings of `poolctl --help`, in order.
SECTIONS = ("Get started", "Lifecycle", "Look", "Change", "Files", "Machine")
GET_STARTED, LIFECYCLE, INSPECT, CHANGES, FILE_COMMANDS, MACHINE = SECTIONS


class Option:
    """An option, or an argument if it has no spellings; `key` names its value in a request.

    `words` lists fixed values for completion, `completes` names values to query from the pool or file system; `old`
    lists spellings of an earlier release, which are accepted with a note and shown nowhere.
    """

    def __init__(
        self,
        key: str,
        *spellings: str,
        help: str,
        kind: str = VALUE,
        metavar: str = "",
        words: Sequence[str] = (),
        completes: str = "",
        required: bool = False,
        old: Sequence[str] = (),
    ) -> None:
        self.key = key
        self.spellings = spellings
        self.help = help
        self.kind = kind
        self.metavar = metavar
        self.words = tuple(words)
        self.completes = completes
        self.required = required
        self.old = tuple(old)

    def __repr__(self) -> str:
        return f"<Option {self.key} {' '.join(self.spellings)}>".replace(" >", ">")

    @property
    def takes_value(self) -> bool:
        """Whether the option takes a value."""
        return self.kind != FLAG


class Command:
    """The options of a command, and its help.

    Its own options come first, then the selection options, then the common options, which may also precede the
    command. With `takes_command` the words after `--` are a command to run, available as the request's value
    `command`.
    """

    def __init__(
        self,
        help: str,
        *options: Option | Sequence[Option],
        section: str,
        examples: Sequence[str] = (),
        notes: Sequence[str] = (),
        takes_command: bool = False,
        fields: Sequence[str] = (*FIELDS, UPTIME),
    ) -> None:
        given = [one for each in options for one in ([each] if isinstance(each, Option) else each)]
        self.help = help
        self.own = [each for each in given if each.spellings and each not in SELECTORS]
        self.selection = [each for each in given if each in SELECTORS]
        self.options = [*self.own, *self.selection, *COMMON]
        self.arguments = [each for each in given if not each.spellings]
        self.section = section
        self.examples = tuple(examples)
        self.notes = tuple(notes)
        self.takes_command = takes_command
        self.fields = tuple(fields)  # fields for -o FIELD,FIELD


def flag(key: str, *spellings: str, help: str, old: Sequence[str] = ()) -> Option:
    """An option without a value."""
    return Option(key, *spellings, help=help, kind=FLAG, old=old)


COMMON = (
    Option(
        "config",
        "-c",
        "--config",
        metavar="FILE",
        kind=LIST,
        completes=FILES,
        help="The pool's file; repeatable, later ones override.",
    ),
    Option(
        "pool", "--pool", metavar="NAME", completes=POOLS, help="Name of a running pool, from any directory."
    ),
    flag("quiet", "-q", "--quiet", help="Print only results and errors."),
    flag("verbose", "-v", "--verbose", help="Print more details."),
)


HELP_OPTION = flag("help", "-h", "--help", help="Show this message and exit.")
VERSION_OPTION = flag("version", "--version", help="Show the version and exit.")


def output(help: str = "table, wide, json, jsonl, name, or FIELD,FIELD…", *words: str) -> Option:
    """The option -o, with the forms offered by completion."""
    return Option("output", "-o", "--output", metavar="FORM", words=words or FORMATS, help=help)


OUTPUT = output()
LINES_OUTPUT = output("table (default), wide, or json for JSON lines.", *LINE_FORMATS)
TIMEOUT = Option("timeout", "--timeout", metavar="DURATION", help='Give up after this time, such as "30s".')
NO_WAIT = flag("no_wait", "--no-wait", help="Return at once, without waiting for the result.")
NO_DEPS = flag("no_deps", "--no-deps", help="Ignore dependencies: act on the selected servers only.")
ALL = flag("all", "--all", help="Act on every server of the pool.")
ALLOW_EMPTY = flag("allow_empty", "--allow-empty", help="Do not fail when nothing matches.")
CALLER_ENV = flag("env", "--env", help="Use this command's environment instead of the supervisor's.")
ALLOW_EXPIRED = flag(
    "force", "--allow-expired", old=("--force",), help="Let expired certificates replace valid ones."
)
REVEAL = flag("reveal", "--reveal", help="Show secrets instead of masking them.")
WATCH = flag("watch", "--watch", help="Keep running; reload when the configuration or code changes.")
SAVE = flag("save", "--save", help="Also write the change to the TOML file, keeping its comments.")
SAVE_DRY_RUN = flag(
    "dry_run", "--dry-run", help="Print what --save would write; exit 3 if the file would change."
)
# For changes that last until a reload unless they are saved.
SAVED_CHANGE = (OUTPUT, TIMEOUT, NO_WAIT, SAVE, SAVE_DRY_RUN)
FOLLOW = flag("follow", "-f", "--follow", help="Keep following new lines.")
SINCE = Option(
    "since", "--since", metavar="TIME", help='Nothing older than this: "10m", or an ISO 8601 time.'
)  # fmt: skip
FILTERS = (
    Option(
        "name", "--name", metavar="RE", kind=LIST, help="Servers whose name matches this regular expression."
    ),
    Option("bind", "--bind", metavar="RE", kind=LIST, help="Servers whose address matches this expression."),
    Option(
        "expose",
        "--expose",
        metavar="RE",
        kind=LIST,
        help="Servers whose exposed address matches this one.",
    ),
    Option("tag", "--tag", metavar="TAG", kind=LIST, completes=TAGS, help="Servers with this tag."),
    Option("state", "--state", metavar="STATE", kind=LIST, words=STATES, help="Servers in this state."),
    Option(
        "health",
        "--health",
        metavar="HEALTH",
        kind=LIST,
        words=HEALTH,
        help="Servers of this health: unknown, ok, warn or ko.",
    ),
    flag("invert", "--not", help="Select all other servers."),
    ALLOW_EMPTY,
)


def targets(metavar: str = "TARGET", help: str = "Names or addresses; * and ? are wildcards.") -> Option:
    """The argument that selects servers."""
    return Option("targets", metavar=metavar, kind=LIST, completes=TARGETS, help=help)


# Options that select servers.
SELECTORS = (*FILTERS, ALL)
SELECTION = (targets(help="Names or addresses; * and ? are wildcards. Default: all servers."), *FILTERS)
# For commands that never apply to all servers by default.
EXPLICIT_SELECTION = (targets(), *FILTERS, ALL)


def names() -> list[str]:
    """The names of all commands, including the commands of features, in alphabetical order."""
    from pkgutil import iter_modules

    from poolctl.cli import commands
    from poolctl.feature import features

    of_features = [name for feature in features() for name in feature.commands]
    return sorted([*of_features, *(module.name for module in iter_modules(commands.__path__))])


def command_named(verb: str) -> Command | None:
    """The declaration of a command; None if there is no such command."""
    module = module_of(verb)
    return None if module is None else module.COMMAND


def module_of(verb: str) -> Any:
    """Import the module of a command; None if there is no such command."""
    verb = ALIASES.get(verb, verb)
    if not verb.isidentifier():
        return None
    name = f"poolctl.cli.commands.{verb}"
    try:
        return __import__(name, fromlist=["COMMAND"])  # importlib.import_module would import `warnings` too
    except ModuleNotFoundError as missing:
        if missing.name != name:
            raise
    from poolctl.feature import features

    found = (feature.load(feature.commands[verb]) for feature in features() if verb in feature.commands)
    return next(found, None)
