"""The codec: every message there and back, any split of any bytes, no trust."""

from __future__ import annotations

import contextlib
import re
import tracemalloc
import typing
from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from share import share

from gfs.errors import InvalidArgument, ProtocolError
from gfs.protocol import frames as coding
from gfs.protocol import messages
from gfs.protocol.attributes import check_attributes
from gfs.protocol.frames import (
    HEADER,
    HEADER_BYTES,
    FrameDecoder,
    decode_head,
    encode_frame,
    encode_head,
    split_header,
)
from gfs.protocol.messages import (
    ALL_MESSAGES,
    HEAD_BYTES_MAX,
    REPLIES,
    Message,
    Mutation,
    Packet,
    Part,
    Ping,
    Publish,
    ReadReply,
)

INTEGERS = st.integers(-(2**63), 2**64 - 1)
TEXTS = st.text(max_size=40)
SIMPLE: dict[Any, st.SearchStrategy[Any]] = {
    int: INTEGERS,
    str: TEXTS,
    bytes: st.binary(max_size=40),
    bool: st.booleans(),
    bool | None: st.none() | st.booleans(),
    float: st.floats(allow_nan=False),
}


def values(kind: Any) -> st.SearchStrategy[Any]:
    if typing.get_origin(kind) is list:
        (item,) = typing.get_args(kind)
        return st.lists(values(item), max_size=4)
    if typing.get_origin(kind) is dict:
        key, value = typing.get_args(kind)
        return st.dictionaries(values(key), values(value), max_size=4)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return structs(kind)
    return SIMPLE[kind]


