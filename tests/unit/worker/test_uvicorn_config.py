"""The configuration that is prepared before the fork is the one that a plain server asks for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from poolctl.config import ServerConfig
from poolctl.runners.worker_spec import uvicorn_settings
from poolctl.worker.serving import uvicorn_parts
from poolctl.worker.serving.uvicorn_parts import Receive, Scope, Send
from tests.asgi_apps import saying


def plain(**keys: object) -> ServerConfig:
    return ServerConfig(name="web", bind="127.0.0.1:8000", app="hello:app", **keys)


def test_server_without_an_http_table_has_the_usual_settings() -> None:
    assert uvicorn_settings(plain()) == uvicorn_parts.USUAL


def test_log_level_is_part_of_the_settings_only_where_it_is_not_the_usual_one() -> None:
    assert "log_level" not in uvicorn_settings(plain(http={"log_level": "info"}))
    assert uvicorn_settings(plain(http={"log_level": "trace"}))["log_level"] == "trace"


def test_prepared_configuration_serves_the_given_application() -> None:
    uvicorn_parts.prepare()
    first, second = saying("first"), saying("second")
    configs = [uvicorn_parts.configure(app, dict(uvicorn_parts.USUAL)) for app in (first, second)]
    for config in configs:
        config.load()
    assert [config.loaded_app for config in configs] == [first, second]


def test_prepared_configuration_serves_applications_of_both_interfaces() -> None:
    def asgi2(scope: Scope) -> Callable[[Receive, Send], Awaitable[None]]:
        async def answer(receive: Receive, send: Send) -> None: ...

        return answer

    uvicorn_parts.prepare()
    interfaces = []
    for app in (asgi2, saying("hello"), asgi2):
        config = uvicorn_parts.configure(app, dict(uvicorn_parts.USUAL))
        config.load()
        interfaces.append(config.interface)
    assert interfaces == ["asgi2", "asgi3", "asgi2"]


def test_other_settings_make_a_configuration_of_their_own() -> None:
    uvicorn_parts.prepare()
    wanted = uvicorn_settings(plain(http={"keep_alive": "5s", "root_path": "/api"}))
    config = uvicorn_parts.configure(saying("hello"), wanted)
    assert (config.timeout_keep_alive, config.root_path) == (5.0, "/api")
