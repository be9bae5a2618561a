"""Prints outcomes and errors, in JSON if the command line asks for it; no error is shown as a traceback."""

import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import typer

from poolctl.cli.outcome import Outcome, UsageError, outcome_of
from poolctl.cli.output import OutputError
from poolctl.exit_codes import FAILED, INTERRUPTED

DEBUG_VARIABLE = "POOLCTL_DEBUG"
REPORT_TO = "the project's issue tracker"

# Commands of docker, kubectl, pm2, supervisorctl and systemctl, and poolctl's equivalents.
OTHER_COMMANDS = {
    "ps": "list",
    "ls": "list",
    "get": "list",
    "up": "start",
    "down": "stop",
    "kill": "stop",
    "shutdown": "stop",
    "pid": "list -o name,pids",
    "describe": "show",
    "inspect": "show",
    "delete": "remove",
    "rm": "remove",
    "tail": "logs -f",
    "log": "logs",
    "monit": "top",
    "apply": "reload",
    "reread": "reload",
    "update": "reload",
    "rollout": "restart",
    "check": "validate",
    "completion": "--install-completion",
    "version": "--version",
}
# Options of other tools: the equivalent option, which the command must have, and how to write it.
OTHER_OPTIONS = {
    "--format": ("-o", "-o FORM"),
    "--json": ("-o", "-o json"),
    "--wide": ("-o", "-o wide"),
    "--file": ("-c", "-c FILE"),
    "-f": ("-c", "-c FILE"),
    "--reload": ("--watch", "--watch"),
}
_IN_BACKGROUND = ("-d", "--detach", "--background", "--daemon")


def print_outcome(outcome: Outcome) -> int:
    """Print the outcome; returns the exit code. A reader that has closed the pipe (`| head`) is not a failure."""
    from poolctl.cli.render import show

    if outcome.changed is not None:
        from poolctl.cli.reload_plan import drift_line

        outcome.notes.append(drift_line(outcome.changed))
    if outcome.exit_code == INTERRUPTED and _is_stdout_blocked():
        _discard_stdout()  # a flush would wait for a reader that has stopped reading, until a second Ctrl-C
    try:
        code = show(outcome)
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_stdout()
        return outcome.exit_code
    except OSError as error:
        code = _report_lost_output(error)
        return outcome.exit_code or code
    return code


def explain(error: BaseException, group: Any = None, words: Sequence[str] = ()) -> int:
    """Print an error of this command line, and return its exit code; never raises."""
    try:
        return _explain(error, group, words)
    except BrokenPipeError:
        _discard_stdout()
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED  # Ctrl-C again while the first was being reported


def _explain(error: BaseException, group: Any, words: Sequence[str]) -> int:
    if isinstance(error, BrokenPipeError):
        _discard_stdout()
        return 0
    if isinstance(error, OutputError):
        return _report_lost_output(error)
    if isinstance(error, typer.TyperException):
        outcome = outcome_of(_usage_error(error, group, words))
    else:
        outcome = outcome_of(error)
    if outcome is None:
        if os.environ.get(DEBUG_VARIABLE):
            import traceback

            traceback.print_exception(error)
        outcome = Outcome.failed(FAILED, *_unexpected_error(error))
    outcome.quiet = outcome.quiet or bool({"-q", "--quiet"}.intersection(words))
    if form := json_form(words):
        outcome.form = form
    elif isinstance(error, KeyboardInterrupt):
        outcome.errors = []  # the user knows that it was interrupted
    return print_outcome(outcome)


def json_form(args: Sequence[str]) -> str:
    """The form "json" or "jsonl" that a possibly invalid command line asks for; "" for any other."""
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


