"""The commands, one module each, with a declaration `COMMAND` and a function `perform` that returns an Outcome."""
