"""Paths in normal form, and what is refused."""

from __future__ import annotations

import re
from itertools import product
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.routing.normal_path import MAX_AMBIGUOUS, normal_path, readings
from tests.steps import steps_of


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        ("/", "/"),
        ("", "/"),
        ("/v1/users", "/v1/users"),
        ("/v1/users/", "/v1/users/"),
        ("/.well-known/x", "/.well-known/x"),
        ("/...", "/..."),
        ("/%7Euser/%61%2D", "/~user/a-"),
        ("/caf%c3%a9", "/caf%C3%A9"),
        ("/a/./b/../c", "/a/c"),
        ("/a/b/..", "/a/"),
        ("/a/.", "/a/"),
        ("/../../etc/passwd", "/etc/passwd"),
        ("/%2e%2E/admin", "/admin"),
        ("/a/%2e%2e%2e", "/a/..."),
        ("/@scope%2fpackage", "/@scope%2Fpackage"),
        ("/fetch/https://example.com/x", "/fetch/https://example.com/x"),
        ("/a;v=1/b", "/a;v=1/b"),
        ("/a b", None),
        ("/a%20b", "/a%20b"),
        ("/%252e%252e/x", "/%252e%252e/x"),
        ("/files/a|b^{c}", "/files/a|b^{c}"),
    ],
)
def test_path_has_this_normal_form(path: str, normal: str | None) -> None:
    assert normal_path(path) == normal


@pytest.mark.parametrize(
    "path",
    [
        "/public/..;/admin",
        "/public/.;/admin",
        "/..;jsessionid=1/admin",
        "/public%2F..%2Fadmin",
        "/public/..%2Fadmin",
        "/public%2f%2e%2e/admin",
        "/public/..%5Cadmin",
        "/a%5c..",
        "/a;x%2F../b",
        "/a%00",
        "/a%0d%0aX",
        "/a%1f",
        "/a%7F",
        "/a\\b",
        "/a\0",
        "/a\r\n",
        "/é",
        "/a#b",
        "/a?b",
        "/%",
        "/%4",
        "/%zz",
        "v1",
        "*",
    ],
)
def test_path_that_backends_may_misread_is_refused(path: str) -> None:
    assert normal_path(path) is None


@pytest.mark.parametrize(
    ("path", "read_as"),
    [
        ("/a/b", {"/a/b"}),
        ("/a%20b", {"/a%20b"}),
        ("/a%2Fb", {"/a%2Fb", "/a/b"}),
        ("/a%5Cb", {"/a%5Cb", "/a/b"}),
        ("//a", {"//a", "/a"}),
        ("/a;x/b", {"/a;x/b", "/a/b"}),
        ("/;x", {"/;x", "/"}),
        ("/a;x%2Fb", {"/a;x%2Fb", "/a;x/b", "/a", "/a/b"}),
    ],
)
def test_path_is_read_in_all_these_ways(path: str, read_as: set[str]) -> None:
    assert set(readings(path)) == read_as
    assert readings(path)[0] == path


pieces = st.sampled_from(
    ["/", "/", "a", "b", ".", "..", "%2e", "%2F", "%5c", "%41", "%c3", ";", ";x", "//", "~", "%25"]
)
paths = st.lists(pieces, max_size=8).map(lambda some: "/" + "".join(some))


@given(paths)
def test_normal_form_of_a_normal_form_is_the_same(path: str) -> None:
    normal = normal_path(path)
    if normal is not None:
        assert normal_path(normal) == normal


@given(paths)
def test_no_reading_of_a_normal_form_has_a_dot_segment(path: str) -> None:
    normal = normal_path(path)
    for reading in readings(normal) if normal else ():
        assert not {".", ".."} & set(reading.split("/"))
        assert not {".", ".."} & set(unquote(reading).replace("\\", "/").split("/"))


@given(paths)
def test_normal_form_says_the_same_to_a_backend_that_resolves_dot_segments(path: str) -> None:
    normal = normal_path(path)
    if normal is None or any(each in path for each in ("//", ";", "%2F", "%5c")):
        return
    kept: list[str] = []
    segments = unquote(path, "latin-1").split("/")[1:]
    for number, segment in enumerate(segments):
        last = number == len(segments) - 1
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
        if last and segment in (".", ".."):
            kept.append("")
    assert unquote(normal, "latin-1") == "/" + "/".join(kept)


@given(paths)
def test_readings_are_those_of_every_combination_of_steps(path: str) -> None:
    """Which some backends take in this order: cut parameters off, decode separators, cut again, merge slashes."""
    normal = normal_path(path)
    steps = ((";[^/]*", ""), ("%2F|%5C", "/"), (";[^/]*", ""), ("//+", "/"))
    for taken in product((False, True), repeat=len(steps)) if normal else ():
        reading = normal or ""
        for step, (expression, replacement) in zip(taken, steps, strict=True):
            reading = re.sub(expression, replacement, reading) if step else reading
        assert reading in readings(normal or "")


@pytest.mark.parametrize("mark", [";", "//", "%2F", "%5c", "/;"])
def test_path_with_too_many_places_that_are_read_in_two_ways_is_refused(mark: str) -> None:
    assert normal_path("/a" + f"b{mark}c" * MAX_AMBIGUOUS) is not None
    assert normal_path("/a" + f"b{mark}c" * (MAX_AMBIGUOUS + 1)) is None


@pytest.mark.parametrize("part", ["/;", "//", "/;a", "%2F", "%2f;", "/a", "a", ";"])
def test_steps_of_a_long_path_are_few(part: str) -> None:
    path = "/" + part * (60_000 // len(part))
    few = "/" + part * MAX_AMBIGUOUS + "a" * 60_000
    assert steps_of(lambda: normal_path(path)) < 40 + (25_000 if "%" in part else 0)
    for each in (normal_path(few), normal_path("/" + "a;" * MAX_AMBIGUOUS)):
        assert steps_of(lambda each=each: readings(each or "/")) < 60
