"""Imports one app and writes the result. Run by the app's own interpreter, in which poolctl need not be installed.

The argument is a JSON table: target, factory, interface, app_dir, cwd and user. The result is a JSON table, too: `{}`
for an app that can be imported, with `wsgi` for one of WSGI, otherwise the reason. Standard library only.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

_INTERFACE_RULES = os.path.abspath(os.path.join(os.path.dirname(__file__), "../../app_interface.py"))


def main() -> None:
    """Import the app, and print as JSON whether that succeeded. What the app prints goes to standard error."""
    job = json.loads(sys.argv[1])
    answers = os.dup(1)
    os.dup2(2, 1)
    try:
        answer = import_app(job)
    except BaseException as error:
        answer = _failure(error, job["app_dir"])
    os.write(answers, json.dumps(answer).encode())
    # Do not wait for threads or exit handlers of the app.
    os._exit(0)


def import_app(job: dict[str, Any]) -> dict[str, Any]:
    """Import the job's app. Return the reason if it does not exist or cannot be served.

    Otherwise return {}, or for a WSGI application the middleware that would serve it. Exceptions of the import
    propagate.
    """
    import importlib.util
    import runpy

    # Read this first: the server's user may not have permission.
    interface_rules = runpy.run_path(_INTERFACE_RULES)
    if job["user"]:
        _drop_privileges(job["user"])
    os.chdir(job["cwd"])
    sys.path.insert(0, job["app_dir"])
    sys.argv = [""]
    name, _, attributes = job["target"].partition(":")
    app: Any = importlib.import_module(name)
    for attribute in attributes.split("."):
        try:
            app = getattr(app, attribute)
        except AttributeError:
            import difflib

            names = [member for member in dir(app) if not member.startswith("_")]
            near = difflib.get_close_matches(attribute, names, n=1)
            return {"kind": "no attribute", "near": near[0] if near else ""}
    if not callable(app):
        return {"kind": "not callable", "message": f"of type {type(app).__name__}"}
    interface, is_known = job["interface"], not job["factory"]
    if is_known and (reason := interface_rules["mismatch"](app, interface)):
        return {"kind": "mismatch", "message": reason}
    if interface == "wsgi" or (interface == "auto" and is_known and interface_rules["is_wsgi"](app)):
        return {"wsgi": "uvicorn" if importlib.util.find_spec("a2wsgi") is None else "a2wsgi"}
    return {}


def _drop_privileges(user: str) -> None:
    import grp
    import pwd

    name, _, group = user.partition(":")
    account = pwd.getpwnam(name)
    gid = grp.getgrnam(group).gr_gid if group else account.pw_gid
    if os.getuid() != account.pw_uid:  # the interpreter may have been started as that user
        os.initgroups(name, gid)
        os.setgid(gid)
        os.setuid(account.pw_uid)
    os.environ["HOME"] = account.pw_dir


def _failure(error: BaseException, app_dir: str) -> dict[str, Any]:
    place = _place(error, app_dir)
    if isinstance(error, ModuleNotFoundError) and error.name:
        return {"kind": "no module", "missing": error.name, "where": place}
    if isinstance(error, SystemExit):
        return {"kind": "ended", "message": f"exited with status {error.code}"}
    # str() of a syntax error names its place again.
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    return {"kind": "raised", "message": f"{type(error).__name__}: {message}"[:1000], "where": place}


def _place(error: BaseException, app_dir: str) -> str:
    """`FILE:LINE` of the innermost line of the traceback in the app's own code; "" if there is no such line."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    place = ""
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file.startswith(app_dir.rstrip("/") + "/") and "/site-packages/" not in file:
            place = f"{file}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


if __name__ == "__main__":
    main()
