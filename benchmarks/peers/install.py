"""The peers at pinned versions, in directories of this repository that git ignores."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".venv-peers"
NODE = ENVIRONMENT / "node"
PYTHON_PACKAGES = {
    "supervisor": "4.3.0",
    "circus": "0.19.0",
    "honcho": "2.0.0",
    "gunicorn": "27.0.1",
    "granian": "2.8.7",
    "uvicorn": "0.54.0",
    "uvicorn-worker": "0.4.0",
    "uvloop": "0.23.0",
    "httptools": "0.9.0",
}
PM2 = "6.0.14"
_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"


def install() -> dict[str, str]:
    """Install the peers, but nginx and HAProxy, which are looked for; returns the version of each by its name."""
    wanted = [f"{name}=={version}" for name, version in PYTHON_PACKAGES.items()]
    if not (ENVIRONMENT / "bin/python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    pip = [program("python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *wanted, str(ROOT)], check=True)
    found = {"poolctl": _version_in_repository(), **PYTHON_PACKAGES}
    if shutil.which("npm") is None:
        print("pm2 is left out: there is no npm", file=sys.stderr)
    else:
        npm = ["npm", "install", "--silent", "--no-fund", "--no-audit", "--prefix", str(NODE), f"pm2@{PM2}"]
        subprocess.run(npm, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        found["pm2"] = PM2
    for name in ("nginx", "haproxy"):
        if path := shutil.which(name, path=_PATH):
            said = subprocess.run([path, "-v"], capture_output=True, text=True, check=True)
            (found[name], *_) = re.findall(r"\d+\.\d+\.\d+", said.stdout + said.stderr)
        else:
            print(f"{name} is left out: install its package", file=sys.stderr)
    return found


def program(name: str) -> str:
    """The path of a program of the peers' environment."""
    return str((NODE / "node_modules/.bin" if name == "pm2" else ENVIRONMENT / "bin") / name)


def _version_in_repository() -> str:
    done = subprocess.run(
        ["git", "-c", "safe.directory=*", "describe", "--always", "--dirty"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() or "unknown"
