"""A server with other values: what follows from the ones that are replaced, and what stays."""

from __future__ import annotations

import pytest

from poolctl import ServerConfig
from poolctl.address import parse
from poolctl.errors import PoolValidateError


def test_replaced_bind_takes_its_address_and_the_exposed_url_along() -> None:
    before = ServerConfig(name="a", bind="127.0.0.1:8080", app="a:b")
    after = before.replace(bind="127.0.0.1:9090")
    assert (after.bind, after.expose) == ("127.0.0.1:9090", "http://127.0.0.1:9090")
    assert after.address == parse("127.0.0.1:9090")
    assert (before.bind, before.expose) == ("127.0.0.1:8080", "http://127.0.0.1:8080")


def test_replaced_bind_keeps_a_url_that_was_given() -> None:
    before = ServerConfig(name="a", bind="127.0.0.1:8080", app="a:b", expose="https://a.example.com")
    assert before.replace(bind="127.0.0.1:9090").expose == "https://a.example.com"


def test_replaced_bind_of_the_same_key_has_the_address_as_it_is_written_now() -> None:
    # Of both versions of the protocol, and of one: they have the same key.
    before = ServerConfig(name="a", bind=":8080", app="a:b")
    assert before.address.dual
    assert before.replace(tags=["x"]).address.dual
    after = before.replace(bind="0.0.0.0:8080")
    assert (after.bind, after.address.dual) == (before.bind, False)


def test_replaced_bind_is_validated() -> None:
    before = ServerConfig(name="a", bind="127.0.0.1:8080", app="a:b")
    with pytest.raises(PoolValidateError):
        before.replace(bind="127.0.0.1:99999")
