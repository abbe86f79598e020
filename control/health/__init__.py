"""The health stream: figures of the machines, and of what runs on them, as they change.

:mod:`.module` has the route, :mod:`.figures` reads and formats, :mod:`.shared` lets all
listeners share one look. Nothing but ``control.api`` is used of the control plane, as in a
module of third parties.
"""

from control.health.module import Health

__all__ = ["Health"]
