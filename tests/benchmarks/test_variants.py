"""The variants of the default do what their names say."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tsjt_pyg.data import SupportProfile
from tsjt_pyg.training import STRATEGIES, ModelConfig, fit
from tsjt_pyg.training.run import TrainingRun

CONFIG = ModelConfig(cell="GRU", hidden_channels=8, history=6, horizon=3)
FITTING = {"steps": 12, "batch_size": 8, "evaluations": 2, "lr": 1e-2}


@pytest.fixture
def variants(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    return importlib.import_module("variants")


@pytest.fixture(scope="module")
def task(commuters):
    visible = commuters("target", seed=1).few_shot(3).visible
    return visible, [commuters("north", num_nodes=8, seed=2), commuters("south", days=4, num_nodes=5, seed=3)]


def trained(variants, task, strategy):
    network = variants.variant_network(strategy.name, CONFIG)
    torch.manual_seed(0)
    model = network.build() if isinstance(network, ModelConfig) else network()
    return fit(model, *task, strategy, **FITTING)


def test_every_variant_is_the_default_but_for_one_thing(variants):
    default = STRATEGIES["tsjt"]
    for strategy in variants.VARIANTS:
        same_strategy = replace(default, name=strategy.name) == strategy
        assert same_strategy != (variants.variant_network(strategy.name, CONFIG) == CONFIG)
    assert variants.variant_network(variants.NO_PROFILE, CONFIG) == replace(CONFIG, profile=False)
    assert variants.variant_network(variants.PROMPTS, CONFIG) == replace(CONFIG, num_prompts=16)
    assert variants.variant_network(variants.UNCENTRED, CONFIG)().center is False


def test_every_variant_trains(variants, task):
    for strategy in variants.VARIANTS:
        result = trained(variants, task, strategy)
        assert all(value.isfinite().all() for value in result.model.state_dict().values())
        assert len(result.verdicts) == 2 * strategy.guard


def test_the_averaged_normal_is_an_average(variants, task):
    strategy = next(s for s in variants.VARIANTS if isinstance(s, variants.AveragedNormal))
    assert strategy.filter_options() == {"gamma_source": 1.0, "gamma_target": 1.0, "normal": "ema"}


def test_in_adams_metric_the_step_does_not_oppose_the_target(variants, task, monkeypatch):
    """Against the gradients and the metric, found independently in float64 from Adam's own state before the step."""
    strategy = replace(next(s for s in variants.VARIANTS if isinstance(s, variants.AdamMetric)), guard=False)
    seen = []
    original = TrainingRun.train_step

    def spy(run):
        parameters = list(run.model.parameters())
        source, target = (
            torch.cat([g.double().flatten() for g in torch.autograd.grad(TrainingRun.loss(run, which), parameters)])
            for which in (True, False)
        )
        roots = []
        for p in parameters:
            state = run.optimizer.state.get(p)
            step = float(state["step"]) if state else 0
            second = state["exp_avg_sq"].double() / (1 - 0.999**step) if state else torch.ones_like(p).double()
            roots.append((second.sqrt() + (1e-8 if state else 0)).flatten())
        metric = torch.diag(1 / torch.cat(roots))
        original(run)
        found = torch.cat([p.grad.double().flatten() for p in parameters])
        seen.append((source, target, metric, found))

    monkeypatch.setattr(TrainingRun, "train_step", spy)
    torch.manual_seed(0)
    # Not cut: a long gradient would be, and could not be compared.
    fit(CONFIG.build(), *task, strategy, **{**FITTING, "batch_size": 2, "steps": 30, "max_grad_norm": 1e9})
    conflicts = 0
    for source, target, metric, found in seen:
        dot = target @ metric @ source
        expected = source - min(dot, torch.zeros(())) / (target @ metric @ target) * target + target
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        assert (found - target) @ metric @ target > -1e-5 * (found - target).norm() * target.norm()
        conflicts += bool(dot < 0)
    assert 0 < conflicts < len(seen)


def test_prompts_by_profile_depend_on_it_and_the_flagless_do_not_see_its_type(variants, task):
    windows = task[0].windows(6, 3)
    batch, profile = windows.batch(torch.arange(4)), SupportProfile(task[0]).at(windows, torch.arange(4))
    torch.manual_seed(0)
    prompted, flagless = (variants.variant_network(n, CONFIG)() for n in (variants.PROFILE_PROMPTS, variants.NO_FLAG))
    for model in (prompted, flagless):
        torch.nn.init.normal_(model.head[-1].weight)

    def forecast(model, values, same_type):
        return model(
            batch.x,
            batch.edge_index,
            batch.edge_weight,
            x_mask=batch.x_mask,
            profile=values,
            profile_mask=profile.mask,
            profile_same_type=same_type,
        )

    prompts = []
    prompted.prompting.register_forward_hook(lambda _, __, out: prompts.append(out[..., 1:]))
    forecast(prompted, profile.values, profile.same_type)
    forecast(prompted, profile.values + 1, profile.same_type)
    assert not torch.allclose(*prompts)
    one = forecast(flagless, profile.values, profile.same_type)
    assert torch.equal(one, forecast(flagless, profile.values, ~profile.same_type))
    assert not torch.equal(one, forecast(flagless, profile.values + 1, profile.same_type))
