"""What an import leaves behind is named; what it has ended again is not."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import threading

from poolctl.worker.fork_safety import ProcessSnapshot


def test_unchanged_process_has_left_nothing() -> None:
    assert ProcessSnapshot.of_this_process().left_since() == ""


def test_thread_is_reported_by_its_name() -> None:
    before, over = ProcessSnapshot.of_this_process(), threading.Event()
    thread = threading.Thread(target=over.wait, name="ticker")
    thread.start()
    try:
        assert before.left_since() == "started the thread 'ticker'"
    finally:
        over.set()
        thread.join()
    assert before.left_since() == ""


def test_child_process_without_a_wait_is_reported() -> None:
    before = ProcessSnapshot.of_this_process()
    with subprocess.Popen(["sleep", "50"]) as child:
        assert before.left_since() == f"started the process {child.pid}"
        child.kill()


def test_descriptors_are_called_by_what_they_are() -> None:
    before = ProcessSnapshot.of_this_process()
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()),
        select.epoll(),
        open(os.devnull),
    ):
        port = listener.getsockname()[1]
        three = f"opened a socket, opened a connection to 127.0.0.1:{port}, opened an event loop"
        assert before.left_since() == f"{three} and 1 more"
    assert before.left_since() == ""


def test_descriptor_with_another_target_is_reported() -> None:
    fd = os.open(os.devnull, os.O_RDONLY)
    before = ProcessSnapshot.of_this_process()
    read, write = os.pipe()
    os.dup2(read, fd)
    for each in (read, write):
        os.close(each)
    try:
        assert before.left_since() == "opened a pipe"
    finally:
        os.close(fd)
