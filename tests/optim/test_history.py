"""SkewHistory: what the filter found in every step, as a table and for a writer."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from optimizer_options import STATEFUL, losses, small_model, train, two_groups
from torch import Tensor, nn
from torch.optim import SGD, Adam

from tsjt_pyg.optim import SkewHistory, TargetSkewedOptimizer

COLUMNS = {
    "step": "int64",
    "source": "object",
    "scope": "object",
    "skipped": "bool",
    "filtered": "bool",
    "conflict": "bool",
    "cosine": "float64",
    "source_norm": "float64",
    "target_norm": "float64",
    "kappa": "float64",
}
QUANTITIES = ["conflict", "cosine", "source_norm", "target_norm", "kappa"]


class Writer:
    """Records what it is given."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        assert type(scalar_value) is float
        assert type(global_step) is int
        self.calls.append((tag, scalar_value, global_step))

    def of_tag(self, tag: str) -> list[tuple[int, float]]:
        return [(step, value) for name, value, step in self.calls if name == tag]

    @property
    def tags(self) -> list[str]:
        return list(dict.fromkeys(tag for tag, _, _ in self.calls))


def plane(**kwargs: Any) -> tuple[nn.Parameter, TargetSkewedOptimizer]:
    """A parameter whose gradients are given, and its optimizer."""
    p = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    return p, TargetSkewedOptimizer([p], SGD, lr=0.0, **kwargs)


def step(optimizer: TargetSkewedOptimizer, p: nn.Parameter, target: list[float], **sources: list[float]) -> None:
    """One step along these gradients; without sources, one of the target alone."""
    optimizer.zero_grad()
    of_sources = {name: p @ torch.tensor(g, dtype=p.dtype) for name, g in sources.items()}
    if of_sources:
        optimizer.backward(of_sources, p @ torch.tensor(target, dtype=p.dtype))
    else:
        with optimizer.target():
            (p @ torch.tensor(target, dtype=p.dtype)).backward()
    optimizer.step()


def row(s: list[float], t: list[float]) -> list[Any]:
    """Conflict, cosine, norms and kappa as they follow from two vectors."""
    dot, n_s, n_t = sum(a * b for a, b in zip(s, t, strict=True)), math.hypot(*s), math.hypot(*t)
    return [dot < 0, dot / (n_s * n_t) if n_s * n_t else 0.0, n_s, n_t, max(0.0, -dot / n_t**2) if n_t else 0.0]


def assert_rows(frame: pd.DataFrame, expected: list[list[Any]]) -> None:
    assert len(frame) == len(expected)
    for found, wanted in zip(frame[QUANTITIES].to_numpy().tolist(), expected, strict=True):
        assert found == pytest.approx(wanted)


def test_one_row_a_step_with_the_values_of_its_gradients() -> None:
    p, optimizer = plane()
    history = SkewHistory(optimizer)
    pairs = [([3.0, 4.0], [0.0, 2.0]), ([3.0, -4.0], [0.0, 2.0]), ([0.0, 0.0], [1.0, 1.0]), ([1.0, 1.0], [0.0, 0.0])]
    for s, t in pairs:
        step(optimizer, p, t, source=s)
    frame = history.to_frame()
    assert len(history) == 4
    assert dict(frame.dtypes.astype(str)) == {
        **COLUMNS,
        **dict.fromkeys(("source", "scope"), str(frame["source"].dtype)),
    }
    assert list(frame.columns) == list(COLUMNS)
    assert frame["step"].tolist() == [1, 2, 3, 4]
    assert set(frame["source"]) == {"source"}
    assert set(frame["scope"]) == {"global"}
    assert frame["filtered"].all()
    assert not frame["skipped"].any()
    assert_rows(frame, [row(s, t) for s, t in pairs])
    stats = optimizer.stats()
    assert frame.iloc[-1][["cosine", "kappa", "source_norm", "target_norm"]].to_dict() == {
        key: pytest.approx(stats[key]) for key in ("cosine", "kappa", "source_norm", "target_norm")
    }
    assert frame["conflict"].mean() == stats["conflict_rate"]


def test_a_history_without_steps_is_an_empty_table_with_all_columns() -> None:
    _, optimizer = plane()
    frame = SkewHistory(optimizer).to_frame()
    assert len(frame) == 0
    assert list(frame.columns) == list(COLUMNS)


def test_a_history_follows_from_where_it_was_made_on() -> None:
    p, optimizer = plane()
    step(optimizer, p, [1.0, 0.0], source=[-1.0, 0.0])
    history = SkewHistory(optimizer)
    step(optimizer, p, [1.0, 0.0], source=[1.0, 0.0])
    step(optimizer, p, [1.0, 0.0], source=[-2.0, 0.0])
    frame = history.to_frame()
    assert frame["step"].tolist() == [2, 3]
    assert frame["conflict"].tolist() == [False, True]


