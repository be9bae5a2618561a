"""Which files a command means, and files of environment variables."""

from __future__ import annotations

import errno
import io
import os
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from dotenv.main import DotEnv
from hypothesis import assume, given
from hypothesis import strategies as st

from poolctl import PoolConfig, ServerConfig
from poolctl.config import Problem
from poolctl.config.files.read_file import (
    MAX_BYTES,
    ConfigNotFound,
    EnvFileError,
    candidate_files,
    default_env_file,
    directory_of,
    files_of,
    find_config,
    foreign_file_hint,
    foreign_format,
    has_poolctl_section,
    kind_of,
    lasting_stamp_of,
    missing_file,
    read_env_file,
    read_env_files,
    read_regular_truncated,
    read_text,
    variables_named_by_env_keys,
)
from poolctl.config.model.server_tables import EnvFile
from poolctl.errors import PoolValidateError, ServerError
from poolctl.platform import user_name
from tests.config_files import SERVER, told
from tests.deadline import wait_until
from tests.growth import grows_too_fast, repeated
from tests.sandbox import GETDENTS, run_without


@pytest.mark.parametrize(
    ("text", "variables"),
    [
        ("A=1\nB=two words\n", {"A": "1", "B": "two words"}),
        ("# c\n\n  A = 1  \nexport B=2", {"A": "1", "B": "2"}),
        ("A=1 # c\nB=1#2\nC= # c\nD=\n", {"A": "1", "B": "1#2", "C": "", "D": ""}),
        ("A='x # \"y\" $Z \\n'\n", {"A": 'x # "y" $Z \\n'}),
        ('A="x\\ty\\n\\"z\\" \\\\ \\q" # c\n', {"A": 'x\ty\n"z" \\ \\q'}),
        ("A=\"one\ntwo\"\nB='one\ntwo'\nC=3\n", {"A": "one\ntwo", "B": "one\ntwo", "C": "3"}),
        ('A="a\\\nb"\n', {"A": "ab"}),
        ("A=1\r\nB='2'\r\n", {"A": "1", "B": "2"}),
        ("\ufeffA=1\n", {"A": "1"}),
        ("A=1\nA=2\n", {"A": "2"}),
        ("A=a=b\n", {"A": "a=b"}),
        ("A='a\\'#b'\n", {"A": "a'#b"}),
        ("", {}),
    ],
)
def test_variables_are_read(tmp_path: Path, text: str, variables: dict[str, str]) -> None:
    (tmp_path / "x.env").write_bytes(text.encode())
    assert read_env_file(str(tmp_path / "x.env"), {}, for_another_user=False) == (variables, [])


AS_DOTENV = [
    "A=#1a73e8", "A=#secret # c", "A= # n", "A= #n", "A=\t#n", "A =#n", "A = #n", "A=#", "A=##", "A=a#b", "A=a #b",
    "A=a\t#b", "A=a # b # c", "A='#x' # c", 'A="#x" # c', "A='a'#c", "A=b#", "A= ", "A=a'b", "A=it's # c",
    "A=b\xa0#c", "A=\xa0b", "A=b\u3000#c", "A=1\u2028B=2", "export A=1", "export  A=1", "export=1", " A=1", "A\t=1",
    "A=1\r\nB=2\r\n", "A=1\n\n\nB=2", "A==1", "A= b ", "A=b c", "A=1 B=2", "A+=1", "A-B=1", "A.B=1", "#A=1",
    "  # c\nA=1", "\ufeffA=1", 'A=""', "A=''", 'A="a\nb"', "A='a\nb'", 'A="a\\nb\\tc"', 'A="\\a\\b\\f\\v\\r"',
    "A=\"a\\'b\"", 'A="a\\"b"', 'A="a\\\\b"', 'A="a\\qb"', "A='a\\nb'", "A='a\\'b'", "A='a\\\\b'", "A=a\\nb", "A=x\\",
    "A=\\${B}", "B=1\nA=${B}", 'B=1\nA="${B}"', "A=${B}", "A=${B:-x}", "A=${B:-}", "A=${B:-a b} # c", "A=${B:-#x}",
    "A=$B", "A=$(date)",
]  # fmt: skip


