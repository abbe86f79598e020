"""Who calls, and what he may do: users, credentials, scopes, one decision.

Below every module: each can verify credentials by itself, on its own host, from
the records that all processes of a machine share.
"""