def test_steps_without_anything_to_filter_repeat_what_was_known_and_say_so() -> None:
    p, optimizer = plane()
    history = SkewHistory(optimizer)
    step(optimizer, p, [5.0, 0.0])
    step(optimizer, p, [1.0, 0.0], source=[-1.0, 0.0])
    step(optimizer, p, [5.0, 0.0])
    step(optimizer, p, [2.0, 0.0], source=[4.0, 0.0])
    frame = history.to_frame()
    assert frame["step"].tolist() == [1, 2, 3, 4]
    assert frame["filtered"].tolist() == [False, True, False, True]
    assert frame["conflict"].tolist() == [False, True, False, False]
    assert frame["kappa"].tolist() == [0.0, 1.0, 1.0, 0.0]


def test_skipped_steps_are_counted_and_flagged_and_find_nothing() -> None:
    p, optimizer = plane()
    history = SkewHistory(optimizer)
    for s in ([-1.0, 0.0], [math.nan, 0.0], [math.inf, 0.0], [1.0, 0.0]):
        step(optimizer, p, [1.0, 0.0], source=s)
    frame = history.to_frame()
    assert frame["step"].tolist() == [1, 2, 3, 4]
    assert frame["skipped"].tolist() == [False, True, True, False]
    assert frame["filtered"].tolist() == [True, False, False, True]
    assert frame["conflict"].tolist() == [True, False, False, False]
    assert frame["cosine"].tolist() == [-1.0, -1.0, -1.0, 1.0]


def test_a_skipped_first_step_has_no_source_yet_or_one_that_found_nothing() -> None:
    p, optimizer = plane()
    history = SkewHistory(optimizer)
    step(optimizer, p, [1.0, 0.0], source=[math.nan, 0.0])
    frame = history.to_frame()
    assert frame["skipped"].tolist() == [True] * len(frame)
    assert not frame["filtered"].any()
    assert frame[["cosine", "kappa", "source_norm"]].to_numpy().sum() == 0


def test_with_lag_only_the_steps_that_looked_are_filtered(model: nn.Module) -> None:
    optimizer = TargetSkewedOptimizer(model.parameters(), SGD, lr=0.05, lag=3)
    history = SkewHistory(optimizer)
    train(model, optimizer, range(7))
    frame = history.to_frame()
    assert frame["filtered"].tolist() == [True, False, False, True, False, False, True]
    assert frame["step"].tolist() == list(range(1, 8))
    assert frame["cosine"].nunique() == 3
    assert (frame.loc[frame["filtered"], "conflict"].mean()) == optimizer.stats()["conflict_rate"]


def test_sources_and_scopes_have_a_row_each_and_those_that_join_later_have_none_before() -> None:
    p, q = (nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2))
    optimizer = TargetSkewedOptimizer([("p", p), ("q", q)], SGD, lr=0.0, scope="tensor")
    history = SkewHistory(optimizer)
    a, b = torch.tensor([3.0, -4.0]).double(), torch.tensor([1.0, 0.0]).double()
    target = torch.tensor([0.0, 2.0]).double()
    for sources in ({"los": p @ a + q @ b}, {"los": p @ a + q @ b, "jonas": p @ b - q @ a}, {"jonas": p @ a + q @ a}):
        optimizer.zero_grad()
        optimizer.backward(sources, (p + q) @ target)
        optimizer.step()
    frame = history.to_frame()
    assert frame["step"].tolist() == [1] * 4 + [2] * 4 + [3] * 4
    names = [("los", "p"), ("los", "q"), ("jonas", "p"), ("jonas", "q")]
    assert list(zip(frame["source"], frame["scope"], strict=True)) == names * 3
    assert frame["filtered"].tolist() == [True, True, False, False] + [True] * 4 + [False, False, True, True]
    s, t = {"a": [3.0, -4.0], "b": [1.0, 0.0], "-a": [-3.0, 4.0]}, [0.0, 2.0]
    nothing = [False, 0.0, 0.0, 0.0, 0.0]
    again = [[False, *row(s[name], t)[1:]] for name in "ab"]
    first = [row(s["a"], t), row(s["b"], t), nothing, nothing]
    second = [row(s["a"], t), row(s["b"], t), row(s["b"], t), row(s["-a"], t)]
    third = [*again, row(s["a"], t), row(s["a"], t)]
    assert_rows(frame, first + second + third)


