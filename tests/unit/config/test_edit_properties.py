"""Any edit of any TOML file: what it is about changes, the configuration says so, and every other byte stays."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from poolctl.config.edit import Draft
from poolctl.config.loader import load
from poolctl.config.values.toml_text import value_text as toml
from tests.examples import examples

WORDS = st.text(
    st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="$\u2028\u2029\x85\ufeff"),
    max_size=8,
)
COMMENTS = WORDS.map(lambda word: f"# {word}".rstrip())
MAYBE_COMMENTS = st.lists(COMMENTS, max_size=2)


@st.composite
def tables(draw: st.DrawFn, number: int) -> dict[str, Any]:
    """A server's keys, in any order."""
    keys: dict[str, Any] = {"name": f"s{number}", "bind": f"127.0.0.1:{8000 + number}", "app": "a:b"}
    if draw(st.booleans()):
        keys["env"] = draw(st.dictionaries(st.sampled_from("ABC"), WORDS, max_size=2))
    if draw(st.booleans()):
        keys["tags"] = draw(st.lists(st.sampled_from(["x", "y-y", "#"]), max_size=2, unique=True))
    if draw(st.booleans()):
        keys["disabled"] = draw(st.booleans())
    workers = draw(st.sampled_from([None, "workers", "scale"]))
    if workers == "workers":
        keys["workers"] = draw(st.integers(1, 9))
    elif workers == "scale":
        keys["scale"] = {"min": 2, "max": 2}
    order = draw(st.permutations(sorted(keys)))
    return {key: keys[key] for key in order}


class Written:
    """The text of a file in parts: what comes before each server, and each server."""

    def __init__(self, head: str, servers: list[str], tail: str, tables: list[dict[str, Any]]) -> None:
        self.head, self.servers, self.tail, self.tables = head, servers, tail, tables

    @property
    def text(self) -> str:
        return self.head + "".join(self.servers) + self.tail


def _lines(draw: st.DrawFn, pairs: Iterator[str], indent: str, end: str) -> Iterator[str]:
    for pair in pairs:
        if draw(st.integers(0, 5)) == 0:
            yield indent + draw(COMMENTS)
        yield indent + pair + draw(st.sampled_from(["", "", "  # why"])) + end


@st.composite
def toml_files(draw: st.DrawFn) -> Written:
    head = draw(
        st.sampled_from(["", "# top\n\n", '[pool]\nname = "p" # ü\n\n', "[defaults]\nrestart = 'always'\n"])
    )
    servers, made = [], []
    for number in range(draw(st.integers(1, 4))):
        table = draw(tables(number))
        indent = draw(st.sampled_from(["", "  "]))
        own = {k: v for k, v in table.items() if k != "env" or draw(st.booleans())}
        lines = [
            *(draw(MAYBE_COMMENTS) if head or number else []),
            "[[server]]" + draw(st.sampled_from(["", " # it"])),
        ]
        lines += list(_lines(draw, (f"{k} = {toml(v)}" for k, v in own.items()), indent, ""))
        if "env" in table and "env" not in own:
            lines += ["[server.env]", *(f"  {k} = {toml(v)}" for k, v in table["env"].items())]
        servers.append("\n".join(lines) + "\n\n")
        made.append(table)
    return Written(head, servers, draw(st.sampled_from(["", "# the end\n"])), made)


def drafted(text: str, directory: str, *, crlf: bool = False) -> tuple[Draft, Path]:
    path = Path(directory) / "pool.toml"
    path.write_bytes(text.replace("\n", "\r\n").encode() if crlf else text.encode())
    return Draft([str(path)], {}), path


def configured(path: Path) -> list[dict[str, Any]]:
    config = load(str(path), {})
    assert config.problems == []
    return [server.to_dict() for server in config]


@given(data=st.data())
@examples(20)
def test_setting_a_key_changes_that_server_and_nothing_else(data: st.DataObject) -> None:
    written = data.draw(toml_files())
    at = data.draw(st.integers(0, len(written.tables) - 1))
    path, value = data.draw(
        st.sampled_from([(("disabled",), True), (("env", "A"), "new"), (("env", "NEW"), "#"), (("tags",), ["t", "ü"]),
                         (("start_timeout",), "3s"), (("http", "root_path"), "/x")])
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        draft, file = drafted(written.text, directory)
        before = configured(file)
        draft.set(f"s{at}", path, value)
        draft.load_validated()
        draft.write()
        after = configured(file)
        text = file.read_text()
    expected = before[at]
    for key in path[:-1]:
        expected[key] = dict(expected.get(key) or {})
        expected = expected[key]
    expected[path[-1]] = 3.0 if value == "3s" else value
    assert [each | {"http": None} for each in after] == [each | {"http": None} for each in before]
    assert text.startswith(written.head + "".join(written.servers[:at]))
    assert text.endswith("".join(written.servers[at + 1 :]) + written.tail)


@given(data=st.data())
@examples(20)
def test_scaling_is_what_the_configuration_says_afterwards(data: st.DataObject) -> None:
    written = data.draw(toml_files())
    wanted = data.draw(
        st.dictionaries(st.integers(0, len(written.tables) - 1), st.integers(1, 99), min_size=1)
    )
    with tempfile.TemporaryDirectory() as directory:
        draft, file = drafted(written.text, directory, crlf=data.draw(st.booleans()))
        for at, workers in wanted.items():
            draft.scale(f"s{at}", workers)
        draft.write()
        config = load(str(file), {})
        raw = file.read_bytes()
    assert raw.count(b"\r\n") in (0, raw.count(b"\n"))
    for at, server in enumerate(config):
        assert server.workers == wanted.get(at, server.workers)
        if at not in wanted:
            assert written.servers[at] in raw.decode().replace("\r\n", "\n")


@given(data=st.data())
@examples(20)
def test_removing_takes_out_whole_servers_and_leaves_the_others_as_they_are(data: st.DataObject) -> None:
    written = data.draw(toml_files())
    gone = data.draw(st.sets(st.integers(0, len(written.tables) - 1), min_size=1))
    with tempfile.TemporaryDirectory() as directory:
        draft, file = drafted(written.text, directory)
        before = configured(file)
        for at in gone:
            draft.remove(f"s{at}")
        draft.write()
        after = configured(file)
        text = file.read_text()
    assert after == [each for at, each in enumerate(before) if at not in gone]
    for at, chunk in enumerate(written.servers):
        assert (chunk.strip().rstrip(",") in text) == (at not in gone)
        if at in gone:
            assert f'"s{at}"' not in text


@given(data=st.data())
@examples(20)
def test_adding_puts_servers_behind_the_others(data: st.DataObject) -> None:
    written = data.draw(toml_files())
    new = [data.draw(tables(number)) for number in range(10, 10 + data.draw(st.integers(1, 3)))]
    with tempfile.TemporaryDirectory() as directory:
        draft, file = drafted(written.text, directory)
        before = configured(file)
        for table in new:
            draft.add(table)
        draft.write()
        after = configured(file)
        text = file.read_text()
        for table in new:
            again = Draft([str(file)], {})
            again.remove(str(table["name"]))
            again.write()
        back = configured(file)
    assert after[: len(before)] == before
    assert [each["name"] for each in after[len(before) :]] == [table["name"] for table in new]
    assert text.startswith(written.head + "".join(written.servers).rstrip("\n"))
    assert back == before
