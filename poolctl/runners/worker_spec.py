"""Builds a worker's specification from its server's configuration, as a value that can be sent as a message."""

from __future__ import annotations

import contextlib
import json
import marshal
import os
import sys
from collections.abc import Iterable, Iterator, Mapping

from poolctl.config import (
    ServerConfig,
    default_interpreter,
    directory_for_environment,
    fill_placeholders,
    ids_of,
    interpreter,
    missing_module,
    read_env_files,
    read_regular_truncated,
    with_virtual_environment,
)
from poolctl.config.values.path_variables import with_absolute_paths
from poolctl.errors import ServerError
from poolctl.json_form import Table
from poolctl.platform import memory_file
from poolctl.routing.networks import in_every_form

from .runner_protocol import app_state
from .withheld_variables import environment_for_programs, withheld_variables

# Set by `run --no-access-log`: servers log no requests, even if their configuration says so.
NO_ACCESS_LOG_VARIABLE = "POOLCTL_NO_ACCESS_LOG"
_REQUESTS_SHARE = 0.8

Spec = Table
# All supported interpreters read this version, faster than a text format.
_MARSHAL_VERSION = 2


def missing_module_hint(missing: str, server: ServerConfig) -> str:
    """What to do about the module `missing`, which the import of the server's application did not find."""
    target = str(server.handlers if server.app is None else server.app)
    if not all(part.isidentifier() for part in missing.split(".")):
        return f"check {target}"  # the application has set the name, to any text
    module = target.partition(":")[0]
    if not server.lacks_environment:
        return "; ".join(missing_module(missing, module, server.app_dir, interpreter(server.python)))
    directory = directory_for_environment(server)
    problem, fix = missing_module(missing, module, server.app_dir, sys.executable, directory)
    if (present := default_interpreter(directory, os.environ)) is not None:
        fix = f"poolctl reload, which uses {present}: it was not there when the pool read its files"
    return f"{problem}; {fix}"


def spec_file(spec: Spec) -> int:
    """Write the specification to a new in-memory file; returns its descriptor, which the caller closes."""
    return memory_file("poolctl", marshal.dumps(spec, _MARSHAL_VERSION))


def worker_spec(
    server: ServerConfig,
    *,
    interpreter: str,
    listeners: int,
    tls_files: int,
    open_files: tuple[int, int],
    env_base: Mapping[str, str] | None = None,
) -> Spec:
    """The specification of one worker of `server`. Raises ServerError for a missing user or file.

    `listeners` and `tls_files` say how many listeners and TLS files the worker inherits as descriptors.
    """
    return {
        **preload_spec(server, interpreter=interpreter, open_files=open_files, env_base=env_base),
        "kind": "command" if server.command else "app",
        "server": server.name,
        "factory": server.factory,
        "handler_key": server.handler_key,
        **interface_settings(server),
        "state": _scope_state(server),
        "listeners": listeners,
        "tls": tls_settings(server),
        "tls_files": tls_files,
        # Whether the last descriptors are the two ends of its adoption pair and its tally page.
        "adoption": not server.command,
        "uvicorn": uvicorn_settings(server) | {"access_log": False},
        "requests": _request_logging(server),
        "limits": connection_limits(server),
        **({"stdin": "open"} if server.stdin == "open" else {}),
        "drain_seconds": server.drain_timeout,
        "stop_seconds": stop_seconds(server),
        "idle_seconds": server.idle_seconds,
        "resting": server.health.gated,
    }


def hook_id(server: str, hook: str) -> str:
    """The placement id for this command of the server's `hooks`."""
    return f"{server}.{hook}"


def hook_config(server: ServerConfig, hook: str) -> ServerConfig:
    """The server's configuration with the named command of its `hooks` in place of its application or command."""
    words = () if server.hooks is None else getattr(server.hooks, hook) or ()
    changes = {
        "app": None,
        "command": words,
        "handler_key": "",
        "job": False,
        "notify": False,
        "preload": False,
        "ready_line": None,
        "stdin": "null",
        "stop_signal": None,
        "tls": False,
    }
    return server.model_copy(update=changes)


