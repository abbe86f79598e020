"""How a container is reached, and what it must not reach.

:mod:`.slots` gives it an address and an SSH port, :mod:`.gateway` leads ports of this
machine to it, :mod:`.foreign` knows the ports of other services, :mod:`.fence` is the
firewall.
"""
