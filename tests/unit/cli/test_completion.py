"""What a shell offers for a word, and the scripts with which it asks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from poolctl.cli.commands.completion import SCRIPTS
from tests.real_pool import RealPool
from tests.stand_in import always, item
from tests.terminal import Terminal

from .conftest import Command, Supervised

ROOT = Path(__file__).parents[3]
FILES = {"bash": "poolctl.bash", "zsh": "_poolctl", "fish": "poolctl.fish"}

# Lines whose last word is being completed, and the words that are offered for it.
OFFERED = [
    ("sta", {"start", "status", "stacks"}),
    ("-c pool.toml lis", {"list"}),
    ("--pool=shop lis", {"list"}),
    ("help lis", {"list"}),
    ("start us", {"users"}),
    ("start users ord", {"orders"}),
    ("stop --tag a", {"api"}),
    ("stop 127.0.0.1:80", {"127.0.0.1:8081", "127.0.0.1:8082"}),
    ("list --state ru", {"running"}),
    ("list --state=ru", {"--state=running"}),
    ("list -o js", {"json", "jsonl"}),
    ("list -ojs", {"-ojson", "-ojsonl"}),
    ("list -o=js", {"-o=json", "-o=jsonl"}),
    ("list -o upt", {"uptime", "uptime_seconds"}),
    ("list -o name,st", {"name,state"}),
    ("events -o name,st", set()),
    ("config -o to", {"toml"}),
    ("wait --for he", {"healthy"}),
    ("completion f", {"fish"}),
    ("completion fish f", set()),
    ("filter na", {"name"}),
    ("restart --no-", {"--no-wait", "--no-deps"}),
    ("--vers", {"--version"}),
    ("list --vers", set()),
    ("hos", set()),
    ("frobnicate u", set()),
    ("add --set ", set()),
    ("-c ", {":files"}),
    ("list --config=po", {":files"}),
    ("export --directory ", {":directories"}),
    ("run -- ech", {":command"}),
    ("walk users -- ls -", {":command"}),
    ("start -- us", set()),
    ("'-c' 'pool.toml' stop us", {"users"}),
    ("-c '", {":files"}),
    ("start 'users ord", {"orders"}),
    ("list --unknown=x us", {"users"}),
]


def offered(said: str) -> set[str]:
    return {line.partition("\t")[0] for line in said.splitlines()}


@pytest.mark.parametrize(("line", "words"), OFFERED)
def test_words_are_offered_for_the_last_one(poolctl: Command, line: str, words: set[str]) -> None:
    said = poolctl("__complete", *line.split(" "))
    assert (said.code, offered(said.out), said.err) == (0, words, "")


def test_every_command_and_option_is_offered_with_its_meaning(poolctl: Command) -> None:
    commands = poolctl("__complete").out
    assert "list\tList servers\n" in commands
    assert "init\tWrite a starter pool.toml" in commands
    assert not {"hosts", "__complete"} & offered(commands)
    options = poolctl("__complete", "list", "-").out.splitlines()
    assert "-h\tShow this message and exit" in options
    assert "--tag\tServers with this tag" in options


def test_words_come_from_the_supervisor_where_there_is_one(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(item("live", tags=["b", "a"]))):
        assert poolctl("__complete", "run", "--debug", "").out == "live\trunning\n"
        assert poolctl("__complete", "list", "--tag", "").out == "a\nb\n"
        assert poolctl("__complete", "stop", "").out == "live\trunning\n"
        assert poolctl("__complete", "stop", "1").out == "127.0.0.1:8081\tlive\n"


def test_words_come_from_the_file_else(poolctl: Command, directory: Path) -> None:
    assert poolctl("__complete", "stop", "").out == "users\norders\n"
    assert poolctl("__complete", "stop", "--tag", "").out == "api\ninner\n"
    (directory / "more.yaml").write_text("server: [{name: from-yaml, tags: [y]}]")
    (directory / "list.json").write_text('[{"name": "from-json"}, {"name": "no good; rm"}, 3]')
    (directory / "pyproject.toml").write_text('[[tool.poolctl.server]]\nname = "from-project"\n')
    files = ("-c", "more.yaml", "-clist.json")
    assert poolctl("__complete", *files, "stop", "").out == "from-yaml\nfrom-json\n"
    assert poolctl("__complete", "stop", "--config=pyproject.toml", "").out == "from-project\n"
    (directory / "pyproject.toml").rename(directory / "run.txt")
    (directory / "all").mkdir()
    (directory / "more.yaml").rename(directory / "all" / "more.yaml")
    assert poolctl("__complete", "-c", "all", "stop", "").out == "from-yaml\n"


def test_pools_are_completed_by_name(poolctl: Command, directory: Path) -> None:
    (directory / "run").mkdir()
    (directory / "run" / "@shop").symlink_to("abc")
    assert poolctl("__complete", "--pool", "").out == "shop\n"


@pytest.mark.parametrize("line", ["-c gone.toml stop ", "--pool gone stop --tag ", "targets --word u", "-- "])
def test_completion_without_an_answer_is_silent(poolctl: Command, line: str) -> None:
    assert poolctl("__complete", *line.split(" ")) == (0, "", "")


def test_a_broken_file_is_silent(poolctl: Command, directory: Path) -> None:
    for text in ("broken [", 'server = "x"', "server = [[]]", "\udcff"):
        (directory / "pool.toml").write_text(text, errors="surrogateescape")
        assert poolctl("__complete", "stop", "") == (0, "", "")


@pytest.mark.slow
def test_completion_needs_the_standard_library_only(directory: Path) -> None:
    script = (
        "import sys; from poolctl.cli.main import main; main(['__complete', 'stop', '']); main(['__complete', '']);"
        "found = {'typer', 'pydantic', 'rich', 'yaml', 'asyncio'} & set(sys.modules); assert not found, found"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, cwd=directory)
    assert (done.returncode, done.stderr) == (0, "")
    assert offered(done.stdout) >= {"users", "orders", "walk"}


READY = "reads a line> "
_arguments = re.compile(r"ran((?:<[^<>]*>)+)\.")


class Shells:
    """Interactive shells in which `poolctl` completes as this one does, and otherwise only prints its arguments."""

    def __init__(self, directory: Path) -> None:
        self.home = directory / "home"
        command = self.home / "bin" / "poolctl"
        command.parent.mkdir(parents=True)
        command.write_text(
            f'#!/bin/sh\n[ "$1" = __complete ] && exec {sys.executable} -m poolctl "$@"\n'
            "printf 'ran'; printf '<%s>' \"$@\"; echo .\n"
        )
        command.chmod(0o755)
        self.pool = RealPool(directory, directory / "run")
        self.environment = {"PATH": f"{command.parent}:{os.environ['PATH']}", "HOME": str(self.home)}

    def run(self, kind: str, keys: str) -> str:
        """What the poolctl of this line prints, which Enter runs after the keys."""
        script = ROOT / "completions" / FILES[kind]
        (self.home / ".bashrc").write_text(f"source {script}; PS1='{READY}'\n")
        (self.home / ".zshrc").write_text(
            f"autoload -Uz compinit; compinit -u -D; source {script}; PS1='{READY}'\n"
        )
        with Terminal(self.pool, shell=f"exec {kind} -i", env=self.environment) as terminal:
            terminal.until(lambda shown: READY in shown)
            terminal.press(f"poolctl {keys}\r")
            shown = terminal.until(_arguments.search)
        return "".join(_arguments.findall(shown))


@pytest.fixture
def shells(directory: Path) -> Shells:
    return Shells(directory)


# Keys before Tab, and the arguments of the command that Enter runs then.
TYPED = [
    ("stop us", ["stop", "users"]),
    ("stop 127.0.0.1:8081 127.0.0.1:8082 ord", ["stop", "127.0.0.1:8081", "127.0.0.1:8082", "orders"]),
    ("stop 127.0.0.1:8082", ["stop", "127.0.0.1:8082"]),
    ("list --state=ru", ["list", "--state=running"]),
    ("list -o name,stat", ["list", "-o", "name,state"]),
    ("-c only", ["-c", "only.toml"]),
    ("--config=only", ["--config=only.toml"]),
    ("--config=only.toml stop no", ["--config=only.toml", "stop", "no-other"]),
    ("-c 'with blank.toml' stop bl", ["-c", "with blank.toml", "stop", "blank"]),
    ("run -- poolc", ["run", "--", "poolctl"]),
    ("run -- cat only", ["run", "--", "cat", "only.toml"]),
]


@pytest.mark.parametrize("kind", ["bash", "zsh"])
@pytest.mark.parametrize(("typed", "arguments"), TYPED)
def test_tab_completes_the_word_before_it(
    directory: Path, shells: Shells, kind: str, typed: str, arguments: list[str]
) -> None:
    if shutil.which(kind) is None:
        pytest.skip(f"no {kind} here")
    (directory / "only.toml").write_text('[[server]]\nname = "no-other"\n')
    (directory / "with blank.toml").write_text('[[server]]\nname = "blank"\n')
    assert shells.run(kind, f"{typed}\t") == "".join(f"<{word}>" for word in arguments)


@pytest.mark.slow
def test_bash_offers_every_word(shells: Shells) -> None:
    insert_all = "\x1b*"  # readline(3): insert-completions
    assert shells.run("bash", f"sta{insert_all}") == "<stacks><start><status>"
    assert shells.run("bash", f"stop 127{insert_all}") == "<stop><127.0.0.1:8081><127.0.0.1:8082>"


FISH = [
    *[
        (line, words)
        for line, words in OFFERED
        if not any(word.startswith(":") for word in words) and "'" not in line
    ],
    ("--config=pool", {"--config=pool.toml"}),
    ("export --directory hom", {"home/"}),
    ("run -- cat pool", {"pool.toml"}),
]


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish here")
@pytest.mark.parametrize(("line", "words"), FISH)
def test_fish_completes(shells: Shells, line: str, words: set[str]) -> None:
    ask = f"source {ROOT}/completions/poolctl.fish; complete -C 'poolctl {line}'"
    done = subprocess.run(
        ["fish", "-c", ask],
        env=shells.pool.env | shells.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (offered(done.stdout), done.stderr) == (words, "")


@pytest.mark.parametrize("kind", SCRIPTS)
def test_the_stored_script_is_the_one_that_is_printed(poolctl: Command, kind: str) -> None:
    stored = (ROOT / "completions" / FILES[kind]).read_text()
    assert poolctl("completion", kind).out == stored, "run: make completions"


@pytest.mark.parametrize("kind", SCRIPTS)
def test_the_script_is_in_the_shells_language(kind: str) -> None:
    if shutil.which(kind) is None:
        pytest.skip(f"no {kind} here")
    option = "--no-execute" if kind == "fish" else "-n"
    subprocess.run([kind, option, ROOT / "completions" / FILES[kind]], check=True)


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


@pytest.mark.parametrize("kind", SCRIPTS)
def test_an_installed_completion_is_loaded_by_the_shell(
    poolctl: Command, directory: Path, shells: Shells, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    home = directory / "my home"
    home.mkdir()
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    (home / f".{kind}rc").write_text("true # no end of line")
    said = poolctl("completion", kind, "--install")
    assert (said.code, said.err) == (0, "")
    files = {path: path.read_text() for path in home.rglob("*") if path.is_file()}
    assert sum(text == SCRIPTS[kind] for text in files.values()) == 1
    assert all(str(path) in said.out for path, text in files.items() if text != "true # no end of line")
    again = poolctl("completion", kind, "--install")
    assert again == (0, f"the completion of {kind} is installed already\n", "")
    assert {path: path.read_text() for path in home.rglob("*") if path.is_file()} == files
    if shutil.which(kind) is None:
        pytest.skip(f"no {kind} here")
    done = subprocess.run(
        LOADED[kind],
        env={**shells.pool.env, **shells.environment, "HOME": str(home)},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert {"fish": "start", "zsh": "_poolctl", "bash": "-F _poolctl"}[kind] in done.stdout, done.stderr


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


COMPINIT = "(( $+functions[compdef] )) || {{ autoload -Uz compinit && compinit -i; }};"


@pytest.mark.parametrize(
    ("shell", "variables", "script", "start_file", "line"),
    [
        ("bash", {}, ".local/share/bash-completion/completions/poolctl", ".bashrc",
         "[[ ! -r {script} ]] || {{ source {script}; }} # completion of poolctl\n"),
        ("bash", {"XDG_DATA_HOME": "my data"}, "my data/bash-completion/completions/poolctl", ".bashrc",
         "[[ ! -r '{script}' ]] || {{ source '{script}'; }} # completion of poolctl\n"),
        ("zsh", {"ZDOTDIR": "z"}, ".local/share/zsh/site-functions/_poolctl", "z/.zshrc",
         f"[[ ! -r {{script}} ]] || {{{{ {COMPINIT} source {{script}}; }}}} # completion of poolctl\n"),
        ("fish", {}, ".config/fish/completions/poolctl.fish", "", ""),
        ("fish", {"XDG_CONFIG_HOME": "c"}, "c/fish/completions/poolctl.fish", "", ""),
    ],
)  # fmt: skip
def test_installation_writes_the_script_and_the_line_that_loads_it_once(
    poolctl: Command, directory: Path, monkeypatch: pytest.MonkeyPatch, shell: str, variables: dict[str, str],
    script: str, start_file: str, line: str,
) -> None:  # fmt: skip
    home = directory / "home"
    (home / "z").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(home / value))
    said = poolctl("completion", shell, "--install")
    written = " and ".join(str(home / each) for each in (script, start_file) if each)
    assert said == (0, f"wrote {written}; new shells complete poolctl\n", "")
    assert (home / script).read_text() == poolctl("completion", shell).out
    if start_file:
        assert (home / start_file).read_text() == line.format(script=home / script)
    again = f"the completion of {shell} is installed already\n"
    assert poolctl("completion", shell, "--install") == (0, again, "")
    (home / script).write_text("old")
    said = poolctl("completion", shell, "--install")
    assert said.out == f"wrote {home / script}; new shells complete poolctl\n"


def test_file_that_cannot_be_written_is_named(
    poolctl: Command, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = directory / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    (home / ".config").touch()
    said = poolctl("completion", "fish", "--install")
    assert said.code == 1
    assert said.err.startswith(f"error: cannot write {home}/.config")
    assert said.err.endswith("  hint: poolctl completion fish prints the script\n")
