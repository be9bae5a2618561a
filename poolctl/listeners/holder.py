"""Which process holds a port or a Unix socket, as far as this user may see it (proc(5))."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

_LISTEN = "0A"
_HEX_WORD = 8


class Holder:
    """One process that holds a socket; `pid` is None when only its user is visible."""

    __slots__ = ("name", "pid", "uid")

    def __init__(self, name: str, pid: int | None, uid: int) -> None:
        self.name = name
        self.pid = pid
        self.uid = uid

    def __repr__(self) -> str:
        return self.name if self.pid is None else f"{self.name} (pid {self.pid})"


def find_tcp(host: str, port: int) -> list[Holder]:
    """The processes whose sockets keep `host:port` from being bound; empty when none is visible.

    Listeners win over connections that happen to use the port. Never raises; takes milliseconds, as it looks
    through every process.
    """
    rows = list(_conflicting_rows(host, port))
    rows = [row for row in rows if row[0] == _LISTEN] or rows
    uids = {inode: uid for _, inode, uid in rows}
    return _owners(uids)


def find_unix(path: str) -> list[Holder]:
    """The processes that listen on a Unix socket of that path, oldest first; empty when none is visible."""
    inodes = {}
    for fields in _table("/proc/net/unix"):
        if len(fields) >= 8 and os.path.abspath(" ".join(fields[7:])) == path:
            inodes[fields[6]] = -1
    found = _owners(inodes)
    return [holder for holder in found if holder.pid is not None]


def local_addresses() -> list[str]:
    """The addresses of this machine, IPv4 first, without link-local ones; empty when /proc does not say."""
    found = []
    previous = ""
    for fields in _table("/proc/net/fib_trie"):
        if fields[:1] == ["/32"] and fields[-1] == "LOCAL" and previous not in found:
            found.append(previous)
        previous = fields[-1]
    for fields in _table("/proc/net/if_inet6"):
        text = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(fields[0]))
        if not text.startswith("fe80:"):
            found.append(text)
    return found


def _conflicting_rows(host: str, port: int) -> Iterator[tuple[str, str, int]]:
    wanted = _packed(host)
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for fields in _table(table):
            local, _, number = fields[1].partition(":") if len(fields) > 9 else ("", "", "")
            if not local or not number or int(number, 16) != port or fields[9] == "0":
                continue
            if _overlap(wanted, _address(local)):
                yield fields[3], fields[9], int(fields[7])


def _overlap(one: bytes, other: bytes) -> bool:
    return one == other or not any(one) or not any(other)


def _packed(host: str) -> bytes:
    """The address as bytes, IPv4 as four of them; a name as the wildcard, which overlaps everything."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return socket.inet_pton(family, host.partition("%")[0])
        except OSError:
            continue
    return bytes(4)


def _address(text: str) -> bytes:
    words = [text[at : at + _HEX_WORD] for at in range(0, len(text), _HEX_WORD)]
    packed = b"".join(struct.pack("=I", int(word, 16)) for word in words)
    mapped = len(packed) == 16 and packed.startswith(bytes(10) + b"\xff\xff")
    return packed[12:] if mapped else packed


def _table(path: str) -> Iterator[list[str]]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            rows = file.read().splitlines()
    except OSError:
        return
    for row in rows:
        fields = row.split()
        if fields and fields[0] not in ("sl", "Num"):
            yield fields


def _owners(uids: dict[str, int]) -> list[Holder]:
    """Who has a descriptor of one of the sockets; for those that cannot be seen, one holder a user."""
    wanted = {f"socket:[{inode}]": inode for inode in uids}
    seen: set[str] = set()
    found: dict[int, Holder] = {}
    if not wanted:
        return []
    for pid in sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit()):
        inodes = _sockets_of(pid, wanted)
        if inodes:
            seen |= inodes
            found[pid] = Holder(_process_name(pid), pid, uids[inodes.pop()])
    hidden = sorted({uid for inode, uid in uids.items() if inode not in seen})
    return [*found.values(), *(Holder(f"a process of {_user_name(uid)}", None, uid) for uid in hidden)]


def _sockets_of(pid: int, wanted: dict[str, str]) -> set[str]:
    directory = f"/proc/{pid}/fd"
    found: set[str] = set()
    try:
        names = os.listdir(directory)
    except OSError:
        return found
    for name in names:
        try:
            target = os.readlink(f"{directory}/{name}")
        except OSError:
            continue
        if target in wanted:
            found.add(wanted[target])
    return found


def _process_name(pid: int) -> str:
    """What an operator would call the process: for an interpreter, the module or script that it runs."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            name = file.read().strip()
        with open(f"/proc/{pid}/cmdline", "rb") as raw:
            arguments = raw.read().decode(errors="replace").split("\0")
    except OSError:
        return "a process"
    if not name.startswith("python"):
        return name
    for at, argument in enumerate(arguments[1:], start=1):
        if argument == "-m":
            return " ".join(["python", "-m", *arguments[at + 1 : at + 2]])
        if argument == "-c":
            break
        if not argument.startswith("-"):
            return os.path.basename(argument) or name
    return name


def _user_name(uid: int) -> str:
    if uid < 0:
        return "another user"
    try:
        import pwd

        return f"user {pwd.getpwuid(uid).pw_name}"
    except (ImportError, KeyError):
        return f"user {uid}"