@pytest.mark.parametrize("text", AS_DOTENV)
def test_values_are_those_of_python_dotenv(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.env").write_bytes(text.encode())
    theirs = DotEnv(None, stream=io.StringIO(text, newline=""), override=False).dict()
    assert read_env_file(str(tmp_path / "x.env"), {}, for_another_user=False)[0] == theirs


@given(st.text("a#'\" \t\\=", max_size=12))
def test_value_without_quotes_is_that_of_python_dotenv(
    tmp_path_factory: pytest.TempPathFactory, value: str
) -> None:
    assume(not value.lstrip().startswith(("'", '"')))
    path = tmp_path_factory.getbasetemp() / "bare.env"
    path.write_bytes(f"A={value}\nB=1\n".encode())
    theirs = DotEnv(None, stream=io.StringIO(f"A={value}\nB=1\n"), override=False).dict()
    assert read_env_file(str(path), {}, for_another_user=False)[0] == theirs


@pytest.mark.parametrize(
    ("text", "value", "unset"),
    [
        ("A=1\nB=x${A}y\n", "x1y", []),
        ('A=1\nB="x${A}y"\n', "x1y", []),
        ("A=1\nB='x${A}y'\n", "x${A}y", []),
        ('A=1\nB="x\\${A}y"\n', "x${A}y", []),
        ("B=${HERE} ${HERE:-other}\nHERE=file\n", "environment environment", []),
        ("B=${C:-a b}${C:-}\n", "a b", []),
        ("A=\nB=${A:-default}\n", "", []),
        ("# c\n\nB=x${C}y\n", "xy", [(3, "C")]),
        ('B="${C:-x}\\t${A:-\\n"\n', "x\t${A:-\n", []),
        ("B=$A$$ $(id) ${A-b} ${} ${A\n", "$A$$ $(id) ${A-b} ${} ${A", []),
    ],
)
def test_references_are_replaced_as_python_dotenv_does(
    tmp_path: Path, text: str, value: str, unset: list[tuple[int, str]]
) -> None:
    (tmp_path / "x.env").write_text(text)
    found = read_env_file(str(tmp_path / "x.env"), {"HERE": "environment"}, for_another_user=False)
    assert (found[0]["B"], found[1]) == (value, unset)


def test_file_that_is_not_expanded_keeps_its_references(tmp_path: Path) -> None:
    (tmp_path / "x.env").write_text('A=1\nB=${A}\nC="${A}\\n"\n')
    file = EnvFile(path=str(tmp_path / "x.env"), expand=False)
    assert read_env_file(file, {}, for_another_user=False) == ({"A": "1", "B": "${A}", "C": "${A}\n"}, [])


def test_references_to_references_cannot_fill_the_memory(tmp_path: Path) -> None:
    doubled = "".join(f"A{number + 1}=${{A{number}}}${{A{number}}}\n" for number in range(100))
    (tmp_path / "x.env").write_text(f"A0=0123456789\n{doubled}")
    with pytest.raises(EnvFileError, match=r"x\.env:15: the value is longer than 131072 characters"):
        read_env_file(str(tmp_path / "x.env"), {}, for_another_user=False)
    many = "".join(f"A{number}=${{B}}\n" for number in range(100))
    (tmp_path / "x.env").write_text(f"B={'x' * 100_000}\n{many}")
    with pytest.raises(
        EnvFileError, match=r"x\.env:85: references have inserted more than 8388608 characters"
    ):
        read_env_file(str(tmp_path / "x.env"), {}, for_another_user=False)


@pytest.mark.parametrize(("before", "after"), [("A=", ""), ('A="', '"'), ('A="}', '\\n"')])
def test_references_that_do_not_end_are_read_in_one_pass(tmp_path: Path, before: str, after: str) -> None:
    def read(text: str) -> object:
        (tmp_path / "x.env").write_text(text)
        return read_env_file(str(tmp_path / "x.env"), {}, for_another_user=True)

    assert not grows_too_fast(read, repeated(before, "${A:-", after), large=65_536)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("A=1\nB\n", 2),
        ("=1\n", 1),
        ("A='x\n", 1),
        ('\nA="x\n', 2),
        ("A='x' y\n", 1),
        ("A B=1\n", 1),
        ('A="\\', 1),
    ],
)
def test_invalid_variable_is_reported_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    (tmp_path / "x.env").write_text(text)
    with pytest.raises(EnvFileError, match=f"x.env:{line}: "):
        read_env_file(str(tmp_path / "x.env"), {}, for_another_user=False)


