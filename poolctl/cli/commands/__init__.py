"""The commands: one module each, which declares `COMMAND` and has `perform(request)`, which returns an Outcome."""
