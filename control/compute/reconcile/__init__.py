"""Makes the backend follow the rows.

:mod:`.driver` starts, stops and deletes until the backend reports the state that the rows
require; :mod:`.machine` decides the next step for one container; :mod:`.lead` elects the
process that drives; :mod:`.choose` picks the backend; :mod:`.changes` wakes tasks that wait
for a change. Others use these classes and :mod:`.machine`'s functions.
"""

from control.compute.reconcile.changes import Changes
from control.compute.reconcile.driver import Driver
from control.compute.reconcile.lead import Lead

__all__ = [
    "Changes",
    "Driver",
    "Lead",
    "choose",
    "machine",
]
