import pytest
import torch

from tsjt_pyg.nn.propagation import Propagation

EDGES = torch.tensor([[0, 1, 1, 2, 0], [1, 0, 2, 2, 1]])  # 0 -> 1 twice, a loop at 2, nothing at 3
WEIGHT = torch.tensor([1.0, -2.0, 0.5, 3.0, 10.0], dtype=torch.float64)
DENSE = torch.tensor([[0, -2, 0, 0], [11, 0, 0, 0], [0, 0.5, 3, 0], [0, 0, 0, 0]], dtype=torch.float64)


@pytest.mark.parametrize("learned", [False, True])
def test_equals_the_dense_product(learned):
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    out = Propagation(EDGES, WEIGHT.clone().requires_grad_(learned), 4)(x)
    torch.testing.assert_close(out, torch.einsum("ij,jbf->ibf", DENSE, x))


def test_has_first_and_second_derivatives():
    graph = Propagation(EDGES, WEIGHT, 4)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(graph, (x,))
    assert torch.autograd.gradgradcheck(lambda x: graph(x).tanh(), (x,))


def test_learned_weights_have_a_gradient():
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    weight = WEIGHT.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: Propagation(EDGES, w, 4)(x), (x, weight))


def test_takes_non_contiguous_input_and_keeps_its_dtype():
    x = torch.randn(3, 4, dtype=torch.float64).t()
    torch.testing.assert_close(Propagation(EDGES, WEIGHT, 4)(x), DENSE @ x)
    assert Propagation(EDGES, WEIGHT, 4)(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("transpose", [False, True])
def test_memory_at_hand_is_overwritten_whatever_it_held(transpose):
    """Fresh memory may hold NaN, which times zero is NaN."""
    index, weight = torch.tensor([[0, 1, 2], [1, 2, 0]]), torch.tensor([1.0, 2.0, 3.0])
    propagation = Propagation(index, weight, 4)  # a node without edges too
    x, out = torch.randn(4, 5), torch.full((4, 5), torch.nan)
    propagation.apply_(out, x, transpose=transpose)
    matrix = torch.zeros(4, 4).index_put((index[1], index[0]), weight)
    torch.testing.assert_close(out, (matrix.t() if transpose else matrix) @ x)
