"""Installs a completion script for the user: the script in the shell's directory, and the line that loads it."""

from __future__ import annotations

import os
import shlex
import stat

from poolctl.cli.outcome import Failure, Outcome
from poolctl.exit_codes import FAILED, NOT_PERMITTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_MARK = "# completion of poolctl"


def install(shell: str, text: str, env: Mapping[str, str]) -> list[str]:
    """Write the script and the line that loads it; returns the paths of changed files, empty if already installed.

    Raises Failure for a home that is not this user's, as under sudo, and for files that cannot be written.
    """
    home = env.get("HOME") or os.path.expanduser("~")
    script, start_file, line = _places(shell, home, env)
    try:
        for path in filter(None, (home, script, start_file)):
            _refuse_if_foreign(path)
        changed = [script] if _write(script, text) else []
        if start_file and _append(start_file, f"{line} {_MARK}\n"):
            changed.append(start_file)
    except OSError as error:
        message = f"cannot write {error.filename}: {error.strerror}"
        hint = f"poolctl completion {shell} prints the script"
        raise Failure(Outcome.failed(FAILED, message, hint)) from None
    return changed


def _places(shell: str, home: str, env: Mapping[str, str]) -> tuple[str, str, str]:
    """The script's path, the shell's startup file ("" if none is needed), and the line for it."""
    data = env.get("XDG_DATA_HOME") or f"{home}/.local/share"
    if shell == "fish":
        config = env.get("XDG_CONFIG_HOME") or f"{home}/.config"
        return f"{config}/fish/completions/poolctl.fish", "", ""
    if shell == "zsh":
        script = f"{data}/zsh/site-functions/_poolctl"
        begin = "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i; };"
        path = f"{env.get('ZDOTDIR') or home}/.zshrc"
    else:
        script, begin, path = f"{data}/bash-completion/completions/poolctl", "", f"{home}/.bashrc"
    there = shlex.quote(script)
    words = ["[[", "!", "-r", there, "]]", "||", "{", begin, "source", f"{there};", "}"]
    return script, path, " ".join(filter(None, words))


def _refuse_if_foreign(path: str) -> None:
    """Raise Failure if the file, or the directory for a missing file, belongs to another user."""
    while not os.path.lexists(path):
        path = os.path.dirname(path) or "."
    for found in (os.lstat(path), os.stat(path)):
        if found.st_uid not in (os.geteuid(), *([0] if stat.S_ISDIR(found.st_mode) else [])):
            message = f"{path} belongs to another user"
            hint = "run it as that user: without sudo, or with `sudo -H` for root itself"
            raise Failure(Outcome.failed(NOT_PERMITTED, message, hint))


def _write(path: str, text: str) -> bool:
    """Replace the file's content; False if it is unchanged."""
    if _content(path) == text:
        return False
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return True


def _append(path: str, line: str) -> bool:
    """Add the line to the file; False if it is already there."""
    before = _content(path)
    if line in before.splitlines(keepends=True):
        return False
    with open(path, "a", encoding="utf-8") as file:
        file.write(line if not before or before.endswith("\n") else f"\n{line}")
    return True


def _content(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return file.read()
    except FileNotFoundError:
        return ""
