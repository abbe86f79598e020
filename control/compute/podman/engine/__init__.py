"""Podman's own REST service: run as a process (:mod:`.service`, :mod:`.processes`) and
called (:mod:`.api`, :mod:`.http`)."""
