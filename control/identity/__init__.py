"""Users, credentials, scopes, and the one decision whether a request may go on.

Below every module: each can verify credentials by itself, on its own host, from the
records that all processes of a machine share. The application asks :mod:`.access` and
:mod:`.credentials`; ``auth`` also changes the :mod:`.rows` by :mod:`.users`,
:mod:`.passwords` and :mod:`.keys`. Third parties get what they need from
:mod:`control.api`.
"""
