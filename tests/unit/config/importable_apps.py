"""Apps that can be imported, or cannot in one way each, and the problems of servers that name them."""

from __future__ import annotations

import os
from pathlib import Path

from tests.config_files import load_text

APPS = {
    "good": "async def app(scope, receive, send): pass\ndef make(): return app\nvalue = 3\n"
    "class Box: app = staticmethod(app)\n",
    "missing": "import no_such_library.sub\n",
    "syntax": "def f(:\n",
    "boom": "\nraise RuntimeError('boom\\nboom')\n",
    "ends": "import os; os._exit(3)\n",
    "exits": "raise SystemExit(4)\n",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n",
    "noisy": "import sys\nprint('x' * 1_000_000)\nprint('y' * 1_000_000, file=sys.stderr)\napp = print\n",
    "reads": "import os\nassert os.environ['KEY'] == 'value' and os.environ['FILE'] == '1'\n"
    "assert os.path.samefile('.', '/')\napp = print\n",
    "seeded": "import os, sys\nassert os.environ['PYTHONOPTIMIZE'] == '1' and sys.flags.optimize == 1\napp = print\n",
    "asks": "assert input() == ''\napp = print\n",
    "threads": "import threading, time\nthreading.Thread(target=time.sleep, args=(300,)).start()\napp = print\n",
}


def servers(*lines: str) -> str:
    """A server for each line of TOML, on automatic ports."""
    table = '[[server]]\nname = "s{}"\nbind = "127.0.0.1:auto"\n{}\n'
    return "".join(table.format(number, line) for number, line in enumerate(lines))


def outside(directory: Path, *lines: str, import_apps: bool = False) -> list[str]:
    config = load_text(directory, servers(*lines), env={"PATH": os.environ["PATH"]})
    assert config.problems == []
    return [str(problem) for problem in config.check_external(import_apps=import_apps)]
