"""Probes of a worker: requests, the judgement of replies, and the status that follows from several results."""
