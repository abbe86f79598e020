"""What users read: ``/openapi.json`` for programs, ``/docs`` for people.

Both are made from the routes. The page is Swagger UI, served by this server and allowed to
ask nobody else, so it works without a network beyond it. The files are those of the package
``flask-swagger-ui``, which is released with each Swagger UI (``swagger-ui-bundle`` is still at
the version 4 of 2023, which does not read OpenAPI 3.1).
"""

from control.documentation.routes import documentation_routes

__all__ = ["documentation_routes"]
