"""Checks of things outside the files that servers refer to: interpreters, programs, users, certificates, apps."""
