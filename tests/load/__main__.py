"""`python -m tests.load 8081 --mode keep_alive --seconds 10`: ask, never ask again, and count.

Exits with 1 when a request failed. Ctrl-C ends it early.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import socket
import sys
from typing import Any

from .generator import Generator, Settings
from .modes import MODES
from .report import Report


def main() -> int:
    if sys.argv[1:2] == ["--steered"]:
        return _steered(socket.socket(fileno=int(sys.argv[2])), Settings(**json.loads(sys.argv[3])))
    options = _options()
    seconds = options.pop("seconds")
    options["targets"] = [f"127.0.0.1:{text}" if text.isdigit() else text for text in options["targets"]]
    generator = Generator(Settings(**options))
    generator.later(seconds, generator.stop)
    signal.signal(signal.SIGINT, lambda *_: generator.stop())
    generator.run()
    report = generator.tally.report()
    print(report)
    return 1 if report.failed else 0


def _options() -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        prog="python -m tests.load",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("targets", nargs="+", help="a port of 127.0.0.1, HOST:PORT, [V6]:PORT or unix:/path")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long requests are sent")
    parser.add_argument("--mode", choices=MODES, default="keep_alive", help="what is asked")
    parser.add_argument("--tls", action="store_true", help="https and wss, whatever the certificate says")
    parser.add_argument(
        "--no-echo",
        dest="echo",
        action="store_false",
        help="any 200 will do; not only those of tests.load.apps",
    )
    helps = {
        "connections": "how many at once", "depth": "pipelined: requests under way on one connection",
        "body_bytes": "bodies: of request and response", "chunks": "stream: in one response",
        "chunk_pause": "stream: seconds between two chunks", "pause": "seconds before the next request or message",
        "patience": "seconds until a request counts as unanswered", "path": "of plain requests",
    }  # fmt: skip
    for known in dataclasses.fields(Settings):
        if known.name in helps:
            parser.add_argument(
                "--" + known.name.replace("_", "-"), type=type(known.default), default=known.default,
                help=helps[known.name],
            )  # fmt: skip
    return vars(parser.parse_args())


def _steered(sock: socket.socket, settings: Settings) -> int:
    """Orders come as lines, each is answered by a report; the end of the socket is the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    generator = Generator(settings)
    tally = generator.tally
    waiting: list[str] = []

    def say(report: Report) -> None:
        sock.sendall(json.dumps(report.as_json()).encode() + b"\n")

    def order() -> None:
        words = sock.recv(4096).decode().split()
        if not words or "stop" in words:
            waiting.append("stop" if words else "gone")
            generator.stop()
            return
        for word in words:
            if word == "report":
                say(tally.report())
            else:
                begun()

    def begun() -> None:
        counts = tally.counts
        if counts["complete"] or counts["messages"] or counts["sent"] > settings.connections:
            say(tally.report())
        elif not generator.stopping:
            generator.later(0.005, begun)

    generator.run([(sock, order)])
    if waiting == ["stop"]:
        say(tally.report())
    return 0


if __name__ == "__main__":
    sys.exit(main())
