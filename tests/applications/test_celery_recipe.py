"""The recipe of docs/testing.md for FastAPI, Celery and redis, as it is pasted."""

from __future__ import annotations

import subprocess

from tests.applications.conftest import ENVIRONMENT
from tests.docs.pages import some
from tests.programs import program
from tests.real_pool import RealPool


def test_fastapi_with_celery_and_redis_is_tested_with_pytest(real_pool: RealPool) -> None:
    program("redis-server")
    for language in ("python", "toml"):
        for text in some("testing", "FastAPI, Celery and redis", language):
            real_pool.write(text.partition("\n")[0].removeprefix("# "), text)
    (real_pool.directory / ".venv").symlink_to(ENVIRONMENT)
    command = [ENVIRONMENT / "bin/python", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        command, cwd=real_pool.directory, env=real_pool.env, capture_output=True, text=True, timeout=150
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr
