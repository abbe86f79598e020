"""Bytes of files between HTTP and the file system.

:mod:`.upload` (with forms, :mod:`.multipart`) and :mod:`.download` (with :mod:`.ranges`,
:mod:`.conditional` requests, :mod:`.media` types and the :mod:`.disposition`);
:mod:`.progress` reports how far they are.
"""
