"""The outcome of a command: servers, errors and an exit code. Commands return it; one renderer prints it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolctl import exit_codes
from poolctl.control.protocol import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from poolctl.control.answers import ErrorEntry, Result
    from poolctl.json_form import Table


class UsageError(Exception):
    """Raised for an invalid command line (exit 2)."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Failure(Exception):
    """Raised to end the command with `outcome`."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.errors[0].message if outcome.errors else "")
        self.outcome = outcome


class Outcome:
    """Items, errors and warnings as in the JSON output, the exit code, and the output for people.

    `message` is a line for people; `notes` are informational lines; `form` is the output format of the items, as in
    -o; `text`, unless None, replaces the whole standard output (except for JSON). `extra` holds further members of
    the JSON document; `footer` is a line below a table on a terminal. `errors_are_result`: the errors are the
    requested result, and go to standard output, unless scripts read it. `is_file`: the text is a file, print it
    unescaped. `painted`: the message has colors, print it unescaped. `streamed`: the output has already been printed.
    `changed`: a ChangedFiles with files that the pool has not read.
    """

    def __init__(
        self,
        items: Sequence[object] = (),
        *,
        errors: Sequence[ErrorEntry] = (),
        warnings: Sequence[str] = (),
        exit_code: int = exit_codes.DONE,
        message: str = "",
        form: str = "",
        text: str | None = None,
        is_file: bool = False,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        self.items = list(items)
        self.errors = list(errors)
        self.warnings = list(warnings)
        self.notes: list[str] = []
        self.exit_code = exit_code
        self.message = message
        self.form = form
        self.errors_are_result = False
        self.quiet = False
        self.painted = False
        self.streamed = False
        self.text = text
        self.is_file = is_file
        self.footer = ""
        self.changed: Table | None = None
        self.extra: Table = dict(extra or {})

    def __repr__(self) -> str:
        return f"<Outcome {self.exit_code}: {len(self.items)} items, {len(self.errors)} errors>"

    @classmethod
    def of(cls, result: Result, message: str = "", *, form: str = "", text: str | None = None) -> Outcome:
        """The outcome with the items, errors, warnings, exit code and further members of the supervisor's answer."""
        printed = type(result).PRINTED
        outcome = cls(
            result.items,
            errors=result.errors,
            warnings=result.warnings,
            exit_code=result.exit_code,
            message=message,
            form=form,
            text=text,
            extra=as_json(result, *printed) if printed else None,
        )
        outcome.changed = result.changed
        return outcome

    @classmethod
    def failed(cls, exit_code: int, message: str, hint: str = "") -> Outcome:
        """The outcome of a failure of the command itself, as one error."""
        return cls(errors=[error(exit_code, message, hint)], exit_code=exit_code)

    @classmethod
    def of_stream(cls, exit_code: int = exit_codes.DONE) -> Outcome:
        """The outcome of a command that has already printed its output."""
        outcome = cls(exit_code=exit_code)
        outcome.streamed = True
        return outcome

    def document(self) -> Table:
        """The JSON document of this outcome."""
        items = [as_json(item) for item in self.items]
        errors = [as_json(error) for error in self.errors]
        document: Table = {"schema": SCHEMA, **self.extra, "items": items, "errors": errors}
        if self.warnings:
            document["warnings"] = self.warnings
        return document


def as_json(item: object, *names: str) -> Table:
    """Return the JSON form of an item, an error or an answer, with only the fields `*names` if names are given."""
    from poolctl.json_form import to_json

    return to_json(item, *names)


def error(exit_code: int, message: str, hint: str = "", *, name: str = "", bind: str = "") -> ErrorEntry:
    """An entry of `errors` for a failure of the command, not of a server."""
    from poolctl.control.answers import ErrorEntry

    return ErrorEntry(
        code=exit_codes.CODES.get(exit_code, exit_code),
        error=exit_codes.NAMES.get(exit_code, "ErrorUnexpected"),
        name=name,
        bind=bind,
        message=message,
        hint=hint,
    )


def outcome_of(failure: BaseException) -> Outcome | None:
    """The outcome of one of poolctl's own exceptions; None for an unexpected one."""
    if isinstance(failure, Failure):
        return failure.outcome
    if isinstance(failure, UsageError):
        return Outcome.failed(exit_codes.USAGE, failure.message, failure.hint)
    if isinstance(failure, KeyboardInterrupt):
        return Outcome.failed(exit_codes.INTERRUPTED, "interrupted")
    from poolctl.control.answers import ErrorEntry, error_entries
    from poolctl.errors import ControlError, PoolError, PoolValidateError, ServerError

    if isinstance(failure, ControlError):
        return Outcome.failed(failure.exit_code, failure.message, failure.hint)
    if isinstance(failure, PoolError):
        invalid = isinstance(failure, PoolValidateError)
        code = exit_codes.INVALID_CONFIGURATION if invalid else exit_codes.FAILED
        return Outcome(errors=error_entries(failure), exit_code=code)
    if isinstance(failure, ServerError):
        return Outcome(errors=[ErrorEntry.of(failure)], exit_code=exit_codes.FAILED)
    # By name, so that their modules are imported only if needed.
    exit_code_by_name = {
        "ConfigNotFound": exit_codes.INVALID_CONFIGURATION,
        "SelectorError": exit_codes.USAGE,
    }
    if (name := type(failure).__name__) not in exit_code_by_name:
        return None
    return Outcome.failed(
        exit_code_by_name[name], getattr(failure, "message", str(failure)), getattr(failure, "hint", "")
    )
