"""The application: any subset of the modules, served as one.

:mod:`.application` takes a request to its handler and back; :mod:`.watch` ends requests
whose credential ended meanwhile; :mod:`.loop` measures what blocks the event loop;
:mod:`.cors` answers browsers of other origins.
"""

from __future__ import annotations

from control.app.application import ControlApp, build_app

__all__ = ["ControlApp", "build_app"]
