"""The REST control plane: auth, storage, compute and other modules over HTTP.

:func:`control.app.build_app` composes modules into one ASGI application; ``gfs control``
and ``gfs up`` serve it. The packages, from the top::

    cli             the command ``gfs control`` and the processes it runs
    app             the application: from a request to its handler and back
    auth            a module: logins, API tokens, service accounts, users
    storage         a module: files in storage namespaces
    compute         a module: containers, on Kubernetes or Podman
    documentation   the API's description of itself
    api             the interface of modules; third parties import this and nothing else
    identity        users, credentials, scopes, and the decision who may do what
    quota           the limits and the usage of users
    records         the rows of all modules
    http            the HTTP server

``installed`` finds the installed modules, and refuses those that clash; ``testing`` serves
modules in tests. All use ``errors``, ``metrics``, ``paths``, ``settings`` and ``volatile``
(facts that may be lost). Others may use of a package only the names in the ``__all__`` of its
``__init__``; a test enforces that (``tests/unit/test_imports.py``).
"""