def test_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(EnvFileError, match="no such file"):
        read_env_file(str(tmp_path / "x.env"), {}, for_another_user=False)


@pytest.mark.parametrize(
    "text", ['A="' + "x\n" * 500_000, " " * 1_000_000 + "x", "A=" + "# " * 500_000, '"' * 500_000]
)
def test_hostile_files_end_soon(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.env").write_text(text)
    began = time.process_time()
    try:
        read_env_file(str(tmp_path / "x.env"), {}, for_another_user=False)
    except EnvFileError:
        pass
    assert time.process_time() - began < 5


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20))
def test_quoted_value_is_read_back_unchanged(tmp_path_factory: pytest.TempPathFactory, value: str) -> None:
    path = tmp_path_factory.getbasetemp() / "quoted.env"
    escaped = re.sub(r'([\\"$])', r"\\\1", value)
    path.write_bytes(f'A="{escaped}"\nB=1\n'.encode())
    assert read_env_file(str(path), {}, for_another_user=False)[0] == {"A": value, "B": "1"}


def test_variables_of_a_servers_files_are_read_in_order(tmp_path: Path) -> None:
    first, second = tmp_path / "1.env", tmp_path / "2.env"
    first.write_text("A=1\nB=1\nC=1\n")
    second.write_text("B=2\nC=${A}${B}${D}\n")
    server = ServerConfig(name="web", bind=":1", app="a:b", env_file=[str(first), {"path": str(second)}])
    assert read_env_files(server, {"D": "4"}) == {"A": "1", "B": "2", "C": "124"}
    second.write_text("B\n")
    with pytest.raises(ServerError) as caught:
        read_env_files(server, {})
    assert (caught.value.name, "env_file" in caught.value.hint) == ("web", True)


def test_default_file_is_used_only_if_it_exists(tmp_path: Path) -> None:
    assert default_env_file(str(tmp_path)) == ()
    (tmp_path / ".env").write_text("")
    assert default_env_file(str(tmp_path)) == (str(tmp_path / ".env"),)


SECTION = "[project]\nname = 'x'\n[[tool.poolctl.server]]\nname = 'a'\n"


