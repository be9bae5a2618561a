"""Linux-specific system calls and files as plain functions; a port to another system replaces this module."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import resource
import select
import socket
import struct
import sys
import termios
import time
from signal import SIG_BLOCK, SIG_SETMASK, SIGCONT, SIGKILL, pthread_sigmask, valid_signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Set
    from typing import Any

LINUX = sys.platform.startswith("linux")

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_SIGEV_SIGNAL = 0
_SIGEVENT_BYTES = 64
_SIGSET_BYTES = 128  # with glibc and musl
_PIDFD_GETFD = 438  # the same on every architecture
_CPU_CLOCK = 2  # CPUCLOCK_SCHED, below the inverted pid: the time of all threads
_WAITS_FOR_EVENTS = (b"ep_poll", b"epoll_wait", b"epoll_pwait")  # by kernel version
_THREAD_FILES = ("wchan", "syscall", "stack")
# The epoll instances of a process with more descriptors than this are not counted.
_MAX_DESCRIPTORS = 256
_PEER_CREDENTIALS = struct.Struct("3i")


def become_subreaper() -> None:
    """Make this process the parent of orphaned descendants (prctl(2), PR_SET_CHILD_SUBREAPER). Raises OSError."""
    checked(c_library().prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


@contextlib.contextmanager
def subreaper() -> Iterator[None]:
    """Context manager: this process is the parent of orphaned descendants meanwhile. Raises OSError."""
    become_subreaper()
    try:
        yield
    finally:
        checked(c_library().prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0))


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends (prctl(2), PR_SET_PDEATHSIG). Never fails."""
    c_library().prctl(_PR_SET_PDEATHSIG, int(SIGKILL), 0, 0, 0)


def continue_when_parent_ends() -> None:
    """Have the kernel send this process SIGCONT when its parent ends (prctl(2), PR_SET_PDEATHSIG). Never fails."""
    c_library().prctl(_PR_SET_PDEATHSIG, int(SIGCONT), 0, 0, 0)


def continue_periodically(seconds: int) -> None:
    """Have the kernel send this process SIGCONT every `seconds` seconds (timer_create(2)). Never fails.

    SIGCONT resumes a stopped process, while signals of setitimer(2) would stay pending. The caller must install a
    handler for SIGCONT: Linux 6.13 and later suspend a timer whose signal is ignored.
    """
    import ctypes

    library, timer = c_library(), ctypes.c_void_p()
    try:
        if not hasattr(library, "timer_create"):
            library = ctypes.CDLL("librt.so.1")  # glibc before 2.34
        event = struct.pack("Pii", 0, SIGCONT, _SIGEV_SIGNAL).ljust(_SIGEVENT_BYTES, b"\0")
        if library.timer_create(time.CLOCK_MONOTONIC, event, ctypes.byref(timer)) == 0:
            library.timer_settime(timer, 0, struct.pack("4l", seconds, 0, seconds, 0), None)
    except (OSError, AttributeError):
        return


def name_process(name: str) -> None:
    """Set the name of this process in ps and top to the first 15 bytes of `name` (proc(5), comm). Never fails."""
    # The thread's file, because a process that has dropped its privileges may not write to /proc/self/comm.
    _write_quietly("/proc/thread-self/comm", os.fsencode(name)[:15])


def prefer_for_oom_kill() -> None:
    """Have the OOM killer choose this process before its supervisor (proc(5), oom_score_adj). Never fails."""
    _write_quietly("/proc/self/oom_score_adj", b"100")


def peer_credentials(sock: socket.socket) -> tuple[int, int, int]:
    """The (pid, uid, gid) of the process at the other end of a connected Unix socket (unix(7), SO_PEERCRED)."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    pid, uid, gid = _PEER_CREDENTIALS.unpack(raw)
    return pid, uid, gid


def enable_sender_credentials(sock: socket.socket) -> None:
    """Have the kernel add the sender's credentials to each message of a Unix socket (unix(7), SO_PASSCRED)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)


def sender_credentials(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, int, int] | None:
    """The (pid, uid, gid) of a message's sender, from its ancillary data; None if it holds no credentials.

    Only root can claim to be another process.
    """
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            pid, uid, gid = _PEER_CREDENTIALS.unpack_from(data)
            return pid, uid, gid
    return None


