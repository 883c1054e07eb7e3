"""Source and target batches side by side."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import pytest
import torch

from tsjt_pyg.data import CityPair, CityPairLoader, Windows
from tsjt_pyg.data.pairs import shuffled_index


@pytest.fixture
def target(make_city) -> Windows:
    return make_city(num_steps=30, name="target").windows(4, 2)  # 25 windows


@pytest.fixture
def sources(make_city) -> list[Windows]:
    return [make_city(num_steps=n, num_nodes=n // 10, name=f"source{n}").windows(4, 2) for n in (40, 60)]


def equal(one: CityPair, other: CityPair) -> bool:
    return (
        one.source_index == other.source_index
        and torch.equal(one.source.index, other.source.index)
        and torch.equal(one.source.x, other.source.x)
        and torch.equal(one.target.index, other.target.index)
        and torch.equal(one.target.y, other.target.y)
    )


def test_a_step_depends_on_seed_and_number_only(sources, target):
    loader = CityPairLoader(sources, target, batch_size=8, seed=3)
    passed = list(islice(loader, 12))
    again = CityPairLoader(sources, target, batch_size=8, seed=3)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for step in (11, 0, 5, 5):
        assert equal(passed[step], again[step])
    assert torch.equal(torch.get_rng_state(), state)  # and does not touch the global generator
    other = CityPairLoader(sources, target, batch_size=8, seed=4)
    assert not all(torch.equal(passed[step].target.index, other[step].target.index) for step in range(12))


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_loop_goes_on_where_the_one_before_stopped(sources, target, prefetch):
    loader = CityPairLoader(sources, target, batch_size=8, prefetch=prefetch)
    epochs = [pair for _ in range(3) for pair in islice(loader, 4)]
    assert all(equal(pair, loader[step]) for step, pair in enumerate(epochs))
    assert equal(next(loader.from_step(0)), epochs[0])


def test_batches_are_the_windows_of_their_city(sources, target):
    for pair in islice(CityPairLoader(sources, target, batch_size=8), 10):
        source = sources[pair.source_index]
        assert torch.equal(pair.source.x, source.x[pair.source.index])
        assert pair.source.edge_index is source.city.edge_index
        assert torch.equal(pair.target.y, target.y[pair.target.index])
        assert len(pair.source) == len(pair.target) == 8


@pytest.mark.parametrize("batch_size", [1, 7, 25, 40])
def test_every_target_window_comes_once_a_pass(sources, target, batch_size):
    loader = CityPairLoader(sources, target, batch_size, seed=5)
    steps = 4 * 25 // batch_size + 1
    seen = torch.cat([loader.target_batch(step).index for step in range(steps)])
    passes = seen[:100].reshape(4, 25)
    assert torch.equal(passes.sort(dim=1).values, torch.arange(25).expand(4, 25))
    assert not torch.equal(passes[0], passes[1])  # reshuffled


def test_it_does_not_end(sources, target):
    loader = CityPairLoader(sources, target, batch_size=8)
    assert len(loader[10**6].target) == 8
    assert sum(1 for _ in islice(loader, 300)) == 300


def test_sources_take_turns_by_weight(sources, target):
    loader = CityPairLoader(sources, target, batch_size=1, weights=[3, 1])
    turns = Counter(pair.source_index for pair in islice(loader, 1000))
    assert turns[0] == pytest.approx(750, abs=60)  # over four standard deviations
    assert {CityPairLoader(sources, target, 1, weights=[0, 1])[k].source_index for k in range(50)} == {1}
    equally = Counter(pair.source_index for pair in islice(CityPairLoader(sources, target, 1), 1000))
    assert equally[0] == pytest.approx(500, abs=70)


def test_sources_of_one_length_are_not_walked_through_in_step(make_city, target):
    twins = [make_city().windows(4, 2)] * 2
    first = CityPairLoader(twins, target, 8, weights=[1, 0])[0].source.index
    assert not torch.equal(first, CityPairLoader(twins, target, 8, weights=[0, 1])[0].source.index)


def test_every_source_window_comes(sources, target):
    loader = CityPairLoader(sources, target, batch_size=8)
    seen = {(pair.source_index, i) for pair in islice(loader, 150) for i in pair.source.index.tolist()}
    assert len(seen) == len(sources[0]) + len(sources[1])


def test_a_batch_over_several_passes():
    index = shuffled_index(num_windows=3, batch_size=10, step=2, seed=0)
    assert index.shape == (10,)
    whole = torch.cat([shuffled_index(3, 1, step, 0) for step in range(20, 30)])
    assert torch.equal(index, whole)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_loader_resumes_to_the_exact_batch(sources, target, prefetch):
    loader = CityPairLoader(sources, target, batch_size=8, prefetch=prefetch)
    reference = [loader[step] for step in range(8)]
    assert loader.state_dict()["step"] == 0
    for step, _ in enumerate(loader):
        if step == 4:
            break
    state = json.loads(json.dumps(loader.state_dict()))  # plain numbers: any checkpoint takes them
    assert state["step"] == 5
    again = CityPairLoader(sources, target, batch_size=8, prefetch=prefetch)
    again.load_state_dict(state)
    assert all(equal(one, other) for one, other in zip(islice(again, 3), reference[5:], strict=True))
    assert again.state_dict()["step"] == 8
    assert equal(next(iter(again)), loader[8])


def test_a_loop_from_any_step(sources, target):
    loader = CityPairLoader(sources, target, batch_size=8)
    pairs = loader.from_step(10**9)
    assert equal(next(pairs), loader[10**9])
    assert equal(next(pairs), loader[10**9 + 1])
    assert loader.state_dict()["step"] == 10**9 + 2
    with pytest.raises(ValueError, match="step: expected 0 or more, found -1"):
        loader.from_step(-1)
    with pytest.raises(IndexError, match="step: expected 0 or more, found -1; a loader has no last step"):
        loader[-1]


@pytest.mark.parametrize("other", [{"seed": 1}, {"batch_size": 9}, {"weights": [1, 2]}, {"sources": 1}, {"target": 1}])
def test_a_state_of_other_batches_is_refused(make_city, sources, target, other):
    sources = [make_city(num_steps=40, name=name).windows(4, 2) for name in ("one", "two")]  # as many windows
    state = CityPairLoader(sources, target, batch_size=8).state_dict()
    if "sources" in other:
        other = {"sources": sources[::-1]}
    if "target" in other:
        other = {"target": make_city(num_steps=30, name="target", start="2024-05-01").windows(4, 2)}
    loader = CityPairLoader(**({"sources": sources, "target": target, "batch_size": 8} | other))
    with pytest.raises(ValueError, match=r"the state is of a loader with .*, this one has .*; its batches would be"):
        loader.load_state_dict(state)


def test_pairs_arrive_on_their_device(sources, target):
    source, of_target, _ = next(iter(CityPairLoader(sources, target, batch_size=8, device="meta")))
    assert source.x.device.type == of_target.y_mask.device.type == "meta"


def test_a_pass_is_drawn_once(make_city, monkeypatch):
    """Not at every step: a pass over a year of five minutes has 105,120 windows."""
    drawn = []
    randperm = torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda n, **options: drawn.append(n) or randperm(n, **options))
    for step in range(20):
        shuffled_index(1_234, 61, step, seed=98_765)
    assert drawn == [1_234]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prefetch": -1}, "prefetch: expected 0 or more batches ahead, found -1"),
        ({"weights": ["a", "b"]}, r"weights: expected 2 weights >= 0, .* found \['a', 'b'\]"),
        ({"sources": []}, "sources: expected the windows of at least one source city, found none"),
        ({"batch_size": 0}, "batch_size: expected at least 1, found 0"),
        ({"weights": [1]}, r"weights: expected 2 weights >= 0, one a source, not all 0; found \[1\]"),
        ({"weights": [1, -1]}, "weights: expected 2 weights >= 0"),
        ({"weights": [0, 0]}, "not all 0"),
        ({"weights": [1, float("nan")]}, "weights: expected 2"),
        ({"weights": [1, float("inf")]}, "weights: expected 2"),
    ],
)
def test_messages(sources, target, arguments, message):
    with pytest.raises(ValueError, match=message):
        CityPairLoader(**({"sources": sources, "target": target} | arguments))


@pytest.mark.parametrize(
    ("history", "horizon", "channels", "message"),
    [
        (5, 2, 1, "history 5, the target target has 4"),
        (4, 3, 1, "horizon 3, the target target has 2"),
        (4, 2, 2, r"channels \('reading_0', 'reading_1'\), the target target has \('reading',\); bring.*City.select"),
    ],
)
def test_source_and_target_must_be_alike(make_city, sources, target, history, horizon, channels, message):
    odd = make_city(num_channels=channels, name="odd").windows(history, horizon)
    with pytest.raises(ValueError, match=rf"sources\[1\]: odd has {message}"):
        CityPairLoader([sources[0], odd], target)


def test_a_source_of_another_quantity_or_interval_is_refused(make_city, target):
    with pytest.raises(
        ValueError,
        match=r"sources\[0\]: odd has channels \('flow',\), the target target has .*City.select, or City.rename",
    ):
        CityPairLoader([make_city(channels="flow", name="odd").windows(4, 2)], target)
    with pytest.raises(ValueError, match=r"sources\[0\]: odd has interval 0 days 02:00:00, the target .*City.resample"):
        CityPairLoader([make_city(interval="2h", name="odd").windows(4, 2)], target)


def test_another_unit_is_said_and_taken(make_city, target, caplog):
    with caplog.at_level("INFO"):
        CityPairLoader([make_city(units="mph", name="odd").windows(4, 2)], target)
    assert "target is in unknown units, odd in mph: scale each by its own statistics" in caplog.text


def test_one_source_is_a_list_of_one(target):
    with pytest.raises(TypeError, match=r"sources: expected a list of windows.*write \[windows\]"):
        CityPairLoader(target, target)


@pytest.mark.parametrize("state", [{}, {"seed": 0, "step": 3}, {"a": 1}])
def test_a_state_of_something_else_is_refused(sources, target, state):
    with pytest.raises(ValueError, match=r"state_dict: it has no '\w+', so it is not what CityPairLoader.state_dict"):
        CityPairLoader(sources, target).load_state_dict(state)
