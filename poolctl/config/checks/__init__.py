"""Checks that the interpreters, programs, users, certificates and apps to which servers refer can be used."""
