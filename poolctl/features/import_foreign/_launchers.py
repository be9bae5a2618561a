"""Launchers, the words before the program: `env NAME=value`, `nice`, `poetry run`, `bash -c "… exec …"`."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from poolctl.config import needs_shell

SHELLS = ("sh", "bash", "dash", "ash", "zsh")
# Have no effect here: the pool is the parent that reaps processes and passes signals on, and there is no terminal.
# After a `setsid`, it could not stop the program.
_WITHOUT_EFFECT = ("exec", "dumb-init", "tini", "catatonit", "nohup", "setsid")
_RUN_AS_USER = ("gosu", "su-exec")
# Choose the environment of Python. For an app, `python` does that.
_OF_PYTHON = ("uv run", "poetry run", "pipenv run", "pdm run", "rye run")
# Flags of these that have no effect on a program that is already installed.
_INSTALLER_FLAGS = ("--frozen", "--locked", "--no-sync", "--no-dev", "--offline", "--quiet", "-q", "-n", "--")
# Options of launchers that have a value.
_LAUNCHERS = {
    **dict.fromkeys(("setpriv", "authbind", "ddtrace-run", "newrelic-admin run-program", "pipenv run"), ""),
    **dict.fromkeys(("rye run", "hatch run", "bundle exec", "bunx", "npm exec", "yarn exec", "taskset"), ""),
    "env": "-u --unset -C --chdir",
    "nice": "-n",
    "ionice": "-c -n",
    "chrt": "-T -P -D",
    "numactl": "-i -N -m -C -l -p",
    "stdbuf": "-i -o -e",
    "timeout": "-k -s",
    "time": "-f -o",
    "sudo": "-u -g -C -D -h -p -R -r -t -T -U",
    "runuser": "-u -g -G",
    "chpst": "-u -U -b -/ -C -P -n -l -L -m -d -o -p -f -c -r -t",
    "xvfb-run": "-e -f -n -p -s -w",
    "dumb-init": "-r",
    "tini": "-p -e",
    **dict.fromkeys(("wait-for-it", "wait-for-it.sh"), "-h -p -t"),
    "wait-for": "-t",
    "dockerize": "-wait -timeout -template -stdout -stderr -wait-retry-interval -delims",
    "opentelemetry-instrument": "--traces_exporter --metrics_exporter --logs_exporter --service_name",
    "uv run": "--with --extra --group --only-group --env-file --directory --project -p --python -w",
    "poetry run": "-C --directory -P --project",
    "pdm run": "-p --project --venv",
    **dict.fromkeys(("conda run", "mamba run", "micromamba run"), "-n --name -p --prefix --cwd"),
    "dotenv run": "-f --file",
    "doppler run": "-p --project -c --config -t --token",
    "npx": "-p --package -w --workspace",
    "pnpm exec": "-C --dir",
}
# Launchers with an argument between their options and the program.
_WITH_ARGUMENT = ("chrt", "taskset", "timeout", "wait-for-it", "wait-for-it.sh", "wait-for")

_assignment = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)
_reference = re.compile(r"(?<!\$)\$\{[^{}]*\}")  # of poolctl, not of the shell, where it is written $${NAME}
_step = re.compile(r"""((?:'[^']*'|"(?:\\.|[^"\\])*"|\\.|[^'"\\;&|\n])+)|(&&|\|\||[;&|\n])""", re.DOTALL)
_port = re.compile(r"\$PORT\b|\$\$\{PORT(?::?-([0-9]+))?\}")
_activate = re.compile(r"(.+)/bin/activate")
_script_option = re.compile(r"-(?=[a-z]*c)[ceuxo]+")


@dataclass
class CommandLine:
    """A command line split into launchers and program.

    `launchers` stay before the program; `python_launcher` is a launcher that only chooses the environment of Python,
    and `python` is an activated environment. `directory` is the result of `cd`.
    """

    words: list[str]
    launchers: list[str] = field(default_factory=list)
    python_launcher: str = ""
    env: dict[str, str] = field(default_factory=dict)
    directory: str = ""
    python: str = ""
    user: str = ""

    @property
    def argv(self) -> list[str]:
        """The launchers and the program with its arguments."""
        return [*self.launchers, *self.words]


def without_launchers(words: Sequence[str], port: str = "") -> CommandLine:
    """The command line split into its launchers, what they set, and the program.

    `port` is the value of PORT in its environment, "" if unknown.
    """
    line = CommandLine(list(words))
    while _take_launcher(line, port):
        pass
    return line


