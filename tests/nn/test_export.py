"""An exported forecaster computes what the model does, in any city, where there is torch alone."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch.nn import Linear, Module

from tsjt_pyg import Forecaster
from tsjt_pyg.nn import CityEmbedding
from tsjt_pyg.nn.export import ABOUT
from tsjt_pyg.training import CELLS, ModelConfig

TINY = {"hidden_channels": 4, "history": 4, "horizon": 3}
CITIES = ((3, 11, 29), (1, 5, 9), (7, 40, 200), (2, 3, 0), (1, 1, 1))
"""Windows, nodes and edges; a program is made with the first."""


def build(seed=0, **settings):
    """A model whose every parameter matters: an untrained head is zero."""
    torch.manual_seed(seed)
    model = ModelConfig(**{**TINY, **settings}).build()
    return scattered(model)


def scattered(model):
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def inputs_of(model, windows, nodes, edges, seed=1):
    """Everything that the model takes: readings with holes, two-way, one-way and parallel roads of any weight."""
    generator = torch.Generator().manual_seed(seed)
    later = model.history + model.horizon

    def drawn(*shape):
        return torch.rand(shape, generator=generator)

    found = {
        "x": 2 * drawn(windows, model.history, nodes, model.in_channels) - 1,
        "edge_index": torch.randint(nodes, (2, edges), generator=generator),
        "edge_weight": 0.1 + drawn(edges),
        "x_mask": drawn(windows, model.history, nodes, model.in_channels) > 0.3,
    }
    found["x"][~found["x_mask"]] = torch.nan
    if model.time_of_day:
        found["time_of_day"] = drawn(windows, model.history)
    if model.day_of_week:
        found["day_of_week"] = torch.randint(7, (windows, model.history), generator=generator)
    if model.profile:
        shape = windows, later, nodes, model.in_channels
        found |= {"profile": drawn(*shape), "profile_mask": drawn(*shape) > 0.3}
        found["profile_same_type"] = drawn(windows, later) > 0.5
    return found


@torch.no_grad()
def check_same(model, path, cities=CITIES):
    program = torch.export.load(path).module()
    model = model.eval()
    for windows, nodes, edges in cities:
        inputs = inputs_of(model, windows, nodes, edges)
        expected, found = model(**inputs), program(**inputs)
        assert torch.isfinite(expected).all()
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    model = build(cell="GRU", num_prompts=3)
    path = tmp_path_factory.mktemp("export") / "forecaster.pt2"
    model.export(path)
    assert model.training  # it is as it was
    return model, path


def test_it_gives_the_models_numbers_in_cities_it_was_not_made_with(exported):
    model, path = exported
    check_same(model, path)


ALONE = """
import json, sys
for name in ("tsjt_pyg", "torch_geometric", "torch_geometric_temporal", "pandas"):
    sys.modules[name] = None  # importing it fails
import torch
program = torch.export.load(sys.argv[1]).module()
for inputs, expected in torch.load(sys.argv[2], weights_only=True):
    torch.testing.assert_close(program(**inputs), expected, rtol=1e-6, atol=1e-6)
print("the same")
"""


def run_alone(path, cases, folder):
    torch.save(cases, folder / "cases.pt")
    command = [sys.executable, "-c", ALONE, path, folder / "cases.pt"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == "the same\n", done.stderr


@pytest.mark.slow  # the program of a SavedModel always is
def test_it_runs_where_this_package_and_pyg_cannot_be_imported(exported, tmp_path):
    model, path = exported
    with torch.no_grad():
        cases = [(inputs, model.eval()(**inputs)) for inputs in (inputs_of(model, *city) for city in CITIES[1:3])]
    run_alone(path, cases, tmp_path)


def test_the_file_says_what_goes_in_and_comes_out(exported):
    model, path = exported
    files = {ABOUT: ""}
    torch.export.load(path, extra_files=files)
    about = json.loads(files[ABOUT])
    assert (about["history"], about["horizon"]) == (4, 3)
    assert about["output"]["shape"] == ["windows", 3, "nodes", 1]
    inputs = inputs_of(model, 2, 5, 7)
    sizes = {"windows": 2, "nodes": 5, "edges": 7}
    assert list(about["inputs"]) == list(inputs)
    for name, tensor in inputs.items():
        assert [sizes.get(size, size) for size in about["inputs"][name]["shape"]] == list(tensor.shape)
        assert about["inputs"][name]["dtype"] == str(tensor.dtype).removeprefix("torch.")


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("profile", "num_prompts"), [(True, 3), (False, 0)])
def test_every_cell_of_the_command_line_is_exported(tmp_path, cell, profile, num_prompts):
    model = build(cell=cell, profile=profile, num_prompts=num_prompts)
    model.export(tmp_path / "model.pt2")
    check_same(model, tmp_path / "model.pt2")


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"center": False, "profile": True, "day_of_week": True},
        {"center": False, "time_of_day": False},
        {"in_channels": 2, "out_channels": 1},
    ],
)
def test_every_form_of_a_forecaster_is_exported(tmp_path, settings):
    torch.manual_seed(0)
    cells = [torch.nn.GRU(4, 4), torch.nn.GRU(4, 4)]
    model = scattered(Forecaster(cells, history=4, horizon=2, **settings))
    model.export(tmp_path / "model.pt2")
    check_same(model, tmp_path / "model.pt2")


@pytest.mark.slow
def test_an_encoder_decoder_is_exported(tmp_path):
    torch.manual_seed(0)
    model = scattered(Forecaster(torch.nn.GRU(4, 4), history=4, horizon=2, decoder=torch.nn.GRU(4, 4)))
    model.export(tmp_path / "model.pt2")
    check_same(model, tmp_path / "model.pt2")


# --- what cannot be exported


class Own(Module):
    in_channels = out_channels = 4

    def __init__(self):
        super().__init__()
        self.linear = Linear(4, 4)


class LooksAtValues(Own):
    def forward(self, x, edge_index, edge_weight):
        return self.linear(x if x.sum() > 0 else -x)


class OnlyWhileExported(Own):
    def forward(self, x, edge_index, edge_weight):
        return self.linear(x) + float(torch.compiler.is_exporting())


def test_parameters_of_a_citys_nodes_are_refused_with_the_way_out(tmp_path):
    embedding = CityEmbedding({"home": 5}, 2)
    model = Forecaster(torch.nn.GRU(4, 4), history=4, horizon=2, city_embedding=embedding)
    with pytest.raises(ValueError, match=r"city_embedding: it holds parameters of each node of home.*=None"):
        model.export(tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_a_module_that_torch_export_cannot_follow_is_named(tmp_path):
    model = Forecaster(LooksAtValues(), history=4, horizon=2)
    with pytest.raises(ValueError, match=r"^cell \(LooksAtValues\): torch.export cannot follow it .*another module"):
        model.export(tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_a_program_that_computes_something_else_is_not_written(tmp_path):
    model = scattered(Forecaster(OnlyWhileExported(), history=4, horizon=2))
    with pytest.raises(ValueError, match=r"exported program differs from the model by .* Nothing was written"):
        model.export(tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_the_file_is_called_pt2(tmp_path):
    with pytest.raises(ValueError, match=r"files that end in \.pt2, found 'model\.pt'"):
        build(cell="GRU").export(tmp_path / "model.pt")
