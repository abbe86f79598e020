"""The bounds of the texts in a request's head, checked where the application reads one.

The server bounds the head as a whole (64 KiB). A text that somebody looks into has a tighter
bound of its own, so that no pattern, split or loop that follows sees more. Each read of a
header or of a query's parameter goes through one of the classes here, and so no reader can
forget it. A header that nobody reads may be longer: proxies add certificates and tokens of
other programs.

A longer text is answered with 431 (RFC 6585, section 5) if it is a header, with 414 (RFC 9110,
15.5.15) if it is a parameter.
"""

from __future__ import annotations

from typing import Any, TypeVar, overload

from werkzeug.datastructures import Headers, ImmutableMultiDict
from werkzeug.exceptions import RequestHeaderFieldsTooLarge, RequestURITooLarge

from control.http.limits import TEXT_BYTES, TEXT_BYTES_MAX

T = TypeVar("T")


def bytes_max(name: str) -> int:
    """The longest value of the header or the parameter ``name``, in bytes."""
    return TEXT_BYTES.get(name.lower(), TEXT_BYTES_MAX)


def _header(name: str, value: T) -> T:
    """Return the header's value. Raises RequestHeaderFieldsTooLarge if it is too long."""
    # A server's headers are Latin-1: each character is a byte.
    if isinstance(value, str) and len(value) > bytes_max(name):
        raise RequestHeaderFieldsTooLarge(
            f"the header {name.title()} has more than {bytes_max(name)} bytes"
        )
    return value


def _parameter(name: str, value: T) -> T:
    """Return the parameter's value. Raises RequestURITooLarge if it is too long."""
    limit = bytes_max(name)
    # A character has at most four bytes; only a longer text is encoded to count them.
    if isinstance(value, str) and 4 * len(value) > limit and len(value.encode()) > limit:
        raise RequestURITooLarge(f"the parameter {name:.80} has more than {limit} bytes")
    return value


class RequestHeaders(Headers):
    """The headers of a request; reading one checks its bound."""

    def get(self, key: str, *arguments: Any, **named: Any) -> Any:
        return _header(key, super().get(key, *arguments, **named))

    def getlist(self, key: str, *arguments: Any, **named: Any) -> list[Any]:
        values: list[Any] = super().getlist(key, *arguments, **named)
        _header(key, "".join(map(str, values)))
        return values

    def __getitem__(self, key: Any) -> Any:
        value = super().__getitem__(key)
        return _header(key, value) if isinstance(key, str) else value

    def joined(self) -> HeaderTexts:
        """The values by lower-case name, those of one name joined by commas (RFC 9110, 5.3)."""
        lines: dict[str, list[str]] = {}
        for name, value in self:
            lines.setdefault(name.lower(), []).append(value)
        return HeaderTexts((name, ",".join(values)) for name, values in lines.items())


class Parameters(ImmutableMultiDict[str, str]):
    """The parameters of a query; reading one, the first of its name, checks its bound."""

    def __getitem__(self, key: str) -> str:
        return _parameter(key, super().__getitem__(key))


class _Texts(dict[str, str]):
    """Texts by name; reading one by its name checks its bound. ``items()`` and ``values()`` do not,
    so that code that wants several texts iterates over the names, and reads each by its name."""

    _checked = staticmethod(_header)

    @overload  # type: ignore[override]  # a default is a text, too
    def get(self, key: str, default: None = None, /) -> str | None: ...
    @overload
    def get(self, key: str, default: str, /) -> str: ...
    def get(self, key: str, default: str | None = None, /) -> str | None:
        return self._checked(key, super().get(key, default))

    def __getitem__(self, key: str) -> str:
        return self._checked(key, super().__getitem__(key))


class HeaderTexts(_Texts):
    """Headers by lower-case name."""


class ParameterTexts(_Texts):
    """Parameters of a query. Of a repeated one the last value counts."""

    _checked = staticmethod(_parameter)
