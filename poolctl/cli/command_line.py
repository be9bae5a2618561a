"""The command line: the declarations of commands and options, and parsing into a CommandRequest.

Every module of `poolctl.cli.commands`, and each feature's command module, declares a `COMMAND`. The parser, the Typer
application, the help and the shell completions all use these declarations, so a new command needs only one new file.
The parser here, called the fast lane, reads simple command lines. All others (help, option clusters, values that look
like options) are left to Typer, which also reports mistakes. This module uses the standard library only, without
`typing` and `dataclasses`, because every command imports it at its start.
"""

from __future__ import annotations

from poolctl.cli.outcome import Outcome, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Literal

    from poolctl.json_form import Table
    from poolctl.selection.selector import Selector

FORMATS = ("table", "wide", "json", "jsonl", "name")
LINE_FORMATS = FORMATS[:4]  # for commands that print lines as they arrive; both JSON forms are JSON lines
# The fields that every Item has; importing that class would take as long as everything else that a command needs.
FIELDS = (
    "name", "bind", "expose", "state", "ready", "health", "pids", "workers", "uptime_seconds", "restarts", "tags",
)  # fmt: skip
UPTIME = "uptime"  # also a field of `-o`: `uptime_seconds` for people
STATES = (
    "disabled", "stopped", "completed", "sleeping", "starting", "running", "draining", "stopping", "backoff", "failed",
)  # fmt: skip
ENDED = ("stopped", "completed", "disabled", "failed")  # without a process, and not about to get one
HEALTH = ("unknown", "ok", "warn", "ko")
GOALS = ("ready", "stopped", "healthy", "running", *(s for s in STATES if s not in ("stopped", "running")))

BACKEND_ACTIONS = ("disable", "enable", "drain")
# Similar commands, all in `poolctl.cli.live_change`; every other command has a file of its own.
_LIVE_CHANGES = ("disable", "drain", "enable", "remove", "scale", "undrain")
# Headings of `poolctl --help`, in order.
SECTIONS = ("Get started", "Lifecycle", "Look", "Change", "Files", "Machine")


class Option:
    """An option with spellings such as "-n, --lines", or an argument, whose only spelling is its key.

    `key` is the name of its value in a request; it defaults to the first long spelling. For completion, `words` lists
    fixed values, and `completes` names the kind of values to look up in the pool or the file system.
    """

    def __init__(
        self,
        spellings: str,
        metavar: str,
        help: str,
        *,
        key: str = "",
        kind: Literal["flag", "value", "list"] = "value",
        words: Sequence[str] = (),
        completes: Literal[
            "", "servers", "targets", "tags", "pools", "backends", "files", "directories"
        ] = "",
        required: bool = False,
    ) -> None:
        given = spellings.split(", ")
        self.key = key or next(each for each in given if each[:1] != "-" or each[:2] == "--")
        self.key = self.key.lstrip("-").replace("-", "_")
        self.spellings = tuple(each for each in given if each.startswith("-"))
        self.metavar = metavar
        self.help = help
        self.kind = kind
        self.words = tuple(words)
        self.completes = completes
        self.required = required

    def __repr__(self) -> str:
        return f"<Option {self.key} {' '.join(self.spellings)}>".replace(" >", ">")

    @property
    def takes_value(self) -> bool:
        """Whether the option takes a value; False for a flag, which is only present or absent."""
        return self.kind != "flag"


