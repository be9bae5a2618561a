"""Telling people: which events are problems, when they are told, in which shape, and again until somebody has them."""
