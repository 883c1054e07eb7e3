"""A saved model as a server uses it: raw readings in, whatever is missing; exported, the same with torch alone."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from tsjt_pyg.data import StandardScaler, SupportProfile
from tsjt_pyg.nn.export import ABOUT
from tsjt_pyg.training import ModelConfig, SavedModel, forecast_windows
from tsjt_pyg.training.city_forecaster import CityForecaster

HISTORY, HORIZON = 6, 3


def saved_of(visible, **settings):
    """As if trained: every parameter matters."""
    torch.manual_seed(0)
    model = ModelConfig(**{"hidden_channels": 4, "history": HISTORY, "horizon": HORIZON, **settings}).build().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return SavedModel(
        model=model,
        scaler=StandardScaler().fit(visible.readings, visible.mask),
        city_name=visible.name,
        node_ids=list(visible.node_ids),
        unit=visible.units[0],
        channel=visible.channels[0],
        interval=visible.interval,
        edge_index=visible.edge_index,
        edge_weight=visible.edge_weight,
        support=SupportProfile(visible) if model.profile else None,
    )


def table_of(city, first=0, steps=HISTORY):
    values = city.readings[..., 0].masked_fill(~city.mask[..., 0], torch.nan).numpy()
    return pd.DataFrame(values, index=city.time, columns=city.node_ids).iloc[first : first + steps]


@pytest.fixture(scope="module")
def split(commuters):
    return commuters(days=8, missing=0.1).few_shot(3)


@pytest.mark.parametrize("settings", [{"cell": "TGCN"}, {"cell": "GRU", "profile": False, "num_prompts": 3}])
def test_it_forecasts_what_its_windows_would(split, settings):
    saved = saved_of(split.visible, **settings)
    windows = split.test.windows(HISTORY, HORIZON)
    found = forecast_windows(saved.model, windows, saved.scaler, support=saved.support)
    expected = torch.cat([forecast for _, forecast in found])
    for number in (0, 17, 20, 40, 88):  # over midnight, and a weekend
        table = saved.forecast(table_of(split.test, number))
        np.testing.assert_allclose(table.to_numpy(), expected[number, :, :, 0].numpy(), rtol=1e-5)


def test_columns_may_stand_in_any_order_and_be_of_any_type(split):
    saved = saved_of(split.visible, cell="GConvGRU")
    table = table_of(split.test)
    expected = saved.forecast(table)
    turned = saved.forecast(table.iloc[:, [3, 1, 5, 0, 2, 4]].astype(object))
    assert list(turned.columns) == [split.test.node_ids[number] for number in (3, 1, 5, 0, 2, 4)]
    pd.testing.assert_frame_equal(turned[expected.columns], expected, check_column_type=False)


@pytest.mark.parametrize("profile", [True, False])
@pytest.mark.parametrize("cell", ["GConvGRU", "MSTGCN"])
def test_dead_sensors_leave_a_finite_forecast(split, cell, profile):
    saved = saved_of(split.visible, cell=cell, profile=profile)
    table = table_of(split.test)
    table.iloc[:, :4] = np.nan
    assert np.isfinite(saved.forecast(table)).all(axis=None)
    table.iloc[1:] = np.nan
    assert np.isfinite(saved.forecast(table)).all(axis=None)
    nothing = torch.full((2, HISTORY, split.test.num_nodes), torch.nan)
    with torch.no_grad():
        assert torch.isfinite(saved.city_forecaster(nothing, torch.tensor([0, 86_400]))).all()


def test_readings_between_the_visible_days_times_see_the_nearest_profile(split):
    saved = saved_of(split.visible, cell="GRU")
    table = table_of(split.test, 7)
    forecaster, readings = saved.city_forecaster, torch.tensor(table.to_numpy())[None]
    last = int((table.index[-1] - pd.Timestamp(0)).total_seconds())
    shifts = [-1800, -1799, -600, 0, 600, 1799, 1800]
    firsts = [int(forecaster._steps_of_support(torch.tensor([last + shift]))) for shift in shifts]
    assert [step - firsts[3] for step in firsts] == [0, 0, 0, 0, 0, 0, 1]
    table.index = table.index + pd.Timedelta("10min")
    found = saved.forecast(table)
    assert list(found.index) == list(pd.date_range(table.index[-1], periods=4, freq="60min")[1:])
    with torch.no_grad():
        expected = forecaster(readings, torch.tensor([last + 600]))[0]
    np.testing.assert_allclose(found.to_numpy(), expected.numpy())


def test_a_profile_of_visible_days_that_begin_at_an_odd_time(commuters):
    city = commuters(days=8)
    city = city.between(7, city.num_steps)
    visible, test = city.few_shot(3)
    saved = saved_of(visible, cell="GRU")
    windows = test.windows(HISTORY, HORIZON)
    expected = saved.support.at(windows, torch.tensor([5]))
    seconds = int((test.time[5] - pd.Timestamp(0)).total_seconds())
    first = saved.city_forecaster._steps_of_support(torch.tensor([seconds]))
    found = saved.support.after(first, HISTORY + HORIZON)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: pd.concat([t, t.iloc[:, 2:3]], axis=1), r"readings: node '2' has 2 columns, expected one"),
        (lambda t: t.replace(t.iloc[4, 1], np.inf), r"found inf at 2024-03-07 04:00:00, node '1'"),
        (lambda t: t.drop(columns=["1", "2"]), r"no column for node '1' \(2 of 6 absent\)"),
        (lambda t: t.assign(a=1, b=2), r"column 'a' is no node of target \(2 unknown columns\)"),
    ],
)
def test_what_does_not_fit_is_named(split, spoil, message):
    with pytest.raises(ValueError, match=message):
        saved_of(split.visible, cell="GRU").forecast(spoil(table_of(split.test)))


def test_an_interval_of_parts_of_a_second_is_refused(split):
    saved = saved_of(split.visible, cell="GRU")
    with pytest.raises(ValueError, match=r"interval: expected a whole number of seconds, found 0 days 00:00:00\.5"):
        CityForecaster(saved.model, saved.scaler, saved.edge_index, saved.edge_weight, pd.Timedelta("500ms"))


# --- exported

ALONE = """
import datetime, json, sys
for name in ("tsjt_pyg", "torch_geometric", "torch_geometric_temporal", "pandas"):
    sys.modules[name] = None  # importing it fails
