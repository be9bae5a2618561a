"""Short forms and ranges of the values in [gateway], [[route]] and [[stream]]."""

from __future__ import annotations

from pathlib import Path

import pytest

from poolctl.features.gateway.table import GatewayConfig, RouteConfig, StreamConfig
from tests.config_files import load_text, told
from tests.configuration import server

WEB = server("web", bind="127.0.0.1:9001", app="a:b")


def route(directory: Path, keys: str) -> RouteConfig:
    """The table of the only route, to "web" unless the keys say otherwise."""
    text = keys if "to =" in keys else f'to = "web"\n{keys}'
    config = load_text(directory, f"{WEB}[[route]]\n{text}\n")
    assert [str(problem) for problem in config.problems] == []
    (found,) = config.tables.all(RouteConfig)
    return found


@pytest.mark.parametrize("to", ['"web"', '["web"]', '{ to = "web" }', '[{ to = "web" }]'])
def test_target_stands_alone_or_in_a_list_as_a_text_or_a_table(tmp_path: Path, to: str) -> None:
    assert [(each.to, each.weight) for each in route(tmp_path, f"to = {to}").to] == [("web", 1)]


def test_values_of_a_table_may_be_given_as_such() -> None:
    target = RouteConfig(to="web").to[0]
    assert RouteConfig(to=(target,)).to == RouteConfig(to=target).to == (target,)


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("[[route]]\nto = []\n", "an empty list is not allowed here; allowed is at least one target"),
        ("[[route]]\nto = [5]\n", "5 is not allowed here; allowed is a server's name"),
        ("[[stream]]\nbind = ':1'\nto = 5\n", '5 is not allowed here; allowed is a server\'s name, "tag:TAG" or "HOST'),
        ("[gateway]\nbind = 8080\n", '8080 is not allowed here; allowed is "HOST:PORT"'),
        ("[gateway]\nbind = { bind = ':1', tls = [] }\n", 'an empty list is not allowed here'),
        ("[gateway]\nbind = { bind = ':1', tls = [1] }\n", "1 is not allowed here; allowed is a table"),
        ("[gateway]\nbind = { bind = ':1', tls = 5 }\n", "5 is not allowed here"),
        ("[gateway]\nmax_head_size = '300MiB'\n", "314572800 bytes is out of range; allowed is 4KiB to 1MiB"),
    ],
)  # fmt: skip
def test_value_of_another_form_is_a_problem(tmp_path: Path, table: str, problem: str) -> None:
    assert problem in told(tmp_path, WEB + table)


@pytest.mark.parametrize("tls", ["true", "false"])
def test_listener_speaks_tls_if_that_is_true(tmp_path: Path, tls: str) -> None:
    text = f'{WEB}[gateway]\nbind = {{ bind = ":8443", tls = {tls} }}\n'
    gateway = load_text(tmp_path, text).tables.get(GatewayConfig)
    assert gateway is not None
    assert [each.tls for each in gateway.bind] == ["true" in tls]


@pytest.mark.parametrize("tls", ['{ cert = "a", key = "b" }', '[{ cert = "a", key = "b" }]'])
def test_listener_has_one_certificate_or_several(tmp_path: Path, tls: str) -> None:
    text = f'{WEB}[gateway]\nbind = {{ bind = ":8443", tls = {tls} }}\n'
    gateway = load_text(tmp_path, text).tables.get(GatewayConfig)
    assert gateway is not None
    ((certificate,),) = (each.tls for each in gateway.bind)
    assert (Path(certificate.cert).name, Path(certificate.key).name) == ("a", "b")


@pytest.mark.parametrize(
    "health", ['"/up"', '{ http = "/up" }', '{ readiness = "/up" }', '{ readiness = { http = "/up" } }']
)
def test_probe_of_a_target_is_a_path_or_written_like_a_servers(tmp_path: Path, health: str) -> None:
    found = route(tmp_path, f'to = "http://a"\nhealth = {health}')
    assert found.health is not None
    assert found.health.http == "/up"


