"""Checks that servers' interpreters, programs, users, certificates and apps can be used."""