class Command:
    """The options and the help of a poolctl command, such as `run`.

    `options` holds first the poolctl command's own options, then the selection options, then the common options. Common
    options may also precede the poolctl command. With `takes_command`, a program and its arguments follow after `--`.
    The request's value `command` lists the program and the arguments.
    """

    def __init__(
        self,
        help: str,
        *options: Option | Sequence[Option],
        section: Literal["Get started", "Lifecycle", "Look", "Change", "Files", "Machine"],
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


def flag(spellings: str, help: str, *, key: str = "") -> Option:
    """An option without a value."""
    return Option(spellings, "", help, key=key, kind="flag")


COMMON = (
    Option(
        "-c, --config",
        "FILE",
        "The pool's file; repeatable, later ones override.",
        kind="list",
        completes="files",
    ),
    Option("--pool", "NAME", "Name of a running pool, from any directory.", completes="pools"),
    flag("-q, --quiet", "Print only results and errors."),
    flag("-v, --verbose", "Print more details."),
)


HELP_OPTION = flag("-h, --help", "Show this message and exit.")
VERSION_OPTION = flag("--version", "Show the version and exit.")


def output(help: str = "table, wide, json, jsonl, name, or FIELD,FIELD…", *words: str) -> Option:
    """Return the option -o. Shell completion offers the formats `*words`, or all output formats if none are given."""
    return Option("-o, --output", "FORM", help, words=words or FORMATS)


OUTPUT = output()
LINES_OUTPUT = output("table (default), wide, or json for JSON lines.", *LINE_FORMATS)
TIMEOUT = Option("--timeout", "DURATION", 'Give up after this time, such as "30s".')
NO_WAIT = flag("--no-wait", "Return at once, without waiting for the result.")
NO_DEPS = flag("--no-deps", "Ignore dependencies: act on the selected servers only.")
ALL = flag("--all", "Act on every server of the pool.")
ALLOW_EMPTY = flag("--allow-empty", "Do not fail when nothing matches.")
CALLER_ENV = flag("--env", "Use this command's environment instead of the supervisor's.")
ALLOW_EXPIRED = flag("--allow-expired", "Let expired certificates replace valid ones.", key="force")
REVEAL = flag("--reveal", "Show secrets instead of masking them.")
WATCH = flag("--watch", "Keep running; reload when the configuration or code changes.")
SAVE = flag("--save", "Also write the change to the TOML file, keeping its comments.")
SAVE_DRY_RUN = flag("--dry-run", "Print what --save would write; exit 3 if the file would change.")
# For commands that wait for the result.
WAIT_OPTIONS = (OUTPUT, TIMEOUT, NO_WAIT)
# For changes that last until a reload unless they are saved.
CHANGE_OPTIONS = (*WAIT_OPTIONS, SAVE, SAVE_DRY_RUN)
FOLLOW = flag("-f, --follow", "Keep following new lines.")
SINCE = Option("--since", "TIME", 'Nothing older than this: "10m", or an ISO 8601 time.')
FILTERS = (
    Option("--name", "RE", "Servers whose name matches this regular expression.", kind="list"),
    Option("--bind", "RE", "Servers whose address matches this expression.", kind="list"),
    Option("--expose", "RE", "Servers whose exposed address matches this one.", kind="list"),
    Option("--tag", "TAG", "Servers with this tag.", kind="list", completes="tags"),
    Option("--state", "STATE", "Servers in this state.", kind="list", words=STATES),
    Option(
        "--health", "HEALTH", "Servers of this health: unknown, ok, warn or ko.", kind="list", words=HEALTH
    ),
    flag("--not", "Select all other servers.", key="invert"),
    ALLOW_EMPTY,
)


STDIN = "-"  # the target that stands for the names on standard input


_TARGETS_HELP = "Names or addresses; * and ? are wildcards; - reads them from standard input."


def targets(metavar: str = "TARGET", help: str = _TARGETS_HELP) -> Option:
    """The argument that selects servers."""
    return Option("targets", metavar, help, kind="list", completes="targets")


# Options that select servers.
SELECTORS = (*FILTERS, ALL)
SELECTION = (targets(help=f"{_TARGETS_HELP} Default: all servers."), *FILTERS)
# For commands that never apply to all servers by default.
EXPLICIT_SELECTION = (targets(), *FILTERS, ALL)


def names() -> list[str]:
    """The names of all commands, including the commands of features, in alphabetical order."""
    from pkgutil import iter_modules

    from poolctl.cli import commands
    from poolctl.feature import features

    of_features = [name for feature in features() for name in feature.commands]
    own = [module.name for module in iter_modules(commands.__path__)]
    return sorted([*of_features, *own, *_LIVE_CHANGES])


def command_named(verb: str) -> Command | None:
    """The declaration of a command; None if there is no such command."""
    module = module_of(verb)
    return None if module is None else module.COMMAND


def module_of(verb: str) -> Any:
    """The module with the `COMMAND` and `perform` of a command; None if there is no such command.

    For the commands of `poolctl.cli.live_change` it is an object with these two attributes.
    """
    if not verb.isidentifier():
        return None
    name = f"poolctl.cli.{'live_change' if verb in _LIVE_CHANGES else f'commands.{verb}'}"
    try:
        module = __import__(name, fromlist=["COMMAND"])  # importlib.import_module would import `warnings` too
        return module.COMMANDS[verb] if verb in _LIVE_CHANGES else module
    except ModuleNotFoundError as missing:
        if missing.name != name:
            raise
    from poolctl.feature import features

    found = (feature.load(feature.commands[verb]) for feature in features() if verb in feature.commands)
    return next(found, None)


# Options that may precede the command, and whose next word is their value, not the command.
_SPELLINGS_WITH_VALUE = tuple(
    spelling for option in COMMON if option.takes_value for spelling in option.spellings
)


DEFAULT_LINES = 100
_MOST_DIGITS = 9


class CommandRequest:
    """One command with the values of its options, by their keys."""

    def __init__(self, verb: str, values: Table) -> None:
        self.verb = verb
        self.values = values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CommandRequest) and (self.verb, self.values) == (other.verb, other.values)

    def __repr__(self) -> str:
        given = " ".join(f"{key}={value!r}" for key, value in self.values.items() if value)
        return f"<Request {self.verb} {given}>".replace(" >", ">")

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of the option `key`, or `default` if the command does not declare such an option."""
        return self.values.get(key, default)

    @property
    def quiet(self) -> bool:
        """Whether to print only results and errors."""
        return bool(self.values.get("quiet"))

    @property
    def verbose(self) -> bool:
        """Whether to print additional details."""
        return bool(self.values.get("verbose"))

    @property
    def output(self) -> str:
        """The output format given by -o; "" by default. UsageError if it is unknown."""
        output = self.values.get("output")
        forms = (*FORMATS, "toml") if self.verb == "config" else FORMATS
        if output is None or output in forms:
            return output or ""
        command = command_named(self.verb)
        fields = command.fields if command else FIELDS
        hint = f"--directory {output} writes the files there" if self.verb == "export" else ""
        return ",".join(
            validate_choice("-o", word.strip(), (*dict.fromkeys((*forms, *fields)),), fields, hint)
            for word in output.split(",")
        )

    def selector(self) -> Selector:
        """The server selection made by the options. Raises SelectorError for an invalid expression, state or health."""
        from poolctl.selection.selector import LISTS, Selector

        lists: Table = {key: self.values.get(key) or () for key in LISTS}
        invert, allow_empty = bool(self.get("invert")), bool(self.get("allow_empty"))
        return Selector(**lists, invert=invert, allow_empty=allow_empty)

    def seconds(self, key: str, spelling: str = "") -> float | None:
        """The duration given by the option `key` in seconds; None if it is not given.

        Raises UsageError, which names the option by `spelling` (default: derived from `key`).
        """
        text = self.values.get(key)
        if text is None:
            return None
        from poolctl.units import parse_duration

        try:
            return parse_duration(text)
        except ValueError as error:
            raise UsageError(f"{spelling or '--' + key.replace('_', '-')}: {error}") from None

    def verb_options(self) -> Mapping[str, object]:
        """Return the options for the supervisor, by their names in its protocol: `wait` is the opposite of --no-wait.

        The options that select servers are not included. Raises UsageError for an invalid value.
        """
        options: Table = {"timeout": self.seconds("timeout")}
        if "no_wait" in self.values:
            options["wait"] = not self.values["no_wait"]
        if "no_deps" in self.values:
            options["deps"] = not self.values["no_deps"]
        for flag in ("all", "force", "reveal"):
            if self.values.get(flag):
                options[flag] = True
        if self.values.get("goal") is not None:
            options["for"] = validate_choice("--for", self.values["goal"], GOALS)
        if self.values.get("env"):
            import os

            from poolctl.config.values.path_variables import with_absolute_paths

            options["env"] = with_absolute_paths(os.environ)
        return options

    def line_limit(self) -> int | None:
        """The number of lines or events to print, from -n; None means all.

        The default is 100, or all with --since. Raises UsageError if the value is neither a number nor "all".
        """
        text = self.get("lines")
        if text is None:
            return None if self.get("since") else DEFAULT_LINES
        if text == "all":
            return None
        if not text.isascii() or not text.isdigit() or len(text) > _MOST_DIGITS:
            raise UsageError(f"-n: {text!r} is not a number of lines", hint='a number, or "all"')
        return int(text)

    def log_timestamp(self, key: str) -> str:
        """Return a log timestamp for the time that the option `key` gives; "" without the option. Raises UsageError."""
        text = self.get(key)
        if text is None:
            return ""
        from datetime import UTC, datetime
        from time import time

        from poolctl.logs.log_line import stamp

        example = "2026-01-31T12:00:00Z"
        if text[:4].isdigit() and text[4:5] == "-":
            try:
                moment = datetime.fromisoformat(text)
            except ValueError:
                raise UsageError(f"--{key}: {text!r} is not a time", hint=f"{example}, or 10m") from None
            return stamp(moment.astimezone(UTC).timestamp())  # a time without a zone is in local time
        try:
            return stamp(time() - (self.seconds(key) or 0.0))
        except UsageError:
            hint = f'"10m" is ten minutes ago; or a time: {example}'
            raise UsageError(f"--{key}: {text!r} is not a time", hint=hint) from None


def parse_simple_command_line(args: Sequence[str]) -> CommandRequest | None:
    """Parse a simple command line; returns None if it is invalid or not simple, so that Typer must handle it."""
    given: Table = {}
    words = list(args)
    if "--" in words:
        at = words.index("--")
        given["command"] = words[at + 1 :]
        del words[at:]
    verb, command, table = "", None, by_spelling(COMMON)
    arguments: list[Option] = []
    words.reverse()
    while words:
        word = words.pop()
        if not word:
            return None
        if word.startswith("-"):
            if not _take_option(word, words, table, given):
                return None
        elif command is None:
            command = command_named(word)
            if command is None:
                return None
            verb, table, arguments = word, by_spelling(command.options), command.arguments[::-1]
        elif not arguments:
            return None
        elif arguments[-1].kind == "list":
            given.setdefault(arguments[-1].key, []).append(word)
        else:
            given[arguments.pop().key] = word
    if command is None or ("command" in given and not command.takes_command):
        return None
    if any(argument.required and argument.key not in given for argument in command.arguments):
        return None
    values: Table = {"command": []} if command.takes_command else {}
    for option in (*command.arguments, *command.options):
        values[option.key] = False if option.kind == "flag" else [] if option.kind == "list" else None
    return CommandRequest(verb, {**values, **given})


def by_spelling(options: Sequence[Option]) -> dict[str, Option]:
    """The options by each of their spellings."""
    return {spelling: option for option in options for spelling in option.spellings}


def _take_option(word: str, rest: list[str], table: dict[str, Option], given: Table) -> bool:
    """Put the option `word` into `given`; a value that is a separate word is removed from the end of `rest`.

    Returns False if the option is unknown, or is spelled in a way that only Typer can parse.
    """
    option, _, value = split_option(word, table)
    if option is None:
        return False
    if not option.takes_value:
        given[option.key] = True
        return True
    if value is None:
        if not rest or not rest[-1] or rest[-1].startswith("-"):
            return False
        value = rest.pop()
    if option.kind == "list":
        given.setdefault(option.key, []).append(value)
    else:
        given[option.key] = value
    return True


def split_option(word: str, table: Mapping[str, Option]) -> tuple[Option | None, str, str | None]:
    """Return the option in `word`, the text before its value, and the value: `-ojson` gives (-o, "-o", "json").

    The value is None if the word has no value, as in `-o`. The result is (None, word, None) for an option that is not
    in `table`, and for a flag with a value, such as `--quiet=yes`.
    """
    name, equals, value = word.partition("=")
    if not word.startswith("--") and len(word) > 2:
        name, equals, value = word[:2], "=" * (word[2] == "="), word[2:].removeprefix("=")
    elif not equals:
        return table.get(word), word, None
    option = table.get(name)
    return (option, name + equals, value) if option and option.takes_value else (None, word, None)


def split_off_user_command(args: Sequence[str]) -> tuple[list[str], Table]:
    """Return the words before `--`, and {"command": words after it}; all words and {} if no user command is allowed."""
    command = command_named(verb_of(args))
    end = args.index("--") if "--" in args else len(args)
    table = by_spelling(command.options if command else COMMON)
    words = [_without_short_option_equals(word, table) for word in args[:end]]
    if command is None or not command.takes_command:
        return [*words, *args[end:]], {}
    return words, {"command": list(args[end + 1 :])}


def _without_short_option_equals(word: str, table: Mapping[str, Option]) -> str:
    """The word, with `-o=json` replaced by `-ojson`: most other tools accept both, Typer only the second."""
    letters, equals, value = word.partition("=")
    option = table.get(f"-{letters[-1:]}")
    if equals and value and option and option.takes_value and letters[:1] == "-" and letters[:2] != "--":
        return letters + value
    return word


def help_as_option(words: Sequence[str]) -> list[str]:
    """The words, with `help`, `help --all` or `help COMMAND` replaced by the equivalent option."""
    at = _verb_at(words)
    if words[at : at + 1] != ["help"]:
        return list(words)
    if words[at + 1 :] == ["--all"]:
        return [*words[:at], "--help-all"]
    return [*words[:at], *words[at + 1 :], "--help"]


def verb_of(words: Sequence[str]) -> str:
    """The command's name in a command line, or ""."""
    return "".join(words[_verb_at(words) :][:1])


