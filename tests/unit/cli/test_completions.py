from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from poolctl.cli.completions.scripts import SHELLS, script
from tests.stand_in import always, item

from .conftest import Command, Supervised

ROOT = Path(__file__).parents[3]
FILES = {"bash": "poolctl.bash", "zsh": "_poolctl", "fish": "poolctl.fish"}

CASES = [
    ("poolctl sta", {"start", "status", "stacks"}),
    ("poolctl -c pool.toml lis", {"list"}),
    ("poolctl --pool shop lis", {"list"}),
    ("poolctl start us", {"users"}),
    ("poolctl stop --tag a", {"api"}),
    ("poolctl list --state ru", {"running"}),
    ("poolctl list -o js", {"json", "jsonl"}),
    ("poolctl wait --for he", {"healthy"}),
    ("poolctl completion f", {"fish"}),
    ("poolctl filter na", {"name"}),
    ("poolctl restart --no-", {"--no-wait", "--no-deps"}),
    ("poolctl config -o to", {"toml"}),
    ("poolctl list -o upt", {"uptime", "uptime_seconds"}),
    ("poolctl list -o name,st", {"name,state"}),
    ("poolctl drain us", {"users"}),
    ("poolctl reload --d", {"--dry-run"}),
]
OF_ZSH = [*CASES, ("poolctl stop 127.0.0.1:80", {"127.0.0.1:8081", "127.0.0.1:8082"})]


@pytest.fixture
def shell_env(directory: Path) -> dict[str, str]:
    """An environment in which `poolctl` is this one."""
    command = directory / "bin" / "poolctl"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m poolctl "$@"\n')
    command.chmod(0o755)
    return {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}", "HOME": str(directory)}


