"""What users read: ``/openapi.json`` for programs, ``/docs`` for people.

Both are made from the routes. The page is of this package's own files and asks
nobody else for anything, so it works without a network beyond this server.
"""

from control.documentation.routes import documentation_routes

__all__ = ["documentation_routes"]