def _verb_at(words: Sequence[str]) -> int:
    """The index of the command's name; the number of words if no command is named."""
    at = 0
    while at < len(words) and words[at] != "--":
        if not words[at].startswith("-"):
            return at
        at += 2 if words[at] in _SPELLINGS_WITH_VALUE else 1
    return len(words)


def json_form(args: Sequence[str]) -> str:
    """The form "json" or "jsonl" that a possibly invalid command line asks for; "" for any other.

    An error of such a command line is printed in this form, too.
    """
    words = list(args[: args.index("--")]) if "--" in args else list(args)
    for at, word in enumerate(words):
        for form in ("json", "jsonl"):
            if (
                word == f"--output={form}"
                or (word[:1] == "-" != word[1:2] and word.endswith((f"o{form}", f"o={form}")))
                or (word in ("-o", "--output") and words[at + 1 : at + 2] == [form])
            ):
                return form
    return ""


def should_save(request: CommandRequest) -> bool:
    """Return whether --save is given. Raise UsageError for --dry-run alone, which shows what --save would write."""
    if request.get("dry_run") and not request.get("save"):
        raise UsageError("--dry-run shows what --save would write", hint="add --save")
    return bool(request.get("save"))


def validate_choice(
    option: str, word: str, accepted: tuple[str, ...], allowed: tuple[str, ...] | None = None, hint: str = ""
) -> str:
    """Return `word` if it is in `allowed`, by default `accepted`. Otherwise raise UsageError, which names `option`.

    The error suggests a similar word of `accepted`. Without a similar word, `hint` is shown, by default `accepted`.
    """
    allowed = allowed or accepted
    if word in allowed:
        return word
    near = nearest_word(word, accepted)
    if near and near != word:
        hint = f"did you mean {near!r}?"
    raise UsageError(f"{option}: unknown value {word!r}", hint=hint or f"one of: {', '.join(accepted)}")


