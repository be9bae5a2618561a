"""The command of an image built by a compose file, from its Dockerfile."""

from __future__ import annotations

import json
import re
import shlex
from typing import NamedTuple

from poolctl.config import read_text
from poolctl.config.values.problems import Problem

_instruction = re.compile(r"(?i)(FROM|CMD|ENTRYPOINT|ENV)\s+(.*)", re.DOTALL)
_from = re.compile(r"(?i)(?:--\S+\s+)*(\S+)(?:\s+AS\s+(\S+))?\s*")


class Start(NamedTuple):
    """ENTRYPOINT, CMD and ENV of a stage."""

    entrypoint: list[str]
    command: list[str]
    env: dict[str, str]


NOTHING = Start([], [], {})


def start_of_image(path: str, target: str = "") -> Start:
    """The start command of the stage `target` (default: the last); empty if there is no such file."""
    try:
        text = read_text(path)
    except Problem:
        return NOTHING
    text = re.sub(r"(?m)^\s*#.*\n?", "", text)
    stages: dict[str, Start] = {}
    name, stage = "", NOTHING
    for row in re.sub(r"\\\s*\n", " ", text).splitlines():
        instruction = _instruction.fullmatch(row.strip())
        if instruction is None:
            continue
        kind, rest = instruction[1].upper(), instruction[2].strip()
        if kind == "FROM":
            if name and name == target:
                break
            base = _from.fullmatch(rest)
            image, name = base.groups("") if base else ("", "")
            stage = stages.get(image, NOTHING)
        elif kind == "CMD":
            stage = stage._replace(command=_words(rest))
        elif kind == "ENTRYPOINT":
            stage = stage._replace(entrypoint=_words(rest), command=[])
        else:
            stage = stage._replace(env={**stage.env, **_variables(rest)})
        stages[name] = stage
    return stage


def _words(text: str) -> list[str]:
    if text.startswith("["):
        try:
            return [str(word) for word in json.loads(text)]
        except ValueError:
            pass
    return ["sh", "-c", text]


def _variables(text: str) -> dict[str, str]:
    try:
        words = shlex.split(text)
    except ValueError:
        return {}
    if words and "=" not in words[0]:
        return {words[0]: " ".join(words[1:])}
    return dict(word.partition("=")[::2] for word in words if "=" in word)