def test_the_directory_is_looked_through_in_order(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(SECTION)
    for name in ("pyproject.toml", "pool.json", "pool.yml", "pool.yaml", "pool.toml"):
        if name != "pyproject.toml":
            (tmp_path / name).touch()
        assert find_config([], {}, str(tmp_path)) == [str(tmp_path / name)]
    assert candidate_files(str(tmp_path))[0] == str(tmp_path / "pool.toml")


def test_paths_are_absolute_and_links_stay_unresolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real.toml").touch()
    (tmp_path / "pool.toml").symlink_to("real.toml")
    monkeypatch.chdir(tmp_path)
    assert find_config(["./x/../pool.toml"]) == [os.path.join(os.getcwd(), "pool.toml")]
    assert find_config([], {}) == [os.path.join(os.getcwd(), "pool.toml")]


@pytest.mark.parametrize(
    ("beside", "files"),
    [
        ({}, ["pool.toml"]),
        (
            {"package.json": "{}", "mkdocs.yml": "site_name: x\n", "pyproject.toml": "[project]\n"},
            ["pool.toml"],
        ),
        ({"docker-compose.yml": "services: {web: {image: x}}\n"}, ["pool.toml"]),
        ({"more.toml": "[[server]]\n"}, ["more.toml", "pool.toml"]),
        ({"more.toml": "[[sevrer]]\n", "b.json": "[]"}, ["b.json", "more.toml", "pool.toml"]),
        ({"a.yaml": "events: {keep: 1}\n", "b.toml": "broken ["}, ["a.yaml", "b.toml", "pool.toml"]),
        ({"pyproject.toml": "[tool.poolctl.pool]\n"}, ["pool.toml", "pyproject.toml"]),
    ],
)
def test_directory_with_a_pool_file_has_no_files_of_other_programs(
    tmp_path: Path, beside: dict[str, str], files: list[str]
) -> None:
    (tmp_path / "pool.toml").write_text("")
    for name, text in beside.items():
        (tmp_path / name).write_text(text)
    assert [os.path.basename(file) for file in files_of(str(tmp_path))] == files
    assert find_config([str(tmp_path)]) == [str(tmp_path)], "files that are added later count too"


def test_file_beside_a_pool_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text("")
    beside = tmp_path / "package.json"
    for text, files in (("{}", ["pool.toml"]), ('{"server": []}', ["package.json", "pool.toml"])):
        beside.write_text(text)
        wait_until(lambda: lasting_stamp_of(str(beside)) is not None)
        for _ in range(2):
            assert [os.path.basename(file) for file in files_of(str(tmp_path))] == files


def test_directory_of_files_is_its_own(tmp_path: Path) -> None:
    assert directory_of(str(tmp_path)) == str(tmp_path)
    assert directory_of(str(tmp_path / "pool.toml")) == str(tmp_path)


def test_a_named_file_need_not_be_there(tmp_path: Path) -> None:
    assert find_config(["gone.toml"], {}, str(tmp_path)) == [str(tmp_path / "gone.toml")]


@pytest.mark.parametrize("text", ["[tool.other]\n", "# [tool.poolctl]\n", "[tool.poolctlx]\n", ""])
def test_a_pyproject_without_the_section_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(ConfigNotFound) as caught:
        find_config([], {}, str(tmp_path))
    assert str(tmp_path) in caught.value.message
    assert "poolctl init" in caught.value.hint


def test_the_nearest_file_above_is_found_up_to_the_repository_and_below_home(tmp_path: Path) -> None:
    outer, inner = tmp_path / "outer", tmp_path / "outer/inner"
    deep = inner / "src/deep"
    deep.mkdir(parents=True)
    for directory in (tmp_path, outer, inner):
        (directory / "pool.toml").touch()

    def found(env: dict[str, str] | None = None, cwd: Path = deep) -> str:
        try:
            (file,) = find_config([], env or {}, str(cwd))
        except ConfigNotFound:
            return ""
        return os.path.relpath(os.path.dirname(file), tmp_path)

    assert (found(), found(cwd=inner), found(cwd=outer)) == ("outer/inner", "outer/inner", "outer")
    (inner / "pool.toml").unlink()
    assert found() == found({"HOME": str(tmp_path)}) == "outer"
    assert found({"HOME": str(outer)}) == "", "below the home directory alone"
    assert found({"HOME": str(outer)}, outer) == "outer", "the working directory is always looked at"
    assert found({"CI": "true"}) == "", "outside a repository"
    (outer / ".git").mkdir()
    assert found({"CI": "true"}) == "outer"
    (inner / ".git").touch()
    assert found() == "", "another repository, such as a submodule"


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_the_file_above_of_another_user_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    file = tmp_path / "pool.toml"
    file.touch()
    for path in (file, tmp_path):
        os.chown(path, 1234, -1)
        with pytest.raises(ConfigNotFound, match="of your own") as refused:
            find_config([], {}, str(tmp_path / "src"))
        assert refused.value.hint.endswith(f"-c {file}")
        assert find_config([], {"SUDO_UID": "1234"}, str(tmp_path / "src")) == [str(file)]
        os.chown(path, 0, -1)
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigNotFound, match="of your own"):
        find_config([], {}, str(tmp_path / "src"))
    tmp_path.chmod(0o755)
    file.rename(tmp_path / "linked.toml")
    file.symlink_to("linked.toml")
    os.lchown(file, 1234, -1)
    with pytest.raises(ConfigNotFound, match="of your own"):
        find_config([], {}, str(tmp_path / "src"))


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (["poolctl.toml"], "there is poolctl.toml: `poolctl -c poolctl.toml …`, or rename it to pool.toml"),
        (
            ["pools-of-today.yml", "Pool.YML"],
            "there is Pool.YML: `poolctl -c Pool.YML …`, or rename it to pool.yml",
        ),
    ],
)
def test_file_with_a_similar_name_is_named_where_none_is_found(
    tmp_path: Path, names: list[str], hint: str
) -> None:
    for name in (*names, "pool.txt", "carpool.toml"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigNotFound) as caught:
        find_config(env={}, cwd=str(tmp_path))
    assert caught.value.hint == hint


