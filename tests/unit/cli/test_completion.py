"""What the shells offer for a word, by the scripts that Typer prints."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from poolctl.feature import FEATURES
from tests.real_pool import RealPool
from tests.stand_in import always, item
from tests.terminal import Terminal

from .conftest import Supervised

ROOT = Path(__file__).parents[3]
FILES = {"bash": "poolctl.bash", "zsh": "_poolctl", "fish": "poolctl.fish"}
# `make test` types in one of them.
SHELLS = [
    pytest.param(
        kind,
        marks=[
            pytest.mark.skipif(shutil.which(kind) is None, reason=f"no {kind} here"),
            *([] if kind == "bash" else [pytest.mark.slow]),
        ],
    )
    for kind in FILES
]

# Lines whose last word is being completed, and the words that are offered for it.
OFFERED = [
    ("sta", {"start", "status", "stacks"}),
    ("undr", {"undrain"}),  # not in --help
    ("-c pool.toml lis", {"list"}),
    ("help lis", {"list"}),
    ("start us", {"users"}),
    ("start users ord", {"orders"}),
    ("stop --tag a", {"api"}),
    ("list --state ru", {"running"}),
    ("list -o js", {"json", "jsonl"}),
    ("list -o upt", {"uptime", "uptime_seconds"}),
    ("list -o name,st", {"name,state"}),
    ("events -o name,st", set()),
    ("config -o to", {"toml"}),
    ("wait --for he", {"healthy"}),
    ("filter na", {"name"}),
    ("restart --no-", {"--no-wait", "--no-deps"}),
    ("--vers", {"--version"}),
    ("hos", set()),
    ("walk us", {"users"}),
    ("walk -- us", set()),
]


def complete(shell: str, line: str) -> set[str]:
    """The words that the shell's script gets for a line, split as the shell does."""
    asked = {"_POOLCTL_COMPLETE": f"complete_{shell}"}
    if shell == "bash":  # by COMP_WORDBREAKS
        words = [*re.findall(r"[:=]|[^\s:=]+", line), *([""] if line.endswith(" ") else [])]
        asked |= {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    else:
        asked |= {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = subprocess.run(
        [sys.executable, "-m", "poolctl"], env={**os.environ, **asked}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    return {text.partition("\t")[0] for text in done.stdout.splitlines() if text}


@pytest.mark.usefixtures("directory")
@pytest.mark.parametrize(("line", "words"), OFFERED)
def test_words_are_offered_for_the_last_one(line: str, words: set[str]) -> None:
    assert complete("fish", f"poolctl {line}") == words


@pytest.mark.usefixtures("directory")
def test_bash_replaces_what_follows_a_colon_or_an_equals_sign() -> None:
    assert complete("bash", "poolctl stop 127.0.0.1:80") == {"8081", "8082"}
    assert complete("bash", "poolctl stop 127.0.0.1:") == {"8081", "8082"}
    assert complete("bash", "poolctl list --state=ru") == {"running"}


def test_words_of_a_running_pool_are_those_of_its_supervisor(supervised: Supervised) -> None:
    with supervised(always(item("live", tags=["b"]))):
        assert complete("fish", "poolctl stop ") == {"live"}
        assert complete("fish", "poolctl list --tag ") == {"b"}


@pytest.mark.slow
def test_a_broken_file_is_silent(directory: Path) -> None:
    for text in ("broken [", 'server = "x"', "server = [[]]", "\udcff"):
        (directory / "pool.toml").write_text(text, errors="surrogateescape")
        assert complete("fish", "poolctl stop ") == set()


READY = "reads a line> "
_arguments = re.compile(r"ran((?:<[^<>]*>)+)\.")


def typed(directory: Path, kind: str, *lines: str) -> list[str]:
    """The arguments of the poolctl that Enter runs after each of the lines, in an interactive shell."""
    home = directory / "home"
    command = home / "bin" / "poolctl"
    settings = home / ".config" / "fish" / "config.fish"
    for path in (command, settings):
        path.parent.mkdir(parents=True)
    command.write_text(
        f'#!/bin/sh\n[ "$_POOLCTL_COMPLETE" ] && exec {sys.executable} -m poolctl "$@"\n'
        "printf 'ran'; printf '<%s>' \"$@\"; echo .\n"
    )
    command.chmod(0o755)
    script = ROOT / "completions" / FILES[kind]
    (home / ".bashrc").write_text(f"source {script}; PS1='{READY}'\n")
    (home / ".zshrc").write_text(f"autoload -Uz compinit; compinit -u -D; source {script}; PS1='{READY}'\n")
    settings.write_text(f"source {script}; set fish_greeting; function fish_prompt; echo '{READY}'; end\n")
    pool = RealPool(directory, directory / "run")
    env = {"PATH": f"{command.parent}:{os.environ['PATH']}", "HOME": str(home)}
    with Terminal(pool, shell=f"exec {kind} -i", env=env) as terminal:
        terminal.until(lambda shown: READY in shown)
        for number, line in enumerate(lines):
            terminal.press(f"poolctl {line}\r")
            terminal.until(lambda shown, ran=number: len(_arguments.findall(shown)) > ran)
        return _arguments.findall(terminal.shown)


@pytest.mark.parametrize("kind", SHELLS)
def test_tab_completes_the_word_before_it(directory: Path, kind: str) -> None:
    (directory / "only.toml").write_text('[[server]]\nname = "no-other"\n')
    lines = {
        "stop us\t": "<stop><users>",
        "stop 127.0.0.1:8081 ord\t": "<stop><127.0.0.1:8081><orders>",
        "stop 127.0.0.1:8082\t": "<stop><127.0.0.1:8082>",
        "stop --tag a\t": "<stop><--tag><api>",
        "list --state ru\t": "<list><--state><running>",
        "list -o name,stat\t": "<list><-o><name,state>",
        "filter na\t": "<filter><name>",
        "-c only\t": "<-c><only.toml>",
    }
    assert typed(directory, kind, *lines) == [*lines.values()]


@pytest.mark.parametrize("kind", SHELLS)
def test_tab_completes_what_a_running_pool_knows(directory: Path, supervised: Supervised, kind: str) -> None:
    lines = {"stop li\t": "<stop><live>"}
    if "registration" in FEATURES:
        lines["unregister sh\t"] = "<unregister><shop>"
    with supervised(always({**item("live"), "alias": "shop"})):
        assert typed(directory, kind, *lines) == [*lines.values()]


@pytest.mark.parametrize("shell", FILES)
def test_the_stored_script_is_the_one_that_is_printed(shell: str) -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "poolctl"],
        env={**os.environ, "_POOLCTL_COMPLETE": f"source_{shell}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout == (ROOT / "completions" / FILES[shell]).read_text(), "run: make completions"


@pytest.mark.slow
@pytest.mark.parametrize("shell", FILES)
def test_the_script_is_installed_for_the_shell_that_is_named(shell: str, tmp_path: Path) -> None:
    env = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "poolctl", "--install-completion", shell],
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done
    assert any(tmp_path.rglob("*poolctl*"))
