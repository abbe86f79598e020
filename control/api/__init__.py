"""What a module of the control plane is made of.

:mod:`.module` says what a module declares, :mod:`.call` is a request as its handlers see
it, :mod:`.runtime` what the modules of one process share, :mod:`.lists` how long lists
are answered.
"""