def test_directory_that_is_gone_has_no_similar_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigNotFound, match="poolctl init"):
        find_config(env={}, cwd=str(tmp_path / "gone"))


@pytest.mark.parametrize("head", ["[tool.poolctl]", "[ tool . 'poolctl' ]", "[[tool.poolctl.server]]"])
def test_every_spelling_of_the_section_is_seen(tmp_path: Path, head: str) -> None:
    (tmp_path / "pyproject.toml").write_text(f"[project]\n{head}\n")
    assert has_poolctl_section(str(tmp_path / "pyproject.toml"))


def test_a_fifo_is_no_section_and_nothing_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pyproject.toml")
    assert not has_poolctl_section(str(tmp_path / "pyproject.toml"))
    assert not has_poolctl_section(str(tmp_path / "nowhere"))


def test_empty_name_is_reported() -> None:
    with pytest.raises(ConfigNotFound, match="empty"):
        find_config([""], {}, "/")


def test_directory_that_cannot_be_listed_is_a_problem_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(Problem) as caught:
        run_without({GETDENTS: errno.EIO}, lambda: files_of(str(tmp_path)))
    assert (caught.value.file, caught.value.message) == (
        str(tmp_path),
        "cannot be listed: Input/output error",
    )
    assert caught.value.hint == "check the path and the disk"


def test_file_of_another_kind_is_a_problem_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nonsense")
    with pytest.raises(Problem) as caught:
        kind_of(str(tmp_path / "notes.txt"))
    assert (caught.value.file, caught.value.hint) == (
        str(tmp_path / "notes.txt"), "end it in .toml, .yaml, .yml or .json",
    )  # fmt: skip