CREDENTIALS_BYTES = _PEER_CREDENTIALS.size


def proc_problem() -> tuple[str, str]:
    """The problem with /proc, which is needed to identify processes, and the fix; two empty strings if it works."""
    try:
        pid = os.readlink("/proc/self") if LINUX else str(os.getpid())
        if LINUX:
            os.listdir("/proc/self/fd")
    except FileNotFoundError:
        return "/proc is empty: no proc file system is mounted there", "mount it: mount -t proc proc /proc"
    except OSError as error:
        fix = "allow it in the sandbox (AppArmor, SELinux, a container's masked paths)"
        return f"/proc cannot be read: {error.strerror}", fix
    if pid != str(os.getpid()):
        fix = "mount a /proc of this namespace: unshare --mount-proc, or mount -t proc proc /proc"
        return "/proc shows the processes of another PID namespace", fix
    return "", ""


def memory_file(name: str, content: bytes | bytearray, seals: int = 0) -> int:
    """A descriptor of an anonymous file in memory that holds `content`, positioned at its start (memfd_create(2)).

    `seals` are added to it (F_ADD_SEALS, fcntl(2)). Raises OSError if memory is exhausted.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | (os.MFD_ALLOW_SEALING if seals else 0))
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
        if seals:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_sealed_file(fd: int, seals: int, most_bytes: int) -> bytes:
    """The content of a file that `memory_file` has made with at least these `seals`; the descriptor stays open.

    Raises ValueError for any other file, and if the file is empty or larger than `most_bytes`.
    """
    # Checked before reading: only a file in memory has seals, and reading any other file may block.
    try:
        sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & seals == seals
    except OSError:
        sealed = False
    size = os.fstat(fd).st_size
    if not sealed or not 0 < size <= most_bytes:
        raise ValueError("not a sealed file in memory, or too large")
    return os.pread(fd, size, 0)


def read_file(fd: int) -> bytes:
    """The whole content of the file of `fd`; the descriptor stays open."""
    return os.pread(fd, os.fstat(fd).st_size, 0)


def readable_bytes(fd: int) -> int:
    """The number of bytes that wait in a pipe or in a socket's receive buffer (pipe(7), FIONREAD). Raises OSError."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


def peer_has_closed(sock: socket.socket) -> bool:
    """Whether the other end of a connection has shut down its side or closed it (poll(2), POLLRDHUP)."""
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLRDHUP)  # errors and hang-ups are always reported
    return bool(poll.poll(0))


def close_all(fds: Iterable[int]) -> None:
    """Close these descriptors."""
    for fd in fds:
        os.close(fd)


def close_promptly(fd: int) -> None:
    """Close a descriptor to which an application had access, without waiting.

    If the application has set SO_LINGER, close(2) waits until all data is sent, even on a non-blocking socket (tcp(7)).
    """
    try:
        # With family and type, socket() does not ask the kernel for them.
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=fd)
    except OSError:  # not a socket
        os.close(fd)
        return
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(8))
    except OSError:
        pass  # a kind without SO_LINGER
    os.close(sock.detach())


