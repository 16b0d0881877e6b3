"""What tests of serving share: houses as clients send them, whole, spoilt, broken; what can be compared."""

import json
from collections.abc import Callable
from typing import Any

from fastapi.testclient import TestClient
from hypothesis import strategies as st

from housing_mlops.schema import load_dataset

BOSTON = load_dataset("boston")
HOUSE = BOSTON.example
BODY = json.dumps(HOUSE).encode()
JSON = {"Content-Type": "application/json"}

odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from([10**400, 1e308, -0.0, 5e-324, [], {}, [1], {"a": 1}]),
)
within = {
    f.name: st.floats(
        f.minimum if f.minimum is not None else -1e3, f.maximum if f.maximum is not None else 1e3
    ).map(round if f.type == "integer" else float)
    for f in BOSTON.used
}
house = st.fixed_dictionaries(within)
spoilt = st.tuples(house, st.dictionaries(st.sampled_from([*HOUSE, "POOL", ""]), odd, max_size=3))
text = st.builds(
    lambda value, indent, ascii_only: json.dumps(value, indent=indent, ensure_ascii=ascii_only),
    st.one_of(house, spoilt.map(lambda pair: {**pair[0], **pair[1]}), odd),
    st.sampled_from([None, 1, "\t"]),
    st.booleans(),
)


def broken(pair: tuple[str, int]) -> bytes:
    body, at = pair[0].encode("utf-8", "surrogatepass"), pair[1]
    return body[: at % (len(body) + 1)]


bodies = st.one_of(
    house.map(lambda h: json.dumps(h).encode()),
    text.map(lambda t: t.encode("utf-8", "surrogatepass")),
    st.tuples(text, st.integers(0, 400)).map(broken),
    st.binary(max_size=40),
    st.sampled_from([*HOUSE]).map(  # a key that stands twice
        lambda name: BODY[:-1] + b', "%b": 1}' % name.encode()
    ),
)


def comparable(answer: str | bytes) -> Any:
    """The payload of an answer without what no two answers share."""
    payload = json.loads(answer)
    for name in ("prediction_id", "latency_ms"):
        payload.pop(name, None)
    return payload


def connected(api: TestClient) -> Callable[[], bool]:
    """Whether the log of an application has reached its database."""
    return lambda: api.app.service.log.state.connected
