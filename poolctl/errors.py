"""poolctl's exceptions: an exception group for each kind of operation, which contains one error for each failure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SHOWN_CHILDREN = 3


class ServerError(Exception):
    """One server's failure, with a hint at the fix.

    `code` (1320 to 1326) and `error` are the number and name of the failed operation; if unset, the PoolError that
    contains this error sets them. `__cause__` is the cause, if any.
    """

    def __init__(
        self, message: str, *, name: str = "", bind: str = "", hint: str = "", code: int = 0, error: str = ""
    ) -> None:
        super().__init__(message)
        self.message = message
        self.name = name
        self.bind = bind
        self.hint = hint
        self.code = code
        self.error = error

    def __str__(self) -> str:
        server = self.name or self.bind
        return f"{server}: {self.message}" if server else self.message

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"

    def to_dict(self) -> dict[str, str | int]:
        """The error as JSON, as the command line prints it."""
        return {
            "code": self.code,
            "error": self.error,
            "name": self.name,
            "bind": self.bind,
            "message": self.message,
            "hint": self.hint,
        }


class PoolError(ExceptionGroup[ServerError]):
    """All failures of one operation; one child per failure."""

    if TYPE_CHECKING:  # its children are not groups

        @property
        def exceptions(self) -> tuple[ServerError, ...]: ...

    code: int = 0
    error: str = "ErrorPool"

    def __new__(cls, message: str, errors: Sequence[ServerError] | None = None, /, *, hint: str = "") -> Self:
        return super().__new__(cls, message, cls._children(message, errors, hint))

    def __init__(
        self, message: str, errors: Sequence[ServerError] | None = None, /, *, hint: str = ""
    ) -> None:
        # Exceptions are pickled and copied by their args, so these must hold the children chosen by __new__.
        super().__init__(message, list(self.exceptions))

    @classmethod
    def _children(cls, message: str, errors: Iterable[ServerError] | None, hint: str) -> list[ServerError]:
        children = list(errors or ()) or [ServerError(message, hint=hint)]
        for child in children:
            if isinstance(child, ServerError):
                child.code = child.code or cls.code
                child.error = child.error or cls.error
        return children

    def derive(self, excs: Sequence[ServerError], /) -> Self:  # type: ignore[override]
        """The same kind of error with other children, for split() and subgroup()."""
        return type(self)(self.message, list(excs))

    def __str__(self) -> str:
        if [str(child) for child in self.exceptions] == [self.message]:
            return self.message
        shown = "; ".join(str(child) for child in self.exceptions[:SHOWN_CHILDREN])
        hidden = len(self.exceptions) - SHOWN_CHILDREN
        return f"{self.message}: {shown}" + (f"; and {hidden} more" if hidden > 0 else "")

    def to_list(self) -> list[dict[str, str | int]]:
        """Return the group's errors as JSON, as the command line prints them; nested groups are flattened."""
        entries: list[dict[str, str | int]] = []
        for child in self.exceptions:
            if isinstance(child, PoolError):
                entries += child.to_list()
            elif isinstance(child, ServerError):
                entries.append(child.to_dict())
        return entries


class PoolParamError(PoolError):
    """A parameter is empty or wrong."""

    code = 1320
    error = "ErrorParamEmpty"


class PoolAddError(PoolError):
    """At least one server could not be added. `pool` has the others; None if `store` or `store_new` failed."""

    code = 1321
    error = "ErrorPoolAdd"
    pool: Any = None  # a poolctl.pool.Pool, which this floor cannot import


class PoolValidateError(PoolError):
    """A configuration has problems; one child for each."""

    code = 1322
    error = "ErrorPoolValidate"


class PoolStartError(PoolError):
    """At least one server did not become ready."""

    code = 1323
    error = "ErrorPoolStart"


class PoolStopError(PoolError):
    """At least one server could not be stopped."""

    code = 1324
    error = "ErrorPoolStop"


class PoolRestartError(PoolError):
    """At least one server could not be replaced; its old workers, if running, keep serving."""

    code = 1325
    error = "ErrorPoolRestart"


class PoolMonitorError(PoolError):
    """At least one server could not be monitored."""

    code = 1326
    error = "ErrorPoolMonitor"


class ControlError(Exception):
    """A command failed as a whole; `exit_code` is the exit status of the command line."""

    def __init__(self, message: str, *, exit_code: int = 1, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
        self.hint = hint


def hint_without(command: str, hint: str) -> str:
    """Remove the parts of a hint such as "one; another" that begin with `command`."""
    return "; ".join(part for part in hint.split("; ") if not part.startswith(command))
