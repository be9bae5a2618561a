"""What docs/gateway.md says is what the configuration and the commands have."""

from __future__ import annotations

import re
from pathlib import Path

from tests.certificates import certificate
from tests.real_pool import RealPool

TEXT = (Path(__file__).parents[2] / "docs" / "gateway.md").read_text()
EXAMPLES = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)


def test_examples_are_valid_together(real_pool: RealPool) -> None:
    certificate(real_pool.directory, "internal-ca")
    real_pool.write("pool.toml", "\n".join(EXAMPLES))
    assert real_pool.ok("validate").stdout == "3 servers, ok (applications not imported: --import)\n"


def test_every_command_in_it_is_one(real_pool: RealPool) -> None:
    for command in re.findall(r"^poolctl (backends \w+)", TEXT, re.MULTILINE):
        assert real_pool.ok(*command.split()[:2], "--help").code == 0