MANY = 500_000
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(12)
)
MERGE_BOMB = "a: &a {x: 1}\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} {{<<: [{','.join(['*' + chr(97 + n)] * 9)}]}}\n" for n in range(12)
)
# Of CPU, which a busy machine does not change; far below what any of these files costs a naive parser.
SOON_SECONDS = 5.0
HOSTILE: dict[str, tuple[str, bytes, str]] = {
    "NUL": ("pool.toml", b"\x00" * 100, "NUL"),
    "NUL within": ("pool.yaml", b"server:\n- name: a\x00b\n", "pool.yaml:2:10: a NUL"),
    "latin-1": ("pool.toml", "[[server]]\nname = 'ä'".encode("latin-1"), "pool.toml:2:9: byte 0xe4 is not UTF-8"),
    "utf-16": ("pool.toml", SERVER.encode("utf-16"), "UTF-16"),
    "utf-32": ("pool.toml", SERVER.encode("utf-32"), "UTF-32"),
    "deep array": ("pool.toml", b"x = " + b"[" * MANY, "nested"),
    "deep table": ("pool.toml", b"x = " + b"{a=" * MANY, "nested"),
    "deep key": ("pool.toml", b"a." * MANY + b"a = 1", "parts"),
    "deep header": ("pool.toml", b"[" + b"a." * MANY + b"a]", "parts"),
    "deep quoted key": ("pool.toml", b"'a' . " * MANY + b"a = 1", "parts"),
    "dots": ("pool.toml", b". " * MANY, "pool.toml:1:1"),
    "long line": ("pool.toml", b"x" * MANY, "pool.toml:1:"),
    "long blank": ("pool.toml", b" " * MANY + b"x", "pool.toml:1:"),
    "long list": ("pool.toml", b"x = [" + b'"a" ' * MANY, "pool.toml:1:"),
    "long name": ("pool.toml", b"-" * MANY + b"\nx", "pool.toml:1:"),
    "newlines": ("pool.toml", b"\n" * 250_000 + b"x", "pool.toml:250001:"),
    "many digits": ("pool.toml", b"\nx = " + b"1" * 100_000, "pool.toml:2:5: a number of too many digits"),
    "deep object": ("pool.json", b'{"a":' * MANY, "nested"),
    "deep list": ("pool.json", b"[" * MANY + b"]" * MANY, "nested"),
    "json digits": ("pool.json", b"[" + b"1" * 100_000 + b"]", "digits"),
    "json NaN": ("pool.json", b"[NaN]", "NaN"),
    "json key twice": ("pool.json", b'[{"name": "a",\n "name": "b"}]', "pool.json:2:2: the key 'name' is there twice"),
    "json tail": ("pool.json", b"[] x", "pool.json:1:4"),
    "yaml flow": ("pool.yaml", b"[" * MANY, "nested more than"),
    "yaml maps": ("pool.yaml", b"{a: " * MANY, "nested more than"),
    "yaml dashes": ("pool.yaml", b"- " * MANY, "nested more than"),
    "yaml questions": ("pool.yaml", b"? " * MANY, "nested more than"),
    "yaml bomb": ("pool.yaml", BOMB.encode(), "values"),
    "yaml merge bomb": ("pool.yaml", MERGE_BOMB.encode(), "values"),
    "yaml recursion": ("pool.yaml", b"server: &a [*a]\n", "within what it names"),
    "yaml tag": ("pool.yaml", b"server: !!python/object/apply:os.system ['touch hacked']\n", "pool.yaml:1:9: the tag"),
    "yaml map tag": ("pool.yaml", b"server: !x {a: 1}\n", "the tag"),
    "yaml scalar tag": ("pool.yaml", b"server: !!binary aGk=\n", "the tag"),
    "yaml documents": ("pool.yaml", b"--- 1\n--- 2\n", "second document"),
    "yaml key twice": ("pool.yaml", b"a: 1\na: 2\n", "pool.yaml:2:1: the key 'a' is there twice"),
    "yaml table as key": ("pool.yaml", b"{a: 1}: 2\n", "cannot be a key"),
    "yaml merge of a word": ("pool.yaml", b"a: {<<: 3}\n", "<<"),
    "yaml unknown alias": ("pool.yaml", b"a: *b\n", "*b"),
    "yaml times": ("pool.yaml", b"a: 1" + b":1" * MANY, "unknown key 'a'"),
    "yaml digits": ("pool.yaml", b"a: " + b"1" * 100_000, "digits"),
    "yaml many values": ("pool.yaml", b"[" + b"1," * MANY + b"1]", "300,000"),
    "yaml syntax": ("pool.yaml", b"a: b: c\n", "pool.yaml:1:5"),
    "yaml control": ("pool.yaml", b"a: \x01\n", "pool.yaml"),
    "toml many values": ("pool.toml", b"a = [" + b"1," * MANY + b"1]", "300,000"),
    "many headers": ("pool.toml", b"[[server]]\n" * 400_000, "300,000"),
    "huge": ("pool.toml", b"#" * (MAX_BYTES + 1), "larger than"),
    "a word": ("pool.yaml", b"just a word", "not tables"),
    "a number": ("pool.json", b"3", "not tables"),
    "nothing": ("pool.json", b"", "pool.json:1:1"),
    "open header": ("pool.toml", b"[[server]\n", "pool.toml:1:"),
    "open string": ("pool.toml", b'x = "', "pool.toml:1:"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_one_clear_error_soon(tmp_path: Path, what: str) -> None:
    name, content, named = HOSTILE[what]
    began = time.process_time()
    text = told(tmp_path, content, name)
    took_seconds = time.process_time() - began
    assert named in text
    assert len(text) < 2000
    assert took_seconds < SOON_SECONDS
    assert not Path("hacked").exists()


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "loop", "missing", "name", "long", "nul"])
def test_path_that_is_no_file_is_reported_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = str(tmp_path / "pool.toml")
    named = {"fifo": "FIFO", "missing": "no such file", "name": ".toml", "device": "device"}.get(
        kind, "cannot be"
    )
    listener = socket.socket(socket.AF_UNIX)
    with listener:
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "socket":
            listener.bind(path)
        elif kind == "device":
            os.symlink("/dev/zero", path)
        elif kind == "loop":
            os.symlink(path, path)
        elif kind == "name":
            path = str(tmp_path / "pool.conf")
        elif kind == "long":
            path = str(tmp_path / ("x" * 5000 + ".toml"))
        elif kind == "nul":
            path = str(tmp_path / "a\0b.toml")
        with pytest.raises(PoolValidateError) as caught:
            PoolConfig.load(path, {})
    assert named in str(caught.value)
    assert kind in ("long", "nul") or str(caught.value.exceptions[0]).startswith(f"{path}: "), (
        "without a line"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_is_not_ours_to_read_says_so(tmp_path: Path) -> None:
    path = tmp_path / "pool.toml"
    path.write_text(SERVER)
    path.chmod(0)
    with pytest.raises(PoolValidateError) as caught:
        PoolConfig.load(path, {})
    assert f"it may not be read by user {user_name(os.geteuid())}; chmod u+r {path}" in str(caught.value)


@pytest.mark.slow
def test_thousands_of_unknown_keys_do_not_take_minutes(tmp_path: Path) -> None:
    keys = "".join(f"unknown_key_{n} = 1\n" for n in range(10_000))
    began = time.process_time()
    text = told(tmp_path, SERVER + keys)
    assert text.count("unknown key") == 10_000
    assert time.process_time() - began < 60.0


def test_directory_without_files_is_a_problem_and_hidden_ones_do_not_count(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="no configuration file in this directory"):
        files_of(str(tmp_path))
    (tmp_path / ".hidden.toml").touch()
    (tmp_path / "b.TOML").touch()
    (tmp_path / "a.yml").touch()
    assert files_of(str(tmp_path)) == [str(tmp_path / "a.yml"), str(tmp_path / "b.TOML")]


def test_variables_of_secrets_are_found_without_parsing(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("token_env = 'A'\n[x]\npassword_env=\"B_1\" # broken [\n")
    (tmp_path / "b.json").write_text('{"token_env": "C", "token": "D"}')
    (tmp_path / "c.yaml").write_text("token_env: E\n")
    (tmp_path / "d.txt").write_text("token_env = 'F'")
    assert variables_named_by_env_keys([str(tmp_path)]) == {"A", "B_1", "C", "E"}
    assert variables_named_by_env_keys([str(tmp_path / "d.txt"), str(tmp_path / "gone.toml")]) == {"F"}


@pytest.mark.parametrize(
    ("name", "data", "known"),
    [
        ("Procfile", None, "a Procfile"),
        ("Procfile.dev", None, "a Procfile"),
        ("app.procfile", None, "a Procfile"),
        ("web.service", None, "a systemd unit"),
        ("ecosystem.config.js", None, "JavaScript"),
        ("x.ts", None, "JavaScript"),
        ("pool.toml", None, ""),
        ("x.yaml", {"services": {"web": {}}}, "a file of docker compose"),
        ("x.json", {"apps": []}, "an ecosystem file of pm2"),
        ("x.yaml", {"services": []}, ""),
        ("x.toml", {"services": {"web": {}}}, ""),
        ("x.json", {"apps": {}}, ""),
        ("x.json", {"apps": {"script": "a.js"}}, "an ecosystem file of pm2"),
        ("x.json", {"pm2": []}, "an ecosystem file of pm2"),
        ("x.json", [{"script": "a.js"}], "an ecosystem file of pm2"),
        ("x.json", {"script": "a.js"}, "an ecosystem file of pm2"),
        ("x.json", [{"scripts": {}}], ""),
        ("x.yaml", {"include": ["a.yaml"]}, "a file of docker compose"),
        ("process-compose.yaml", {"processes": {"web": {}}}, "a file of process-compose"),
        ("x.yaml", {"services": {}, "server": []}, ""),
        ("x.yaml", {"services": {}, "pool": {}}, ""),
    ],
)
def test_file_of_another_tool_is_recognised(name: str, data: Any, known: str) -> None:
    assert foreign_format(name, data) == known


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("[program:a]\ncommand=a\n", "a file of supervisord"),
        ("; a comment\n[supervisord]\n[include]\n", "a file of supervisord"),
        ("[circus]\n", "a file of circus"),
        ("[watcher:web]\ncmd = a\n", "a file of circus"),
        ("[uwsgi]\nmodule = a\n", "a file of uWSGI"),
        ("server { listen 80; }\n", ""),
        ("", ""),
    ],
)
def test_file_of_another_tool_is_recognised_by_its_sections(tmp_path: Path, text: str, known: str) -> None:
    for name in ("a.ini", "a.CONF"):
        (tmp_path / name).write_text(text)
        assert foreign_format(str(tmp_path / name)) == known
    assert foreign_format(str(tmp_path / "gone.conf")) == ""


