"""Writes container images without a container engine: files that `ctr images import` reads."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.docs.pages import ROOT

# What the package `python3.11-minimal` brings; its packages are put where Debian's Python looks for them.
_VERSION, _PYTHON, _PACKAGES = "3.11", "/usr/bin/python3.11", "usr/lib/python3/dist-packages"
_USER = "10001"
_COMMANDS = {"poolctl": "poolctl.cli.main:main", "gunicorn": "gunicorn.app.wsgiapp:run"}


def write_program_image(file: Path, name: str, program: Path) -> None:
    """An image with one static program."""
    with tempfile.TemporaryDirectory() as directory:
        shutil.copy(program, f"{directory}/{program.name}")
        _write(file, [name], Path(directory), {"Entrypoint": [f"/{program.name}"]})


def write_python_image(
    file: Path, names: Sequence[str], debs: Path, app: Mapping[str, str], requirements: Sequence[str] = ()
) -> None:
    """An image with Debian's Python, this tree's poolctl with the libraries it needs, and the files of /app.

    Modules are compiled, because a pod's root is read-only: it would compile them at each start.
    """
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory, "tree")
        tree.mkdir()
        for each in sorted(debs.iterdir()):
            subprocess.run(["dpkg", "-x", each, tree], check=True)
        for link, target in {
            "bin/sh": "/bin/busybox",
            "bin/sleep": "/bin/busybox",
            "usr/bin/python3": "python3.11",
        }.items():
            if not os.path.lexists(tree / link):
                (tree / link).symlink_to(target)
        for place in ("app", "tmp", "proc", "sys", "dev", "etc", _PACKAGES):
            (tree / place).mkdir(parents=True, exist_ok=True)
        (tree / "etc/passwd").write_text(f"root:x:0:0::/:/bin/sh\napp:x:{_USER}:{_USER}::/app:/bin/sh\n")
        for called, text in app.items():
            (tree / "app" / called).parent.mkdir(parents=True, exist_ok=True)
            (tree / "app" / called).write_text(text)
        _install(tree / _PACKAGES, Path(directory), requirements)
        for called, function in _COMMANDS.items():
            module, _, attribute = function.partition(":")
            command = tree / "usr/bin" / called
            command.write_text(f"#!{_PYTHON}\nfrom {module} import {attribute}\n{attribute}()\n")
            command.chmod(0o755)
        places = [f"/usr/lib/python{_VERSION}", f"/{_PACKAGES}", "/app"]
        subprocess.run(["chroot", tree, _PYTHON, "-m", "compileall", "-q", *places], check=True)
        environment = ["PATH=/usr/bin:/bin", "LANG=C.UTF-8"]
        _write(file, names, tree, {"Env": environment, "WorkingDir": "/app", "User": _USER})


def _install(packages: Path, directory: Path, requirements: Sequence[str]) -> None:
    """Install a wheel of this tree, the libraries that it needs, and `requirements`."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheels = directory / "wheels"
    built = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, ROOT]
    subprocess.run(built, check=True)
    (wheel,) = wheels.iterdir()
    version = ["--python-version", _VERSION, "--only-binary", ":all:", "--no-compile"]
    wanted = [f"poolctl[fast] @ {wheel.as_uri()}", *requirements]
    subprocess.run([*pip, "install", "--target", packages, *version, *wanted], check=True)


def _write(file: Path, names: Sequence[str], tree: Path, config: Mapping[str, Any]) -> None:
    """Write an image of one layer, the files below `tree`, as `docker save` writes it."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        for each in sorted(tree.iterdir()):
            tar.add(each, each.name, filter=_owned_by_root)
    layer = held.getvalue()
    digest = hashlib.sha256(layer).hexdigest()
    about = {
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        "history": [{"created_by": "tests"}],
    }
    manifest = [{"Config": "config.json", "RepoTags": [*names], "Layers": ["layer.tar"]}]
    with tarfile.open(file, "w") as tar:
        for path, data in {
            "config.json": json.dumps(about).encode(),
            "layer.tar": layer,
            "manifest.json": json.dumps(manifest).encode(),
        }.items():
            info = tarfile.TarInfo(path)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def _owned_by_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    if info.name == "tmp":
        info.mode = 0o1777
    return info
