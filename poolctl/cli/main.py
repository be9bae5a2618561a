"""The command's entry point: no traceback ever, one exit code always, Ctrl-C at any moment exits with 130.

The fast lane answers the plain spellings of the frequent commands with the standard library alone, in the time of two
or three bare interpreter starts; Typer alone would take ten. Other spellings go to the Typer application.

Loaded before everything else of the command, hence without `signal`, which imports for two milliseconds.
"""

from __future__ import annotations

import gc
import os
import sys
from signal import SIGINT, signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType
    from typing import NoReturn

    from poolctl.cli.outcome import Outcome

INTERRUPTED = 130
DEBUG_VARIABLE = "POOLCTL_DEBUG"
REPORT_TO = "the project's issue tracker"
_ctrl_c_raises = False  # otherwise it ends the process at once


def main(args: Sequence[str] | None = None) -> int:
    """Do what the command line says; the exit code. Never raises. Without `args` it is the whole process: it ends."""
    global _ctrl_c_raises
    if args is None:
        # Imported modules are no garbage: collecting took a tenth of the time of a short command.
        gc.set_threshold(50_000)
        code = INTERRUPTED
        try:
            from poolctl.config import leave_out_plugins

            leave_out_plugins()
            code = _run(sys.argv[1:])
            _ctrl_c_raises = False  # nothing is left to clean up
        except KeyboardInterrupt:
            pass  # after the command was over
        _leave(code)
    return _run(list(args))


def _run(words: list[str]) -> int:
    try:
        if sys.platform == "win32":  # not even a file could be read: os.geteuid, fcntl
            sys.stderr.write(
                "error: poolctl does not run on Windows itself; it runs in WSL 2, which is a Linux\n"
            )
            return 1
        _give_streams()
        if words[:1] == ["__complete"]:
            from poolctl.cli.completions.candidates import complete

            return complete(words[1:])
        return _finish(_perform(words))
    except BaseException as error:
        try:
            return _explain(error, words)
        except KeyboardInterrupt:
            return INTERRUPTED  # pressed once more while the first was being explained


def _leave(code: int) -> NoReturn:
    """End at once: what the interpreter would still tidy up takes it a tenth of the command's time."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        pass
    os._exit(code)


def _perform(words: list[str]) -> Outcome:
    global _ctrl_c_raises
    from poolctl.cli.command_line import current_spellings, parse, perform

    words, notes = current_spellings(words)
    request = parse(words)
    _ctrl_c_raises = True  # so that the command can clean up
    if request is None:
        from poolctl.cli.typer_app import perform_args

        outcome = perform_args(words)
    else:
        outcome = perform(request)
    outcome.notes[:0] = notes
    return outcome


def _finish(outcome: Outcome) -> int:
    """Print the outcome. A reader that has gone away (`| head`) is no failure."""
    from poolctl.cli.render import show

    if outcome.changed is not None:
        from poolctl.cli.reload_plan import drift_line

        outcome.notes.append(drift_line(outcome.changed))
    if outcome.exit_code == INTERRUPTED and _stdout_is_full():
        _give_up_on_stdout()  # a flush would wait for a reader who does not read, until a second Ctrl-C
    try:
        code = show(outcome)
        sys.stdout.flush()
    except BrokenPipeError:
        _give_up_on_stdout()
        return outcome.exit_code
    except OSError as error:
        _give_up_on_stdout()
        sys.stderr.write(f"error: cannot write the output: {error.strerror}\n")
        return outcome.exit_code or 1
    return code


def _explain(error: BaseException, words: list[str]) -> int:
    """Print what went wrong, if there is still a reader."""
    from poolctl.cli.command_line import wants_json
    from poolctl.cli.outcome import Outcome, outcome_of

    try:
        if isinstance(error, BrokenPipeError):
            _give_up_on_stdout()
            return 0
        outcome = outcome_of(error)
        if outcome is None:
            if os.environ.get(DEBUG_VARIABLE):
                import traceback

                traceback.print_exception(error)
            outcome = Outcome.failed(1, *_unforeseen(error))
        if wants_json(words):
            outcome.form = "json"
        elif isinstance(error, KeyboardInterrupt):
            outcome.errors = []  # who pressed Ctrl-C knows
        return _finish(outcome)
    except BrokenPipeError:
        _give_up_on_stdout()
        return 1


def _unforeseen(error: BaseException) -> tuple[str, str]:
    said = f"{type(error).__name__}: {error}".splitlines()[0]
    if isinstance(error, (ImportError, SyntaxError)):
        # Nothing of an application is imported here: an upgrade was interrupted, or a library was removed.
        hint = f"install it again: {sys.executable} -m pip install --force-reinstall poolctl; a running pool serves on"
        return f"this installation of poolctl is incomplete ({said})", hint
    hint = f"please report this to {REPORT_TO}, with the output of {DEBUG_VARIABLE}=1 and poolctl version --verbose"
    return f"internal error ({said})", hint


def _give_streams() -> None:
    """Writing must not fail over what a name is spelled with, nor over a stream that was closed before us."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _stdout_is_full() -> bool:
    """Whether a write would block."""
    import select

    from poolctl.cli.render import stdout_fd

    poll = select.poll()
    if (descriptor := stdout_fd()) >= 0:
        poll.register(descriptor, select.POLLOUT)
    return descriptor >= 0 and not poll.poll(0)


def _give_up_on_stdout() -> None:
    """Whatever is still buffered goes nowhere, so that the interpreter's own flush at its end is silent as well."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError, AttributeError):
        pass


def install_ctrl_c() -> None:
    """Take Ctrl-C over, which must not be ignored (nohup, `&` of a shell without job control)."""
    signal(SIGINT, _interrupted)
    sys.unraisablehook = _unraisable


def _interrupted(number: int, frame: FrameType | None) -> None:
    global _ctrl_c_raises
    if not _ctrl_c_raises or _is_importing(frame):
        os._exit(INTERRUPTED)
    _ctrl_c_raises = False  # a second one exits at once
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported: modules in C and Rust take an exception there for a failure of their own."""
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """A KeyboardInterrupt that was raised where Python can only report it, such as in a weak reference's callback."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        os._exit(INTERRUPTED)
    sys.__unraisablehook__(unraisable)