def test_file_of_another_tool_is_no_configuration_and_its_import_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = str(tmp_path / "my Procfile.dev")
    hint = "`poolctl import 'my Procfile.dev' -o pool.toml` makes one of it"
    assert foreign_file_hint(path, "a Procfile") == hint
    assert foreign_file_hint(path, "a file of uWSGI") == "write a [[server]] for each of its programs"
    assert "node -p" in foreign_file_hint("a.js", "JavaScript")
    with pytest.raises(Problem, match="this is a Procfile, not a pool's file") as caught:
        kind_of("Procfile")
    assert "poolctl import Procfile" in caught.value.hint


def test_kind_of_a_file_follows_from_the_end_of_its_name() -> None:
    names = {"a.toml": "toml", "a.YAML": "yaml", "a.yml": "yaml", "a.json": "json"}
    assert {name: kind_of(name) for name in names} == names


def test_file_is_read_up_to_a_limit_also_for_another_user(tmp_path: Path) -> None:
    path = str(tmp_path / "x.env")
    (tmp_path / "x.env").write_text("A=1\n")
    for for_another_user in (False, True):
        assert read_regular_truncated(path, 2, for_another_user=for_another_user) == b"A="
        assert read_env_file(path, {}, for_another_user=for_another_user)[0] == {"A": "1"}


def test_missing_configuration_is_written_by_init(tmp_path: Path) -> None:
    path = str(tmp_path / "pool.toml")
    for is_configuration, hint in ((True, "poolctl init"), (False, "check the path")):
        with pytest.raises(Problem) as caught:
            read_text(path, is_configuration=is_configuration)
        assert hint in caught.value.hint
    assert "poolctl init" in missing_file(path).hint


def test_no_more_of_a_large_file_is_read_than_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(2**20 + 9))
    assert len(read_regular_truncated(str(path), 2**20 + 5)) == 2**20 + 5
