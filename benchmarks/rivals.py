"""The servers that the API is compared with: nothing at all, FastAPI alone, and the usual way."""

import os
from typing import Any


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """(e) Read the body, answer a constant: what uvicorn and a Python coroutine cost."""
    assert scope["type"] == "http"
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"application/json"), (b"content-length", b"19")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b'{"prediction":24.0}'})


def framework() -> Any:
    """(f) A FastAPI route that validates the same house and answers a constant model."""
    from fastapi import FastAPI
    from pydantic import BaseModel

    from housing_mlops.schema import load_dataset

    House: Any = load_dataset("boston").request_model

    class Price(BaseModel):
        prediction: float

    app = FastAPI()

    @app.post("/predict")
    async def predict(house: House) -> Price:
        return Price(prediction=24.0)

    return app


def naive() -> Any:
    """(a) The usual way: a forest of 200 trees from joblib, a DataFrame a request, a sync route."""
    import joblib
    import pandas as pd
    from fastapi import FastAPI
    from pydantic import create_model

    model = joblib.load(os.environ["NAIVE_MODEL"])
    columns = os.environ["NAIVE_COLUMNS"].split(",")
    House: Any = create_model("House", **{c: (float | None, ...) for c in columns})
    app = FastAPI()

    @app.post("/predict")
    def predict(house: House) -> dict[str, float]:
        frame = pd.DataFrame([house.model_dump()])
        return {"prediction": float(model.predict(frame.to_numpy(dtype=float))[0])}

    return app