def _take_launcher(line: CommandLine, port: str) -> bool:
    """Take a launcher from the front of the words. Returns False unless a program follows."""
    words = line.words
    if len(words) < 2 and not (words and _assignment.fullmatch(words[0])):
        return False
    name = os.path.basename(words[0])
    following = words[2:] if words[1:2] == ["--"] else words[1:]
    if _assignment.fullmatch(words[0]):
        variable, _, line.env[variable] = words.pop(0).partition("=")
    elif name == "env" and not words[1].startswith("-"):
        del words[0]
    elif name in _WITHOUT_EFFECT and following and not following[0].startswith("-"):
        line.words = following
    elif name in _RUN_AS_USER and len(words) > 2:
        line.user, line.words = words[1], words[2:]
    elif name in SHELLS and (script := _script(words)) is not None:
        return _take_shell(line, _with_port(script, line.env.get("PORT", port)))
    else:
        return _take_known_launcher(line, name)
    return True


def _take_known_launcher(line: CommandLine, name: str) -> bool:
    words, of_two = line.words, f"{name} {line.words[1]}"
    key = of_two if of_two in _LAUNCHERS else name
    if key not in _LAUNCHERS:
        return False
    first_option = at = len(key.split())
    ends = ("--", "-m") if key == "uv run" else ("--",)
    while at < len(words) and words[at].startswith("-") and words[at] not in ends:
        at += 2 if words[at] in _LAUNCHERS[key].split() else 1
    options = words[first_option:at]
    if key in _WITH_ARGUMENT:
        at = words.index("--", at) if "--" in words[at:] else at + 1
    if words[at : at + 1] == ["--"]:
        at += 1
    if key in ("env", "sudo"):
        at = next((index for index in range(at, len(words)) if "=" not in words[index]), at)
    if at >= len(words):
        return False
    if key in _OF_PYTHON and all(option in _INSTALLER_FLAGS for option in options):
        line.python_launcher = key
    if words[at] == "-m" and key == "uv run":
        words = [*words[:at], "python", *words[at:]]
    line.launchers += words[:at]
    line.words = words[at:]
    return True


def _script(words: Sequence[str]) -> str | None:
    """The line of `sh -c LINE`; None for other arguments, or if the shell reads the user's profile first."""
    options = words[1:-1]
    if not options or not _script_option.fullmatch(options[-1]):
        return None
    others = [option for option in options[:-1] if option != "pipefail"]  # `-o pipefail -c`
    return words[-1] if all(re.fullmatch("-[eux]*o?", other) for other in others) else None


def _take_shell(line: CommandLine, script: str) -> bool:
    """Remove the shell if its script is one command after steps such as `cd`, which have keys here."""
    steps = shell_steps(script)
    *before, last = steps or [("", "")]
    if not last[0].strip() or last[1] or needs_shell(_without_references(last[0])):
        return False
    setup = CommandLine([])
    for text, operator in before:
        if operator not in ("&&", ";", "\n") or not _apply_step(setup, text.strip()):
            return False
    line.words = shlex.split(last[0])
    line.env |= setup.env
    line.python = os.path.join(line.directory, setup.python) if setup.python else line.python
    line.directory = os.path.join(line.directory, setup.directory)
    return bool(line.words)


def _with_port(script: str, port: str) -> str:
    """The script with `$PORT` replaced by `port`, or else by the default of the reference."""
    return _port.sub(lambda match: port or match[1] or match[0], script)


def shell_steps(script: str) -> list[tuple[str, str]]:
    """The commands of a line for a shell, each with the operator that follows it, "" at the end.

    [] if the line cannot be parsed, for example because a quote is not closed.
    """
    pieces = [*_step.finditer(script)]
    if sum(len(piece[0]) for piece in pieces) < len(script):
        return []
    steps: list[tuple[str, str]] = []
    text = ""
    for piece in pieces:
        if piece[1] is not None:
            text = piece[1]
        elif text.strip() or piece[2] not in (";", "\n"):
            steps.append((text, piece[2]))
            text = ""
    if text.strip():
        steps.append((text, ""))
    elif steps and steps[-1][1] in (";", "\n"):
        steps[-1] = (steps[-1][0], "")
    return steps


def _apply_step(line: CommandLine, text: str) -> bool:
    """Take over a step before the program; False if it has to be run by a shell."""
    plain = _without_references(text)
    try:
        words = shlex.split(text)
    except ValueError:
        return False
    if "$" in plain or "`" in plain or not words:
        return not words
    name, *others = words
    if name == "cd" and len(others) == 1 and not re.match("[-~]", others[0]):
        line.directory = os.path.join(line.directory, others[0])
    elif name == "set" and all(re.fullmatch("-[eux]*o?|pipefail", other) for other in others):
        pass
    elif name == "export" and others and all(map(_assignment.fullmatch, others)):
        line.env |= dict(other.split("=", 1) for other in others)
    elif name in ("source", ".") and len(others) == 1 and (environment := _activate.fullmatch(others[0])):
        line.python = os.path.join(line.directory, environment[1])
    else:
        return False
    return True


def _without_references(text: str) -> str:
    return _reference.sub("x", text)
