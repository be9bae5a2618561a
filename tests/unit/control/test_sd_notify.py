"""Notifications to a service manager: what is sent, where to, and that none of it fails a pool."""

from __future__ import annotations

import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from poolctl.control import sd_notify
from tests.notify_socket import NotifySocket


def test_lines_are_sent_as_one_message_to_the_socket_of_the_environment(tmp_path: Path) -> None:
    manager = NotifySocket(tmp_path)
    try:
        assert sd_notify.notify({"NOTIFY_SOCKET": manager.path}, "READY=1", "STATUS=all ready")
        assert manager.messages == ["READY=1\nSTATUS=all ready"]
    finally:
        manager.close()


def test_name_that_begins_with_an_at_sign_is_an_abstract_socket() -> None:
    name = f"poolctl-notify-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        manager.settimeout(10)
        assert sd_notify.notify({"NOTIFY_SOCKET": f"@{name}"}, "READY=1")
        assert manager.recv(100) == b"READY=1"


@pytest.mark.parametrize(
    "name", ["", "relative.sock", "vsock:2:1234", "/nowhere/notify.sock", "/a\0b", "/" + "x" * 200]
)
def test_notification_that_cannot_be_sent_is_none_and_no_error(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind("relative.sock")
        assert not sd_notify.notify({"NOTIFY_SOCKET": name}, "READY=1")
    assert not sd_notify.notify({}, "READY=1")


def test_full_queue_of_the_manager_does_not_block(tmp_path: Path) -> None:
    manager = NotifySocket(tmp_path)
    try:
        env = {"NOTIFY_SOCKET": manager.path}
        assert not all(sd_notify.notify(env, "STATUS=" + "x" * 1000) for _ in range(10_000))
    finally:
        manager.close()


def test_message_with_a_descriptor_waits_for_room(tmp_path: Path) -> None:
    manager, (ours, theirs) = NotifySocket(tmp_path), os.pipe()
    try:
        env = {"NOTIFY_SOCKET": manager.path}
        while sd_notify.notify(env, "STATUS=" + "x" * 1000):
            continue
        assert not sd_notify.notify(env, "FDSTORE=1", fds=[theirs], timeout_seconds=0.01)
        with ThreadPoolExecutor(1) as thread:
            sent = thread.submit(sd_notify.notify, env, "FDSTORE=1", fds=[theirs], timeout_seconds=60.0)
            manager.await_line("FDSTORE=1")
            assert sent.result()
    finally:
        manager.close()
        os.close(ours)
        os.close(theirs)


def test_text_that_is_no_utf_8_is_sent_with_replacements(tmp_path: Path) -> None:
    manager = NotifySocket(tmp_path)
    try:
        assert sd_notify.notify({"NOTIFY_SOCKET": manager.path}, "STATUS=caf\udce9")
        assert manager.messages == ["STATUS=caf?"]
    finally:
        manager.close()


def test_manager_wants_notifications_if_it_names_a_socket() -> None:
    assert sd_notify.enabled({"NOTIFY_SOCKET": "@x"})
    assert not sd_notify.enabled({"NOTIFY_SOCKET": ""})
    assert not sd_notify.enabled({})


def test_process_is_the_main_one_unless_systemd_started_another() -> None:
    assert sd_notify.is_main({"SYSTEMD_EXEC_PID": str(os.getpid())})
    assert not sd_notify.is_main({"SYSTEMD_EXEC_PID": str(os.getppid())})
    assert sd_notify.is_main({})


def test_reload_is_announced_with_the_time_of_the_monotonic_clock_in_microseconds() -> None:
    before = time.monotonic_ns() // 1000
    announcement, stamp = sd_notify.reloading()
    assert announcement == "RELOADING=1"
    name, _, microseconds = stamp.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(microseconds) <= time.monotonic_ns() // 1000


def test_status_is_one_line() -> None:
    assert sd_notify.status("1 of 2 ready;\n  web is\tstarting ") == "STATUS=1 of 2 ready; web is starting"


@pytest.mark.parametrize(
    ("text", "seconds"), [("30000000", 30.0), ("500000", 0.5), ("", 0.0), ("-1", 0.0), ("soon", 0.0)]
)
def test_watchdog_interval_is_in_seconds_and_0_without_one(text: str, seconds: float) -> None:
    assert sd_notify.watchdog_seconds({"WATCHDOG_USEC": text}) == seconds
    assert sd_notify.watchdog_seconds({}) == 0.0