def check_line_format(request: CommandRequest) -> None:
    """Raise UsageError if -o is not one of LINE_FORMATS, in a command that prints lines as they arrive."""
    if request.output not in ("", *LINE_FORMATS):
        raise UsageError(
            f"{request.verb} -o: unknown form {request.output!r}", hint=f"one of: {', '.join(LINE_FORMATS)}"
        )


def nearest_word(typed: str, known: Sequence[str]) -> str:
    """The known word that was probably meant: it begins with `typed`, or differs by one or two typos; else ""."""
    if len(typed.lstrip("-")) > 2 and (longer := [word for word in known if word.startswith(typed)]):
        return min(longer, key=len)
    found = min(known, key=lambda word: edit_distance(typed, word), default="")
    return found if edit_distance(typed, found) <= (1 if len(typed.lstrip("-")) < 6 else 2) else ""


def edit_distance(typed: str, word: str) -> int:
    """The number of typos between the words; a swap of neighboring letters is one (optimal string alignment)."""
    before, row = [0] * (len(word) + 1), list(range(len(word) + 1))
    for at, letter in enumerate(typed):
        two_before, before, row = before, row, [at + 1]
        for to, other in enumerate(word):
            cost = min(before[to + 1] + 1, row[to] + 1, before[to] + (letter != other))
            if at and to and letter == word[to - 1] and typed[at - 1] == other:
                cost = min(cost, two_before[to - 1] + 1)
            row.append(cost)
    return row[-1]


