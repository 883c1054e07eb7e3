import json
import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

from tsjt_pyg.data import StandardScaler
from tsjt_pyg.nn import Forecaster
from tsjt_pyg.training import STRATEGIES, ModelConfig, Strategy, fit, training_split
from tsjt_pyg.training.checkpoint import load_checkpoint

CONFIG = ModelConfig(cell="GRU", hidden_channels=8, history=6, horizon=3)
SETTINGS = {"steps": 12, "batch_size": 8, "evaluations": 4}
LR = 1e-2
"""With which a few steps suffice to tell that these sources teach something."""


def new_model(config=CONFIG, seed=0):
    torch.manual_seed(seed)
    return config.build()


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


@pytest.fixture(scope="module")
def task(commuters):
    visible, test = commuters("target", seed=1).few_shot(3)
    return visible, test, [commuters("north", num_nodes=8, seed=2), commuters("south", num_nodes=5, seed=3)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_moves_the_model_and_returns_the_checkpoint_it_chose(task, strategy):
    visible, _, sources = task
    model = new_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = fit(model, visible, sources, strategy, lr=1e-2, **SETTINGS)
    assert not same(before, model.state_dict())
    assert result.model is model
    losses = {entry["step"]: entry["validation_loss"] for entry in result.log}
    assert result.validation_loss == losses[result.best_step]
    if STRATEGIES[strategy].average:
        assert result.best_step == max(losses)
    else:
        assert result.validation_loss == min(losses.values())
    assert bool(result.stats) == STRATEGIES[strategy].skewed


def test_the_untrained_model_competes_so_a_harmful_training_is_undone(task):
    visible, _, sources = task
    model = new_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = fit(model, visible, sources, "target_only", lr=30.0, max_grad_norm=1e9, **SETTINGS)
    assert result.best_step == 0
    assert same(before, model.state_dict())


def test_more_steps_of_training_fit_the_target(task):
    visible, _, _ = task
    result = fit(new_model(), visible, [], "target_only", steps=150, batch_size=16, lr=1e-2)
    assert result.validation_loss < 0.75 * result.log[0]["validation_loss"]


def test_the_same_seed_gives_the_same_parameters_and_another_seed_others(task):
    visible, _, sources = task
    runs = [fit(new_model(), visible, sources, "tsjt", seed=seed, lr=LR, **SETTINGS) for seed in (5, 5, 6)]
    assert all(len(run.conflict) == SETTINGS["steps"] for run in runs)  # the sources take part
    states = [run.model.state_dict() for run in runs]
    assert same(states[0], states[1])
    assert runs[0].log == runs[1].log
    assert not same(states[0], states[2])


class Ema(Strategy):
    def filter_options(self):
        return {**super().filter_options(), "normal": "ema", "balance": 0.5, "scope": "tensor"}


OTHERS = [
    Ema("ema", skewed=True),
    Strategy("pretrained, then filtered", pretrain_share=0.5, skewed=True),
    Strategy("guarded, averaged", guard=True, average=True),
]


@pytest.mark.parametrize("strategy", [*STRATEGIES, *OTHERS], ids=lambda given: getattr(given, "name", given))
def test_a_resumed_run_ends_with_the_same_bits(task, strategy, tmp_path):
    visible, _, sources = task
    settings = {**SETTINGS, "lr": LR}
    whole = fit(new_model(), visible, sources, strategy, **settings)

    class StopError(Exception):
        pass

    def stop_at(step):
        def progress(done, total):
            if done == step:
                raise StopError

        return progress

    for step in (7, 9):
        with pytest.raises(StopError):
            fit(
                new_model(),
                visible,
                sources,
                strategy,
                output=tmp_path,
                checkpoint_every=2,
                resume=True,
                progress=stop_at(step),
                **settings,
            )
        assert load_checkpoint(tmp_path, prefer="last.pt")["step"] == step - 1
    resumed = fit(
        new_model(seed=9), visible, sources, strategy, output=tmp_path, checkpoint_every=2, resume=True, **settings
    )
    assert same(whole.model.state_dict(), resumed.model.state_dict())
    assert (whole.log, whole.best_step, whole.stats) == (resumed.log, resumed.best_step, resumed.stats)
    assert whole.verdicts == resumed.verdicts
    assert same(whole.last_model, resumed.last_model)
    if whole.conflict is not None:
        pd.testing.assert_frame_equal(whole.conflict, resumed.conflict)
        assert whole.conflict["step"].nunique() == SETTINGS["steps"]
    if strategy == "tsjt":
        assert [verdict.weight for verdict in whole.verdicts] == [0.5, 0.5]
        assert not same(whole.last_model, whole.model.state_dict())
    last = load_checkpoint(tmp_path, prefer="last.pt")
    assert same(last["model"], whole.last_model)
    assert same(last["best_model"], whole.model.state_dict())


def test_resuming_another_run_says_what_differs(task, tmp_path):
    visible, _, sources = task
    fit(new_model(), visible, sources, "pooled", output=tmp_path, **SETTINGS)
    with pytest.raises(ValueError, match=r"another run: lr \(there 0\.003, here 0\.1\)\. Use"):
        fit(new_model(), visible, sources, "pooled", output=tmp_path, resume=True, lr=0.1, **SETTINGS)
    with pytest.raises(ValueError, match=r"another run: sources, how many \(there 2, here 1\); sources\[1\].fing"):
        fit(new_model(), visible, sources[:1], "pooled", output=tmp_path, resume=True, **SETTINGS)
    with pytest.raises(ValueError, match=r"another run: target.fingerprint \(there '"):
        fit(new_model(), visible.between(1, 72), sources, "pooled", output=tmp_path, resume=True, **SETTINGS)


def test_a_folder_with_a_run_is_not_overwritten(task, tmp_path):
    visible, _, sources = task
    fit(new_model(), visible, sources, "pooled", output=tmp_path, **SETTINGS)
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(ValueError, match=r"holds a run already; resume=True"):
        fit(new_model(), visible, sources, "tsjt", output=tmp_path, **SETTINGS)
    assert (tmp_path / "last.pt").read_bytes() == before


def test_a_filter_may_follow_a_pretraining(task):
    visible, _, sources = task
    strategy = Strategy("both", pretrain_share=0.5, skewed=True)
    result = fit(new_model(), visible, sources, strategy, **SETTINGS)
    assert [entry["target_loss"] is None for entry in result.log] == [True, True, True, False, False]
    assert result.stats["steps"] == 12


def test_a_model_in_evaluation_mode_is_trained_in_training_mode(task):
    visible, _, _ = task
    assert fit(new_model().eval(), visible, [], "target_only", **SETTINGS).model.training


def test_all_strategies_choose_from_the_same_checkpoints_and_twice_the_steps_from_more(task):
    visible, _, sources = task
    logs = {name: fit(new_model(), visible, sources, name, lr=LR, **SETTINGS).log for name in STRATEGIES}
    assert tuple(entry["step"] for entry in logs.pop("target_only_2x")) == tuple(range(0, 25, 3))
    assert {tuple(entry["step"] for entry in log) for log in logs.values()} == {(0, 3, 6, 9, 12)}


def test_the_folder_holds_what_the_documentation_says(task, tmp_path):
    visible, _, sources = task
    model = new_model()
    result = fit(model, visible, sources, "tsjt", output=tmp_path / "a" / "b", config={"note": "x"}, lr=LR, **SETTINGS)
    folder = tmp_path / "a" / "b"
    assert {path.name for path in folder.iterdir()} == {"last.pt", "best.pt", "config.json"}
    assert json.loads((folder / "config.json").read_text())["note"] == "x"
    best = torch.load(folder / "best.pt", weights_only=True)
    assert same(best["model"], model.state_dict())
    assert best["step"] == result.best_step
    last = torch.load(folder / "last.pt", weights_only=True)
    assert last["step"] == SETTINGS["steps"]
    assert set(last["model"]) == set(model.state_dict())


@pytest.mark.parametrize("strategy", ["target_only", "source_only", "finetune", "tsjt"])
def test_the_scaler_knows_the_training_days_only(task, strategy):
    visible, _, sources = task
    result = fit(new_model(), visible, sources, strategy, **SETTINGS)
    training, _ = training_split(visible, 1, CONFIG.history)
    expected = StandardScaler().fit(training.readings, training.mask)
    assert torch.equal(result.scaler.mean, expected.mean)
    assert training.num_steps == 48


def test_validation_horizons_lie_in_the_validation_day_and_training_windows_before_it(task):
    visible, _, _ = task
    training, validation = training_split(visible, 1, history=6)
    border = visible.start + 2 * visible.steps_per_day * visible.interval
    assert training.time[-1] + training.interval == border
    windows = validation.windows(6, 3)
    assert validation.time[6] == border
    assert validation.time[-1] == visible.time[-1]
    assert len(windows) == 24 - 3 + 1


def test_target_only_reads_no_source_and_source_only_no_target_gradient(task):
    visible, _, sources = task
    alone = fit(new_model(), visible, [], "target_only", **SETTINGS)
    beside = fit(new_model(), visible, sources, "target_only", **SETTINGS)
    assert same(alone.model.state_dict(), beside.model.state_dict())

    # No target reading reaches the parameters of source_only, so the source losses of its steps stay the same.
    noise = replace(visible, readings=torch.randn_like(visible.readings).masked_fill(~visible.mask, 0.0))
    logs = [fit(new_model(), city, sources, "source_only", **SETTINGS).log for city in (visible, noise)]
    assert [entry["source_loss"] for entry in logs[0]] == [entry["source_loss"] for entry in logs[1]]
    assert logs[0] != logs[1]


def test_pooling_with_a_tiny_source_weight_is_nearly_target_only(task):
    visible, _, sources = task
    pooled = fit(new_model(), visible, sources, Strategy("p", source_weight=1e-9), base=torch.optim.SGD, **SETTINGS)
    alone = fit(new_model(), visible, [], "target_only", base=torch.optim.SGD, **SETTINGS)
    for one, other in zip(pooled.model.parameters(), alone.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_a_target_day_without_readings_is_an_error_that_says_so_and_leaves_nothing(task, tmp_path):
    visible, _, _ = task
    mask = visible.mask.clone()
    mask[48:] = False
    with pytest.raises(ValueError, match="no observed reading on its validation day"):
        fit(new_model(), replace(visible, mask=mask), [], "target_only", output=tmp_path / "run", **SETTINGS)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(task, tmp_path):
    visible, _, _ = task

    class Breaks(torch.nn.Module):
        history, horizon = CONFIG.history, CONFIG.horizon

        def __init__(self):
            super().__init__()
            self.inner, self.calls = new_model(), 0

        def forward(self, *args, **kwargs):
            self.calls += 1
            forecast = self.inner(*args, **kwargs)
            return forecast * math.nan if self.training and self.calls > 12 else forecast

    with pytest.raises(FloatingPointError, match=r"3 steps in a row were left out, .* lower lr"):
        fit(Breaks(), visible, [], "target_only", output=tmp_path, checkpoint_every=2, max_skipped=3, **SETTINGS)
    assert load_checkpoint(tmp_path, prefer="last.pt")["step"] >= 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": "tjst"}, "strategy: expected one of"),
        ({"steps": 0}, "steps: expected at least 1, found 0"),
        ({"batch_size": 0}, "batch_size: expected at least 1"),
        ({"lr": 0.0}, "lr: expected a positive"),
        ({"keep": 0}, "keep: expected at least 1, found 0"),
        ({"lr": math.nan}, "lr: expected a positive"),
        ({"lr": 1e38}, r"lr: expected a positive learning rate, at most 1e\+06, found 1e\+38"),
        ({"evaluations": 0}, "evaluations: expected at least 1"),
        ({"max_skipped": 0}, "max_skipped: expected at least 1, found 0"),
        ({"validation_days": 3}, "none is left to learn from; show more days"),
        ({"validation_days": math.nan}, "validation_days: expected a number of days, found nan"),
        ({"config": {"key": object()}}, "config: expected plain numbers and strings"),
        ({"sources": ()}, "strategy 'tsjt' learns from source cities, found none"),
    ],
)
def test_arguments_that_cannot_work_are_named_and_nothing_is_written(task, change, message, tmp_path):
    visible, _, sources = task
    arguments = {"sources": sources, "strategy": "tsjt", **SETTINGS, **change}
    with pytest.raises(ValueError, match=message):
        fit(new_model(), visible, output=tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_a_model_of_other_channels_is_refused_with_the_way_out(task):
    visible, _, _ = task
    # ModelConfig(channels=2) and a Forecaster that sees two and forecasts one.
    for outputs in (2, 1):
        model = Forecaster(torch.nn.GRU(8, 8), history=6, horizon=3, in_channels=2, out_channels=outputs)
        with pytest.raises(ValueError, match=r"model: it has in_channels=2, and target 1 \(\w+\).*City.select"):
            fit(model, visible, [], "target_only", **SETTINGS)
    two = replace(
        visible,
        readings=visible.readings.repeat(1, 1, 2),
        mask=visible.mask.repeat(1, 1, 2),
        channels=("speed", "flow"),
        units=("km/h", "veh/h"),
    )
    with pytest.raises(ValueError, match=r"model: it has out_channels=1, and target 2 \(speed, flow\)"):
        fit(model, two, [], "target_only", **SETTINGS)


def test_sources_of_another_interval_or_channel_are_refused_with_the_way_out(task, commuters):
    visible, _, sources = task
    with pytest.raises(ValueError, match=r"north has interval .* the target target has .* City.resample"):
        fit(new_model(), visible, [sources[0].resample("120min")], "pooled", **SETTINGS)
    other = replace(sources[0], channels=("flow",))
    with pytest.raises(ValueError, match=r"has channels \('flow',\), the target .* City.select"):
        fit(new_model(), visible, [other], "pooled", **SETTINGS)


def test_progress_counts_every_step(task):
    visible, _, _ = task
    seen = []
    fit(new_model(), visible, [], "target_only", progress=lambda done, total: seen.append((done, total)), **SETTINGS)
    assert seen == [(step, 12) for step in range(1, 13)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("strategy", ["tsjt", "pooled"])
def test_on_a_gpu_a_run_trains_and_resumes(task, strategy, tmp_path):
    visible, _, sources = task
    settings = {**SETTINGS, "output": tmp_path, "checkpoint_every": 5}

    def stop(done, total):
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(new_model().cuda(), visible, sources, strategy, progress=stop, **settings)
    result = fit(new_model().cuda(), visible, sources, strategy, resume=True, **settings)
    assert next(result.model.parameters()).is_cuda
    assert math.isfinite(result.validation_loss)
