"""Paths of routes: text, and parameters as ``{name}`` or ``{name:kind}``."""

from __future__ import annotations

import re

PARAMETER = re.compile(r"\{(\w+)(?::(\w+))?\}")
#: What a parameter without a kind matches.
ANY_SEGMENT = r"[^/]+"
#: The kinds for all modules -> their regular expressions.
KINDS = {"path": r"[^/].*?", "int": r"(?:0|[1-9][0-9]*)"}