def perform(request: CommandRequest) -> Outcome:
    """Run the command and return its outcome, without printing it. outcome_of() converts the exceptions it raises."""
    command, module = command_named(request.verb), module_of(request.verb)
    assert command is not None
    _refuse_empty_values(request, command)
    output = request.output  # an unknown form is reported before anything is done
    if _read_targets(request):
        outcome: Outcome = module.perform(request)
    else:
        outcome = Outcome()
        outcome.notes.append("no names on standard input: nothing was done")
        outcome.streamed = LINES_OUTPUT in command.options  # no line
    outcome.form = output or outcome.form
    outcome.quiet = request.quiet
    return outcome


def _refuse_empty_values(request: CommandRequest, command: Command) -> None:
    """Raise SelectorError for an empty value: it would match everything, or count as not given.

    The name of a file that is empty is one of a file that is missing.
    """
    for option in (*command.arguments, *command.options):
        value = None if option.key == "config" else request.get(option.key)
        if value == "" or (isinstance(value, list) and "" in value):
            from poolctl.selection.selector import empty_value_error

            argument = option.metavar if option.metavar.isalpha() else "an argument"
            raise empty_value_error(option.spellings[-1] if option.spellings else argument)


def _read_targets(request: CommandRequest) -> bool:
    """Replace the target `-` by the names on standard input. False if there are none. Raises UsageError."""
    targets: Sequence[str] = request.get("targets") or ()
    has_number = request.verb == "scale" and not request.get("auto")
    end = len(targets) - has_number
    if STDIN not in targets[:end]:
        return True
    if end > 1:
        message = "-: names from standard input cannot be combined with other targets"
        raise UsageError(message, hint="write all of them to standard input, one a line")
    import os

    if os.isatty(0):
        message = "-: standard input is a terminal; names are read from a pipe or a file"
        raise UsageError(message, hint=f"poolctl filter name --regex RE -o name | poolctl {request.verb} -")
    lines = _read_stdin().decode(errors="backslashreplace").splitlines()
    names = [line.strip() for line in lines if line.strip()]
    request.values["targets"] = [*names, *targets[end:]]
    return bool(names)


def _read_stdin() -> bytearray:
    """Everything up to the end of standard input, also where reading does not block."""
    import os
    import select

    text = bytearray()
    while True:
        select.select([0], [], [])
        try:
            chunk = os.read(0, 65536)
        except BlockingIOError:
            continue
        if not chunk:
            return text
        text += chunk
