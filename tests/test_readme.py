"""What README.md shows is what the system answers."""

import json
import re

import pytest
from processes import ROOT

from housing_mlops.data.table import Table
from housing_mlops.preprocessing.pipeline import model_input
from housing_mlops.serving.answers import Prediction
from housing_mlops.training.candidates import candidates, voting

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.train
def test_the_answer_shown_is_the_answer_given(table: Table) -> None:
    [body] = re.findall(r"-d '(\{.*\})'", README)
    [shown] = re.findall(r"```json\n(.*?)```", README, re.S)
    answer = Prediction.model_validate_json(shown)
    dataset = table.dataset
    house = dataset.request_model.model_validate_json(body)
    assert json.loads(body) == dataset.example
    X = model_input(dataset, table.features)
    pair = candidates(["GaussianProcess", "GradientBoosting"])
    vote = voting(dataset, pair, seed=42).fit(X, table.prices.to_numpy())
    [price] = vote.predict(X.head(1))
    assert list(house.__dict__.values()) == X.iloc[0].tolist()
    assert abs(answer.prediction - price) < 0.05
