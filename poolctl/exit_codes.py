"""The command's exit codes, and their error names in JSON documents."""

from __future__ import annotations

DONE = 0
FAILED = 1
USAGE = 2
NOT_AS_DESIRED = 3
NOTHING_MATCHED = 4
INVALID_CONFIGURATION = 5
NO_SUPERVISOR = 6
NOT_PERMITTED = 7
CONFLICT = 8
NOT_EXECUTABLE = 126
NOT_FOUND = 127
TIMED_OUT = 124
INTERRUPTED = 130
READER_GONE = 141  # 128 + SIGPIPE, as a shell reports a program killed by it

# For failures of the command itself; failures of servers have their own codes (1320 to 1326).
NAMES = {
    FAILED: "ErrorUnexpected",
    USAGE: "ErrorUsage",
    NOT_AS_DESIRED: "ErrorNotAsDesired",
    NOTHING_MATCHED: "ErrorParamEmpty",
    INVALID_CONFIGURATION: "ErrorPoolValidate",
    NO_SUPERVISOR: "ErrorNoSupervisor",
    NOT_PERMITTED: "ErrorNotPermitted",
    CONFLICT: "ErrorConflict",
    NOT_EXECUTABLE: "ErrorNotExecutable",
    NOT_FOUND: "ErrorNotFound",
    TIMED_OUT: "ErrorTimeout",
    INTERRUPTED: "ErrorInterrupted",
    READER_GONE: "ErrorReaderGone",
}
# Outcomes for which supervisors answer with an error code of the library; all others use the exit code.
CODES = {NOTHING_MATCHED: 1320, INVALID_CONFIGURATION: 1322}
