"""Strategies: bytes that were meddled with, JSON of every kind, names that nobody should choose."""

import json
import math

from hypothesis import strategies as st

NUMBERS = st.one_of(
    st.integers(-3, 70),
    st.sampled_from([2**31, 2**40, 2**63, 2**64, -(2**63), 10**30]),
    st.sampled_from([0.5, -0.0, 1e308, math.nan, math.inf, -math.inf]),
)
NAMES = st.one_of(
    st.sampled_from(
        [
            *(
                "",
                ".",
                "..",
                "../../x",
                "/etc/passwd",
                "a/../../b",
                "..\\x",
                "C:\\x",
                "~",
                "a\0b",
                "a" * 300,
                "{}",
                "{task}",
            ),
            *("<script>alert(1)</script>", "\"onload='x'", "&amp;", "]]>", "</script>", "{{7*7}}", "{% raw %}", "%s%n"),
            *(
                "\u202eevil",
                "é",
                "e\u0301",
                "\ud800",
                "\x1b[31m",
                "line\nbreak",
                "tab\t",
                "日本",
                "__class__",
                "$(id)",
                "`id`",
            ),
        ]
    ),
    st.text(max_size=12),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, NAMES),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(NAMES, inner, max_size=4)),
    max_leaves=8,
)
DEEP = st.integers(100, 200_000).map(lambda depth: b"[" * depth)


def encoded(value):
    """JSON as bytes, whatever the texts hold."""
    return json.dumps(value).encode("utf-8", "surrogatepass")


@st.composite
def meddled(draw, whole):
    """Bytes of a good file with some cut off, changed, put in or twice."""
    content = bytearray(draw(whole) if isinstance(whole, st.SearchStrategy) else whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        kind = draw(st.sampled_from(["set", "set", "set", "cut", "drop", "put", "twice"]))
        if kind == "set" and at < len(content):
            content[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del content[at:]
        elif kind == "drop":
            del content[at : at + draw(st.integers(1, 9))]
        elif kind == "put":
            content[at:at] = draw(st.binary(max_size=9))
        else:
            content[at:at] = content[at : at + draw(st.integers(1, 64))]
    return bytes(content)


@st.composite
def changed(draw, value):
    """A JSON object with some of its fields, at any depth, taken away, replaced or added to."""
    copy = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        place = copy
        while True:
            inner = [
                v for v in (place.values() if isinstance(place, dict) else place) if isinstance(v, dict | list) and v
            ]
            if not inner or draw(st.booleans()):
                break
            place = draw(st.sampled_from(inner))
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if isinstance(place, dict) and draw(st.integers(0, 5)) == 0:
            place[draw(NAMES)] = draw(JSON)
        elif keys:
            key = draw(st.sampled_from(keys))
            if draw(st.integers(0, 3)) == 0:
                del place[key]
            else:
                place[key] = draw(st.one_of(NUMBERS, JSON))
    return copy