def preload_spec(
    server: ServerConfig,
    *,
    interpreter: str,
    open_files: tuple[int, int],
    env_base: Mapping[str, str] | None = None,
) -> Spec:
    """The settings that an application can see while it is imported.

    Servers with equal settings can share a preloaded process (app zygote). Raises ServerError as `worker_spec` does.
    """
    env = (program_environment if server.command else added_environment)(server, env_base)
    if server.app is not None and not isinstance(server.app, str):
        hint = 'give it as "module:attribute", or run the server in this process'
        raise _configuration_error(server, "its app is an object, and cannot go to another process", hint)
    return {
        "python": interpreter,
        "app": server.app,
        "app_dir": server.app_dir,
        "handlers": server.handlers,
        **_process_settings(server, env, open_files=open_files, env_base=env_base),
    }


def exec_spec(server: ServerConfig, *, open_files: tuple[int, int], env_base: Mapping[str, str]) -> Spec:
    """The specification of a command that runs with the server's settings, as its hooks do. Raises ServerError."""
    env = {"POOLCTL_NAME": server.name, **program_environment(server, env_base)}
    return _process_settings(server, env, open_files=open_files, env_base=env_base)


def _process_settings(
    server: ServerConfig,
    env: Mapping[str, str],
    *,
    open_files: tuple[int, int],
    env_base: Mapping[str, str] | None,
) -> Spec:
    """What `process_setup.apply_spec` applies to a process of the server."""
    soft, hard = open_files
    if server.limits.open_files is not None:
        soft = server.limits.open_files
        hard = max(soft, hard)
    return {
        "env": env,
        "env_base": environment_for_programs(env_base) if env_base is not None else None,
        # The variables that the zygote's environment lacks, so that no import sees them.
        "without": withheld_variables(),
        "cwd": server.cwd,
        **({} if server.umask is None else {"umask": int(server.umask, 8)}),
        "user": user_ids(server),
        "open_files": [soft, hard],
    }


def _scope_state(server: ServerConfig) -> Table:
    """The pool context's values for the application's `scope["state"]`. Raises ServerError if one has no JSON form."""
    try:
        values: Table = json.loads(json.dumps(dict(app_state.get())))
    except (TypeError, ValueError) as error:
        message = f"a value of its context cannot go to another process: {error}"
        raise _configuration_error(
            server, message, "give it values of JSON, or run it in this process"
        ) from error
    return values


