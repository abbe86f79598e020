"""The backend is made to follow the rows.

:mod:`.driver` starts, stops and deletes until what the backend reports is what the rows
want; :mod:`.machine` decides the next step for one container; :mod:`.lead` elects the
process that drives; :mod:`.choose` picks the backend; :mod:`.changes` wakes who waits for
a change. Others use these classes and :mod:`.machine`'s functions.
"""
