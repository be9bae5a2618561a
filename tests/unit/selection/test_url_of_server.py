"""The URL of a server by its name: joined with a path, and what is said where there is none."""

from __future__ import annotations

import pytest

from poolctl import PoolParamError
from poolctl.selection.url_of_server import url_of_server

SERVERS = [
    ("web", "http://127.0.0.1:8081"), ("shop", "https://example.org/shop"), ("files", "unix:/run/files.sock"),
    ("queue", ""), ("job", None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "path", "url"),
    [
        ("web", "/", "http://127.0.0.1:8081/"),
        ("web", "", "http://127.0.0.1:8081"),
        ("web", "/ready?x=1", "http://127.0.0.1:8081/ready?x=1"),
        ("web", "ready", "http://127.0.0.1:8081/ready"),
        ("shop", "/cart/", "https://example.org/shop/cart/"),
        ("files", "/", "unix:/run/files.sock"),
    ],
)
def test_path_follows_the_address_for_clients(name: str, path: str, url: str) -> None:
    assert url_of_server(name, path, SERVERS) == url


@pytest.mark.parametrize(
    ("name", "path", "words"),
    [
        ("wep", "/", "there is no server 'wep'; did you mean 'web'?"),
        ("xyz", "/", "there is no server 'xyz'; there are web, shop, files, queue, job and 1 more"),
        ("queue", "/", "'queue' has no URL"),
        ("job", "/", "'job' has no URL"),
        ("files", "/me", "'files' is reached at unix:/run/files.sock"),
    ],
)
def test_name_without_a_url_is_an_error_that_says_why(name: str, path: str, words: str) -> None:
    with pytest.raises(PoolParamError) as caught:
        url_of_server(name, path, [*SERVERS, ("other", "")])
    assert str(caught.value).startswith(words)
