"""The REST control plane: auth, storage and other modules over HTTP.

:func:`build_app` composes modules into one ASGI application; ``gfs control`` and
``gfs up`` serve it. See :mod:`control.module` for how to write a module.
"""
