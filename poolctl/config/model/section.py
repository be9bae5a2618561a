"""What every table of the configuration has in common."""

from __future__ import annotations

from typing import Any, NoReturn

from pydantic import BaseModel, ConfigDict, ValidationError

from poolctl.config.model.explain import findings_of, suggest_afresh
from poolctl.config.model.problems import Problem, dotted
from poolctl.errors import PoolValidateError


class Section(BaseModel):
    """A table that does not change; made with a bad value it raises PoolValidateError with every problem."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True)

    def __init__(self, /, **data: Any) -> None:
        try:
            self.__pydantic_validator__.validate_python(data, self_instance=self)
        except ValidationError as error:
            suggest_afresh()
            refuse(type(self).__name__, findings_of(error, type(self)))

    # pydantic calls the __init__ of nested models only when it is not marked so; what it then builds from a
    # file needs no second look.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} does not change: make another one with other values")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} does not change: make another one with other values")


def refuse(what: str, findings: list[Any], name: str = "", bind: str = "") -> NoReturn:
    """Raise the findings of a value that was made in Python."""
    problems = [problem_of(finding, name=name, bind=bind) for finding in findings]
    raise PoolValidateError(
        f"{what} has {len(problems)} problem{'s' * (len(problems) > 1)}", problems
    ) from None


def problem_of(finding: Any, *, name: str = "", bind: str = "") -> Problem:
    """A finding that is in no file."""
    from poolctl.config.model.problems import Place

    return Problem(
        finding.message,
        place=Place(key=dotted(finding.path)),
        name=name,
        bind=bind,
        hint=finding.hint,
        found=finding.found,
        allowed=finding.allowed,
    )
