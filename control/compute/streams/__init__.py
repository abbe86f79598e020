"""Compute's WebSockets: events (:mod:`.hub`), output (:mod:`.logs`) and shells
(:mod:`.terminal`), and how many of them a container may have (:mod:`.counted`)."""
