"""A Ctrl-C at each step of a piece of code, one after another."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, ModuleType


@contextmanager
def interrupted(step: int, *modules: ModuleType) -> Iterator[list[str]]:
    """Raise KeyboardInterrupt in this thread at the step of that number, from 0, in code of
    ``modules``, where Python does it: when a function begins, and when one that is not Python's
    has returned. Not below a ``__del__``, where it is ignored. The list says where it was; it stays
    empty if there are not as many steps."""
    files = {module.__file__ for module in modules}
    left = step
    where: list[str] = []

    def look(frame: FrameType, event: str, _: object) -> None:
        nonlocal left
        code = frame.f_code
        if event not in ("call", "c_return") or code.co_filename not in files:
            return
        caller: FrameType | None = frame
        while caller is not None:
            if caller.f_code.co_name == "__del__":
                return
            caller = caller.f_back
        if left == 0:
            sys.setprofile(None)
            where.append(f"{code.co_qualname}, line {frame.f_lineno}")
            raise KeyboardInterrupt
        left -= 1

    sys.setprofile(look)
    try:
        yield where
    finally:
        sys.setprofile(None)
