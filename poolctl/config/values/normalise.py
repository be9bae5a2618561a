"""Converts a server's table from a file into the table that the model validates.

Before files are merged, references to variables are replaced (`interpolate`), short forms become long ones, and
relative paths become absolute (`normalised` in model/server_keys.py): a path is relative to the file that has it, and
two values merge key by key only if both are tables. After the merge, values derived from other keys are added.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from poolctl.address import Address, AddressError, canonical, parse
from poolctl.config.values.plain import (
    PLACEHOLDERS,
    STANDARD_STREAMS,
    BadValue,
    Interpolated,
    exposed_url,
    refuse_long_path,
    truth_if_interpolated,
)
from poolctl.config.values.problems import Finding, KeyPath, Tree, shown

MAX_DEPTH = 5
# Size of the small log, with its predecessor, that is kept beside printed output for `logs` and failure messages.
_SMALL_LOG_BYTES = 2 * 1024 * 1024
REFERENCES_ALLOWED = "${VAR}, ${VAR:-default}, or $${ for a literal ${"
# The beginning of a reference to a server, which is replaced later: see rules/conflicts.py.
OPENING = "${server."
_MAY_REFER_TO_SERVERS = (("env",), ("command",))

_reference = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")
_inside = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.ASCII | re.DOTALL)
_unusable = re.compile("[\0\ud800-\udfff]")


def required_variables(text: str) -> Iterator[str]:
    """The names of the variables that a file's text refers to without a default; comments are skipped."""
    for line in text.splitlines():
        yield from (
            name
            for name, default in referenced_variables("" if line.lstrip().startswith("#") else line)
            if default is None
        )


def referenced_variables(text: str) -> Iterator[tuple[str, str | None]]:
    """The name and the default of each variable that the text refers to."""
    for match in _reference.finditer(text):
        inside = _inside.fullmatch(match[1] or "")
        if inside is not None:
            yield inside[1], inside[2]


