"""Questions to one worker: what is asked, how the answers are judged, and how many of them make a status."""
