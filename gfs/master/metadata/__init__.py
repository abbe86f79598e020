"""The metadata: what is on the master's disk, and how it changes.

A *mutation* is planned (:mod:`.namespace`, :mod:`.trash`), becomes a record
(:mod:`.operations`), and is applied, logged and committed by the one
:class:`~.committer.Committer`. It is answered when the :mod:`.watermark` has passed it.
Rows (:mod:`.rows`) are in one LMDB environment (:mod:`.store`). Look-ups (:mod:`.lookups`)
read a snapshot of it and wait for nobody.

Others may read rows within a ``store.read()`` transaction, and change them only through
``Committer.submit`` with a plan. The exception is a shadow master, which applies the rows of
another master's log with :func:`.operation_log.replay`, or takes its whole store over. What
a master has promised to whom is its own, not the cluster's (``Store.set_standing``). Nothing
here knows of connections or chunkservers.
"""
