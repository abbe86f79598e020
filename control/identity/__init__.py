"""Users, credentials, scopes, and the one decision whether a request may go on.

Below every module: each can verify credentials by itself, on its own host, from
the records that all processes of a machine share.
"""