@pytest.mark.parametrize("shell", SHELLS)
def test_the_stored_script_is_the_one_that_is_made(poolctl: Command, shell: str) -> None:
    stored = (ROOT / "completions" / FILES[shell]).read_text()
    assert stored == script(shell), f"run: poolctl completion {shell} > completions/{FILES[shell]}"
    assert poolctl("completion", shell).out == stored


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_in_the_shells_language(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    option = "--no-execute" if shell == "fish" else "-n"
    subprocess.run([shell, option, ROOT / "completions" / FILES[shell]], check=True)


@pytest.mark.parametrize(("line", "words"), CASES)
def test_bash_completes(shell_env: dict[str, str], line: str, words: set[str]) -> None:
    listed = " ".join(f"'{word}'" for word in line.split(" "))
    ask = (
        f"source {ROOT}/completions/poolctl.bash; COMP_WORDS=({listed}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1));"
        '_poolctl; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-uc", ask], env=shell_env, capture_output=True, text=True)
    assert done.stderr == ""
    assert set(done.stdout.split()) == words


def test_bash_takes_an_option_with_its_value_for_three_words(shell_env: dict[str, str]) -> None:
    ask = (
        f"source {ROOT}/completions/poolctl.bash; COMP_WORDS=(poolctl list --health = k); COMP_CWORD=4;"
        "_poolctl; echo ${COMPREPLY[@]}; COMP_WORDS=(poolctl list --health =); COMP_CWORD=3; _poolctl;"
        "echo ${COMPREPLY[@]}; COMP_WORDS=(poolctl --config = none.toml list ''); COMP_CWORD=5; _poolctl;"
        "echo ${COMPREPLY[@]}; COMP_WORDS=(poolctl run -- ech); COMP_CWORD=3; _poolctl; echo ${COMPREPLY[0]}"
    )
    done = subprocess.run(["bash", "-c", ask], env=shell_env, capture_output=True, text=True, check=True)
    assert done.stdout == "ko\nunknown ok warn ko\n\necho\n"


def test_bash_completes_an_address_behind_its_last_colon(shell_env: dict[str, str]) -> None:
    ask = (
        f"source {ROOT}/completions/poolctl.bash; COMP_LINE='poolctl stop 127.0.0.1:80'; COMP_POINT=${{#COMP_LINE}};"
        "COMP_WORDS=(poolctl stop 127.0.0.1 : 80); COMP_CWORD=4; _poolctl; echo ${COMPREPLY[@]}"
    )
    done = subprocess.run(["bash", "-uc", ask], env=shell_env, capture_output=True, text=True, check=True)
    assert done.stdout == "8081 8082\n"


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish here")
def test_fish_completes_an_address_with_the_name_next_to_it(shell_env: dict[str, str]) -> None:
    ask = f"source {ROOT}/completions/poolctl.fish; complete -C 'poolctl stop 127.0.0.1:80'"
    done = subprocess.run(["fish", "-c", ask], env=shell_env, capture_output=True, text=True, check=True)
    assert done.stdout == "127.0.0.1:8081\tusers\n127.0.0.1:8082\torders\n"


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish here")
@pytest.mark.parametrize(("line", "words"), CASES)
def test_fish_completes(shell_env: dict[str, str], line: str, words: set[str]) -> None:
    ask = f"source {ROOT}/completions/poolctl.fish; complete -C '{line}'"
    done = subprocess.run(["fish", "-c", ask], env=shell_env, capture_output=True, text=True, check=True)
    assert {found.split("\t")[0] for found in done.stdout.splitlines()} == words


ZSH = """
compdef() { }
source {script}
compset() { [[ ${words[CURRENT]} == *,* ]] && before=${words[CURRENT]%,*}, && words[CURRENT]=${words[CURRENT]##*,} }
compadd() { shift; local w; for w in "$@"; do [[ $w == ${words[CURRENT]}* ]] && print -r -- $before$w; done }
_describe() {
    local w p
    for w in ${(P)@[-1]}; do
        p=${${w//\\\\:/;}%%:*} p=${p//;/:}
        [[ $p == ${words[CURRENT]}* ]] && print -r -- $p
    done
}
words=({line}); CURRENT=$#words; _poolctl
"""


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
@pytest.mark.parametrize(("line", "words"), OF_ZSH)
def test_zsh_is_offered_the_same_words(shell_env: dict[str, str], line: str, words: set[str]) -> None:
    # Its completion builtins work only while somebody types: these print what they are given.
    ask = ZSH.replace("{script}", str(ROOT / "completions" / "_poolctl")).replace("{line}", line)
    done = subprocess.run(["zsh", "-fc", ask], env=shell_env, capture_output=True, text=True)
    assert set(done.stdout.split()) == words, done.stderr


def test_words_come_from_the_supervisor_where_there_is_one(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(item("live", tags=["b", "a"]))):
        assert poolctl("__complete", "servers").out == "live\n"
        assert poolctl("__complete", "tags").out == "a\nb\n"
        assert poolctl("__complete", "targets", "--word", "").out == "live\n"
        assert poolctl("__complete", "targets", "--word", "1").out == "live\n127.0.0.1:8081\n"
        described = poolctl("__complete", "targets", "--describe", "--word", "1").out
        assert described == "live\trunning\n127.0.0.1:8081\tlive\n"


def test_words_come_from_the_file_else(poolctl: Command, directory: Path) -> None:
    assert poolctl("__complete", "servers").out == "users\norders\n"
    assert poolctl("__complete", "tags").out == "api\ninner\n"
    (directory / "more.yaml").write_text("server: [{name: from-yaml, tags: [y]}]")
    (directory / "list.json").write_text('[{"name": "from-json"}, {"name": "no good; rm"}, 3]')
    (directory / "pyproject.toml").write_text('[[tool.poolctl.server]]\nname = "from-project"\n')
    assert (
        poolctl("__complete", "servers", "-c", "more.yaml", "-c", "list.json").out == "from-yaml\nfrom-json\n"
    )
    assert poolctl("__complete", "servers", "--config", "pyproject.toml").out == "from-project\n"
    (directory / "pyproject.toml").rename(directory / "run.txt")
    (directory / "all").mkdir()
    (directory / "more.yaml").rename(directory / "all" / "more.yaml")
    assert poolctl("__complete", "servers", "-c", "all").out == "from-yaml\n"


def test_pools_are_completed_by_name(poolctl: Command, directory: Path) -> None:
    (directory / "run").mkdir()
    (directory / "run" / "@shop").symlink_to("abc")
    assert poolctl("__complete", "pools").out == "shop\n"


@pytest.mark.parametrize(
    "args",
    [[], ["nonsense"], ["servers", "-c", "gone.toml"], ["servers", "-c"], ["tags", "--pool", "nobody"]],
)
def test_completion_without_an_answer_is_silent(poolctl: Command, args: list[str]) -> None:
    said = poolctl("__complete", *args)
    assert (said.code, said.err) == (0, "")
    assert not said.out or args == ["servers", "-c"]


def test_a_broken_file_is_silent(poolctl: Command, directory: Path) -> None:
    for text in ("broken [", 'server = "x"', "server = [[]]", "\udcff"):
        (directory / "pool.toml").write_text(text, errors="surrogateescape")
        assert poolctl("__complete", "servers") == (0, "", "")


def test_the_shell_is_guessed_from_the_environment(poolctl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/usr/bin/zsh")
    assert poolctl("completion").out.startswith("#compdef poolctl")
    monkeypatch.setenv("SHELL", "")
    assert poolctl("completion").code == 2
    wrong = poolctl("completion", "zhs")
    assert (wrong.code, wrong.err.splitlines()[1]) == (2, "  hint: did you mean 'zsh'?")


LOADED = {
    "bash": ["bash", "--norc", "-ic", "source ~/.bashrc; complete -p poolctl"],
    "zsh": ["zsh", "-fc", "compdef() { echo $@ }; source ~/.zshrc"],
    "fish": ["fish", "-c", "complete -C 'poolctl sta'"],
}


@pytest.mark.parametrize("shell", SHELLS)
def test_an_installed_completion_is_loaded_by_the_shell(
    poolctl: Command,
    directory: Path,
    shell_env: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    shell: str,
) -> None:
    home = directory / "my home"
    home.mkdir()
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    (home / f".{shell}rc").write_text("true # no end of line")
    said = poolctl("completion", shell, "--install")
    assert (said.code, said.err) == (0, "")
    files = {path: path.read_text() for path in home.rglob("*") if path.is_file()}
    assert sum(text == script(shell) for text in files.values()) == 1
    assert all(str(path) in said.out for path, text in files.items() if text != "true # no end of line")
    again = poolctl("completion", shell, "--install")
    assert again == (0, f"the completion of {shell} is installed already\n", "")
    assert {path: path.read_text() for path in home.rglob("*") if path.is_file()} == files
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    done = subprocess.run(
        LOADED[shell],
        env={**shell_env, "HOME": str(home)},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert {"fish": "start", "zsh": "_poolctl", "bash": "-F _poolctl"}[shell] in done.stdout, done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_root_installs_no_completion_for_another_user(
    poolctl: Command, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = directory / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    monkeypatch.setenv("HOME", str(home))
    said = poolctl("completion", "bash", "--install")
    assert (said.code, said.err.splitlines()[0]) == (7, f"error: {home} belongs to another user")
    assert list(home.iterdir()) == []
