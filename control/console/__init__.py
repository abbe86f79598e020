"""The console: the page that a browser gets at ``/``.

The page is one application of TypeScript (``console/`` in the repository). It uses the REST
API as any other client does, so this module has no other part in it than to serve files.
``tools/console.sh`` builds them into ``built/``, which the repository does not have: without
them a browser is redirected to ``/docs``.
"""

from control.console.module import Console

__all__ = ["Console"]
