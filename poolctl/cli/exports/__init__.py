"""The pool as other systems want to have it written."""
