"""Node prompting with the faults of the published code, to measure what they cost."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import LayerNorm, Linear, Parameter
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import scatter

from tsjt_pyg.nn.prompt_graph import divide, refuse_other_messages
from tsjt_pyg.nn.road_graph import check_edges


class PublishedNodePrompting(MessagePassing):
    r"""The node prompting module of `"Drawing Informative Gradients from Sources: A One-stage Transfer Learning
    Framework for Cross-city Spatiotemporal Forecasting" <https://doi.org/10.1609/aaai.v39i1.32102>`_ (Zhang et al.,
    AAAI 2025) as its public code has it, written anew from a description: for ablation only. Use
    :class:`NodePrompting` for anything else.

    .. math::
        \mathbf{U}_i^t &= \mathrm{ReLU} \Big( \mathbf{W}_1 \bar{\mathbf{x}}_i^t + \mathbf{W}_2 \sum_{j \in
        \mathcal{N}(i)} \frac{e_{j,i}}{\sum_{k} e_{k,i}} \bar{\mathbf{x}}_j^t + \mathbf{b} \Big), \quad
        \bar{\mathbf{x}} = \mathrm{detach}(\mathbf{x})

        \mathbf{Z}_i^t &= \mathrm{LayerNorm}(\mathbf{U}_i^t + \mathrm{SelfAttention}_{\text{batch}}(\mathbf{U}_i^t)),
        \quad \mathbf{P}_i^t = \mathbf{Z}_i^t \sum_{s=1}^{S} \mathbf{B}_s

        \mathbf{P}_i^{\prime t} &= \mathbf{P}_i^t + \sum_j \big( \tilde{\mathbf{P}}_i^{\top} \tilde{\mathbf{P}}_j \big)
        \mathbf{P}_j^t, \quad \mathbf{x}_i^{\prime t} = \mathbf{x}_i^t \, \Vert \, \mathbf{P}_i^{\prime t},

    with :math:`\tilde{\mathbf{P}}` the mean over the steps of a window. Kept are these faults:

    * The bank :math:`\mathbf{B}` is summed over its slots: it acts as one matrix, and slots retrieve nothing.
    * Attention runs across the samples of a batch: a window's prompts depend on the windows beside it.
    * The prompt graph is a dense, unnormalised :math:`N \times N` matrix: memory :math:`O(N^2)`, and what reaches a
      node grows with the number of nodes.
    * The input is detached: no gradient passes through the prompts to what is before them.

    Not kept is a LayerNorm sized by the number of nodes, with which no second city fits: it is over channels here.
    What the description leaves open (the graph convolution, one head, the mean over the steps) is as in
    :class:`NodePrompting`.

    Args:
        in_channels: Channels of each node's input.
        prompt_channels: Channels ``P`` of a prompt.
        num_prompts: Slots ``S`` of the bank.
        hidden_channels: Channels ``D`` of the encoder. (default: ``prompt_channels``)
        **kwargs: Arguments of :class:`torch_geometric.nn.conv.MessagePassing`, but for ``aggr``, ``flow`` and
            ``node_dim``: messages are weighted sums along the edges.

    Shapes:
        - **input:** node features :math:`(N, F)`, :math:`(T, N, F)` or :math:`(B, T, N, F)`,
          edge indices :math:`(2, E)`, non-negative edge weights :math:`(E)` *(optional)*
        - **output:** node features and prompts, :math:`(\ldots, N, F + P)`

    Raises:
        ValueError: If a size is not positive.
    """

    def __init__(
        self,
        in_channels: int,
        prompt_channels: int,
        num_prompts: int,
        *,
        hidden_channels: int | None = None,
        **kwargs: object,
    ) -> None:
        refuse_other_messages(kwargs)
        kwargs.setdefault("aggr", "add")
        super().__init__(node_dim=-2, **kwargs)
        hidden_channels = prompt_channels if hidden_channels is None else hidden_channels
        sizes = {
            "in_channels": in_channels,
            "prompt_channels": prompt_channels,
            "num_prompts": num_prompts,
            "hidden_channels": hidden_channels,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be a positive integer, found {size}")
        self.in_channels = in_channels
        self.prompt_channels = prompt_channels
        self.num_prompts = num_prompts
        self.hidden_channels = hidden_channels

        self.lin_root = Linear(in_channels, hidden_channels)
        self.lin_neighbour = Linear(in_channels, hidden_channels, bias=False)
        self.lin_attention = Linear(hidden_channels, 3 * hidden_channels)
        self.lin_out = Linear(hidden_channels, hidden_channels)
        self.norm = LayerNorm(hidden_channels)
        self.bank = Parameter(torch.empty(num_prompts, hidden_channels, prompt_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for layer in (self.lin_root, self.lin_neighbour, self.lin_attention, self.lin_out, self.norm):
            layer.reset_parameters()
        # The sum of the slots, which is all that acts, has the scale of one linear layer.
        torch.nn.init.normal_(self.bank, std=1 / math.sqrt(self.num_prompts * self.hidden_channels))

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """Appends the prompts to the input."""
        if x.dim() not in (2, 3, 4) or x.size(-1) != self.in_channels:
            raise ValueError(
                f"x must be [N, {self.in_channels}], [T, N, {self.in_channels}] or [B, T, N, {self.in_channels}], "
                f"found {list(x.shape)}"
            )
        check_edges(edge_index, edge_weight, x.size(-2))
        windows = x.detach().reshape((1,) * (4 - x.dim()) + x.shape)
        weight = x.new_ones(edge_index.size(1)) if edge_weight is None else edge_weight.to(x.dtype)
        prompts = self._encode(windows, edge_index, weight) @ self.bank.sum(dim=0)
        mean = prompts.mean(dim=1)
        adjacency = mean @ mean.transpose(1, 2)
        prompts = prompts + adjacency.unsqueeze(1) @ prompts
        return torch.cat([x, prompts.reshape(*x.shape[:-1], self.prompt_channels)], dim=-1)

    def _encode(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        """``[B, T, N, F] -> [B, T, N, D]``."""
        target = edge_index[1]
        degree = scatter(edge_weight, target, dim_size=x.size(2), reduce="sum")
        # propagate_type: (x: Tensor, weight: Tensor)
        neighbours = self.propagate(edge_index, x=x, weight=divide(edge_weight, degree[target])[:, None])
        hidden = torch.relu(self.lin_root(x) + self.lin_neighbour(neighbours))
        query, key, value = self.lin_attention(hidden).permute(1, 2, 0, 3).chunk(3, dim=-1)
        attended = torch.nn.functional.scaled_dot_product_attention(query, key, value)  # [T, N, B, D]
        return self.norm(hidden + self.lin_out(attended.permute(2, 0, 1, 3)))

    def message(self, x_j: Tensor, weight: Tensor) -> Tensor:
        return weight * x_j

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}({self.in_channels}, {self.prompt_channels}, num_prompts={self.num_prompts}, "
            f"hidden_channels={self.hidden_channels})"
        )