def replace_file(path: str, content: bytes) -> None:
    """Replace a file (mode 0600) atomically: readers find the complete old or new content. Raises OSError."""
    temporary = f"{path}.{os.urandom(4).hex()}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def load_or_create_secret(path: str, count: int) -> bytes:
    """Read the secret of `count` bytes in this file (mode 0600), or create it. Raises OSError."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        if len(secret := file.read(count)) == count:
            return secret
    secret = os.urandom(count)
    replace_file(path, secret)
    return secret


def read_json_object(path: str) -> dict[str, Any]:
    """The JSON object in a file that `replace_file` has written; empty if the file is missing or damaged."""
    return _json_object_or_none(path) or {}


def damaged_files(directory: str) -> list[str]:
    """The paths of the JSON files in this directory that are damaged: they do not hold a JSON object."""
    paths = (
        os.path.join(directory, name) for name in sorted(os.listdir(directory)) if name.endswith(".json")
    )
    return [path for path in paths if _json_object_or_none(path) is None]


def _json_object_or_none(path: str) -> dict[str, Any] | None:
    """The JSON object in the file; empty if the file cannot be read, None if it is damaged."""
    import json

    try:
        with open(path, "rb") as file:
            content = json.load(file)
    except OSError:
        return {}
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def user_name(uid: int) -> str:
    """The name of the user with this ID; the ID itself if it has none."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    """The name of the group with this ID; the ID itself if it has none."""
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def await_readable(fd: int, timeout_seconds: float | None, reader: int) -> bool:
    """Wait until `fd` is readable; returns True. If the timeout passes first, returns False.

    `reader` is a pipe or socket for output, or -1. BrokenPipeError is raised when its other end has been closed.
    """
    poll = select.poll()
    # A close is always reported (POLLERR, POLLHUP).
    for descriptor, events in ((fd, select.POLLIN), (reader, 0)):
        if descriptor >= 0:
            poll.register(descriptor, events)
    timeout = None if timeout_seconds is None else timeout_seconds * 1000
    ready = [descriptor for descriptor, _ in poll.poll(timeout)]
    if reader in ready:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
    return fd in ready


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Context manager: all signals are blocked, and stay blocked in the threads that are started in it.

    The kernel delivers a signal to any thread that does not block it: perhaps not to the thread that it should wake up,
    and never to a thread that blocks it in order to read it from a descriptor.
    """
    before = pthread_sigmask(SIG_BLOCK, valid_signals())
    try:
        yield
    finally:
        pthread_sigmask(SIG_SETMASK, before)


def signal_descriptor(numbers: Iterable[int]) -> int:
    """A descriptor that is readable while one of these blocked signals is pending (signalfd(2)).

    Signals sent to the waiting thread count too. Raises OSError.
    """
    import ctypes

    library, mask = c_library(), ctypes.create_string_buffer(_SIGSET_BYTES)
    checked(library.sigemptyset(mask))
    for number in numbers:
        checked(library.sigaddset(mask, int(number)))
    return checked(library.signalfd(-1, mask, os.O_NONBLOCK | os.O_CLOEXEC))


def process_start(pid: int) -> int | None:
    """The start time of a process in clock ticks since boot (proc(5), stat): with the pid it identifies the process.

    None if there is no such process.
    """
    fields = _stat_fields(pid)
    return int(fields[19]) if fields else None


def parent_and_start(pid: int) -> tuple[int, int] | None:
    """Return a process's parent pid and its own start time (see process_start); None if there is no such process."""
    fields = _stat_fields(pid)
    return (int(fields[1]), int(fields[19])) if fields else None


def group_members(group: int) -> Iterator[int]:
    """The pids of the running processes of a process group, without that of its leader, which is `group`.

    Empty if /proc cannot be read.
    """
    for pid in processes():
        try:
            is_member = pid != group and os.getpgid(pid) == group
        except ProcessLookupError:
            continue
        if is_member and is_running(pid):
            yield pid


def is_running(pid: int) -> bool:
    """Whether a process with this pid exists and has a live thread, even if its main thread has ended."""
    fields = _stat_fields(pid)
    return bool(fields) and (fields[0] != b"Z" or int(fields[17]) > 1)  # proc(5): state, num_threads


_PF_EXITING = 0x4  # linux/sched.h


def is_exiting(pid: int) -> bool:
    """Whether the process has ended or is about to; True before its connections are closed (flags in proc(5))."""
    fields = _stat_fields(pid)
    return fields[:1] in ([], [b"Z"]) or bool(int(fields[6]) & _PF_EXITING)


def processes() -> list[int]:
    """The pids of all processes; empty if /proc cannot be read."""
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    except OSError:
        return []


def _stat_fields(pid: int) -> list[bytes]:
    # The name, in brackets, may contain any character.
    return _read_quietly(f"/proc/{pid}/stat").rpartition(b")")[2].split()


