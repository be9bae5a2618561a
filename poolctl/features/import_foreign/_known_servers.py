"""Where servers listen that run as programs: hypercorn, `flask run`, `next start` and others, by their options."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ._foreign_pool import FD, HOST, PORT, ForeignServer, bind_address
from ._launchers import CommandLine, shell_steps, without_launchers


class KnownServer(NamedTuple):
    """The options of a server for its address, several names of one separated by spaces.

    `default` is its address without them, and "" if that is in another file; `variables` are read before that.
    """

    host: str = ""
    port: str = ""
    address: str = ""  # with host and port in one value
    path: str = ""  # of a Unix socket
    tls: str = ""
    # Makes it take the pool's socket; of IPv4, if there is an own option for a `path`.
    fd: tuple[str, ...] = ()
    config: str = ""  # a file that may set the address
    default: str = ""
    host_variable: str = ""
    port_variable: str = ""
    is_positional: bool = False  # the address is an argument


_LOCAL = "127.0.0.1:8000"
_DJANGO = KnownServer(default=_LOCAL, is_positional=True)
_FLASK = KnownServer("-h --host", "-p --port", tls="--cert --certfile", default="127.0.0.1:5000")
_WAITRESS = KnownServer("--host", "--port", "--listen", path="--unix-socket", default=":8080")
_NEXT = KnownServer(
    "-H --hostname", "-p --port", default=":3000", host_variable="HOSTNAME", port_variable="PORT"
)
_NUXT = KnownServer("-H --host", "-p --port", default="127.0.0.1:3000", port_variable="PORT")
_VITE = KnownServer("--host", "--port", default="127.0.0.1:5173")
_RAILS = KnownServer("-b --binding", "-p --port", default="127.0.0.1:3000", port_variable="PORT")
_JUPYTER = KnownServer("--ip --ServerApp.ip", "--port --ServerApp.port", default="127.0.0.1:8888")
_REDIS = KnownServer("--bind", "--port", default="127.0.0.1:6379")
# By program and subcommand; `-` stands for one where there may be one but is none.
_KNOWN = {
    "uvicorn": KnownServer("--host", "--port", path="--uds", tls="--ssl-certfile", fd=("--fd", FD), default=_LOCAL,
                           host_variable="UVICORN_HOST", port_variable="UVICORN_PORT"),
    "gunicorn": KnownServer(address="-b --bind", tls="--certfile", config="-c --config", default=_LOCAL,
                            port_variable="PORT"),
    "hypercorn": KnownServer(address="-b --bind", tls="--certfile", fd=("--bind", f"fd://{FD}"), config="-c --config",
                             default=_LOCAL),
    "daphne": KnownServer("-b --bind", "-p --port", path="-u --unix-socket", fd=("--fd", FD), default=_LOCAL),
    "granian": KnownServer("--host", "--port", path="--uds", tls="--ssl-certificate", default=_LOCAL,
                           host_variable="GRANIAN_HOST", port_variable="GRANIAN_PORT"),
    "fastapi run": KnownServer("--host", "--port", default=":8000"),
    "fastapi dev": KnownServer("--host", "--port", default=_LOCAL),
    "flask run": _FLASK._replace(host_variable="FLASK_RUN_HOST", port_variable="FLASK_RUN_PORT"),
    "quart run": _FLASK,
    "litestar run": KnownServer("-H --host", "-p --port", path="-U --uds", tls="--ssl-certfile", default=_LOCAL,
                                host_variable="LITESTAR_HOST", port_variable="LITESTAR_PORT"),
    "sanic": KnownServer("-H --host", "-p --port", path="-u --unix", tls="--cert", default=_LOCAL),
    **dict.fromkeys(("waitress-serve", "waitress"), _WAITRESS),
    "uwsgi": KnownServer(address="--http --http-socket --https --https-socket --uwsgi-socket --socket -s"),
    **dict.fromkeys(("manage.py runserver", "manage.py runserver_plus"), _DJANGO),
    **dict.fromkeys(("django-admin runserver", "django runserver"), _DJANGO),
    "http.server": KnownServer("-b --bind", default=":8000", is_positional=True),
    "streamlit run": KnownServer("--server.address", "--server.port", default=":8501",
                                 host_variable="STREAMLIT_SERVER_ADDRESS", port_variable="STREAMLIT_SERVER_PORT"),
    **dict.fromkeys(("jupyter lab", "jupyter notebook", "jupyter server", "jupyter-lab"), _JUPYTER),
    "mlflow server": KnownServer("-h --host", "-p --port", default="127.0.0.1:5000"),
    "bokeh serve": KnownServer("--address", "--port", default=":5006"),
    "celery flower": KnownServer("--address", "--port", default=":5555"),
    "vllm serve": KnownServer("--host", "--port", default=":8000"),
    "mkdocs serve": KnownServer(address="-a --dev-addr", default=_LOCAL),
    **dict.fromkeys(("next start", "next dev"), _NEXT),
    **dict.fromkeys(("nuxt start", "nuxt dev"), _NUXT),
    **dict.fromkeys(("vite -", "vite dev"), _VITE),
    "vite preview": _VITE._replace(default="127.0.0.1:4173"),
    "ng serve": _VITE._replace(default="127.0.0.1:4200"),
    "http-server": KnownServer("-a", "-p --port", default=":8080", port_variable="PORT"),
    "puma": KnownServer("", "-p --port", "-b --bind", config="-C --config", default=":9292", port_variable="PORT"),
    **dict.fromkeys(("rails server", "rails s"), _RAILS),
    "rackup": KnownServer("-o --host", "-p --port", default="127.0.0.1:9292"),
    "php -S": KnownServer(address="-S"),
    "artisan serve": KnownServer("--host", "--port", default=_LOCAL, port_variable="SERVER_PORT"),
    **dict.fromkeys(("redis-server -", "valkey-server -"), _REDIS),
}  # fmt: skip
_interpreter = re.compile(r"python[0-9.]*|pypy[0-9.]*|node|ruby|php|bun|deno")
_ENDS_FLAGS = ("-c", "-e", "-S")  # of interpreters: no file follows
_WITH_VALUE = ("-W", "-X", "-r", "--require")
_WITH_NUMBER = ("-v", "--verbosity")  # options of Django with a number
_socket_path = re.compile(r"(?:unix:(?://)?)?((?:\.{0,2}/|@).+)")
_host_and_port = re.compile(r"(?P<scheme>(?:[a-z]+:)?//)?(?:(?P<host>\[[^\]]*\]|[^:/]*):)?(?P<port>[^:/]+)?")
_port = re.compile(rf"[0-9]+|\$\{{[^{{}}]*\}}|{PORT}")
_argument = re.compile(rf"(?:(?:\[[^\]]*\]|[\w.-]+):)?(?:[0-9]+|\$\{{[^{{}}]*\}}|{PORT})")


class Program(NamedTuple):
    """The name of the program or module that a command line runs, and the index of its first argument.

    `interpreter` and `flags` are the words before the program's own, such as `python3` and `-u`.
    """

    name: str
    first: int
    interpreter: str
    flags: list[str]


def program_of(words: Sequence[str]) -> Program:
    """The program of a command line without launchers: uvicorn for `python3 -u -m uvicorn` and `venv/bin/uvicorn`."""
    name = os.path.basename(words[0]) if words else ""
    if not _interpreter.fullmatch(name):
        return Program(name, 1, "", [])
    at = 1
    while at < len(words) and words[at].startswith("-") and words[at] not in ("-m", *_ENDS_FLAGS):
        at += 2 if words[at] in _WITH_VALUE else 1
    if at >= len(words) or words[at] in _ENDS_FLAGS or words[at:] == ["-m"]:
        return Program(name, 1, "", [])
    if words[at] == "-m":
        return Program(words[at + 1], at + 2, words[0], list(words[1:at]))
    return Program(os.path.basename(words[at]), at + 1, words[0], list(words[1:at]))


def apply_known_server(server: ForeignServer, line: CommandLine, port: str) -> None:
    """Set `command` to the line, and `bind` if its program is known to listen; its address becomes placeholders.

    `port` is the port that the other tool assigns, or ""; PORT in the words stands for it.
    """
    server.set("command", line.argv)
    if (address := _address(server, line.words, port)) is None:
        return
    program = address.server
    if program_of(line.words).name == "uwsgi" and "--die-on-term" not in line.words:
        server.keys.setdefault("stop_signal", "SIGINT")  # it reloads at SIGTERM
    if address.unknown or (address.path and (line.launchers or program.path or not program.fd)):
        _remark_own_address(server, address)
    elif address.path:
        server.set("bind", f"unix:{address.path}")
        server.set("command", [*address.words_without(), *program.fd])
    else:
        listens_on = address.port.replace(PORT, port)
        server.set("bind", bind_address(address.host, listens_on))
        takes = program.fd and not (line.launchers or address.others or ":" in address.host)
        words = [*address.words_without(), *program.fd] if takes else address.words_with_placeholders()
        server.set("command", [*line.launchers, *words])
        if program.tls and [*_values(line.words, address.first, program.tls)]:
            server.set("expose", "https://" + bind_address("localhost", listens_on))
    for other in address.others:
        server.remark(f"{other}: a server has one address")


def _remark_own_address(server: ForeignServer, address: _Address) -> None:
    """Add a remark about an address that the program opens itself and that cannot become `bind`."""
    if address.path:
        server.opens_own_socket = True
        server.remark(
            f"{address.path}: the program opens this socket itself; write bind once it takes one ({{fd}})"
        )
    else:
        server.remark(f'{address.unknown}: write where it listens as bind, with socket = "program"')


def apply_known_server_of_script(server: ForeignServer, script: str, port: str) -> None:
    """Set `bind` of a server with a shell script as its command, if the script ends by starting a known server.

    Only the port number in the script is replaced. If the script does not contain it, the program binds by itself.
    """
    for text, _ in reversed(shell_steps(script)):
        try:
            line = without_launchers(shlex.split(text))
        except ValueError:
            continue
        if (address := _address(server, line.words, port)) is None:
            continue
        if address.unknown or address.path:
            _remark_own_address(server, address)
        else:
            whole = re.compile(rf"(?<![\w.]){re.escape(address.port)}(?![\w.])")
            server.set("bind", bind_address(address.host, address.port.replace(PORT, port)))
            if address.port != PORT and len(whole.findall(script)) == 1:
                server.set("command", [*server.keys["command"][:-1], whole.sub(PORT, script)])
            elif address.port != PORT:
                server.set("socket", "program")
        return


def _address(server: ForeignServer, words: Sequence[str], port: str) -> _Address | None:
    """The address of the known server that the words start; `port` is its $PORT or ""."""
    name, first, *_ = program_of(words)
    arguments = words[first:]
    names = [f"{name} {word}" for word in arguments]
    if not arguments or arguments[0].startswith("-"):
        names.append(f"{name} -")
    known = next((_KNOWN[key] for key in (*names, name) if key in _KNOWN), None)
    env = server.keys.get("env", {})
    return known and _Address(known, words, first, {"PORT": port, **env} if port else env)


def _values(words: Sequence[str], first: int, names: str) -> Iterator[tuple[int, str, str]]:
    """For each of these options, the index of the word with its value, the value, and the text before it."""
    for index in range(first, len(words)):
        word = words[index]
        for name in names.split():
            if word == name and index + 1 < len(words):
                yield index + 1, words[index + 1], ""
            elif word.startswith(f"{name}="):
                yield index, word[len(name) + 1 :], f"{name}="
            elif len(name) == 2 and word.startswith(name) and len(word) > 2:
                yield index, word[2:], name


class _Address:
    """Where a known server listens: `host` and `port`, or the `path` of a Unix socket.

    `unknown` is the word or file that hides the address, if it is not known.
    """

    def __init__(self, server: KnownServer, words: Sequence[str], first: int, env: Mapping[str, str]) -> None:
        self.server, self.first, self._words = server, first, list(words)
        self._placeholders: dict[int, str] = {}  # words with them, by index
        self.path = self.unknown = ""
        self.others: list[str] = []
        default = _host_and_port.fullmatch(server.default)
        self.host = env.get(server.host_variable) or (default["host"] if default else "")
        self.port = env.get(server.port_variable) or (default["port"] if default else "")
        if self.port and server.port_variable in env and not server.port:
            self.host = ""  # gunicorn listens everywhere then
        self._read_address(first)
        for attribute, placeholder in (("path", ""), ("host", HOST), ("port", PORT)):
            for index, value, before in _values(words, first, getattr(server, attribute)):
                setattr(self, attribute, value)
                self._placeholders[index] = before + placeholder
        if not self.path and not _port.fullmatch(self.port or ""):
            self.unknown = self.port or os.path.basename(self._words[0])
        if server.config and not self._placeholders:
            self.unknown = next((value for _, value, _ in _values(words, first, server.config)), self.unknown)

    def _read_address(self, first: int) -> None:
        values = list(_values(self._words, first, self.server.address))
        if self.server.is_positional:
            values += [
                (index, word, "")
                for index, word in enumerate(self._words[first:], first)
                if _argument.fullmatch(word) and self._words[index - 1] not in _WITH_NUMBER
            ]
        for index, value, before in values:
            match = _host_and_port.fullmatch(value)
            if self._placeholders:
                self.others.append(value)
            elif path := _socket_path.fullmatch(value):
                self.path = path[1]
                self._placeholders[index] = before
            elif match is None:
                self.unknown = value
            elif match["host"] is None and not _port.fullmatch(match["port"] or ""):
                self.host = match["port"] or ""  # a host alone
                self._placeholders[index] = f"{before}{match['scheme'] or ''}{HOST}:{PORT}"
            else:
                self.host = (
                    self.host if match["host"] is None else "" if match["host"] == "0" else match["host"]
                )
                self.port = match["port"] or self.port
                host = match["host"] if "[" in self.host else f"{HOST}"
                alone = self.server.host and self.server.is_positional and match["host"] is None
                self._placeholders[index] = (
                    f"{before}{match['scheme'] or ''}{'' if alone else f'{host}:'}{PORT}"
                )

    def words_without(self) -> list[str]:
        """The words without the options of the address."""
        server, dropped = self.server, set(self._placeholders)
        options = f"{server.host} {server.port} {server.address} {server.path}".split()
        # An option and its value can be two words.
        dropped |= {index - 1 for index in dropped if self._words[index - 1] in options}
        return [word for index, word in enumerate(self._words) if index not in dropped]

    def words_with_placeholders(self) -> list[str]:
        """The words with placeholders as values of the address options; missing options are added."""
        server = self.server
        words = [self._placeholders.get(index, word) for index, word in enumerate(self._words)]
        placeholders = " ".join(self._placeholders.values())
        if PORT not in placeholders:
            if server.port:
                words += [server.port.split()[-1], PORT]
            elif server.is_positional:
                words += [PORT if server.host else f"{HOST}:{PORT}"]
            else:
                words += [server.address.split()[-1], f"{HOST}:{PORT}"]
                return words
        if HOST not in placeholders and server.host:
            words += [server.host.split()[-1], HOST]
        return words
