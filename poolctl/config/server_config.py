"""ServerConfig: one server of the pool, and what its files and programs have to say."""

from __future__ import annotations

import os

from pydantic import ConfigDict

from poolctl.config.files.env_file import variables_of
from poolctl.config.model.sections import refuse
from poolctl.config.model.server import ServerKeys
from poolctl.config.model.tables import Tables, pool_variables


class ServerConfig(ServerKeys):
    """One server of the pool.

    Made with a bad value, or an unknown keyword, it raises PoolValidateError with every problem.
    Durations are seconds, sizes bytes, paths absolute; relative ones are taken from the working directory.
    """

    model_config = ConfigDict(defer_build=False)

    def validate(self, *, import_app: bool = True) -> None:  # type: ignore[override]
        """Check what is outside the file: other files, certificates, interpreter, importable app.

        Blocks for as long as the app takes to import. Raises PoolValidateError with every problem.
        """
        # Loading files does without it.
        from poolctl.config.checks.external_checks import ExternalChecks

        checks = ExternalChecks(os.environ, withheld=pool_variables([self], Tables()))
        checks.check([self], import_apps=import_app)
        if checks.problems:
            refuse(self.name, [finding for _, finding in checks.problems], self.name, self.bind)

    def environment(self) -> dict[str, str]:
        """The variables that it adds to the pool's own: of its env_file, then of its env. Blocks on the disk.

        Raises ServerError for a file that cannot be read.
        """
        return variables_of(self)
