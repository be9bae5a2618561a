"""Draws the pictures of the README, of an example pool under load: `python -m docs.images.draw`."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pyte
from rich.color import ANSI_COLOR_NAMES
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import DIMMED_MONOKAI, TerminalTheme
from rich.text import Text

from tests.browser.conftest import chromium

HERE = Path(__file__).parent
PAGE = {"width": 1240, "height": 780}
EXAMPLE = HERE.parents[1] / "examples" / "microservices"
COLUMNS, ROWS = 108, 10
SECONDS = 60
# A program that fails.
MAIL = "import time; time.sleep(1); raise SystemExit('database gone')"
# Requests a second, by the port of the server.
LOAD = {8081: 60, 8082: 25, 8083: 10}
LIGHT = TerminalTheme(
    (255, 255, 255),
    (36, 41, 47),
    [
        *((36, 41, 47), (207, 34, 46), (17, 99, 41), (122, 82, 0)),
        *((9, 105, 218), (130, 80, 223), (27, 124, 131), (110, 119, 129)),
    ],
)


def main() -> None:
    """Write top-*.svg and dashboard-*.png beside this file."""
    with tempfile.TemporaryDirectory() as directory:
        more = Path(directory, "more.toml")
        more.write_text(f"[dashboard]\n[[server]]\nname = 'mail'\ncommand = {[sys.executable, '-c', MAIL]}\n")
        poolctl = [sys.executable, "-m", "poolctl", "-c", str(EXAMPLE / "pool.toml"), "-c", str(more)]
        subprocess.run([*poolctl, "start"], check=False)  # mail does not start
        try:
            with load() as counts:
                restart = threading.Timer(SECONDS - 15, subprocess.run, ([*poolctl, "restart", "users"],))
                restart.start()
                view = seen_on_a_terminal([*poolctl, "top"])
                restart.join()
                asked, lost = counts["asked"], counts["lost"]
                photograph(lambda: subprocess.check_output([*poolctl, "dashboard"], text=True).strip())
        finally:
            subprocess.run([*poolctl, "stop"], check=True)
    for name, theme in (("light", LIGHT), ("dark", DIMMED_MONOKAI)):
        console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
        console.print(view, no_wrap=True, crop=True)
        title = f"poolctl top: users restarted under load, {asked} requests, {lost} lost"
        picture = console.export_svg(title=title, theme=theme, unique_id=f"top-{name}")
        # Without fonts from elsewhere.
        (HERE / f"top-{name}.svg").write_text(re.sub(r"\s*@font-face \{.*?\}", "", picture, flags=re.DOTALL))


def photograph(link: Callable[[], str]) -> None:
    """Write pictures of the page, in both colour schemes. A link logs in once."""
    with chromium() as browser:
        for name in ("light", "dark"):
            page = browser.new_context(viewport=PAGE, color_scheme=name).new_page()
            page.goto(link())
            page.get_by_text("payments").first.wait_for()
            page.wait_for_timeout(5000)  # until the charts have been drawn
            page.screenshot(path=HERE / f"dashboard-{name}.png")


@contextlib.contextmanager
def load() -> Iterator[Counter[str]]:
    """Send requests to the example's servers meanwhile, and count those "asked" and "lost"."""
    over = threading.Event()
    counts: Counter[str] = Counter()

    def ask(port: int, rate: int) -> None:
        while not over.wait(1 / rate):
            counts["asked"] += 1
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read()
            except OSError:
                counts["lost"] += 1

    threads = [threading.Thread(target=ask, args=each) for each in LOAD.items()]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        over.set()
        for thread in threads:
            thread.join()


def seen_on_a_terminal(argv: list[str]) -> Text:
    """The screen of a terminal after the command has run on it for a while."""
    child, terminal = pty.fork()
    if not child:
        os.environ |= {"TERM": "xterm-256color"}
        os.execv(argv[0], argv)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    until = time.monotonic() + SECONDS
    while (left := until - time.monotonic()) > 0:
        if select.select([terminal], [], [], left)[0]:
            stream.feed(os.read(terminal, 65536))
    os.write(terminal, b"q")
    found = Text()
    for row in range(ROWS):
        for column in range(COLUMNS):
            cell = screen.buffer[row][column]
            found.append(
                cell.data,
                Style(bold=cell.bold, reverse=cell.reverse, color=colour(cell.fg), bgcolor=colour(cell.bg)),
            )
        found.append("\n")
    with contextlib.suppress(OSError):
        while os.read(terminal, 65536):
            pass
    os.waitpid(child, 0)
    return found


def colour(name: str) -> str | None:
    """The colour as rich names it."""
    if name == "default":
        return None
    name = {"brown": "yellow", "brightbrown": "bright_yellow"}.get(name, name.replace("bright", "bright_"))
    return name if name in ANSI_COLOR_NAMES else f"#{name}"


if __name__ == "__main__":
    main()