import torch
files = {"about.json": ""}
program = torch.export.load(sys.argv[1], extra_files=files).module()
about = json.loads(files["about.json"])
table = json.load(open(sys.argv[2]))
readings = [[row[node] for node in about["node_ids"]] for row in table["rows"][-about["history"]:]]
last = datetime.datetime.fromisoformat(table["last"])
seconds = int((last - datetime.datetime(1970, 1, 1)).total_seconds())
forecast = program(readings=torch.tensor([readings], dtype=torch.float32), time=torch.tensor([seconds]))
print(json.dumps(forecast[0].tolist()))
"""


def check_exported(saved, test, path):
    program = torch.export.load(path).module()
    for numbers in ([4], [0, 17, 40, 88, 60]):
        tables = [table_of(test, number) for number in numbers]
        readings = torch.from_numpy(np.stack([table.to_numpy() for table in tables]))
        time = torch.tensor([int((table.index[-1] - pd.Timestamp(0)).total_seconds()) for table in tables])
        expected = np.stack([saved.forecast(table).to_numpy() for table in tables])
        found = program(readings=readings, time=time).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * float(saved.scaler.std))
    assert torch.isfinite(program(readings=torch.full_like(readings, torch.nan), time=time)).all()


def test_an_exported_model_is_served_with_torch_alone(split, tmp_path):
    saved = saved_of(split.visible, cell="GConvGRU")
    saved.export(tmp_path / "model.pt2")
    check_exported(saved, split.test, tmp_path / "model.pt2")
    files = {ABOUT: ""}
    torch.export.load(tmp_path / "model.pt2", extra_files=files)
    about = json.loads(files[ABOUT])
    assert (about["city"], about["channel"], about["unit"]) == ("target", "speed", "km/h")
    assert (about["interval_seconds"], about["history"], about["horizon"]) == (3600, HISTORY, HORIZON)
    assert about["inputs"]["readings"]["shape"] == ["windows", HISTORY, 6]
    table = table_of(split.test, 3)
    content = {"rows": table.astype(float).to_dict("records"), "last": str(table.index[-1])}
    (tmp_path / "rows.json").write_text(json.dumps(content), encoding="utf-8")
    command = [sys.executable, "-c", ALONE, tmp_path / "model.pt2", tmp_path / "rows.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(json.loads(done.stdout), saved.forecast(table).to_numpy(), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["DCRNN", "MSTGCN", "GraphWaveNet", "LRGCN"])
@pytest.mark.parametrize("profile", [True, False])
def test_cells_of_every_kind_are_exported_for_a_city(split, tmp_path, cell, profile):
    saved = saved_of(split.visible, cell=cell, profile=profile)
    saved.export(tmp_path / "model.pt2")
    check_exported(saved, split.test, tmp_path / "model.pt2")