def test_a_group_that_joins_has_empty_rows_before() -> None:
    p, q = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = TargetSkewedOptimizer([{"params": [p], "name": "old"}], SGD, lr=0.0, scope="group")
    history = SkewHistory(optimizer)
    optimizer.backward(-p.sum(), p.sum())
    optimizer.step()
    optimizer.add_param_group({"params": [q], "name": "new"})
    optimizer.zero_grad()
    optimizer.backward((p - q).sum(), (p + q).sum())
    optimizer.step()
    frame = history.to_frame()
    assert frame["scope"].tolist() == ["old", "new"] * 2
    assert frame["filtered"].tolist() == [True, False, True, True]
    assert frame["conflict"].tolist() == [True, False, False, True]


def test_a_writer_gets_every_quantity_of_every_filtered_step() -> None:
    p, optimizer = plane()
    writer = Writer()
    history = SkewHistory(optimizer, writer, every=2)
    pairs = [([3.0, 4.0], [0.0, 2.0]), ([3.0, -4.0], [0.0, 2.0]), ([1.0, 0.0], [2.0, 0.0])]
    for i, (s, t) in enumerate(pairs):
        step(optimizer, p, t, source=s)
        assert len(writer.calls) == [0, 11, 11][i]  # five quantities a step, and the skipped steps
    history.close()
    assert writer.tags == [*(f"skew/{name}" for name in QUANTITIES), "skew/skipped_steps"]
    for k, name in enumerate(QUANTITIES):
        expected = [(i + 1, pytest.approx(float(row(s, t)[k]))) for i, (s, t) in enumerate(pairs)]
        assert writer.of_tag(f"skew/{name}") == expected
    assert writer.of_tag("skew/skipped_steps") == [(2, 0.0), (3, 0.0)]


def test_the_tags_name_sources_and_scopes_where_there_are_several(model: nn.Sequential) -> None:
    for sources, scope, parts in (
        (("los",), "global", [""]),
        (("los", "jonas"), "global", ["los/", "jonas/"]),
        (("los",), "group", ["group 0/", "group 1/"]),
        (("los", "jonas"), "group", [f"{name}/group {i}/" for name in ("los", "jonas") for i in (0, 1)]),
    ):
        optimizer = TargetSkewedOptimizer(two_groups(model), SGD, lr=0.05, scope=scope)
        writer = Writer()
        history = SkewHistory(optimizer, writer, prefix="tsjt")
        train(model, optimizer, range(2), sources)
        history.flush()
        expected = [f"tsjt/{part}{name}" for part in parts for name in QUANTITIES]
        assert writer.tags == [*expected, "tsjt/skipped_steps"]
        frame = history.to_frame()
        for tag, (_, of_pair) in zip(expected[1::5], frame.groupby(["source", "scope"], sort=False), strict=True):
            assert writer.of_tag(tag) == list(zip(of_pair["step"], of_pair["cosine"], strict=True))


def test_steps_that_found_nothing_are_not_written_but_counted() -> None:
    p, optimizer = plane(lag=2)
    writer = Writer()
    history = SkewHistory(optimizer, writer, every=100)
    step(optimizer, p, [1.0, 0.0])
    step(optimizer, p, [1.0, 0.0], source=[1.0, 0.0])
    step(optimizer, p, [1.0, 0.0], source=[math.nan, 0.0])
    step(optimizer, p, [1.0, 0.0], source=[-1.0, 0.0])
    step(optimizer, p, [1.0, 0.0], source=[-1.0, 0.0])
    history.close()
    assert writer.of_tag("skew/cosine") == [(2, 1.0), (5, -1.0)]
    assert writer.of_tag("skew/skipped_steps") == [(5, 1.0)]


def test_flushing_twice_gives_nothing_twice_and_a_closed_history_follows_no_more() -> None:
    p, optimizer = plane()
    writer = Writer()
    history = SkewHistory(optimizer, writer)
    step(optimizer, p, [1.0, 0.0], source=[1.0, 0.0])
    history.flush()
    count = len(writer.calls)
    history.flush()
    assert len(writer.calls) == count
    step(optimizer, p, [1.0, 0.0], source=[1.0, 0.0])
    history.close()
    step(optimizer, p, [1.0, 0.0], source=[1.0, 0.0])
    history.flush()
    assert [at for at, _ in writer.of_tag("skew/cosine")] == [1, 2]
    assert len(history) == 2


def test_without_a_writer_flushing_does_nothing() -> None:
    p, optimizer = plane()
    history = SkewHistory(optimizer, every=1)
    step(optimizer, p, [1.0, 0.0], source=[1.0, 0.0])
    history.flush()
    history.close()
    assert len(history.to_frame()) == 1


@pytest.mark.parametrize("every", [0, -3])
def test_refuses_to_write_every_zeroth_step(model: nn.Module, every: int) -> None:
    with pytest.raises(ValueError, match=f"every must be at least 1, but is {every}"):
        SkewHistory(TargetSkewedOptimizer(model.parameters()), Writer(), every=every)


