"""S3: the storage namespaces and their files as buckets and objects, on a port of its own.

A request is understood and its signature verified in :mod:`.service` (with :mod:`.signature`,
:mod:`.payload`, :mod:`.checksums`, :mod:`.keys`), and carried out in :mod:`.buckets`,
:mod:`.objects`, :mod:`.uploads`, :mod:`.tagging`, :mod:`.forms`, :mod:`.access` and
:mod:`.configuration` (with :mod:`.cors` and :mod:`.lifecycle`), over the storage module's
namespaces, files and quotas. :mod:`.authority` decides who may, with :mod:`.policy`.
:mod:`.names` says which file an object is, :mod:`.metadata` what is stored with it,
:mod:`.documents` is XML. The command line makes keys with :class:`Keys`.
"""

from control.s3.keys import Keys, NewAccessKey
from control.s3.module import S3

__all__ = ["S3", "Keys", "NewAccessKey"]
