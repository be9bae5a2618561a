"""Hosts, paths and targets of routes in their canonical forms, and texts that are none."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from poolctl.config.values.plain import BadValue
from poolctl.features.gateway._route_values import (
    HOST_ALLOWED,
    PATH_ALLOWED,
    REDIRECT_ALLOWED,
    STREAM_TARGET_ALLOWED,
    TARGET_ALLOWED,
    canonical_redirect_target,
    canonical_route_host,
    canonical_route_path,
    canonical_stream_target,
    canonical_target,
    name_of_target,
)

LABEL = "a" * 63


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("", ""), ("*", ""), (" Users.Example.COM. ", "users.example.com"), ("*.example.com", "*.example.com"),
        ("[::0:1]", "[::1]"), ("users", "users"), ("a_b.c-d", "a_b.c-d"), (LABEL, LABEL),
        (".".join([LABEL] * 3 + ["a" * 61]), ".".join([LABEL] * 3 + ["a" * 61])),
    ],
)  # fmt: skip
def test_host_has_a_canonical_form(text: str, host: str) -> None:
    assert canonical_route_host(text) == host


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("http://a", "'http://a' is not a host: leave out the scheme and the path"),
        ("[::g]", "'[::g]' is not an IPv6 address"),
        ("a:80", "'a:80' has a port: a route is for every port that [gateway] binds"),
        ("ä", "'ä' is not ASCII: write the form that is sent, \"xn--…\""),
        (".a.b", "'.a.b' begins with a dot: write \"*.a.b\" for the names below it"),
        ("a..b", "'a..b' is not a host name"),
        ("-a", "'-a' is not a host name"),
        (f"{LABEL}a", "is not a host name"),
        (".".join([LABEL] * 3 + ["a" * 62]), "is not a host name"),
    ],
)
def test_text_that_is_no_host_is_refused_with_the_reason(text: str, problem: str) -> None:
    refused(canonical_route_host, text, problem, HOST_ALLOWED)


@pytest.mark.parametrize(("text", "path"), [("/", "/"), ("/v1", "/v1"), ("/v1/", "/v1"), ("//", "/")])
def test_path_has_no_slash_at_its_end(text: str, path: str) -> None:
    assert canonical_route_path(text) == path


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("v1", "'v1' does not begin with /"),
        ("/v1?x", "'/v1?x' contains a blank, ? or #"),
        ("/a b", "contains a blank"),
        ("/a/../b", "'/a/../b' is not in normal form: write '/b'"),
        ("/%zz", "has escapes or characters that no request is served with"),
    ],
)
def test_text_that_is_no_path_is_refused_with_the_reason(text: str, problem: str) -> None:
    refused(canonical_route_path, text, problem, PATH_ALLOWED)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("web", "web"), ("tag:api", "tag:api"), ("http://a", "http://a:80"), ("HTTPS://a", "https://a:443"),
        ("http://a:81/", "http://a:81"), ("https://[::1]", "https://[::1]:443"), ("http://[::1]:8", "http://[::1]:8"),
        ("unix:/run/a.sock", "unix:/run/a.sock"), ("UNIX:/run/a.sock", "unix:/run/a.sock"),
        ("unix:///run/a.sock", "unix:/run/a.sock"),
    ],
)  # fmt: skip
def test_target_is_a_server_a_tag_or_a_url_with_its_port(text: str, target: str) -> None:
    assert canonical_target(text) == target


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("10.0.0.1:80", "'10.0.0.1:80' is not a target: write \"http://10.0.0.1:80\""),
        ("a b", "'a b' is not a target"),
        ("ftp://a", "'ftp://a' has the scheme 'ftp'"),
        ("http://me:pw@a:1", "http://…@a:1 has credentials: write them into add_headers"),
        ("http://a/b", "has a path: a route keeps the client's path"),
        ("http://a?b", "has a path"),
        ("http://a#b", "has a path"),
        ("http://:80", "the host is missing"),
        ("http://0.0.0.0:80", "'0.0.0.0:80' is not an address to connect to"),
        ("http://a:99999", "out of range"),
        (f"unix:/{'x' * 107}", "is longer than 107 bytes"),
    ],
)
def test_text_that_is_no_target_is_refused_with_the_reason(text: str, problem: str) -> None:
    refused(canonical_target, text, problem, None if "longer" in problem else TARGET_ALLOWED)


@pytest.mark.parametrize("of", [canonical_target, canonical_stream_target])
@pytest.mark.parametrize("text", ["tag:", "tag:a b", "tag:a,b"])
def test_tag_without_a_name_is_refused(of: Callable[[str], str], text: str) -> None:
    refused(of, text, f"'{text}' does not name a tag", '"tag:TAG"')


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("db", "db"), ("tag:db", "tag:db"), ("10.0.0.5:5432", "10.0.0.5:5432"), ("tcp://a:1", "a:1"),
        ("TCP://a:53", "a:53"), ("[::1]:53", "[::1]:53"),
    ],
)  # fmt: skip
def test_target_of_a_stream_is_a_server_a_tag_or_an_address(text: str, target: str) -> None:
    assert canonical_stream_target(text) == target


def test_url_is_no_target_of_a_stream() -> None:
    problem = "'http://a' is a URL: a stream leads to HOST:PORT"
    refused(canonical_stream_target, "http://a", problem, STREAM_TARGET_ALLOWED)


@pytest.mark.parametrize("text", ["https", "https://b.example", "http://[::1]:81/a?b=c", "HTTP://a/b#c"])
def test_redirect_leads_to_https_or_to_a_url(text: str) -> None:
    assert canonical_redirect_target(text) == text
    assert canonical_redirect_target("HTTPS") == "https"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("www", "'www' is not a URL"),
        ("ftp://a", "is not a URL"),
        ("https:///a", "is not a URL"),
        ("https://a b", "has invalid characters or credentials"),
        ("https://a/b\r\n", "has invalid characters"),
        ("https://me@a", "or credentials"),
    ],
)
def test_text_that_is_no_redirect_is_refused_with_the_reason(text: str, problem: str) -> None:
    refused(canonical_redirect_target, text, problem, REDIRECT_ALLOWED)


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("web", "web"),
        ("tag:api", "api"),
        ("http://a:80", "a:80"),
        ("unix:/run/a.sock", "a.sock"),
        ("a:1", "a:1"),
    ],
)
def test_target_has_a_short_name(target: str, name: str) -> None:
    assert name_of_target(target) == name


def refused(of: Callable[[str], str], text: str, problem: str, allowed: str | None) -> None:
    with pytest.raises(BadValue) as found:
        of(text)
    assert problem in str(found.value)
    assert allowed is None or found.value.allowed == allowed
