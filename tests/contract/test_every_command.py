"""Every command in every form: exit codes as documented, results that can be parsed, errors where they belong."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterable, Iterator

import pytest

from poolctl.cli.main import main
from poolctl.cli.options import FORMATS
from poolctl.exit_codes import DONE, INTERRUPTED, NOT_AS_DESIRED, TIMED_OUT
from tests.commands import names
from tests.configuration import sleeper
from tests.deadline import wait_until
from tests.processes import is_alive
from tests.real_pool import Done, RealPool

# What a command needs besides its form, if it needs anything. None of them changes the pool.
ARGUMENTS = {
    "add": "new --command true --save --dry-run", "backends": "",
    "disable": "a --save --dry-run", "drain": "off", "enable": "a --save --dry-run", "events": "-n 3",
    "export": "systemd", "filter": "name a", "import": "Procfile", "init": "elsewhere", "logs": "-n 3",
    "exec": "nobody -- true", "register": "svc", "reload": "--dry-run", "remove": "a --save --dry-run",
    "run": "-- true", "scale": "off 1", "serve": "nobody", "signal": "off WINCH",
    "start": "off", "restart": "off", "stop": "off", "top": "--once", "undrain": "off", "unregister": "svc",
    "wait": "--timeout 0.1", "walk": "-- true",
}  # fmt: skip
POOL = sleeper("a") + sleeper("off", disabled=True)
# 8 is the highest of those that are not of timeout(1) and of shells.
DOCUMENTED = {*range(9), TIMED_OUT, INTERRUPTED}
# Their result is what is wrong.
FINDING_COMMANDS = ("doctor", "validate")
LINE_COMMANDS = ("events", "logs")
# Without a supervisor they start one, which takes seconds.
LAUNCHING_COMMANDS = ("restart", "run", "start", "upgrade")


def command_line(verb: str, form: str) -> list[str]:
    words, dashes, command = ARGUMENTS.get(verb, "").partition("-- ")
    return [verb, *words.split(), *form.split(), *(["--", command] if dashes else [])]


def complaints(verb: str, form: str, code: int, out: str, err: str) -> Iterator[str]:
    """What is wrong with the outcome of a command."""
    failed = code not in (DONE, NOT_AS_DESIRED)
    if re.search("internal error|Traceback", out + err):
        yield "an internal error"
    if code not in DOCUMENTED:
        yield f"exit code {code}"
    if failed and not err and verb not in FINDING_COMMANDS:
        yield "no error on standard error"
    if "-q" in form.split() and re.search(r"^(warning|note):", err, re.MULTILINE):
        yield "more than results and errors"
    kind = form.rpartition("-o ")[2] if "-o " in form else ""
    if kind not in ("json", "jsonl"):
        if re.search(r"^error:", out, re.MULTILINE):
            yield "an error on standard output"
        return
    is_document = kind == "json" and (verb not in LINE_COMMANDS or failed)
    try:
        found = [json.loads(each) for each in ([out] if is_document else out.splitlines())]
    except ValueError as error:
        yield f"not JSON: {error}"
        return
    errors = found[0]["errors"] if is_document else [each for each in found if "code" in each]
    if is_document and not {"schema", "items", "errors"} <= found[0].keys():
        yield "no document"
    if failed and not errors and verb != "doctor":
        yield "no error in the result"
    if any(not {"message", "hint", "name"} <= each.keys() for each in errors):
        yield "an error without its members"


class Sweep:
    """Runs every command in each of `forms`, in this process unless the command is one of `launching`."""

    def __init__(self, pool: RealPool, capsys: pytest.CaptureFixture[str], forms: list[str]) -> None:
        self.pool = pool
        self.capsys = capsys
        self.forms = forms
        self.found: list[str] = []

    def over(self, situation: str, *, without: Iterable[str] = (), launching: Iterable[str] = ()) -> None:
        for verb in names():
            for form in () if verb in without else self.forms:
                words = command_line(verb, form)
                said = self.pool.run(*words) if verb in launching else self.run_here(words)
                wrong = [*complaints(verb, form, said.code, said.stdout, said.stderr)]
                self.found += [f"{situation}: {wrong}: {said}"] if wrong else []

    def run_here(self, words: list[str]) -> Done:
        self.capsys.readouterr()
        code = main(words)
        return Done(tuple(words), code, *self.capsys.readouterr())


@pytest.mark.timeout(600)  # hundreds of commands
@pytest.mark.parametrize(
    "forms",
    [
        pytest.param(["-o jsonl", "--quiet"], marks=pytest.mark.capability),
        pytest.param([f"-o {form}" for form in FORMATS if form != "jsonl"], marks=pytest.mark.slow),
        pytest.param(["", "--verbose", "-o name,state", "-q -o json", "-v -o jsonl"], marks=pytest.mark.slow),
    ],
)
def test_every_command_answers_in_every_form_whatever_the_pool_does(
    real_pool: RealPool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, forms: list[str]
) -> None:
    real_pool.ok("--version")  # starts the process that forks commands, before the environment is the pool's
    for name in [name for name in os.environ if name.startswith("POOLCTL_")]:
        monkeypatch.delenv(name)
    for name in ("HOME", "POOLCTL_RUNTIME_DIR", "POOLCTL_STATE_DIR", "TERM"):
        monkeypatch.setenv(name, real_pool.env.get(name, str(real_pool.runtime)))
    monkeypatch.chdir(real_pool.directory)
    sweep = Sweep(real_pool, capsys, forms)
    real_pool.write("Procfile", "web: true\n")
    sweep.over("no file")
    file = real_pool.write("pool.toml", "= broken")
    if "-o json" in forms:
        sweep.over("broken file", launching=LAUNCHING_COMMANDS)
    else:
        sweep.over("broken file", without=LAUNCHING_COMMANDS)
    file.write_text(POOL)
    real_pool.ok("start")
    sweep.over("running")
    file.write_text("= broken")
    sweep.over("running, and its file is broken")
    file.write_text(POOL)
    about = real_pool.info()
    pids = about["keeper_pid"], about["supervisor_pid"]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            os.kill(pid, number)
    wait_until(lambda: not any(map(is_alive, pids)))
    sweep.over("supervisor is gone", without=(*LAUNCHING_COMMANDS, "stop"))
    assert not sweep.found, "\n".join(sweep.found)
