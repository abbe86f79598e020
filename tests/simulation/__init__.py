"""A whole cluster in one process, on simulated machines, in virtual time."""
