"""Small files that a browser can show and play, made here from nothing."""

from __future__ import annotations

import io
import struct
import wave
from collections.abc import Sequence

#: A picture of noise with a stripe of one color, as a browser's encoder for WebP makes it:
#: inside is a key frame of VP8. ``%s`` is the color.
PICTURE = """
(() => {
    const canvas = new OffscreenCanvas(640, 480);
    const context = canvas.getContext("2d", { alpha: false });
    const noise = context.createImageData(640, 480);
    const words = new Uint32Array(noise.data.buffer);
    for (let at = 0; at < words.length; at += 1) words[at] = Math.random() * 2 ** 32;
    context.putImageData(noise, 0, 0);
    context.fillStyle = "%s";
    context.fillRect(0, 0, 640, 100);
    return canvas.convertToBlob({ type: "image/webp", quality: 0.95 }).then((blob) =>
        new Promise((done) => {
            const reader = new FileReader();
            reader.onload = () => done(reader.result.split(",")[1]);
            reader.readAsDataURL(blob);
        }));
})()
"""
WIDTH, HEIGHT = 640, 480


def sound(seconds: int) -> bytes:
    """PCM as WAV, 176,400 bytes a second."""
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(44_100)
        second = b"".join(bytes([0, at % 64, 0, at % 64]) for at in range(44_100))
        file.writeframes(second * seconds)
    return made.getvalue()


def document(text: str) -> bytes:
    """A PDF of one page (ISO 32000-1, 7.5)."""
    content = f"BT /F 24 Tf 72 720 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R"
        b" /Resources << /Font << /F 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    made, places = bytearray(b"%PDF-1.4\n"), []
    for number, each in enumerate(objects, 1):
        places.append(len(made))
        made += b"%d 0 obj\n%s\nendobj\n" % (number, each)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    tail = b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<< /Size %d /Root 1 0 R >>\n"
    return bytes(made) + tail % (size, table, size) + b"startxref\n%d\n%%%%EOF\n" % len(made)


def key_frame(picture: bytes) -> bytes:
    """The frame of VP8 in a WebP: one of its chunks (RFC 9649, 2.3)."""
    at = 12
    while True:
        kind, size = struct.unpack_from("<4sI", picture, at)
        if kind == b"VP8 ":
            return picture[at + 8 : at + 8 + size]
        at += 8 + size + size % 2


def film(frames: Sequence[bytes]) -> bytes:
    """WebM (RFC 9559) of key frames, each shown for a second, with an index of all."""
    info = _element(
        0x1549A966,
        _element(0x2AD7B1, (10**6).to_bytes(4)),  # a tick is a millisecond
        _element(0x4489, _float(1000.0 * len(frames))),
        _element(0x4D80, b"tests"),
        _element(0x5741, b"tests"),
    )
    video = _element(0xE0, _element(0xB0, WIDTH.to_bytes(2)), _element(0xBA, HEIGHT.to_bytes(2)))
    numbers = [_element(number, b"\1") for number in (0xD7, 0x73C5, 0x83)]
    track = _element(0xAE, *numbers, _element(0x86, b"V_VP8"), video)
    tracks = _element(0x1654AE6B, track)
    clusters = [
        _element(0x1F43B675, _element(0xE7, _at(second)), _element(0xA3, b"\x81\0\0\x80" + frame))
        for second, frame in enumerate(frames)
    ]
    place = len(info) + len(tracks) + len(_cues([0] * len(frames)))
    places = []
    for cluster in clusters:
        places.append(place)
        place += len(cluster)
    head = _element(
        0x1A45DFA3,
        *(_element(number, value) for number, value in (
            (0x4286, b"\1"), (0x42F7, b"\1"), (0x42F2, b"\4"), (0x42F3, b"\x08"),
            (0x4282, b"webm"), (0x4287, b"\4"), (0x4285, b"\2"),
        )),
    )  # fmt: skip
    return head + _element(0x18538067, info, tracks, _cues(places), *clusters)


def _cues(places: Sequence[int]) -> bytes:
    points = [
        _element(
            0xBB,
            _element(0xB3, _at(second)),
            _element(0xB7, _element(0xF7, b"\1"), _element(0xF1, place.to_bytes(8))),
        )
        for second, place in enumerate(places)
    ]
    return _element(0x1C53BB6B, *points)


def _at(second: int) -> bytes:
    return (1000 * second).to_bytes(4)


def _float(value: float) -> bytes:
    return struct.pack(">d", value)


def _element(number: int, *content: bytes) -> bytes:
    data = b"".join(content)
    size = (len(data) | 1 << 56).to_bytes(8)
    return number.to_bytes((number.bit_length() + 7) // 8) + size + data
