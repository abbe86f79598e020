"""Backups of the names: a file with all metadata of a master, taken while it serves, and
a master's directory made from one.

:mod:`.backup_file` is the file, whose every record is checked; :mod:`.taking` fills and
continues it from a master; :mod:`.restoring` makes a directory from it, in a term of its
own. The chunks are not in it: they stay on the chunkservers.
"""

from gfs.master.backup.backup_file import Point
from gfs.master.backup.restoring import Restored, restore_backup
from gfs.master.backup.taking import take_backup

__all__ = ["Point", "Restored", "restore_backup", "take_backup"]