def test_probe_of_a_target_has_no_other_kinds(tmp_path: Path) -> None:
    text = '[[route]]\nto = "http://a"\nhealth = { readiness = "/up", liveness = "/up" }\n'
    assert "health.liveness" in told(tmp_path, WEB + text)


def test_redirect_is_a_text_or_a_table(tmp_path: Path) -> None:
    for written in ('"https"', '{ to = "https" }'):
        found = load_text(tmp_path, f'{WEB}[[route]]\nhost = "a.example"\nredirect = {written}\n')
        (of_file,) = found.tables.all(RouteConfig)
        assert of_file.redirect is not None
        assert of_file.redirect.to == "https"


def test_peers_of_unix_sockets_are_trusted_by_a_word(tmp_path: Path) -> None:
    trusted = '[gateway]\ntrusted_proxies = ["unix", "10.0.0.0/8"]\n'
    gateway = load_text(tmp_path, WEB + trusted).tables.get(GatewayConfig)
    assert gateway is not None
    assert gateway.trusted_proxies == ("unix", "10.0.0.0/8")
    allowed = 'allowed is addresses, networks such as "10.0.0.0/8", or "*" or "unix"'
    assert allowed in told(tmp_path, WEB + trusted.replace("unix", "unixx"))
    assert "'unix' is neither" in told(tmp_path, WEB + '[[route]]\nto = "web"\nallow = ["unix"]\n')


@pytest.mark.parametrize(
    ("table", "least", "most"),
    [
        ('[[route]]\nto = {{ to = "web", weight = {} }}\n', 1, 1000),
        ('[[route]]\nto = "web"\nretries = {}\n', 0, 10),
        ('[[route]]\nto = "web"\nlimit = {{ concurrency = {} }}\n', 0, 1_000_000),
        ('[[route]]\nto = "web"\nlimit = {{ requests_per_second = {} }}\n', 0, 10_000_000),
        ('[[route]]\nto = "web"\nbreaker = {{ statuses = [{}] }}\n', 400, 599),
    ],
)
def test_number_has_its_range(tmp_path: Path, table: str, least: int, most: int) -> None:
    for number in (least, most):
        assert "not allowed here" not in told(tmp_path, WEB + table.format(number)), number
    for number in (least - 1, most + 1):
        assert f"{number} is not allowed here" in told(tmp_path, WEB + table.format(number)), number


def test_stream_has_every_policy_but_the_one_for_cookies(tmp_path: Path) -> None:
    text = '{}[[stream]]\nbind = ":1"\nto = "a:1"\npolicy = "{}"\n'
    (stream,) = load_text(tmp_path, text.format(WEB, "round-robin")).tables.all(StreamConfig)
    assert stream.policy == "round-robin"
    assert "'sticky' is not allowed here" in told(tmp_path, text.format(WEB, "sticky"))


@pytest.mark.parametrize("character", [r"\u001b", r"\u009b", r"\u202e", r"\u2066", r"\n"])
@pytest.mark.parametrize(
    "table",
    [
        'alias = "a{}b"',
        'path = "/a{}b"',
        'host = "a{}b"',
        'host_header = "a{}b"',
        'headers = {{ X-A = "a{}b" }}',
        'set_headers = {{ X-A = "a{}b" }}',
        'response_headers = {{ X-A = "a{}b" }}',
        'probe_responses = ["/a{}b"]',
    ],
)
def test_character_that_hides_text_is_refused_in_a_route(tmp_path: Path, table: str, character: str) -> None:
    problems = told(tmp_path, f'{WEB}[[route]]\nto = "web"\n{table.format(character)}\n')
    assert f"route[0].{table.split()[0]}" in problems
    assert problems.replace("\n", "").isprintable()


@pytest.mark.parametrize("character", [r"\u001b", r"\u202e"])
def test_character_that_hides_text_is_refused_in_a_path(tmp_path: Path, character: str) -> None:
    for target in ('"unix:/tmp/a{}b"', '{{ to = "https://a.test", ca = "/a{}b" }}'):
        problems = told(tmp_path, f"{WEB}[[route]]\nto = {target.format(character)}\n")
        assert "holds a control character" in problems
