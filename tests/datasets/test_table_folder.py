"""A folder of one's own tables is a city."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from tsjt_pyg import City
from tsjt_pyg.cli import app
from tsjt_pyg.datasets import default_sources, load_city
from tsjt_pyg.datasets.tables import read_folder
from tsjt_pyg.training import ModelConfig, fit, forecast_windows


@pytest.fixture(scope="module")
def demo() -> City:
    return load_city("demo/riverton").between(0, 4 * 288)


def tables_of(city: City) -> dict[str, pd.DataFrame]:
    """What a user would have: a long table of readings, sensors, edges."""
    step, node = (grid.ravel() for grid in torch.meshgrid(*map(torch.arange, city.readings.shape[:2]), indexing="ij"))
    ids = pd.Series(city.node_ids)
    values = pd.DataFrame(city.readings.flatten(0, 1).numpy(), columns=city.channels)
    observed = city.mask.flatten(0, 1).numpy()
    values = values.where(observed).assign(timestamp=city.time[step.numpy()], sensor_id=ids[node.numpy()].to_numpy())
    return {
        "readings": values[observed.any(axis=1)],
        "sensors": pd.DataFrame(city.pos.numpy(), columns=["latitude", "longitude"]).assign(station=ids),
        "edges": pd.DataFrame(ids.to_numpy()[city.edge_index.T.numpy()], columns=["from", "to"]).assign(
            weight=city.edge_weight.numpy()
        ),
    }


@pytest.fixture
def folder(demo, tmp_path):
    path = tmp_path / "Uptown"
    path.mkdir()
    for name, table in tables_of(demo.between(0, 100)).items():
        table.sample(frac=1, random_state=0).to_csv(path / f"{name}.csv", index=False)
    return path


def test_tables_of_a_demo_city_are_the_city_again(demo, folder):
    (folder / "city.json").write_text(json.dumps({"units": list(demo.units)}))
    part = demo.between(0, 100)
    city, report = read_folder(folder)
    assert (city.name, city.channels, city.units) == ("Uptown", demo.channels, demo.units)
    assert (city.start, city.interval, city.num_steps) == (part.start, part.interval, 100)
    order = [city.node_ids.index(node) for node in part.node_ids]
    assert torch.equal(city.readings[:, order], part.readings)
    assert torch.equal(city.mask[:, order], part.mask)
    assert torch.equal(city.pos[order], part.pos)
    ends = torch.tensor(order)[part.edge_index]
    assert sorted(zip(*ends.tolist(), part.edge_weight.tolist(), strict=True)) == sorted(
        zip(*city.edge_index.tolist(), city.edge_weight.tolist(), strict=True)
    )
    assert not report.dropped
    again = load_city(str(folder))
    assert again.fingerprint() == city.fingerprint()


def test_own_tables_in_forecast_out(demo, tmp_path):
    """The same forecasts as of the city that the tables are of."""
    tables = tables_of(demo.select("speed"))
    tables["readings"].to_parquet(tmp_path / "readings.parquet")
    tables["sensors"].to_csv(tmp_path / "sensors.csv")
    tables["edges"].to_csv(tmp_path / "edges.csv")
    found = []
    for city in (load_city(tmp_path), demo.select("speed")):
        visible, test = city.few_shot(days=2)
        torch.manual_seed(0)
        model = ModelConfig(cell="GConvGRU", hidden_channels=4).build()
        result = fit(model, visible, [], strategy="target_only", steps=3, batch_size=8, seed=0)
        batch, forecast = next(forecast_windows(result.model, test.windows(12, 12), result.scaler))
        assert forecast.isfinite().all()
        assert forecast.shape == batch.y.shape
        found.append(forecast)
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-2)


def test_the_command_line_takes_a_folder(folder, tmp_path):
    command = [
        "train",
        "--target",
        str(folder),
        "--strategy",
        "target_only",
        "--steps",
        "2",
        "--visible-days",
        "0.25",
        "--validation-days",
        "0.1",
    ]
    result = CliRunner().invoke(app, [*command, "--history", "3", "--horizon", "3", "--output", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "last.pt").is_file()


def test_a_wide_table_gets_its_channel_from_city_json(demo, tmp_path):
    part = demo.between(0, 20).select("speed")
    wide = pd.DataFrame(part.readings[..., 0].numpy(), index=part.time, columns=part.node_ids)
    wide.where(part.mask[..., 0].numpy()).to_csv(tmp_path / "readings.csv")
    tables_of(part)["sensors"].to_parquet(tmp_path / "sensors.parquet")
    (tmp_path / "city.json").write_text('{"channels": "speed", "units": "km/h", "name": "Riverton", "k": 2}')
    city = load_city(tmp_path)
    assert (city.name, city.channels, city.units) == ("Riverton", ("speed",), ("km/h",))
    assert torch.equal(city.readings, part.readings)


def test_commas_and_numbers_that_mean_missing_come_from_city_json(demo, tmp_path):
    part = demo.between(0, 20).select("speed")
    part.to_frame().fillna(-1.5).to_csv(tmp_path / "readings.csv", sep=";", decimal=",")
    tables_of(part)["sensors"].to_csv(tmp_path / "sensors.csv", index=False)
    (tmp_path / "city.json").write_text('{"missing_values": [-1.5], "decimal": ",", "channels": "speed"}')
    city = load_city(tmp_path)
    assert torch.equal(city.readings, part.readings)
    assert torch.equal(city.mask, part.mask)
    assert not city.mask.all()


def test_a_named_city_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo" / "riverton").mkdir(parents=True)
    assert load_city("demo/riverton").name == "demo/riverton"
    (tmp_path / "pems04").mkdir()
    with pytest.raises(FileNotFoundError, match=r"pems04.npz: this file is missing"):
        load_city("pems04", root=tmp_path)


def test_a_folder_has_no_default_sources(folder):
    with pytest.raises(ValueError, match=r"sources: there is no other city in the group of .*Uptown.*\(--sources\)"):
        default_sources(str(folder))


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        (
            "readings.csv",
            None,
            FileNotFoundError,
            r"Uptown: there is no readings\.csv or readings\.parquet; a folder with",
        ),
        ("sensors.csv", None, FileNotFoundError, r"Uptown: there is no sensors\.csv or sensors\.parquet"),
        ("edges.parquet", "", ValueError, r"Uptown: found edges\.csv and edges\.parquet; leave one"),
        ("edges.csv", "from,to,weight\n1,2,x\n", ValueError, r"edges\.csv: column 'weight', line 2: found 'x'"),
        (
            "sensors.csv",
            "id,lat,lon\na,1,1\n",
            ValueError,
            r"readings\.csv: none of its 68 sensor ids .* is an id of .*csv",
        ),
        ("city.json", '{"unit": "mph"}', ValueError, r"city\.json: expected an object with keys of channels, .*'unit'"),
        ("city.json", "[1]", ValueError, r"city\.json: expected a JSON object, found list"),
        ("city.json", "{units: 'mph'}", ValueError, r"city\.json: cannot be read as JSON \("),
        ("city.json", '{"units": "mph"}', ValueError, "Uptown: units: the readings have 2 channels, found"),
        ("city.json", '{"channels": 3}', ValueError, "Uptown: "),
    ],
)
def test_bad_folders(name, content, error, message, folder):
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(error, match=message) as caught:
        load_city(folder)
    assert str(caught.value).count(str(folder)) >= 1


def test_a_real_city_by_its_own_tables(real_city, cities_root):
    """Los Angeles: the file has no times, so they are said; its adjacency becomes a table of edges."""
    city = real_city("los_loop")
    readings = pd.read_csv(cities_root / "los_loop" / "speed.csv").set_index(city.time).sample(frac=1, axis=1)
    ids = pd.Series([float(node) for node in city.node_ids]).to_numpy()
    edges = pd.DataFrame(ids[city.edge_index.T.numpy()], columns=["from", "to"]).assign(weight=city.edge_weight.numpy())
    sensors = cities_root / "los_loop" / "sensors.csv"
    found = City.from_tables(readings, sensors, edges[edges["from"] != edges["to"]], channels="speed", units="mph")
    order = [found.node_ids.index(node) for node in city.node_ids]
    assert torch.equal(found.readings[:, order], city.readings)
    assert torch.equal(found.pos[order], city.pos)
    assert found.num_edges == int((city.edge_index[0] != city.edge_index[1]).sum())
