"""``gfs mount``: the file system as a directory of this machine, over FUSE.

::

    gfs mount / /mnt/gfs

Consistency is *close-to-open*: who opens a file after another has closed it reads what that one
wrote. docs/mount.md has the whole table. The layers, from the kernel down:

- ``process``: mounting, signals, unmounting;
- ``operations``: one method for each request of the kernel; nothing but this and ``process``
  knows pyfuse3;
- ``contents``: the bytes of a file that is open here, and what of them is not stored yet;
- ``forward``: reading in order;
- ``nodes``, ``posix``, ``extents``, ``errnos``: plain code: which inode has which path, what of a
  POSIX inode is kept in attributes, ranges of written bytes, errors.

Every file that is made is in the cluster at once, empty, so that ``O_EXCL`` excludes other
machines too. Its bytes follow: a small file is collected and stored whole, by the client's
batches; a large one that is written in order is streamed as any upload, and appears when it is
closed or synced; everything else is written in place.

Needs ``pip install 'gfs-control-plane[server,mount]'`` and libfuse 3.
"""

from gfs.mount.process import check, mount

__all__ = ["check", "mount"]