def process_variable(pid: int, name: str) -> str:
    """The value of a variable in the environment that a process was executed with (proc(5), environ); "" if unknown."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            rows = os.fsdecode(file.read()).split("\0")
    except OSError:
        return ""
    return next((row.removeprefix(f"{name}=") for row in rows if row.startswith(f"{name}=")), "")


def processes_by_leader(leaders: Set[int]) -> dict[int | None, list[int]]:
    """The pids of all processes, by the session leader in `leaders` to which they belong; None has all others.

    A process belongs to the leader of its session. A session begun by a descendant (setsid(2)) belongs to the leader of
    its parent's session, as long as that parent lives. All lists are empty if /proc cannot be read.
    """
    sessions: dict[int, int] = {}  # by pid
    members: dict[int, list[int]] = {}
    for pid in processes():
        with contextlib.suppress(OSError):  # it has ended
            # A child that has just been forked leads no session yet.
            session = sessions[pid] = pid if pid in leaders else os.getsid(pid)
            members.setdefault(session, []).append(pid)
    owners: dict[int | None, int | None] = {None: None, **{leader: leader for leader in leaders}}
    by_leader: dict[int | None, list[int]] = {leader: [] for leader in owners}
    for session, pids in members.items():
        ancestor: int | None = session
        visited = []
        while ancestor not in owners:
            assert ancestor is not None
            owners[ancestor] = None  # ends a cycle, which reused pids may form
            visited.append(ancestor)
            representatives = [ancestor] if ancestor in sessions else members[ancestor]
            parents = (sessions.get(entry[0]) for entry in map(parent_and_start, representatives) if entry)
            ancestor = next((parent for parent in parents if parent not in (None, ancestor)), None)
        for descendant in visited:
            owners[descendant] = owners[ancestor]
        by_leader[owners[session]] += pids
    return by_leader


def socket_inodes(pid: int) -> set[int] | None:
    """The inodes of a process's sockets (proc(5), fd); None if they cannot be read, or if it is a zombie."""
    inodes = set()
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
        for descriptor in descriptors:
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                kind, _, inode = os.readlink(f"/proc/{pid}/fd/{descriptor}").partition(":[")
                if kind == "socket":
                    inodes.add(int(inode.rstrip("]")))
    except OSError:
        return None
    return inodes if descriptors else None  # a zombie shows none


def process_users(pid: int) -> set[int] | None:
    """The real, effective, saved and file system uid of a process (proc(5), status); None if unknown."""
    return {int(uid) for uid in status_of(pid).get(b"Uid", b"").split()} or None


@functools.cache
def boot_identity() -> list[object]:
    """A value that changes with each boot of the machine or container: boot id and start time of the first process."""
    return [_read_quietly("/proc/sys/kernel/random/boot_id").decode().strip(), process_start(1)]


def memory_bytes(pid: int) -> int | None:
    """The memory of a process in bytes, with shared pages divided among their users (PSS; proc(5), smaps_rollup).

    Without permission, such as for another user's process: the pages that no file backs (RssAnon and RssShmem; proc(5),
    status). 0 for a zombie; None if unknown, or if there is no such process. Slow, because the kernel walks the whole
    memory.
    """
    rows = _read_quietly(f"/proc/{pid}/smaps_rollup").splitlines()
    size = next((int(row.split()[1]) for row in rows if row.startswith(b"Pss:")), None)
    if size is None and (status := status_of(pid)):
        size = sum(int(status.get(name, b"0 kB").split()[0]) for name in (b"RssAnon", b"RssShmem"))
    return None if size is None else size * 1024


def process_figures(pid: int) -> tuple[int, float, float] | None:
    """The start of a process (see process_start), its CPU seconds, and those of reaped children.

    The first figure counts all threads; the second includes the reaped children of reaped children. See proc(5), stat.
    None if there is no such process. Raises PermissionError if /proc hides it (proc(5), hidepid).
    """
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            fields = file.read(4096).rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    user, system, waited_user, waited_system = map(int, fields[11:15])
    ticks = os.sysconf("SC_CLK_TCK")
    used, waited = (user + system) / ticks, (waited_user + waited_system) / ticks
    return int(fields[19]), used, waited


