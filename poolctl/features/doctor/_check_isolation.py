"""Checks what isolates servers from other users and from each other: who may change what they run, and shared users."""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import shutil
import stat
from collections.abc import Container, Iterator, Mapping

from poolctl.config import (
    ServerConfig,
    find_path_others_may_change,
    ids_of,
    interpreter,
    os_users_by_server,
    with_resolved_references,
    with_virtual_environment,
)
from poolctl.platform import group_name, user_name
from poolctl.private_directory import Trusted

from ._check import CheckContext, CheckResult, ok, problem, warning


def shared_users(context: CheckContext) -> Iterator[CheckResult]:
    """Servers that share a `user`. In a pool with several users they may have been meant to be isolated."""
    users = os_users_by_server(context.servers)
    with_user = {server.name for server in context.servers if server.user}
    servers_by_user: dict[str, list[str]] = {}
    for name, user in users.items():
        if name in with_user:
            servers_by_user.setdefault(user, []).append(name)
    for user, names in servers_by_user.items():
        if len(names) == 1:
            continue
        message = f"{', '.join(names)} share the user {user!r}: they are not isolated from each other"
        if len(set(users.values())) > 1:
            yield warning("users", message, "give each its own user if they must be isolated")
        else:
            yield ok("users", message)
    if with_user and len(with_user) == len(servers_by_user):
        yield ok("users", f"no servers share a user: {', '.join(servers_by_user)}")


def files_others_may_change(context: CheckContext) -> Iterator[CheckResult]:
    """Files of the pool, and files that decide what its servers run, that other users can change."""
    if context.pool is None:
        return
    users_of_group = _users_of_groups()
    names_by_path: dict[str, list[str]] = {}  # by path
    own_uid = os.geteuid()
    trusted = _trusted({own_uid}, users_of_group)
    unreadable = []
    for file in context.pool.files:
        try:
            os.stat(file)
        except OSError as error:
            fix = "write one with poolctl init, or name another with -c"
            unreadable.append(problem("files", f"{file}: {error.strerror}", fix))
        if path := trusted.replaceable_component(file):
            names_by_path.setdefault(path, []).append("the pool")
    users = {"the pool": {0, own_uid}}
    for server in with_resolved_references(context.servers):
        try:
            uid = ids_of(server.user)[0] if server.user else own_uid
        except KeyError:
            continue  # an unknown user is a problem of the configuration
        users[server.name] = {0, own_uid, uid}
        trusted = _trusted({own_uid, uid}, users_of_group)
        changeable = {_changeable_path(path, trusted) for path in _files_of(server, context.env)}
        if uid and not server.command:  # `unsafe_root_interpreters` reports what root runs
            python = interpreter(server.python)
            changeable.add(find_path_others_may_change(python, context.env, trusted))
        for path in sorted(changeable - {""}):
            names_by_path.setdefault(path, []).append(server.name)
    yield from unreadable
    for path in dict.fromkeys(env_file for server in context.servers for env_file in _env_files(server)):
        if os.path.exists(path) and os.stat(path).st_mode & stat.S_IROTH:
            message = f"any user can read {path}, and what is secret in it"
            yield warning("files", message, f"chmod o-r {shlex.quote(path)}")
    for path, names in names_by_path.items():
        users_text, fix = _who_and_fix(path, users[names[0]])
        yield warning("files", f"{users_text} can change {path}, and so what {', '.join(names)} runs", fix)
    if not (unreadable or names_by_path):
        yield ok("files", ", ".join(context.pool.files))


def _env_files(server: ServerConfig) -> list[str]:
    return [file if isinstance(file, str) else file.path for file in server.env_file]


def _files_of(server: ServerConfig, env: Mapping[str, str]) -> Iterator[str]:
    """The files that decide what a server runs: env files, and the application's code or the programs."""
    yield from _env_files(server)
    hooks = [words for _, words in server.hooks or ()]
    for program, *arguments in filter(None, [server.command, *hooks]):
        if "/" in program:
            yield os.path.join(server.cwd, program)
        elif path := shutil.which(
            program, path={**env, **with_virtual_environment(server, server.env, env)}.get("PATH")
        ):
            yield path
        # Arguments can be scripts or configuration files.
        yield from filter(os.path.isfile, (os.path.join(server.cwd, word) for word in arguments))
    target = server.handlers if server.app is None else server.app
    if isinstance(target, str) and not server.command:
        yield server.app_dir
        yield from _modules_in(server.app_dir)
        package = target.partition(":")[0].partition(".")[0]
        for directory, _, _ in os.walk(os.path.join(server.app_dir, package)):
            yield directory
            yield from _modules_in(directory)


def _modules_in(directory: str) -> list[str]:
    try:
        return [os.path.join(directory, name) for name in os.listdir(directory) if name.endswith(".py")]
    except OSError:  # a problem of the configuration
        return []


def _changeable_path(path: str, trusted: Trusted) -> str:
    """The part of `path` that others may replace, or `path` if they may change it; else ""."""
    if component := trusted.replaceable_component(path):
        return component
    # Despite the sticky bit others may add files, such as modules, to a directory.
    return path if os.path.exists(path) and trusted.others_may_write(os.stat(path)) else ""


def _who_and_fix(path: str, users: Container[int]) -> tuple[str, str]:
    """Who, apart from `users`, can change the path, and a command that prevents it."""
    status = os.lstat(path)
    quoted = shlex.quote(path)
    if status.st_mode & stat.S_IWOTH and not stat.S_ISLNK(status.st_mode):
        return "any user", f"chmod o-w {quoted}"
    if status.st_uid not in users:
        return f"user {user_name(status.st_uid)}", f"chown -h {user_name(os.geteuid())} {quoted}"
    return f"group {group_name(status.st_gid)}", f"chmod g-w {quoted}"


def _trusted(uids: set[int], users_of_group: Mapping[int, set[int]]) -> Trusted:
    """These users, and groups without other users."""
    return Trusted(uids, (gid for gid, users in users_of_group.items() if users <= {0, *uids}))


def _users_of_groups() -> dict[int, set[int]]:
    """The uids of each group's users, by gid, for primary and supplementary groups."""
    accounts = pwd.getpwall()
    uid_of = {account.pw_name: account.pw_uid for account in accounts}
    groups = {group.gr_gid: {uid_of.get(name, -1) for name in group.gr_mem} for group in grp.getgrall()}
    for account in accounts:
        groups.setdefault(account.pw_gid, set()).add(account.pw_uid)
    return groups


CHECKS = (shared_users, files_others_may_change)
