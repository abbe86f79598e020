"""What the HTTP server decides about heads, checked against h11 and the rules of URLs."""

from __future__ import annotations

import json
import re
from urllib.parse import quote, unquote_to_bytes

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.http.heads import AnswerFraming, Refusal, error_answer, in_json, read_head

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def head_of(
    target: bytes, method: bytes = b"GET", version: bytes = b"1.1", host: bytes = b"a"
) -> h11.Request:
    return h11.Request(
        method=method, target=target, headers=[(b"Host", host)], http_version=version
    )


@given(TEXT, TEXT)
def test_a_quoted_path_is_handed_on_as_it_was(path: str, query: str) -> None:
    head = read_head(head_of(f"/{quote(path)}?q={quote(query, safe='')}".encode("ascii")))
    assert head.path == "/" + path


@given(st.lists(st.sampled_from([b"%", b"a", b"/", b"%2", b"%c3", b"%a9", b"%ff", b"?", b"%00"])))
def test_a_path_is_decoded_strictly_or_refused(parts: list[bytes]) -> None:
    target = b"/" + b"".join(parts)
    path = target.partition(b"?")[0]
    try:
        expected: str | None = unquote_to_bytes(path).decode("utf-8")
        unquote_to_bytes(target).decode("utf-8")
    except UnicodeDecodeError:
        expected = None
    if expected is None or re.search(rb"%(?![0-9a-f]{2})", target):
        with pytest.raises(Refusal, match=r"percent-encoded|two hex digits"):
            read_head(head_of(target))
    else:
        assert read_head(head_of(target)).path == expected


#: A host, and whether it is a ``uri-host [":" port]`` (RFC 9110, section 7.2).
HOSTS = [
    *((host, True) for host in ("", "a", "a:80", "a:", "127.0.0.1:8080", "a_b.example", "a.b.")),
    *((host, True) for host in ("[::1]", "[::1]:80", "[::ffff:127.0.0.1]", "%41", "a!$&'()*+,;=~")),
    *((host, False) for host in ("a b", "a b/@", "a/", "a@b", "u:p@a", "a?", "a#", "a\\b", "a,b/")),
    *((host, False) for host in ("a:x", "a:-1", "a:1:2", "a:123456", "::1", "[::1", "::1]", "[]")),
    *((host, False) for host in ("[::1%25eth0]", "[::1]a", "[:::]", "[g::]", "[a]", "[v1.a]")),
    *((host, False) for host in ("%", "%4", "%zz", "caf\xe9", "http://a", '"a"', "a|b", "a" * 256)),
]


@pytest.mark.parametrize(("host", "is_one"), HOSTS)
def test_a_host_is_one_or_the_request_is_refused(host: str, is_one: bool) -> None:
    """As header, and as part of a target in absolute form, where none must be empty."""
    raw = host.encode("latin-1")
    absolute = b"http://%b/path" % raw
    if is_one:
        read_head(head_of(b"/", host=raw))
    else:
        with pytest.raises(Refusal, match="Host") as refused:
            read_head(head_of(b"/", host=raw))
        assert refused.value.status == 400
    if host and is_one:
        # What the header says is ignored then (RFC 9112, section 3.2.2).
        assert read_head(head_of(absolute, host=b"other")).headers == [(b"host", raw)]
        assert read_head(head_of(absolute, host=raw)).path == "/path"
    elif re.fullmatch(rb"[^/?]*", raw) and re.fullmatch(rb"[!-~]*", raw):  # else h11 refuses it
        with pytest.raises(Refusal) as refused:
            read_head(head_of(absolute))
        assert refused.value.status == 400


@pytest.mark.parametrize(
    ("target", "method"),
    [
        *((target, b"GET") for target in (b"/#", b"/healthz#x", b"/a?b#c", b"http://a/#", b"*")),
        *(
            (target, b"POST")
            for target in (b"*", b"http://a#", b"http:///a", b"http://", b"ftp://a/")
        ),
    ],
)
def test_a_target_that_no_client_may_send(target: bytes, method: bytes) -> None:
    """Those with a fragment, of a URL without host, and "*" where the method is not OPTIONS."""
    with pytest.raises(Refusal) as refused:
        read_head(head_of(target, method))
    assert refused.value.status == 400


@given(
    st.lists(st.binary(max_size=40), max_size=5),
    st.booleans(),
    st.sampled_from([b"1.0", b"1.1"]),
    st.sampled_from([b"GET", b"HEAD"]),
    st.sampled_from([200, 204, 304, 404]),
)
def test_a_client_reads_back_what_was_framed(
    pieces: list[bytes], sized: bool, version: bytes, method: bytes, status: int
) -> None:
    request = head_of(b"/", method, version)
    server = h11.Connection(h11.SERVER)
    client = h11.Connection(h11.CLIENT)
    server.receive_data(b"%s / HTTP/%s\r\nHost: a\r\n\r\n" % (method, version))
    server.next_event()
    client.send(head_of(b"/", method))
    client.send(h11.EndOfMessage())
    whole = b"".join(pieces)
    headers = [(b"content-length", b"%d" % len(whole))] if sized else []

    framing = AnswerFraming.decide(read_head(request), status, headers)
    data = server.send(h11.Response(status_code=status, headers=headers))
    client.receive_data(data)
    framed = [framing.frame(memoryview(piece), last=False) for piece in pieces]
    framed.append(framing.frame(b"", last=True))
    for buffers in framed:
        if buffers:
            client.receive_data(b"".join(buffers))
    assert not framing.short
    if framing.close:
        client.receive_data(b"")

    response = client.next_event()
    assert isinstance(response, h11.Response)
    read = b""
    while isinstance(event := client.next_event(), h11.Data):
        read += event.data
    assert isinstance(event, h11.EndOfMessage)
    suppressed = method == b"HEAD" or status in (204, 304)
    assert read == (b"" if suppressed else whole)
    assert client.trailing_data[0] == b""


def test_more_than_the_length_is_refused_and_less_is_noticed() -> None:
    framing = AnswerFraming.decide(read_head(head_of(b"/")), 200, [(b"content-length", b"3")])
    framing.frame(b"ab", last=False)
    assert framing.short
    with pytest.raises(ValueError, match="Content-Length"):
        framing.frame(b"cd", last=True)


@given(st.sampled_from([400, 408, 431, 500, 501, 505]), TEXT)
def test_an_error_answer_is_http_with_json(status: int, message: str) -> None:
    client = h11.Connection(h11.CLIENT)
    client.send(head_of(b"/"))
    client.send(h11.EndOfMessage())
    client.receive_data(error_answer(status, in_json(Refusal(status, message))))
    response = client.next_event()
    assert isinstance(response, h11.Response)
    assert response.status_code == status
    assert (b"content-type", b"application/json") in list(response.headers)
    data = client.next_event()
    assert isinstance(data, h11.Data)
    assert json.loads(data.data) == {"error": message}
    assert isinstance(client.next_event(), h11.EndOfMessage)
