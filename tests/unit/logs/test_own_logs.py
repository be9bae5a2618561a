"""The logs of the pool's own processes are rotated when they grow."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from poolctl.keeper.spawn import MAX_SIZE_BYTES
from poolctl.logs.internal_log import OwnLogs


async def rotated(path: Path) -> None:
    path.write_bytes(b"x" * (MAX_SIZE_BYTES + 1))  # noqa: ASYNC240
    async with asyncio.timeout(60):
        while path.stat().st_size:  # noqa: ASYNC240
            await asyncio.sleep(0.01)


def test_log_is_rotated_after_its_directory_was_created_again(tmp_path: Path) -> None:
    async def main() -> None:
        directory = tmp_path / "runtime"
        directory.mkdir()
        logs = OwnLogs(str(directory))
        await rotated(directory / "helpers.log")
        await rotated(directory / "logger.log")
        shutil.rmtree(directory)
        await asyncio.sleep(0.2)  # it may be missing for a while
        directory.mkdir()
        await rotated(directory / "helpers.log")
        logs.close()

    asyncio.run(main())
