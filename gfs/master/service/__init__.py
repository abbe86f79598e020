"""What the master does for others: one connection, one request, one background task at a time.

:mod:`.client_session` and :mod:`.chunkserver_session` are the two kinds of connections.
Requests that are more than a look-up or a single mutation have files of their own:
:mod:`.uploads` (new files), :mod:`.snapshots`, :mod:`.fsck`, :mod:`.status`,
:mod:`.drain_command` and :mod:`.operator_commands`. :mod:`.background` has the tasks that
run all the time (repair, deletion, the trash), and :mod:`.metrics` the numbers.

Decisions are made in the rooms below; what is here waits for sockets, disks and clocks.
"""