@pytest.mark.parametrize("name", STATEFUL)
def test_two_trainings_with_a_break_have_one_history(name: str) -> None:
    kwargs, sources = STATEFUL[name]
    histories = []
    for with_break in (False, True):
        model = small_model()
        optimizer = TargetSkewedOptimizer(two_groups(model), Adam, **kwargs)
        history = SkewHistory(optimizer)
        train(model, optimizer, range(4), sources)
        if with_break:
            file = io.BytesIO()
            torch.save([part.state_dict() for part in (model, optimizer, history)], file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
            model = small_model(seed=1)
            optimizer = TargetSkewedOptimizer(two_groups(model), Adam, **kwargs)
            writer = Writer()
            history = SkewHistory(optimizer, writer)
            for part, state in zip((model, optimizer, history), saved, strict=True):
                part.load_state_dict(state)
            history.flush()
            assert writer.calls == []  # its writer had these steps
        train(model, optimizer, range(4, 7), sources)
        histories.append(history)
    assert len(histories[0]) == len(histories[1]) == 7
    pd.testing.assert_frame_equal(histories[0].to_frame(), histories[1].to_frame())
    histories[1].flush()
    assert {at for _, _, at in histories[1].writer.calls} <= {5, 6, 7}


def test_a_history_whose_sources_joined_one_by_one_can_be_saved() -> None:
    p, optimizer = plane(scope="tensor")
    history = SkewHistory(optimizer)
    for sources in ({"a": [1.0, 0.0]}, {"b": [0.0, 1.0]}, {"a": [-1.0, 0.0], "c": [1.0, 1.0]}):
        step(optimizer, p, [1.0, 0.5], **sources)
    other_p, other = plane(scope="tensor")
    resumed = SkewHistory(other)
    other.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(history.state_dict())
    pd.testing.assert_frame_equal(resumed.to_frame(), history.to_frame())
    for o, q in ((optimizer, p), (other, other_p)):
        step(o, q, [1.0, 0.5], d=[-1.0, 0.0])
    pd.testing.assert_frame_equal(resumed.to_frame(), history.to_frame())
    assert history.to_frame()["source"].tolist() == ["a", "b", "c", "d"] * 4


def test_following_waits_for_no_value_and_only_the_skip_check_of_the_step_reads_one(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer = TargetSkewedOptimizer(two_groups(model), SGD, lr=0.05, scope="tensor", filter="vaccine")
    train(model, optimizer, range(1), ("a", "b"))  # what is created once
    reads: list[str] = []

    def watched(method: str) -> Any:
        original = getattr(Tensor, method)

        def read(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            reads.append(method)
            return original(self, *args, **kwargs)

        return read

    def count_reads(steps: range) -> list[str]:
        reads.clear()
        with monkeypatch.context() as patch:
            for method in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
                patch.setattr(Tensor, method, watched(method))
            train(model, optimizer, steps, ("a", "b"))
        return list(reads)

    without = count_reads(range(1, 4))
    history = SkewHistory(optimizer, Writer(), every=10)
    assert count_reads(range(4, 7)) == without
    # The filter itself takes its inner products from gradients in the host's memory, where they lie, as arrays.
    assert set(without) <= {"tolist", "__bool__", "numpy", "__float__"}
    assert len(history.to_frame()) == 3 * 2 * 4


def test_tensorboard_reads_what_was_written(model: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    optimizer = TargetSkewedOptimizer(model.parameters(), SGD, lr=0.05)
    with SummaryWriter(str(tmp_path)) as writer:
        history = SkewHistory(optimizer, writer, every=2)
        train(model, optimizer, range(3), ("los", "jonas"))
        optimizer.zero_grad()
        source_loss, target_loss = losses(model, 3)
        optimizer.backward({"los": source_loss * math.nan}, target_loss)
        optimizer.step()
        history.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    frame = history.to_frame()
    tags = [f"skew/{source}/{name}" for source in ("los", "jonas") for name in QUANTITIES]
    assert sorted(events.Tags()["scalars"]) == sorted([*tags, "skew/skipped_steps"])
    for source in ("los", "jonas"):
        of_source = frame[(frame["source"] == source) & frame["filtered"]]
        for name in QUANTITIES:
            written = events.Scalars(f"skew/{source}/{name}")
            assert [event.step for event in written] == of_source["step"].tolist() == [1, 2, 3]
            assert [event.value for event in written] == pytest.approx(of_source[name].astype(float).tolist())
    assert [(e.step, e.value) for e in events.Scalars("skew/skipped_steps")] == [(2, 0.0), (4, 1.0)]


def test_another_optimizer_is_refused() -> None:
    plain = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(TypeError, match="optimizer must be a TargetSkewedOptimizer, but is a SGD"):
        SkewHistory(plain)  # type: ignore[arg-type]
