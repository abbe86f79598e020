"""The documentation: ``/openapi.json`` for programs, ``/docs`` for people.

Both are generated from the routes. The page is Swagger UI. This server serves it, and it may
contact no other host, so it works without the internet. The files are those of the package
``flask-swagger-ui``, which is released with each Swagger UI (``swagger-ui-bundle`` is still at
the version 4 of 2023, which does not read OpenAPI 3.1).
"""

from control.documentation.routes import documentation_routes

__all__ = ["documentation_routes"]