def interpolate(
    value: Tree, env: Mapping[str, str], findings: list[Finding], path: KeyPath = (), *, in_env: str = ""
) -> Tree:
    """The value with its references replaced; an invalid reference is a finding.

    Defaults apply if a variable is unset or empty, as in a shell; `$${` is a literal `${`. The value of a variable
    is not interpolated again. A text without references is returned unchanged. With a format `in_env`, such as
    "<{}>", a reference in `env` of a server becomes its own text in that format, and is not looked up.
    """
    if isinstance(value, str):
        return _expanded_text(value, env, findings, path, in_env)
    if isinstance(value, dict):
        return {
            key: interpolate(inner, env, findings, (*path, key), in_env=in_env)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [
            interpolate(inner, env, findings, (*path, index), in_env=in_env)
            for index, inner in enumerate(value)
        ]
    return value


def _expanded_text(
    text: str, env: Mapping[str, str], findings: list[Finding], path: KeyPath, in_env: str
) -> str:
    if _unusable.search(text):
        findings.append(Finding(path, "contains a NUL byte or an unpaired surrogate", "remove it"))
        return _unusable.sub("?", text)
    if "${" not in text:
        return text

    within = _path_within_server(path)[:1]
    names_servers = within in _MAY_REFER_TO_SERVERS

    def replaced(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0] if names_servers and text.startswith(OPENING, match.start() + 1) else "${"
        if match[2] and match[0].startswith(OPENING):
            if not names_servers:
                message = "the address of a server can be used in 'env' and 'command' only"
                findings.append(Finding(path, message, "write the address itself", match[0]))
            return match[0]
        inside = _inside.fullmatch(match[1])
        if not match[2] or inside is None or "${" in (inside[2] or ""):
            message, hint = f"{match[0]!r} is no reference", f"write {REFERENCES_ALLOWED}"
            findings.append(Finding(path, message, hint, allowed=REFERENCES_ALLOWED))
            return ""
        if in_env and within == ("env",):
            return in_env.format(match[1])
        name, default = inside[1], inside[2]
        value = env.get(name) or default
        if value is None and name not in env:
            message, hint = f"the environment variable {name} is not set", "set it, or give a default: "
            findings.append(Finding(path, message, f"{hint}${{{name}:-…}}", match[0]))
        return (value or "").replace(OPENING, f"${OPENING}") if names_servers else value or ""

    result = _reference.sub(replaced, text)
    if _unusable.search(result):
        findings.append(Finding(path, "the environment variable is not UTF-8", "set it to UTF-8"))
        result = _unusable.sub("?", result)
    if result == text:
        return text
    expanded = Interpolated(result)
    expanded.written = text
    return expanded


def _path_within_server(path: KeyPath) -> KeyPath:
    """The path within the server's table or [defaults]: `("server", 0, "http")` becomes `("http",)`."""
    if path[:1] == ("defaults",):
        return path[1:]
    return path[2:] if path[:1] == ("server",) else path[isinstance(path[0] if path else "", int) :]


def absolute(value: Tree, base_dir: str) -> Tree:
    """The path made absolute from the directory of its file; a value that is not a path is returned unchanged."""
    if not isinstance(value, str) or not value or value in STANDARD_STREAMS:
        return value
    if value == "~" or value.startswith("~/"):
        value = os.path.expanduser(value)
    return os.path.normpath(os.path.join(base_dir, value))


def absolute_interpreter(value: Tree, base_dir: str) -> Tree:
    """The path of an interpreter, or that of a virtual environment."""
    path = absolute(value, base_dir)
    # A virtual environment is named by its directory.
    is_directory = isinstance(path, str) and os.path.isdir(path.encode("utf-8", "surrogateescape"))
    return os.path.join(path, "bin", "python") if is_directory else path


def absolute_address(value: Tree, base_dir: str) -> Tree:
    """The address, with the path of a Unix socket made absolute."""
    if isinstance(value, str) and value.lstrip()[:5].lower() == "unix:":
        try:
            return canonical(value, base_dir=base_dir)
        except AddressError:
            pass
    return value


def absolute_pattern(value: Tree, base_dir: str) -> Tree:
    """A file pattern made absolute; a name without a slash matches in every directory."""
    if isinstance(value, str) and value and "/" not in value.rstrip("/"):
        value = f"**/{value}"
    return absolute(value, base_dir)


def nul_findings(value: Tree, path: KeyPath = ()) -> list[Finding]:
    """The problems of texts with a NUL, which no path, argument or variable can contain."""
    if isinstance(value, str):
        return [Finding(path, "contains a NUL byte", "remove it")] if "\0" in value else []
    if len(path) > MAX_DEPTH or not isinstance(value, (dict, list, tuple)):
        return []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [finding for key, inner in items for finding in nul_findings(inner, (*path, key))]


def merged(under: dict[str, Tree], over: dict[str, Tree]) -> dict[str, Tree]:
    """A new table with the keys of both: where both have a key, nested tables are merged, other values are `over`'s."""
    result = {**under, **over}
    for key in under.keys() & over.keys():
        if isinstance(under[key], dict) and isinstance(over[key], dict):
            result[key] = merged(under[key], over[key])
    return result


def with_own_log_file(log: dict[str, Tree]) -> dict[str, Tree]:
    """Give a log that is printed (its path is a standard stream) a small file at the default path, too."""
    if log.get("path") not in STANDARD_STREAMS:
        return log
    small = {"max_size": _SMALL_LOG_BYTES // 2, "keep": 1}
    return {key: value for key, value in log.items() if key != "path"} | small


def add_derived_values(table: dict[str, Tree], base_dir: str, findings: list[Finding]) -> Address | None:
    """Add the derived values to a normalised table; a bad address is a finding, and left out.

    Returns the address, or None if no address can be read.
    """
    address = _address(table, base_dir)
    table["base_dir"] = base_dir
    table.setdefault("cwd", base_dir)
    table.setdefault("app_dir", base_dir)
    log_table, scale_table = table.get("log"), table.get("scale")
    if isinstance(log_table, dict):
        table["log"] = with_own_log_file(log_table)
    if isinstance(scale_table, dict) and "max" not in scale_table and isinstance(scale_table.get("min"), int):
        table["scale"] = scale_table | {"max": max(scale_table["min"], 1)}
    if isinstance(address, Finding):
        findings.append(address)
        table.pop("bind", None)
        return None
    table["address"], table["bind"] = address, address.key
    if table.get("expose") is None:
        table["derived_expose"] = True
        table.pop("expose", None)
        if address.listens:
            table["expose"] = exposed_url(address, bool(table.get("tls")))
    return address


def _address(table: dict[str, Tree], base_dir: str) -> Address | Finding:
    job, text, name = truth_if_interpolated(table.get("job")) is True, table.get("bind"), table.get("name")
    if "bind" not in table:
        return Address("job" if job else "process", name=name if isinstance(name, str) else "?")
    if not isinstance(text, str):
        port = isinstance(text, int) and not isinstance(text, bool) and 0 < text < 65536
        fix = f'write bind = ":{text}"' if port else 'write bind = "127.0.0.1:8080"'
        return Finding(("bind",), f"{shown(text)} is not an address", fix, shown(text), "an address")
    if job:
        return Finding(("bind",), "a job has no address", "take out 'bind', or 'job'", shown(text))
    try:
        address = parse(text, base_dir=base_dir)
        refuse_long_path(address)
    except AddressError as problem:
        return Finding(("bind",), problem.message, problem.hint, shown(text), "an address")
    except BadValue as problem:
        return Finding(("bind",), str(problem), f"choose {problem.allowed}")
    if not address.listens:
        fix = "write job = true instead of 'bind'" if address.kind == "job" else "take out 'bind'"
        return Finding(("bind",), f"{shown(text)} is not an address", fix)
    return address


_in_braces = re.compile(r"\{([A-Za-z_ ]{1,20})\}")


def misspelt_placeholders(
    command: Iterable[str],
    env: Mapping[str, str],
    others: Iterable[tuple[KeyPath, Sequence[str]]] = (),
) -> Iterator[Finding]:
    """Warnings about words in braces that resemble a placeholder, but are passed on unchanged.

    `others` are the commands of probes and hooks.
    """
    of_env = [mark.strip("{}") for mark in PLACEHOLDERS]
    of_command = [*of_env, "fd", "name"]
    texts: list[tuple[KeyPath, str, list[str]]]
    texts = [(("command", index), word, of_command) for index, word in enumerate(command)]
    texts += [(("env", name), value, of_env) for name, value in env.items()]
    texts += [
        ((*path, index), word, [*of_env, "name"])
        for path, words in others
        for index, word in enumerate(words)
    ]
    for path, text, placeholders in texts:
        for written in _in_braces.finditer(text) if "{" in text else ():
            if meant := [mark for mark in placeholders if _is_misspelt(written[1], mark)]:
                message = f"{written[0]} is no placeholder, and is passed on as it is"
                yield Finding(path, message, f"write {{{meant[0]}}} if you mean that", written[0])


def _is_misspelt(written: str, placeholder: str) -> bool:
    """Whether the word differs from the placeholder only in case and spaces, or in one letter."""
    word = written.strip().lower()
    shorter = min(len(word), len(placeholder))
    if written == placeholder or shorter < 3:
        return word == placeholder != written
    same = next((at for at in range(shorter) if word[at] != placeholder[at]), shorter)
    rest, meant = word[same:], placeholder[same:]
    if rest == meant[1::-1] + meant[2:]:
        return True  # the word itself, or two letters swapped
    return meant in (rest, rest[1:]) or meant[1:] in (rest, rest[1:])
