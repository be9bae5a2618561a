"""Tables of several files become one configuration, in which each key has its place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from poolctl import PoolConfig
from poolctl.config import Problem
from poolctl.config.files.assemble import (
    Assembly,
    Document,
    Origins,
    read_documents,
    unset_variables,
)
from poolctl.config.model.pool_tables import table_names
from poolctl.errors import PoolValidateError
from poolctl.feature import FEATURES
from tests.config_files import SERVER, load_text, told


def test_a_directory_is_its_files_in_name_order(tmp_path: Path) -> None:
    (tmp_path / "20.toml").write_text(SERVER.replace("web", "b").replace("8080", "8081"))
    (tmp_path / "10.yaml").write_text("server: [{name: a, bind: '127.0.0.1:8080', app: 'h:app'}]")
    (tmp_path / "30.json").write_text('{"server": [{"name": "a", "tags": ["late"]}]}')
    (tmp_path / ".hidden.toml").write_text("nonsense")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "notes.txt").write_text("nonsense")
    config = PoolConfig.load(tmp_path, {})
    assert config.problems == []
    assert [(server.name, server.tags) for server in config] == [("a", ("late",)), ("b", ())]
    assert config.files == [str(tmp_path)]


def test_later_files_override_key_by_key(tmp_path: Path) -> None:
    base, prod = tmp_path / "base.toml", tmp_path / "conf" / "prod.toml"
    prod.parent.mkdir()
    base.write_text(
        '[pool]\nname = "shop"\nport_range = "1-2"\n[defaults]\nstop_timeout = "1s"\nenv = { D = "1" }\n'
        + SERVER
        + 'tags = ["a", "b"]\nenv = { A = "1", B = "1" }\nworkers = 2\nhttp = { loop = "asyncio" }\n'
        + 'log = { path = "web.log" }\nenv_file = ["a.env"]\n'
    )
    prod.write_text(
        '[pool]\nport_range = "8100-8199"\n[defaults]\nstop_timeout = "2s"\n'
        '[[server]]\nname = "web"\nlisten = ":80"\ntags = ["c"]\nenv = { B = "2" }\nscale = { min = 3, max = 3 }\n'
        'http = { access_log = true }\nenv_file = "b.env"\n'
    )
    (server,) = config = PoolConfig.load([base, prod], {})
    assert config.problems == []
    assert (config.settings.name, config.settings.port_range) == ("shop", (8100, 8199))
    assert (server.bind, server.tags, server.workers) == ("0.0.0.0:80", ("c",), 3)
    assert server.env == {"D": "1", "A": "1", "B": "2"}
    assert (server.http.loop, server.http.access_log, server.stop_timeout) == ("asyncio", True, 2.0)
    # A path belongs to the file that holds it.
    assert server.log.path == str(tmp_path / "web.log")
    assert server.env_file == (str(prod.parent / "b.env"),)
    assert server.cwd == str(tmp_path)


def test_defaults_are_under_every_server(tmp_path: Path) -> None:
    config = load_text(
        tmp_path,
        '[defaults]\napp = "hello:app"\ntags = ["x"]\nrestart = "always"\nstart_timeout = 5\n'
        'env = { A = "1", B = "1" }\nhttp = { loop = "asyncio", keep_alive = "5s" }\n'
        '[[server]]\nname = "a"\nbind = ":1"\nenv = { B = "2" }\nhttp.keep_alive = 6\n'
        '[[server]]\nname = "b"\nbind = ":2"\ntags = []\nrestart = { limit = 3 }\napp = "other:app"\n',
    )
    assert config.problems == []
    a, b = config
    assert (a.tags, a.env, a.start_timeout) == (("x",), {"A": "1", "B": "2"}, 5.0)
    assert (a.http.loop, a.http.keep_alive) == ("asyncio", 6.0)
    assert (b.tags, b.app, b.restart.policy, b.restart.limit) == ((), "other:app", "always", 3)
    assert (b.http.loop, b.http.keep_alive, b.env) == ("asyncio", 5.0, {"A": "1", "B": "1"})


def test_paths_are_taken_from_the_file_that_holds_them(tmp_path: Path) -> None:
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    config = load_text(
        tmp_path,
        '[[server]]\nname = "a"\nbind = "unix:run/a.sock"\napp = "h:a"\napp_dir = "src"\ncwd = "../x"\n'
        'python = "venv"\nlog.path = "/var/log/a.log"\nenv_file = ["a.env", "/b.env"]\n'
        'tls = { cert = "c.pem", ca = "ca.pem" }\n',
    )
    (a,) = config
    assert (a.bind, a.expose) == (f"unix:{tmp_path}/run/a.sock", f"unix:{tmp_path}/run/a.sock")
    assert (a.app_dir, a.cwd) == (str(tmp_path / "src"), str(tmp_path.parent / "x"))
    assert a.python == str(tmp_path / "venv" / "bin" / "python")
    assert (a.log.path, a.env_file) == ("/var/log/a.log", (str(tmp_path / "a.env"), "/b.env"))


def test_origin_names_file_and_line_of_every_key(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("[defaults]\nstop_timeout = 3\n" + SERVER + "http.loop = 'asyncio'\n")
    (tmp_path / "prod.yaml").write_text("server:\n- name: web\n  listen: :80\n")
    config = PoolConfig.load([tmp_path / "base.toml", tmp_path / "prod.yaml"], {})
    origin = config.origin_of(config[0]) or {}
    assert origin["stop_timeout"] == f"{tmp_path}/base.toml:2"
    assert origin["bind"] == f"{tmp_path}/prod.yaml:3"
    assert origin["http.loop"] == f"{tmp_path}/base.toml:7"


def test_origin_of_a_value_that_yaml_repeats_is_where_it_is_repeated(tmp_path: Path) -> None:
    (tmp_path / "pool.yaml").write_text(
        "server:\n- &a\n  name: a\n  bind: :1\n  app: a:b\n  restart: &r\n    policy: always\n    window: 9\n"
        "- name: b\n  bind: :2\n  app: a:b\n  restart: *r\n"
        "- <<: *a\n  name: c\n  bind: :3\n  restart:\n    <<: *r\n    window: 8\n"
    )
    _, b, c = config = PoolConfig.load([tmp_path / "pool.yaml"], {})
    file = f"{tmp_path}/pool.yaml"
    keys = ("app", "restart.policy", "restart.window")
    assert [(config.origin_of(b) or {})[key] for key in keys] == [f"{file}:11", f"{file}:12", f"{file}:12"]
    assert [(config.origin_of(c) or {})[key] for key in keys] == [f"{file}:13", f"{file}:16", f"{file}:18"]


def test_all_problems_of_all_files_are_reported_in_the_files_order(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        '[pool]\nnme = "x"\n[[server]]\nname = "one two"\nbind = "127.0.0.1:99999"\napp = "h:a"\n'
        '[[server]]\nname = "typo"\nbinf = ":81"\napp = "h:a"\nhttp = { loop = "fast", lop = 1 }\n'
    )
    (tmp_path / "b.yaml").write_text("server:\n- name: far\n  bind: :82\n  app: h:a\n  http:\n    loop: x\n")
    config = PoolConfig.load([tmp_path / "a.toml", tmp_path / "b.yaml"], {})
    found = [(Path(p.file).name, p.line, p.column, p.key) for p in config.problems if isinstance(p, Problem)]
    assert found == [
        ("a.toml", 2, 1, "pool.nme"),
        ("a.toml", 4, 1, "server[0].name"),
        ("a.toml", 5, 1, "server[0].bind"),
        ("a.toml", 7, 1, "server[1].bind"),
        ("a.toml", 9, 1, "server[1].binf"),
        ("a.toml", 11, 10, "server[1].http.loop"),
        ("a.toml", 11, 25, "server[1].http.lop"),
        ("b.yaml", 6, 5, "server[0].http.loop"),
    ]
    assert all(problem.code == 1322 and problem.hint for problem in config.problems)
    assert len(config) == 0


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("pool.toml", SERVER + "bogus = 1\n", (5, 1, "server[0].bogus")),
        ("pool.toml", SERVER + "[server.http]\nbogus = 1\n", (6, 1, "server[0].http.bogus")),
        ("pool.toml", SERVER + "http.bogus = 1\n", (5, 6, "server[0].http.bogus")),
        ("pool.toml", SERVER + 'tags = [\n  "a",\n  3,\n]\n', (7, 3, "server[0].tags[1]")),
        ("pool.toml", SERVER + "listen = ':1'\n", (5, 1, "server[0].listen")),
        ("pool.toml", SERVER.replace("bind", "listen").replace("8080", "x"), (3, 1, "server[0].listen")),
        ("pool.toml", SERVER + "workers = 0\n", (5, 1, "server[0].workers")),
        ("pool.json", '[\n {"name": "a", "bind": ":1",\n  "app": 5}]', (3, 3, "[0].app")),
        ("pool.yml", "- name: a\n  bind: ':1'\n  app: 5\n", (3, 3, "[0].app")),
        (
            "pyproject.toml",
            "[tool.poolctl.pool]\nbogus = 1\n",
            (2, 1, "tool.poolctl.pool.bogus"),
        ),
        ("pool.toml", "[defaults]\nbogus = 1\n", (2, 1, "defaults.bogus")),
        ("pool.toml", "bogus = 1\n", (1, 1, "bogus")),
    ],
)
def test_a_problem_is_where_its_key_is(
    tmp_path: Path, name: str, text: str, place: tuple[int, int, str]
) -> None:
    (problem,) = load_text(tmp_path, text, name).problems
    assert isinstance(problem, Problem)
    assert (problem.line, problem.column, problem.key) == place
    assert str(problem).startswith(f"{tmp_path / name}:{place[0]}:{place[1]}: {place[2]}: ")


def test_an_unreadable_file_does_not_hide_the_problems_of_another(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[[server]\n")
    (tmp_path / "b.toml").write_text(SERVER + "bogus = 1\n")
    (tmp_path / "d").mkdir()
    with pytest.raises(PoolValidateError) as caught:
        PoolConfig.load([tmp_path / name for name in ("a.toml", "b.toml", "c.toml", "d")], {})
    text = "\n".join(str(child) for child in caught.value.exceptions)
    for part in (
        "a.toml:1:",
        "c.toml: there is no such file",
        "b.toml:5:1: server[0].bogus",
        "d: no configuration file in this directory",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("server = 3\n", "not a list of tables"),
        ("[server]\nname = 'web'\n", "two brackets"),
        ("server = [3]\n", "a server is a table"),
        ("[servers]\n", "write [[server]], with two brackets"),
        ("pool = 3\n", "not a table"),
        ("[defaults]\nname = 'x'\n", "cannot be a default"),
    ],
)
def test_wrong_file_is_reported(tmp_path: Path, text: str, named: str) -> None:
    assert named in told(tmp_path, text)


KEYS = 'name = "q"\ncommand = ["sleep", "9"]\n'


@pytest.mark.parametrize(
    "header",
    [
        *(
            "[[server]",
            "[server]]",
            "[server]",
            "[[server",
            "[server",
            "[[server]]]",
            "[[[server]]]",
            "server]]",
        ),
        *(
            "[ [server] ]",
            "[[server}]",
            "[[server)",
            "(server)",
            "<server>",
            "{server}",
            "server:",
            "  [server]]",
            "server {",
        ),
        *("[[servers]]", "[servers]", "[[Server]]", "[services]", "[[program]]", "[[server]  # comment"),
        *("[server.q]", "[[server.q]]", "[servers.q]", "[program:q]", "[q]"),
    ],
)
def test_header_that_was_meant_as_a_servers_is_written_as_its_problem_says(
    tmp_path: Path, header: str
) -> None:
    whole = told(tmp_path, f"[pool]\n{header}\n{KEYS}")
    found = re.fullmatch(
        r'[^;]*pool.toml:2:\d+: [^;]+; write (\S+), (?:with two brackets|and name = "q")', whole
    )
    found = found or re.fullmatch(r"[^;]*pool.toml:2:\d+: [^;]+; write (\S+)", whole)
    assert found, whole
    (server,) = load_text(tmp_path, f"[pool]\n{found[1]}\n{KEYS}")
    assert server.name == "q"


@pytest.mark.parametrize(
    ("header", "hint"),
    [
        ("[metrics", "write [metrics]"),
        ("[[metrics]]", "write [metrics]"),
        ("[[pool]", "write [pool]"),
        ("[default]", "write [defaults]"),
        ("[[server]]\n[server.http", "write [server.http]"),
        ("[http]", "write [server.http] below its [[server]], or [defaults.http] for all servers"),
        ("workers = 2", "write it below [[server]], or below [defaults] for all servers"),
        ("[tool.poolctl]", "leave tool.poolctl out: it is for pyproject.toml"),
        ("[[pool.server]]", "write [[server]] tables"),
        ('[[server]] name = "q"', "write it on the next line"),
    ],
)
def test_other_table_in_the_wrong_place_or_form_is_named_with_its_header(
    tmp_path: Path, header: str, hint: str
) -> None:
    assert told(tmp_path, f"{header}\n").endswith(f"; {hint}")


def test_table_of_pyproject_gets_its_whole_header(tmp_path: Path) -> None:
    for written in ("[tool.poolctl.server]", "[[tool.poolctl.server]", "[tool.poolctl.servers]"):
        text = f"[tool.poolctl.pool]\n{written}\n{KEYS}"
        assert "; write [[tool.poolctl.server]]" in told(tmp_path, text, "pyproject.toml")


def test_every_table_of_a_file_is_named_where_none_was_meant(tmp_path: Path) -> None:
    assert "unknown key 'logging'; the tables of a file are [pool], [defaults], [[server]], " in told(
        tmp_path, f"[logging]\nlevel = 'info'\n[[server]]\n{KEYS}"
    )
    whole = told(tmp_path, "logging: {}\n", "pool.yaml")
    assert "'server'" in whole
    assert all(f"'{name}'" in whole for name in table_names())
    assert "write 'server', and name: \"q\"" in told(
        tmp_path, "server: { q: { command: [a] } }\n", "pool.yaml"
    )


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        (
            "pool.yaml",
            "hello\n",
            "the file holds 'hello', not tables; write [[server]] tables, or a list of servers",
        ),
        ("pool.json", "5", "the file holds 5, not tables; write [[server]] tables, or a list of servers"),
        (
            "pyproject.toml",
            "[project]\n",
            "there is no [tool.poolctl]; add [tool.poolctl], or name another file",
        ),
    ],
)
def test_file_without_tables_of_a_pool_is_reported_with_its_fix(
    tmp_path: Path, name: str, text: str, problem: str
) -> None:
    place, _, rest = told(tmp_path, text, name).partition(": ")
    assert (place.removesuffix(":1:1"), rest) == (str(tmp_path / name), problem)


def test_name_among_the_defaults_names_no_server(tmp_path: Path) -> None:
    config = load_text(tmp_path, '[defaults]\nname = "x"\n[[server]]\nbind = ":1"\napp = "h:a"\n')
    assert "pool.toml:2:1: defaults.name: " in str(config.problems[0])
    assert [server.name for server in config] == []


def test_place_of_a_key_is_that_of_the_last_file_that_has_it(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[defaults]\nstop_timeout = 1\n" + SERVER)
    (tmp_path / "b.toml").write_text(
        '\n[[server]]\nname = "web"\nlisten = ":2"\nhttp = { loop = "asyncio" }\n'
    )
    documents, problems = read_documents(
        [str(tmp_path / "a.toml"), str(tmp_path / "b.toml"), str(tmp_path / "c.toml")]
    )
    assert [Path(each.file).name for each in problems] == ["c.toml"]
    assembly = Assembly({})
    for document in documents:
        assembly.add(document)
    origins = Origins(documents, assembly.entries, {})

    def place(*path: str) -> tuple[str, int]:
        found = origins.place("web", path)
        return Path(found.file).name, found.line

    assert place("bind") == ("b.toml", 4)
    assert place("app") == ("a.toml", 6)
    assert place("http", "loop") == place("http", "lop") == ("b.toml", 5)
    assert place("stop_timeout") == ("a.toml", 2)
    assert place("tags") == ("a.toml", 3), "the table of the server"
    assert origins.file_of("web") == str(tmp_path / "a.toml")
    assert origins.of("web") == {
        "stop_timeout": f"{tmp_path}/a.toml:2", "name": f"{tmp_path}/b.toml:3", "bind": f"{tmp_path}/b.toml:4",
        "app": f"{tmp_path}/a.toml:6", "http": f"{tmp_path}/b.toml:5", "http.loop": f"{tmp_path}/b.toml:5",
    }  # fmt: skip


def test_certificate_of_the_defaults_is_an_origin_of_servers_that_ask_for_it(tmp_path: Path) -> None:
    text = (
        '[defaults.tls]\ncert = "c.pem"\n'
        '[[server]]\nname = "plain"\nbind = ":1"\n[[server]]\nname = "asks"\nbind = ":2"\ntls = true\n'
    )
    config = load_text(tmp_path, text)
    plain, asks = (config.origin_of(each) or {} for each in config)
    assert not any(key.startswith("tls") for key in plain)
    assert asks["tls.cert"] == f"{tmp_path}/pool.toml:2"


def test_text_that_replaces_a_file_is_read_instead(tmp_path: Path) -> None:
    path = str(tmp_path / "pool.toml")
    (document,), problems = read_documents([path], {path: '[pool]\nname = "x"\n'})
    assert (document.data, problems) == ({"pool": {"name": "x"}}, [])


def test_variables_without_a_default_are_collected_from_all_files_that_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text('[pool]\nname = "${B}-${A}-${C:-c}"\n')
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "1.toml").write_text('[pool]\nname = "${A}-${D}"\n')
    (tmp_path / "more" / "2.toml").write_text('nonsense "${E}"\n')
    paths = [str(tmp_path / each) for each in ("pool.toml", "more", "gone.toml")]
    assert unset_variables(paths) == ["B", "A", "D"]


def test_file_of_another_tool_is_named_with_the_command_that_imports_it(tmp_path: Path) -> None:
    text = told(tmp_path, "services:\n  web:\n    image: nginx\n", "pool.yaml")
    assert "not a pool's file" in text


@pytest.mark.parametrize(
    ("path", "written"),
    [
        (("server", 0, "depends_on", 0, "name"), ("server", 0, "depends_on", 0)),
        (("server", 0, "listen", 0), ("server", 0, "listen")),
        (("server", 0, "gone", "x"), ("server", 0, "gone", "x")),
        (("server", 7), ("server", 7)),
    ],
)
def test_path_is_shortened_where_the_file_has_a_short_form(
    tmp_path: Path, path: tuple[str | int, ...], written: tuple[str | int, ...]
) -> None:
    document = Document(str(tmp_path / "pool.toml"), '[[server]]\nlisten = ":1"\ndepends_on = ["db"]\n')
    assert document.path_without_omitted_parts(path) == written


def test_label_with_dots_has_its_place_in_any_spelling(tmp_path: Path) -> None:
    for line in ('labels."a.b" = "x"', 'labels.a.b = "x"', 'labels = { "a.b" = "x" }'):
        document = Document(str(tmp_path / "pool.toml"), f"[[server]]\n{line}\n")
        assert document.place(("server", 0, "labels", "a.b")).line == 2, line
    assert document.path_as_spelled(("server", 0, "labels", "c")) is None
    assert document.place(("server", 0, "labels", "c")).key == "server[0].labels.c"


def test_place_of_nothing_is_the_beginning_of_the_file(tmp_path: Path) -> None:
    place = Document(str(tmp_path / "pool.toml"), "").place(("metrics", "bind"))
    assert (place.line, place.column, place.key) == (1, 1, "metrics.bind")


@pytest.mark.skipif("notify" not in FEATURES, reason="there is no such list")
def test_key_of_a_listed_table_that_files_cannot_give_is_unknown(tmp_path: Path) -> None:
    table = '[[notify]]\ntype = "command"\ncommand = ["x"]\n'
    assert told(tmp_path, table) == ""
    assert "notify[0].nonsense" in told(tmp_path, table + "nonsense = 1\n")


@pytest.mark.skipif("notify" not in FEATURES, reason="there is no such list")
def test_list_of_a_later_file_replaces_the_list_of_an_earlier_one(tmp_path: Path) -> None:
    for name, program in (("a", "one"), ("b", "two")):
        (tmp_path / f"{name}.toml").write_text(f'[[notify]]\ntype = "command"\ncommand = ["{program}"]\n')
    config = PoolConfig.load([tmp_path / "a.toml", tmp_path / "b.toml"], {})
    assert [each["command"] for each in config.tables.to_dict()["notify"]] == [["two"]]


@pytest.mark.skipif("gateway" not in FEATURES, reason="there are no such tables")
def test_route_of_a_later_file_is_merged_into_the_one_of_its_alias_and_others_follow(tmp_path: Path) -> None:
    one, two = tmp_path / "a.toml", tmp_path / "b.toml"
    gateway = '[gateway]\nbind = "127.0.0.1:80"\n'
    one.write_text(gateway + SERVER + '[[route]]\nalias = "api"\npath = "/api"\nto = "web"\n')
    two.write_text(
        '[[route]]\npath = "/x"\nto = "web"\n[[route]]\nalias = "api"\nhost = "a.example"\npolicy = 3\n'
    )
    (problem,) = PoolConfig.load([one, two], {}).problems
    assert str(problem).startswith(f"{two}:7:1: route[1].policy: ")
    two.write_text(two.read_text().replace("3", '"first"'))
    config = PoolConfig.load([one, two], {})
    assert config.problems == []
    found = [
        (each.get("alias"), each.get("host"), each["path"], each["policy"])
        for each in config.tables.to_dict()["route"]
    ]
    assert found == [("api", "a.example", "/api", "first"), (None, None, "/x", "round-robin")]


def test_place_of_a_key_that_no_file_has_is_its_table_in_the_last_file_with_it(tmp_path: Path) -> None:
    documents = [
        Document(str(tmp_path / "a.toml"), '[pool]\nname = "x"\n'),
        Document(str(tmp_path / "b.toml"), '\n[metrics]\nbind = ":1"\n'),
    ]
    place = Origins(documents, [], {}).place_in_table(("metrics", "path"))
    assert (place.file, place.line, place.key) == (str(tmp_path / "b.toml"), 2, "metrics.path")
    place = Origins(documents, [], {}).place_in_table(("events", "path"))
    assert (place.file, place.line, place.key) == (str(tmp_path / "a.toml"), 1, "events.path"), (
        "no file has it"
    )