def added_environment(server: ServerConfig, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment variables that the server adds to `base`, by default to the pool's own."""
    env = dict(server.env)
    if server.command:
        values = _address_values(server)
        env = {name: fill_placeholders(value, values) for name, value in env.items()}
    address_env = server.address_variables
    file_env = read_env_files(server, {**environment_for_programs(base), **address_env, **env})
    # Withheld variables are removed from env files, which may contain them, but not from `env`.
    return with_absolute_paths({**address_env, **environment_for_programs(file_env), **env}, server.cwd)


def program_environment(server: ServerConfig, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """What `added_environment` adds, and for a command, hook or probe also PATH of the server's virtual environment."""
    return with_virtual_environment(server, added_environment(server, base), environment_for_programs(base))


def argument_vector(server: ServerConfig) -> list[str]:
    """The server's command with its placeholders replaced."""
    values = {"fd": "3", "name": server.name, **_address_values(server)}
    return [fill_placeholders(word, values) for word in server.command or ()]


def probe_argument_vector(server: ServerConfig, words: Iterable[str]) -> list[str]:
    """The command of an exec probe of the server, with its placeholders replaced."""
    values = {"name": server.name, **_address_values(server)}
    return [fill_placeholders(word, values) for word in words]


def _address_values(server: ServerConfig) -> dict[str, str]:
    """The values of the placeholders for the server's address. A command that uses one binds its address itself."""
    address = server.address
    host, port = (address.host, str(address.port)) if address.kind == "tcp" else ("", "")
    return {"bind": server.bind, "host": host, "port": port}


def give_output_to_user(pipe: int, server: ServerConfig) -> None:
    """Give an output pipe to the server's user, if it has one: /dev/stdout can be opened only by the pipe's owner."""
    # An unusable user is reported when a process starts.
    with contextlib.suppress(ServerError, OSError):
        if ids := user_ids(server):
            os.fchown(pipe, *ids)


def user_ids(server: ServerConfig) -> tuple[int, int] | None:
    """The uid and gid with which the worker runs; None if they are the pool's own. Raises ServerError."""
    if server.user is None:
        return None
    try:
        ids = ids_of(server.user)
    except KeyError as error:
        raise _configuration_error(
            server, f"there is no user or group {server.user!r}", "create it, or correct `user`"
        ) from error
    if ids == (os.geteuid(), os.getegid()):
        return None
    if os.geteuid() != 0:
        raise _configuration_error(
            server, f"only root can run it as {server.user!r}", "start poolctl as root, or leave `user` out"
        )
    return ids


def user_id(server: ServerConfig) -> int:
    """The uid of the server's processes. Raises ServerError."""
    ids = user_ids(server)
    return os.geteuid() if ids is None else ids[0]


def usable_user_id(server: ServerConfig) -> int | None:
    """The uid of the server's processes; None if the user does not exist, or differs from ours and we are not root."""
    try:
        return user_id(server)
    except ServerError:
        return None


def tls_settings(server: ServerConfig) -> Table | None:
    """The settings of the worker's TLS context, without its files; None without TLS."""
    tls = server.tls
    if not tls or tls is True:
        return None
    password = os.environ.get(tls.password_env, "") if tls.password_env else None
    return {
        "password": password,
        "client_auth": tls.client_auth,
        "min_version": tls.min_version,
        "ciphers": tls.ciphers,
    }


def tls_contents(server: ServerConfig) -> list[bytes]:
    """The contents of certificate, key and any client CAs, read now; empty without TLS. Raises ServerError."""
    tls = server.tls
    if not tls or tls is True:
        return []
    contents = []
    for path in filter(None, (tls.cert, tls.key or tls.cert, tls.ca)):
        try:
            contents.append(read_regular_truncated(path, for_another_user=server.user is not None))
        except OSError as error:
            raise _configuration_error(
                server, f"cannot read {path}: {error.strerror or error}", "check `tls`"
            ) from error
    return contents


@contextlib.contextmanager
def memory_files(contents: Iterable[bytes]) -> Iterator[list[int]]:
    """Context manager: the descriptors of new in-memory files with these contents; closed when the context ends."""
    with contextlib.ExitStack() as stack:
        fds = []
        for content in contents:
            fds.append(memory_file("poolctl", content))
            stack.callback(os.close, fds[-1])
        yield fds


def stop_seconds(server: ServerConfig) -> float:
    """The part of a worker's stop timeout for current requests; the rest is for the application's shutdown."""
    return server.stop_timeout * _REQUESTS_SHARE


def uvicorn_settings(server: ServerConfig) -> Table:
    """The server's `http` table as uvicorn settings."""
    http = server.http
    # Left out where it is the default, so that the worker leaves the levels to the application.
    log_level = {} if http.log_level == "info" else {"log_level": http.log_level}
    return {
        **log_level,
        "http": http.implementation,
        "loop": http.loop,
        "ws": http.websocket,
        "timeout_keep_alive": http.keep_alive,
        "root_path": http.root_path,
        "proxy_headers": http.proxy_headers,
        "forwarded_allow_ips": in_every_form(http.trusted_proxies),
        "access_log": http.access_log is True,
        "limit_concurrency": http.max_concurrency,
        "limit_max_requests": http.max_requests,
    }


def interface_settings(server: ServerConfig) -> Table:
    """The settings of how the server's application is called."""
    return {"interface": server.interface, "threads": server.http.threads}


def connection_limits(server: ServerConfig) -> Table:
    """The limits on client connections, as settings of the worker's server."""
    http = server.http
    return {
        "head_seconds": http.head_timeout,
        "head_bytes": http.max_head_size,
        "max_connections": http.max_connections,
    }


def _request_logging(server: ServerConfig) -> Table | None:
    """The settings for access logs and request ids; None if neither is used."""
    logged, answers = logged_requests(server), bool(server.http.request_id)
    if not logged and not answers:
        return None
    settings: Table = {"log": server.log.format if logged is True else None, "answer": answers}
    return settings | {"failed": server.log.format} if logged == "errors" else settings


def logged_requests(server: ServerConfig) -> bool | str:
    """Which requests workers log: True for all, "errors" for failed ones, False for none or with `--no-access-log`."""
    return NO_ACCESS_LOG_VARIABLE not in os.environ and server.http.access_log


def _configuration_error(server: ServerConfig, message: str, hint: str) -> ServerError:
    return ServerError(message, name=server.name, bind=server.bind, hint=hint)