def structs(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    return st.builds(kind, **{f.name: values(f.type) for f in msgspec.structs.fields(kind)})


def frames_of(kind: type[Message]) -> st.SearchStrategy[tuple[Message, bytes]]:
    body = st.binary(max_size=min(kind.BODY_BYTES_MAX, 3000))
    return st.tuples(structs(kind), body)


FRAMES = st.one_of([frames_of(kind) for kind in ALL_MESSAGES])
EVERY_MESSAGE = pytest.mark.parametrize("kind", ALL_MESSAGES, ids=lambda kind: kind.__name__)


def test_every_message_is_in_the_list() -> None:
    defined = {
        value
        for value in vars(messages).values()
        if isinstance(value, type)
        and issubclass(value, Message)
        and value not in (Message, Mutation)
    }
    assert defined == set(ALL_MESSAGES)
    assert set(REPLIES) < defined


#: What each version of the protocol added, by tags: requests, and replies that are sent to those
#: alone who have sent such a request (129 and 131).
VERSIONS = {1: {68, 129, 131, 133}, 2: {108, 109, 112, 128, 130, 132, 134, 170, 171}}
for first, end in (
    *((1, 6), (10, 24), (30, 38), (40, 43), (45, 49), (60, 65), (70, 77), (80, 108)),
    *((110, 112), (120, 128), (140, 142), (160, 162)),
):
    VERSIONS[1].update(range(first, end))


def test_a_message_that_is_added_belongs_to_a_new_version() -> None:
    """For a version that was released never changes: its processes know no more than it has."""
    found: dict[int, list[Any]] = {}
    for kind in ALL_MESSAGES:
        found.setdefault(kind.SINCE, []).append(kind.__struct_config__.tag)
    assert {version: sorted(tags) for version, tags in found.items()} == {
        version: sorted(tags) for version, tags in VERSIONS.items()
    }
    assert max(VERSIONS) == messages.PROTOCOL_NEWEST


@EVERY_MESSAGE
def test_an_id_comes_first_and_defaults_come_last(kind: type[Message]) -> None:
    """So that a field can be appended without breaking an older peer."""
    fields = msgspec.structs.fields(kind)
    assert fields[0].name == "id"
    optional = [not field.required for field in fields]
    assert optional == sorted(optional)
    assert 0 <= kind.BODY_BYTES_MAX <= 64 << 20


def test_names_say_their_unit() -> None:
    """A duration or time on the wire is an integer whose name ends in its unit."""
    for kind in ALL_MESSAGES:
        for field in msgspec.structs.fields(kind):
            assert not re.search(r"_(s|sec|seconds|time)$", field.name), (kind, field.name)


@EVERY_MESSAGE
@given(data=st.data())
@settings(max_examples=15)
def test_every_message_survives_the_wire(kind: type[Message], data: st.DataObject) -> None:
    message, body = data.draw(frames_of(kind))
    frame = encode_frame(message, body)
    assert FrameDecoder().feed(frame) == [(message, body)]
    head_bytes, body_bytes = split_header(frame)
    assert body_bytes == len(body)
    assert decode_head(frame[HEADER_BYTES : HEADER_BYTES + head_bytes], body_bytes) == message
    assert encode_head(message, len(body)) + body == frame


@EVERY_MESSAGE
@given(data=st.data())
@settings(max_examples=5)
def test_a_newer_peer_may_send_more_fields(kind: type[Message], data: st.DataObject) -> None:
    message, _ = data.draw(frames_of(kind))
    head = msgspec.msgpack.decode(msgspec.msgpack.encode(message))
    assert decode_head(msgspec.msgpack.encode([*head, "a field of the future"]), 0) == message


@given(st.lists(FRAMES, max_size=6), st.data())
@settings(max_examples=share(200))
def test_frames_come_out_whole_however_the_bytes_arrive(
    frames: list[tuple[Message, bytes]], data: st.DataObject
) -> None:
    ends = list(accumulate(len(encode_frame(*frame)) for frame in frames))
    stream = b"".join(encode_frame(*frame) for frame in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    decoder = FrameDecoder()
    found: list[tuple[Message, bytes]] = []
    for start, end in pairwise([0, *cuts, len(stream)]):
        found += decoder.feed(memoryview(stream)[start:end])
        assert len(found) == sum(each <= end for each in ends)
    assert found == frames


def test_what_came_out_does_not_change_with_what_comes_in() -> None:
    decoder = FrameDecoder()
    packet = Packet(id=2, offset=0, last=True, sums=b"sums")
    buffer = bytearray(encode_frame(packet, b"body"))
    found = decoder.feed(buffer)
    buffer[:] = bytes(len(buffer))
    decoder.feed(encode_frame(Ping(id=9)))
    assert found == [(packet, b"body")]


def test_a_large_body_in_small_pieces_costs_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 MiB by the kilobyte, behind a head of 60 KiB: looked at when there is something to see."""
    publish = Publish(
        id=1, client="c", sequence=1, path="/f", length=1, replication=3,
        replace=False, parents=False, servers=["x" * 60] * 900,
    )  # fmt: skip
    body = bytes(16 << 20)
    frame = memoryview(encode_frame(publish, body))
    decoder = FrameDecoder()
    found: list[tuple[Message, bytes]] = []
    looks: list[str] = []

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: [looks.append(function.__name__), function(*args)][1]

    for function in (split_header, decode_head):
        monkeypatch.setattr(coding, function.__name__, noted(function))
    for at in range(0, len(frame), 1024):
        found += decoder.feed(frame[at : at + 1024])
    assert looks == ["split_header", "split_header", "decode_head"]
    assert found == [(publish, body)]


def test_an_older_client_s_publish_asks_for_nothing_new() -> None:
    old = [36, 1, "client", 2, "/path", 3, 3, True, True, ["server"]]
    message = decode_head(msgspec.msgpack.encode(old), 0)
    reported = (message.digest, message.attributes, message.expect, message.below)
    assert reported == (b"", {}, -1, "")


@pytest.mark.parametrize(
    ("attributes", "rule"),
    [
        ({}, None),
        ({"a": ""}, None),
        ({"a-z_0.9": "ä"}, None),
        ({"n" * 64: "v" * 960}, None),
        ({"n" * 64: "v" * 961}, "1025 bytes"),
        ({"n" * 2: "ä" * 512}, "1026 bytes"),
        ({f"n{n}": "v" for n in range(16)}, None),
        ({f"n{n}": "v" for n in range(17)}, "17 attributes"),
        ({"": "v"}, "named ''"),
        ({"n" * 65: "v"}, "named"),
        ({"N": "v"}, "named 'N'"),
        ({"n\n": "v"}, "named"),
        ({"a b": "v"}, "named 'a b'"),
        ({"a": 5}, "must be text"),
        ({5: "a"}, "named 5"),
        ({"a": "\ud800"}, "not valid UTF-8"),
    ],
)
def test_attributes_are_few_and_short(attributes: dict[str, str], rule: str | None) -> None:
    if rule is None:
        check_attributes(attributes)
    else:
        with pytest.raises(InvalidArgument, match=re.escape(rule)):
            check_attributes(attributes)


@given(st.binary(max_size=200), st.data())
@settings(max_examples=share(500))
def test_random_bytes_are_refused_or_incomplete(data: bytes, draw: st.DataObject) -> None:
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=4)))
    decoder = FrameDecoder()
    with contextlib.suppress(ProtocolError):
        for start, end in pairwise([0, *cuts, len(data)]):
            decoder.feed(data[start:end])


@given(st.binary(min_size=1, max_size=200), st.integers(0, 100))
@settings(max_examples=share(500))
def test_a_random_head_is_refused_or_a_message(head: bytes, body_bytes: int) -> None:
    try:
        message = decode_head(head, body_bytes)
    except ProtocolError:
        return
    assert isinstance(message, ALL_MESSAGES)


JSON = st.recursive(
    st.none() | st.booleans() | INTEGERS | st.floats() | TEXTS | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=3),
)


@given(st.integers(0, 90), st.lists(JSON, max_size=8))
@settings(max_examples=share(500))
def test_a_well_formed_head_of_wrong_values_is_refused(tag: int, fields: list[Any]) -> None:
    try:
        message = decode_head(msgspec.msgpack.encode([tag, *fields]), 0)
    except ProtocolError:
        return
    for field in msgspec.structs.fields(type(message)):
        check_type(getattr(message, field.name), field.type)


def check_type(value: Any, kind: Any) -> None:
    if typing.get_origin(kind) is list:
        assert type(value) is list
        for item in value:
            check_type(item, typing.get_args(kind)[0])
    elif typing.get_origin(kind) is dict:
        assert type(value) is dict
        for pair in value.items():
            for item, its_kind in zip(pair, typing.get_args(kind), strict=True):
                check_type(item, its_kind)
    else:
        assert type(value) is kind
        if isinstance(value, Part):
            for field in msgspec.structs.fields(type(value)):
                check_type(getattr(value, field.name), field.type)


@given(FRAMES, st.data())
@settings(max_examples=share(300))
def test_a_flipped_bit_is_a_message_or_refused(
    frame: tuple[Message, bytes], data: st.DataObject
) -> None:
    encoded = bytearray(encode_frame(*frame))
    bit = data.draw(st.integers(0, 8 * len(encoded) - 1))
    encoded[bit // 8] ^= 1 << (bit % 8)
    with contextlib.suppress(ProtocolError):
        for message, body in FrameDecoder().feed(encoded):
            assert len(body) <= message.BODY_BYTES_MAX


@pytest.mark.parametrize("head_bytes", [0, HEAD_BYTES_MAX + 1, 2**32 - 1])
def test_a_head_of_a_wrong_size_is_refused_at_its_header(head_bytes: int) -> None:
    with pytest.raises(ProtocolError, match=f"head of {head_bytes} bytes"):
        FrameDecoder().feed(HEADER.pack(head_bytes, 0))
    with pytest.raises(ProtocolError):
        split_header(HEADER.pack(head_bytes, 0))


@EVERY_MESSAGE
@given(data=st.data())
@settings(max_examples=3)
def test_a_body_above_the_messages_limit_is_refused_with_its_head(
    kind: type[Message], data: st.DataObject
) -> None:
    """Before a byte of the body came, so before anything could be kept for it."""
    message = data.draw(structs(kind))
    decoder = FrameDecoder()
    assert decoder.feed(encode_head(message, kind.BODY_BYTES_MAX)) == (
        [] if kind.BODY_BYTES_MAX else [(message, b"")]
    )
    for size in (kind.BODY_BYTES_MAX + 1, 2**32 - 1):
        with pytest.raises(ProtocolError, match=f"{kind.__name__} with a body of {size} bytes"):
            FrameDecoder().feed(encode_head(message, size))


def test_nothing_is_allocated_for_a_body_that_is_only_announced() -> None:
    decoder = FrameDecoder()
    head = encode_head(ReadReply(id=1, offset=0, length=0, whole=True, sums=b""), 64 << 20)
    tracemalloc.start()
    try:
        assert decoder.feed(head) == []
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(ProtocolError):
        decode_head(b"\x91" * 60_000, 0)
