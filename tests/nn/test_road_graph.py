"""Operators of a road network are built once, and recognised by the tensors they were made of."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from tsjt_pyg.nn import road_graph as module
from tsjt_pyg.nn.road_graph import road_graph


@pytest.fixture(autouse=True)
def no_graphs_of_other_tests():
    module._recent.clear()
    yield
    module._recent.clear()


@pytest.fixture
def edges():
    return torch.tensor([[0, 1, 2], [1, 2, 0]]), torch.tensor([1.0, 2.0, 3.0])


def test_an_operator_is_built_once_for_the_same_tensors(edges):
    index, weight = edges
    built = []
    for _ in range(3):
        operator = road_graph(index, weight, 3).operator("sum", lambda: built.append(1) or weight.sum())
        assert operator == 6
    assert built == [1]
    assert road_graph(index, None, 3) is not road_graph(index, weight, 3)
    assert road_graph(index, weight, 4) is not road_graph(index, weight, 3)


def test_equal_tensors_are_another_road_network(edges):
    index, weight = edges
    graph = road_graph(index, weight, 3)
    assert road_graph(index.clone(), weight, 3) is not graph
    assert road_graph(index, weight.clone(), 3) is not graph
    assert road_graph(index, weight, 3) is graph


@pytest.mark.parametrize("which", [0, 1])
def test_tensors_changed_in_place_are_another_road_network(edges, which):
    graph = road_graph(*edges, 3)
    edges[which][..., 0] += 1
    assert road_graph(*edges, 3) is not graph


def test_a_parameter_that_was_moved_is_another_road_network(edges):
    index, weight = edges
    weight = torch.nn.Parameter(weight, requires_grad=False)
    graph = road_graph(index, weight, 3)
    weight.data = weight.data + 1  # as Module.to does; it is not counted
    assert road_graph(index, weight, 3) is not graph


def test_a_learned_weight_is_never_kept(edges):
    index, weight = edges
    weight = torch.nn.Parameter(weight)
    assert road_graph(index, weight, 3) is not road_graph(index, weight, 3)
    assert not module._recent


def test_what_is_kept_is_bounded_and_then_let_go(edges):
    index, _ = edges
    first = index.clone()
    gone = weakref.ref(first)
    kept = road_graph(first, None, 3)
    others = [index.clone() for _ in range(module.RECENT)]
    for other in others[:-1]:
        road_graph(other, None, 3)
    assert road_graph(first, None, 3) is kept  # asked for again: others go before it
    for other in others:
        road_graph(other.clone(), None, 3)
    assert len(module._recent) == module.RECENT
    del first, kept
    gc.collect()
    assert gone() is None


def test_what_is_built_for_a_forecast_serves_training_too(edges):
    index, weight = edges
    with torch.inference_mode():
        operator = road_graph(index, weight, 3).operator("double", lambda: weight * 2)
    parameter = torch.ones(3, requires_grad=True)
    (operator * parameter).sum().backward()
    assert parameter.grad.tolist() == [2, 4, 6]


def test_tensors_of_inference_mode_are_not_kept():
    with torch.inference_mode():
        index = torch.tensor([[0, 1], [1, 0]])
    assert road_graph(index, None, 2) is not road_graph(index, None, 2)