def _usage_error(error: typer.TyperException, group: Any, words: Sequence[str]) -> UsageError:
    """Typer's error in poolctl's form: option, problem, and the fix as a hint."""
    ctx: Any = getattr(error, "ctx", None)
    param: Any = getattr(error, "param", None)
    hint = str(getattr(error, "hint", ""))
    message = error.format_message()
    if param is not None and not type(error).__name__.startswith("Missing"):
        long = [spelling for spelling in param.opts if spelling.startswith("--")]
        name = (param.metavar or "").strip("[].") if param.param_type_name == "argument" else long[0]
        message = f"{name}: {error.message.removeprefix('Value error, ')}"
        if " is not one of " in message:  # an enum
            value, *choices = message.partition(": ")[2].split("'")[1::2]
            from poolctl.cli.options import near_or_all

            message, hint = f"{name}: unknown value {value!r}", near_or_all(value, choices)
    else:
        message = message.partition(". Choose from")[0]
        message, suggestion, *_ = [*re.split(r" Did you mean | \(Possible options: ", message), ""]
        message = message[:1].lower() + message[1:].rstrip(".")
        hint = hint or (f"did you mean {suggestion.rstrip('?)')}?" if suggestion else "")
    option = str(getattr(error, "option_name", ""))
    if ctx is None:  # an option lacks a value
        verb = next((word for word in words if word in group.commands), "")
        return UsageError(message, hint=" ".join(filter(None, ("poolctl", verb, "-h"))))
    if option:
        hint = _option_hint(option, ctx) or hint
    elif ctx.command is group and (verb := message.partition("'")[2].rpartition("'")[0]):
        hint = f"here it is called: poolctl {OTHER_COMMANDS[verb]}" if verb in OTHER_COMMANDS else hint
    return UsageError(message, hint=hint or f"{ctx.command_path} -h")


def _option_hint(option: str, ctx: Any) -> str:
    """A hint for an option of another tool that a command rejects; or ""."""
    spellings = [spelling for param in ctx.command.params for spelling in param.opts]
    needed, meant = OTHER_OPTIONS.get(option, ("", ""))
    if needed in spellings:
        return f"here it is called: {meant}"
    if option in _IN_BACKGROUND and ctx.info_name in ("start", "run"):
        return "poolctl start runs servers in the background, poolctl run in the foreground"
    if option == "--force" and ctx.info_name == "restart":
        return "restart replaces every selected process anyway; poolctl stop, then start, does not keep the old one"
    if option in ("-a", "--all") and "--state" in spellings:
        return "without a selection, every server is meant"
    return ""


def _unexpected_error(error: BaseException) -> tuple[str, str]:
    summary = f"{type(error).__name__}: {error}".splitlines()[0]
    if isinstance(error, (ImportError, SyntaxError)):
        # No application code is imported here, so an upgrade was interrupted, or a library was removed.
        try:
            from poolctl.installation import reinstall_command

            command = reinstall_command()
        except (ImportError, SyntaxError):
            command = ""
        hint = f"install it again{command and f': {command}'}; a running pool serves on"
        return f"this installation of poolctl is incomplete ({summary})", hint
    if isinstance(error, FileNotFoundError) and _is_working_directory_removed():
        return "the working directory has been removed", "change to a directory that exists"
    hint = f"please report this to {REPORT_TO}, with the output of {DEBUG_VARIABLE}=1 and poolctl doctor"
    return f"internal error ({summary})", hint


def _is_working_directory_removed() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _report_lost_output(error: OSError) -> int:
    _discard_stdout()
    try:
        sys.stderr.write(f"error: cannot write the output: {error.strerror}\n")
    except OSError:
        pass  # both are on the same full disk
    return FAILED


def _is_stdout_blocked() -> bool:
    """Whether a write to standard output would block."""
    import select

    from poolctl.cli.render import stdout_fd

    poll = select.poll()
    if (descriptor := stdout_fd()) >= 0:
        poll.register(descriptor, select.POLLOUT)
    return descriptor >= 0 and not poll.poll(0)


def _discard_stdout() -> None:
    """Discard buffered output, so that the interpreter's final flush prints no error."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError, AttributeError):
        pass
