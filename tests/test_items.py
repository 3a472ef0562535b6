"""What a pipeline file lists for a stage or an item: the parameters whose values its result follows from."""

from __future__ import annotations

from pathlib import Path

import pytest
from pipeline_clone import REPOSITORY
from table_measurements import TABLE

from pipelines.runner.items import Item, listed_values
from pipelines.runner.params import ParameterError, read_params
from pipelines.tables.item import read_item
from pipelines.tables.table import data_of

CHANGES = f"{TABLE.data}:CHANGES.dense"


def listing(*params: object) -> Item:
    return Item(Path("dvc.yaml"), "train", {}, "train", (), (), params)


def test_values_are_those_of_parameters_and_of_python_literals() -> None:
    params = {"seed": 3, "train": {"steps": [5, 7]}, "other": 1}
    item = listing("seed", "train.steps[1]", {str(TABLE.data): ["CHANGES.dense", "SAMPLERS.rows"]})
    assert listed_values(item, params) == {
        "seed": 3,
        "train.steps[1]": 7,
        CHANGES: {"image_features": "dense"},
        f"{TABLE.data}:SAMPLERS.rows": {"method": "rows"},
    }
    for missing, message in (
        ("train.size", "params.yaml: train.size is missing: `make profile"),
        ({str(TABLE.data): ["CHANGES.none"]}, f"{TABLE.data}: CHANGES.none is missing$"),
    ):
        with pytest.raises(ParameterError, match=message):
            listed_values(listing(missing), params)


def test_an_item_follows_from_what_its_row_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a row that changes something else does not go on from the old row's training."""
    monkeypatch.chdir(REPOSITORY)
    params = read_params()

    def followed() -> object:
        return read_item("token", TABLE, {"row": "dense", "seed": "0"}, params).stage.params[CHANGES]

    assert followed() == {"image_features": "dense"}
    monkeypatch.setitem(data_of(TABLE.name).CHANGES, "dense", {"image_features": "discrete"})
    assert followed() == {"image_features": "discrete"}
