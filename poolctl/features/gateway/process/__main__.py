"""The gateway's zygote: imports all modules once, and forks a gateway process on each request.

After a crash another fork takes a few milliseconds, instead of an interpreter's start and all imports. The zygote knows
no settings, routes or certificates: the supervisor sends them to the fork. It exits on request, or when its socket to
the supervisor (descriptor 3) is closed.
"""

from __future__ import annotations

import asyncio
import gc
import os
import select
import socket

import uvloop

from poolctl.feature import features
from poolctl.keeper import wire
from poolctl.platform import name_process, raise_descriptor_limit
from poolctl.runners.process_link import PING
from poolctl.runners.supervised_process import LINK_FD

from .gateway_server import GatewayServer


def main() -> None:
    """Fork gateways until told to exit; in a fork, serve clients until the supervisor orders it to exit."""
    name_process("poolctl-gwfork")
    for feature in features():
        if feature.gateway:
            feature.load(feature.gateway)
    raise_descriptor_limit()
    gc.collect()
    gc.freeze()
    try:
        is_gateway = _serve_fork_requests()
    except (BrokenPipeError, ConnectionResetError):
        return  # the supervisor has exited
    if not is_gateway:
        return
    name_process("poolctl-gateway")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(GatewayServer().serve_supervisor())


def _serve_fork_requests() -> bool:
    """Fork gateways until the supervisor sends "end" or disconnects. Return True in a gateway, False in the zygote."""
    link = wire.socket_from_fd(LINK_FD)
    # A process that waits in epoll needs no ping (see waits_for_events).
    with link, select.epoll() as requests:
        requests.register(link, select.EPOLLIN)
        wire.send(link, {"t": "up"}, wait=True)
        while True:
            requests.poll()
            received = wire.receive(link)
            if received is None or received[0].get("t") == "end":
                return False
            message, fds = received
            if message == PING:
                wire.send(link, {"t": "pong"}, wait=True)
            elif message.get("t") == "fork" and _fork_and_is_child(link, message):
                (fd,) = fds
                break
            for each in fds:
                os.close(each)
    os.dup2(fd, LINK_FD, inheritable=False)
    os.close(fd)
    return True


def _fork_and_is_child(link: socket.socket, message: wire.Message) -> bool:
    """Fork twice, so that the keeper adopts the gateway process; returns True in the gateway, False in the zygote."""
    between = -1
    try:
        between = os.fork()
        if between:
            os.waitpid(between, 0)
            return False
        pid = os.fork()
    except OSError as error:
        wire.send(link, {"id": message["id"], "error": f"cannot fork: {error.strerror}"}, wait=True)
        if between == 0:
            os._exit(1)
        return False
    if pid:
        wire.send(link, {"id": message["id"], "pid": pid}, wait=True)
        os._exit(0)
    os.setsid()
    return True


if __name__ == "__main__":
    main()
