"""The REST control plane: auth, storage, compute and other modules over HTTP.

:func:`control.app.build_app` composes modules into one ASGI application; ``gfs control``
and ``gfs up`` serve it. The rooms, from the top::

    cli             the command ``gfs control`` and the processes it runs
    app             the application: from a request to its handler and back
    auth            a module: logins, API tokens, service accounts, users
    storage         a module: files in storage namespaces
    compute         a module: containers, on Kubernetes or Podman
    documentation   the API's description of itself
    api             what a module is made of; third parties import this and nothing else
    identity        users, credentials, scopes, and the decision who may do what
    quota           what users may have and what they have
    records         the rows of all modules, and facts that may be lost
    http            the HTTP server

``errors``, ``metrics`` and ``settings`` are for all of them.
"""