def age_seconds(pid: int) -> float:
    """The time since a process was started; 0 if there is no such process."""
    ticks = process_start(pid)
    if ticks is None:
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def process_cpu_ns(pid: int) -> int | None:
    """The processor time, in nanoseconds, that the threads of a process have used: if unchanged, no thread has run.

    A single system call, without files (clock_getcpuclockid(3)). None if there is no such process.
    """
    try:
        return time.clock_gettime_ns(~pid << 3 | _CPU_CLOCK)
    except OSError:
        return None


def waits_for_events(pid: int) -> bool:
    """Whether the main thread of a process sleeps in epoll_wait(2) on the process's only epoll instance.

    Also False if the kernel does not report it: without permission or symbols (proc(5): wchan, fd).
    """
    function = _read_quietly(f"/proc/{pid}/wchan")
    if not any(name in function for name in _WAITS_FOR_EVENTS):
        return False
    instances = 0
    try:
        with os.scandir(f"/proc/{pid}/fd") as descriptors:
            for count, descriptor in enumerate(descriptors):
                if count == _MAX_DESCRIPTORS:
                    return False
                instances += os.readlink(descriptor.path) == "anon_inode:[eventpoll]"
    except OSError:
        return False
    return instances == 1


def is_stopped(pid: int) -> bool:
    """Whether a signal such as SIGSTOP, not a debugger, has stopped a process (proc(5), stat)."""
    return _stat_fields(pid)[:1] == [b"T"]


def process_name(pid: int) -> str:
    """The name of a process in ps and top (proc(5), comm); "" if there is no such process."""
    return _read_quietly(f"/proc/{pid}/comm").decode(errors="replace").rstrip("\n")


def status_of(pid: int) -> dict[bytes, bytes]:
    """The kernel's status fields of a process (proc(5), status): State, SigCgt …; empty if there is no such process."""
    rows = _read_quietly(f"/proc/{pid}/status").splitlines()
    return {name: value.strip() for name, _, value in (row.partition(b":") for row in rows)}


def kernel_state_of_threads(pid: int, most: int) -> list[dict[str, Any]]:
    """Return the kernel state of up to `most` threads of a process, main thread first; [] if it has exited. May block.

    Each thread has the keys tid, name, state, wchan (the function in which it waits), syscall (its system call's
    number) and stack (its stack in the kernel): see proc(5). The last three are empty if they cannot be read.
    """
    try:
        tids = sorted(map(int, os.listdir(f"/proc/{pid}/task")), key=lambda tid: (tid != pid, tid))
    except OSError:
        return []
    threads = []
    for tid in tids[:most]:
        place = f"/proc/{pid}/task/{tid}"
        name, _, rest = _read_quietly(f"{place}/stat").rpartition(b")")
        texts = {key: _read_quietly(f"{place}/{key}").decode(errors="replace") for key in _THREAD_FILES}
        threads.append(
            {
                "tid": tid,
                "name": name.partition(b"(")[2].decode(errors="replace"),
                "state": rest.split()[0].decode() if rest.split() else "",
                "wchan": texts["wchan"] if texts["wchan"] != "0" else "",
                "syscall": texts["syscall"].partition(" ")[0].strip(),
                "stack": [row.rpartition(" ")[2] for row in texts["stack"].splitlines()],
            }
        )
    return threads


def copy_descriptor(pid: int, fd: int) -> int:
    """A duplicate of another process's descriptor (pidfd_getfd(2)). Raises OSError: EPERM if not permitted."""
    process = os.pidfd_open(pid)
    try:
        return checked(c_library().syscall(_PIDFD_GETFD, process, fd, 0))
    finally:
        os.close(process)


def raise_descriptor_limit() -> tuple[int, int]:
    """Raise this process's soft limit of open files to the hard one; returns the previous (soft, hard) limits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft, hard


def _read_quietly(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(65536)
    except OSError:
        return b""


def _write_quietly(path: str, content: bytes) -> None:
    try:
        with open(path, "wb", buffering=0) as file:
            file.write(content)
    except OSError:
        pass


def checked(result: int) -> int:
    """The result of a C library function. Raises OSError with its errno if the result is negative."""
    if result < 0:
        import ctypes

        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


@functools.cache
def c_library() -> Any:
    """The C library's functions (ctypes); `checked` turns their results into exceptions."""
    import ctypes

    return ctypes.CDLL(None, use_errno=True)
