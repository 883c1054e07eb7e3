import numpy as np
import pytest

from tsjt_pyg.data import City
from tsjt_pyg.datasets import load_task
from tsjt_pyg.datasets.catalogue import default_sources


@pytest.fixture
def saved(tmp_path):
    def save(name, channels, units, interval, steps=48):
        rng = np.random.default_rng(len(name))
        readings = rng.random((steps, 3, len(channels))).astype(np.float32)
        about = {"name": name, "channels": channels, "units": units, "interval": interval}
        return str(City.from_adjacency(readings, np.ones((3, 3)), **about).save(tmp_path / f"{name}.npz"))

    return save


def test_by_default_the_others_of_the_group_help_with_the_first_shared_channel():
    task = load_task("demo/riverton")
    assert [city.name for city in task.sources] == ["demo/gridport", "demo/ringwood"]
    assert {city.channels for city in (task.target, *task.sources)} == {("speed",)}
    assert load_task("demo/riverton", ["demo/ringwood"], channel="flow").target.units == ("veh/5min",)


def test_the_first_channel_of_the_target_that_every_source_has_is_taken(saved):
    target = saved("target", ["occupancy", "flow", "speed"], ["", "veh/5min", "mph"], "5min")
    source = saved("source", ["speed", "flow"], ["mph", "veh/5min"], "5min")
    assert load_task(target, [source]).target.channels == ("flow",)


@pytest.mark.parametrize(
    ("unit", "hourly", "reduce"),
    [
        ("trips", "trips", "sum"),
        ("veh/30min", "veh/h", "sum"),
        ("veh/5min", "veh/5min", "mean"),  # a rate: not what was counted between two readings
        ("veh/h", "veh/h", "mean"),
        ("mph", "mph", "mean"),
        ("fraction", "fraction", "mean"),
    ],
)
def test_finer_sources_are_summed_if_they_count_and_averaged_if_they_do_not(saved, unit, hourly, reduce):
    target = saved("target", ["c", "other"], [hourly, ""], "60min")
    source = saved("source", ["c", "other"], [unit, ""], "30min")
    found = load_task(target, [source], channel="c").sources[0]
    assert found.units == (hourly,)
    whole = City.load(source).readings[..., :1].reshape(24, 2, 3, 1)
    expected = whole.sum(dim=1) if reduce == "sum" else whole.mean(dim=1)
    assert found.interval == City.load(target).interval
    np.testing.assert_allclose(found.readings, expected, rtol=1e-6)


def test_a_coarser_source_is_refused_by_name(saved):
    target, source = saved("target", ["c"], ["mph"], "5min"), saved("source", ["c"], ["mph"], "60min")
    with pytest.raises(ValueError, match=r"source has a reading every 60 min, the target every 5 min"):
        load_task(target, [source])


def test_cities_that_share_no_channel_are_refused_with_what_each_has(saved):
    target, source = saved("target", ["a"], ["mph"], "5min"), saved("source", ["b", "d"], ["", ""], "5min")
    with pytest.raises(
        ValueError, match=r"channel: target and sources have no channel in common .*: a; .*: b, d.*City.rename"
    ):
        load_task(target, [source])


def test_a_city_without_a_group_needs_its_sources_named(saved):
    with pytest.raises(ValueError, match="name the sources"):
        default_sources(saved("target", ["a"], ["mph"], "5min"))


def test_taxi_trips_of_new_york_are_summed_to_washingtons_hours(cities_root):
    task = load_task("jonas_dc", ["jonas_nyc"], cities_root, "taxi_demand")
    assert task.sources[0].interval == task.target.interval
    assert task.sources[0].num_steps == 2400
    assert task.sources[0].units == task.target.units == ("trips",)
