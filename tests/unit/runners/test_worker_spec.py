"""What a server's configuration makes of a worker has a number, and what the machine makes of it has not."""

from __future__ import annotations

import marshal
from typing import Any

import pytest

from poolctl import ServerConfig
from poolctl.runners.worker_spec import worker_spec
from poolctl.worker.control_socket import spec_digest


def number(*, interpreter: str = "python", **keys: Any) -> int:
    server = ServerConfig(**{"name": "web", "bind": "127.0.0.1:8080", "app": "a:b"} | keys)
    spec = worker_spec(server, interpreter=interpreter, listeners=1, tls_files=0, open_files=(1, 2))
    # As the worker reads it.
    return spec_digest(marshal.loads(marshal.dumps(spec)))


@pytest.mark.parametrize(
    "keys",
    [
        {"app": "a:c"},
        {"factory": True},
        {"env": {"A": "1"}},
        {"cwd": "/tmp"},
        {"http": {"keep_alive": 5}},
        {"http": {"access_log": True}},
        {"http": {"log_level": "debug"}},
        {"drain_timeout": 1},
        {"stop_timeout": 1},
    ],
)
def test_another_configuration_is_another_number(keys: dict[str, Any]) -> None:
    assert number(**keys) != number()


@pytest.mark.parametrize(
    "keys", [{}, {"interpreter": "/other/python"}, {"workers": 3}, {"tags": ["x"]}, {"restart": "always"}]
)
def test_digest_ignores_settings_that_need_no_new_worker(keys: dict[str, Any]) -> None:
    assert number(**keys) == number()
