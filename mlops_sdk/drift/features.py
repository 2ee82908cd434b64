"""What is counted of a prompt: simple numbers that tell kinds of text apart and give no text away.

Runs inside the serving process: the standard library only, no state. Pure.
"""

from __future__ import annotations

VERSION = 1
READ_BYTES = 16_384

_UPPER = bytes(range(ord("A"), ord("Z") + 1))
_DIGITS = bytes(range(ord("0"), ord("9") + 1))
_SHARES: tuple[tuple[str, bytes], ...] = (
    ("blanks", b" \t"),
    ("upper_case", _UPPER),
    ("digits", _DIGITS),
    ("beyond_ascii", bytes(range(0x80, 0x100))),
    ("braces", b"{}"),
    ("brackets", b"()[]"),
    ("angle_brackets", b"<>"),
    ("semicolons", b";"),
    ("colons", b":"),
    ("commas_and_dots", b",."),
    ("underscores", b"_"),
    ("quotes", b"\"'`"),
    ("hashes", b"#"),
    ("slashes", b"/\\"),
    ("stars", b"*"),
    ("operators", b"=+-&|!^~%@?"),
)

NAMES: tuple[str, ...] = ("length", "line_length", "indented_lines", *(name for name, _ in _SHARES))
WORDS: dict[str, str] = {
    "length": "length of the prompt",
    "line_length": "mean length of a line",
    "indented_lines": "share of indented lines",
    **{name: f"share of {name.replace('_', ' ')}" for name, _ in _SHARES},
}


def features(text: str) -> tuple[float, ...]:
    r"""The features of one prompt, in the order of `NAMES`.

    Length is in characters; everything else is measured on the first `READ_BYTES` characters, so that the cost has a
    bound. Shares are of UTF-8 bytes (lone surrogates, which JSON can carry, count as the three bytes they would be) or
    of lines, between 0 and 1. Deterministic; any string will do, the empty one gives zeros.

    Example:
        >>> features("if x:\n  y()")[:3]
        (11.0, 5.5, 0.5)
    """
    if not text:
        return (0.0,) * len(NAMES)
    data = text[:READ_BYTES].encode("utf-8", "surrogatepass")
    size = len(data)
    lines = data.count(b"\n") + 1
    indented = data.count(b"\n ") + data.count(b"\n\t") + data.startswith((b" ", b"\t"))
    shares = [(size - len(data.translate(None, wanted))) / size for _, wanted in _SHARES]
    return (float(len(text)), size / lines, indented / lines, *shares)
