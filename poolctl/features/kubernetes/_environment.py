"""The environment of a server's pods: what its Secret holds, what stays on this machine, and how to create the Secret.

A pod's variables come from the server's Secret (`env_file` and `env`), then from the Secrets that [kubernetes] names,
then from `env` again, and last from its address.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from poolctl.config import (
    Configuration,
    EnvFileError,
    ServerConfig,
    default_env_file,
    read_documents,
    read_env_file,
    referenced_variables,
    values_to_mask,
)
from poolctl.config.values.problems import Tree
from poolctl.config.values.secrets import is_secret, masked_text
from poolctl.runners.worker_spec import added_environment

# Enclose a variable's name in the place of its value. These characters do not occur in files.
_OPEN, _CLOSE = "\ue000", "\ue001"
# Also secret, besides the names masked in output: a wrong guess costs only a line in the Secret.
_MAYBE_SECRET = re.compile(r"pass|pwd|key|dsn|auth|salt|cred|private", re.IGNORECASE)
IN_ENV = f"{_OPEN}{{}}{_CLOSE}"
_IN_SHELL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SPECIAL_IN_SHELL = r'([\\"$`])'


class PodEnvironment(NamedTuple):
    """A server's variables. `secret` are the variables in its Secret, `from_env` their names that are in `env`.

    `plain` are variables that everybody may read. `files` are the env files; variables of `missing` ones are only in
    the Secret that somebody else creates.
    """

    secret: Mapping[str, str]
    from_env: Sequence[str]
    plain: Mapping[str, str]
    files: Sequence[str] = ()
    missing: Sequence[str] = ()

    @classmethod
    def of(
        cls, server: ServerConfig, directory: str, *, by_reference: bool = False, hidden: Sequence[str] = ()
    ) -> PodEnvironment:
        """Read the server's env files. Relative paths are below `directory` of the image.

        With `by_reference`, the Secret gets all values from variables and env files, and values that look secret or
        contain a value in `hidden`; env files may be missing. Raises ServerError for an unreadable env file.
        """
        missing = [path for path in server.env_file_paths if by_reference and not os.path.exists(path)]
        env_files = tuple(
            file
            for file, path in zip(server.env_file, server.env_file_paths, strict=True)
            if path not in missing
        )
        variables = added_environment(server.model_copy(update={"cwd": directory, "env_file": env_files}))
        address = {name: value for name, value in server.address_variables.items() if name not in server.env}
        if server.command and server.probe_and_hook_commands and not server.job:
            # Exec probes need these variables, and a pod's probes get the container's environment.
            address |= {"POOLCTL_NAME": server.name, "POOLCTL_BIND": server.key}
        names = server.env if by_reference else ()
        readable = [name for name in names if _is_readable(name, variables[name], hidden)]
        plain = {name: variables[name] for name in sorted(readable)} | address
        secret = {name: value for name, value in sorted(variables.items()) if name not in plain}
        return cls(secret, sorted(secret.keys() & server.env.keys()), plain, server.env_file_paths, missing)

    def create_command(self, name: str, namespace: str | None) -> str:
        """The command that creates the Secret, with shell variables instead of values."""
        if self.files and not self.from_env:  # kubectl takes one or the other
            files = [f"--from-env-file={shlex.quote(os.path.relpath(path))}" for path in self.files]
            return create_command(name, namespace, *files)
        literals = [f"--from-literal={key}={_shell_value(key, value)}" for key, value in self.secret.items()]
        # A placeholder: the shell refuses it unless the user replaces it.
        literals += [f"--from-literal=<each of {os.path.relpath(path)}>" for path in self.missing]
        return create_command(name, namespace, *literals)


def _is_readable(name: str, value: str, hidden: Sequence[str]) -> bool:
    may_be_secret = is_secret(name) or _MAYBE_SECRET.search(name)
    return _OPEN not in value and not may_be_secret and masked_text(value, hidden) == value


def _shell_value(key: str, value: str) -> str:
    """The value for a shell, which fails if a variable is unset or empty."""
    if _OPEN not in value:
        # For a name that a shell does not allow, a redirection from a missing file fails.
        return f'"${{{key}:?}}"' if _IN_SHELL.fullmatch(key) else f"<{key}>"
    text = re.sub(_SPECIAL_IN_SHELL, r"\\\1", value)
    text = re.sub(rf"{_OPEN}(\w+){_CLOSE}", r"${\1:?}", text)
    return f'"{text.replace(_OPEN, "${").replace(_CLOSE, "}")}"'


def create_command(name: str, namespace: str | None, *values: str) -> str:
    """The kubectl command, for a shell, that creates a Secret with these values."""
    words = ["kubectl", *(["-n", namespace] if namespace else []), "create", "secret", "generic", name]
    return " ".join([*words, *values])


class PoolVariables(NamedTuple):
    """The variables that a pool's files reference as `${NAME}`, with defaults, and those in `.env` files beside them.

    `tables` are the names of the tables in the files.
    """

    referenced: frozenset[tuple[str, str | None]]
    tables: frozenset[str]
    local: Mapping[str, Sequence[str]]  # the names in each `.env`, by its path

    @classmethod
    def of(cls, files: Iterable[str]) -> PoolVariables:
        """Read the files; unreadable files are left out."""
        documents, _ = read_documents([*files])
        texts = (text for document in documents for text in _texts(document.data))
        referenced = frozenset(variable for text in texts for variable in referenced_variables(text))
        local = {}
        paths = (path for document in documents for path in default_env_file(document.base_dir))
        for path in dict.fromkeys(paths):
            try:
                local[path] = [*read_env_file(path, os.environ, for_another_user=False)[0]]
            except EnvFileError:
                continue  # the pool does not use it
        roots = (document.data for document in documents if isinstance(document.data, dict))
        return cls(referenced, frozenset(name for root in roots for name in root), local)

    def values(self) -> list[str]:
        """The values in the environment, except defaults, which are in the file and therefore not secret."""
        return values_to_mask(
            (name for name, default in self.referenced if os.environ.get(name) != default), os.environ
        )

    def warnings(self, config: Configuration) -> Iterator[str]:
        """Warn of variables from a `.env` that no key names, and of defaults that it would override."""
        is_used = any(without_local_env_file(config, server) != server for server in config)
        defaults = {name for name, default in self.referenced if default is not None}
        for path, names in self.local.items():
            shown = os.path.relpath(path)
            if is_used and names:
                yield (
                    f"{shown} stays on this machine: {', '.join(names)}; "
                    'name a Secret in [kubernetes] secrets, or write env_file = ".env"'
                )
            for name in names:
                if name in defaults and not os.environ.get(name):
                    yield f"${{{name}}} has its default: {shown}, which has it, stays on this machine"


def without_local_env_file(config: Configuration, server: ServerConfig) -> ServerConfig:
    """The server without a `.env` that no key names."""
    origin = config.origin_of(server)
    if origin is None or any(key.startswith("env_file") for key in origin):
        return server
    return server.model_copy(update={"env_file": ()})


def _texts(value: Tree) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
