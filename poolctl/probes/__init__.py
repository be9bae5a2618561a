"""Probes of a worker: what is sent, how replies are judged, and how many results make a status."""
