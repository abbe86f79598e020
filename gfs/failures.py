"""The words of errors: the one to report from the exception groups that nurseries raise, and
nouns and bytes with a number."""

from __future__ import annotations

from collections.abc import Iterator

import trio

from gfs.errors import GfsError

#: Expected errors, which are printed in one line; all others are bugs.
EXPECTED = (GfsError, OSError)


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions in ``error``, depth first; cancellations are no failures."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    elif not isinstance(error, trio.Cancelled):
        yield error


def the_one(error: BaseException) -> BaseException:
    """The exception to report: a bug before an expected error, an expected error before
    the interruptions that came with it."""
    found = list(leaves(error)) or [error]

    def rank(leaf: BaseException) -> int:
        if isinstance(leaf, KeyboardInterrupt | SystemExit):
            return 2
        return 1 if isinstance(leaf, EXPECTED) else 0

    return min(found, key=rank)


def sentence(error: BaseException) -> str:
    """``error`` as one line. Unless the caller caused it, the line has the id of the
    request, if known, so that details can be found in the servers' logs."""
    if isinstance(error, OSError) and not isinstance(error, GfsError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = str(error) or type(error).__name__
    if isinstance(error, GfsError) and error.request and error.http_status >= 500:
        text = f"{text} (request {error.request})"
    return " ".join(text.split())


def human_bytes(count: float) -> str:
    """``count`` bytes in at most four digits: ``"12.3 MiB"``."""
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        count /= 1024
        if count < 999.5 or unit == "PiB":
            break
    return f"{count:.1f} {unit}" if count < 99.95 else f"{count:.0f} {unit}"


def plural(count: int, noun: str) -> str:
    ends_in_ies = noun.endswith("y") and noun[-2:-1] not in "aeiou"
    many = noun[:-1] + "ies" if ends_in_ies else noun + "s"
    return f"{count} {noun if count == 1 else many}"
