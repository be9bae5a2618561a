"""The worker's answer to a heartbeat: written into a page, and everything else on the socket is left alone."""

from __future__ import annotations

import os
import time

from poolctl.keeper import wire
from poolctl.worker.process_setup import BEAT
from poolctl.worker.tally import BEAT_ASKED_NS, BEAT_AT_NS, BEAT_LAG_NS
from poolctl.worker.worker_process import answer, begin
from tests.serving import blank_page


def test_page_shows_that_a_worker_answers_heartbeats() -> None:
    page = blank_page()
    assert page[BEAT_AT_NS] == 0
    begin(page)
    assert 0 < page[BEAT_AT_NS] <= time.monotonic_ns()
    begin(None)


def test_heartbeat_is_answered_with_time_and_lag() -> None:
    ours, theirs = wire.pair()
    with ours, theirs:
        theirs.setblocking(False)
        page = blank_page()
        asked = time.monotonic_ns() - 5_000_000
        page[BEAT_ASKED_NS] = asked
        ours.send(BEAT)
        assert answer(theirs, page)
        assert page[BEAT_AT_NS] >= asked + 5_000_000
        assert page[BEAT_LAG_NS] == page[BEAT_AT_NS] - asked
        assert not answer(theirs, page), "there is no second one"
        ours.send(BEAT)
        assert answer(theirs, None), "who counts nothing reads it all the same"


def test_other_messages_stay_in_the_socket_with_their_descriptors() -> None:
    ours, theirs = wire.pair()
    with ours, theirs:
        theirs.setblocking(False)
        for message in ({"order": "stop"}, {"order": "beat", "more": 1}):
            with open(os.devnull) as file:
                wire.send(ours, message, [file.fileno()])
            assert not answer(theirs, blank_page())
            received = wire.receive(theirs)
            assert received is not None
            assert received[0] == message
            (fd,) = received[1]
            os.close(fd)
        ours.send(BEAT + b" ")
        assert not answer(theirs, blank_page())
        assert wire.receive(theirs) is not None
        ours.close()
        assert not answer(theirs, blank_page()), "an end of the file is not a heartbeat"
