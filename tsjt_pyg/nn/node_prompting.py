"""Node prompts: features drawn from a bank which all cities share, so that nodes which behave alike look alike."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import LayerNorm, Linear, Parameter
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import scatter

_PROMPT_GRAPHS = ("road", "topk", "factorised", None)


class NodePrompting(MessagePassing):
    r"""The node prompting module, after `"Drawing Informative Gradients from Sources: A One-stage Transfer Learning
    Framework for Cross-city Spatiotemporal Forecasting" <https://doi.org/10.1609/aaai.v39i1.32102>`_ (Zhang et al.,
    AAAI 2025).

    A node is encoded by a graph convolution over the road network and attention over its own time steps,

    .. math::
        \mathbf{U}_i^t &= \mathrm{ReLU} \Big( \mathbf{W}_1 \mathbf{x}_i^t + \mathbf{W}_2 \sum_{j \in \mathcal{N}(i)}
        \frac{e_{j,i}}{\sum_{k} e_{k,i}} \mathbf{x}_j^t + \mathbf{b} \Big) + \mathrm{position}(t)

        \mathbf{Z}_i &= \mathrm{LayerNorm}(\mathbf{U}_i + \mathrm{SelfAttention}(\mathbf{U}_i)),

    draws a prompt from the :math:`S` slots of a bank of keys :math:`\mathbf{K}` and values :math:`\mathbf{V}`,

    .. math::
        \mathbf{P}_i^t = \mathrm{softmax}(\mathbf{Z}_i^t \mathbf{K}^{\top} / \sqrt{D}) \mathbf{V},

    and adds to it the prompts of the nodes that are like it in this window,

    .. math::
        \mathbf{P}_i^{\prime t} = \mathbf{P}_i^t + \sum_j a_{i,j} \mathbf{P}_j^t, \quad
        \mathbf{x}_i^{\prime t} = \mathbf{x}_i^t \, \Vert \, \mathbf{P}_i^{\prime t}.

    The prompt graph :math:`a` compares the prompts' means over the window, :math:`\bar{\mathbf{P}}` (which nodes are
    alike is a property of a window, not of one step). Its rows sum to one, or to zero where a node has no neighbour:

    * ``"road"``: the road network re-weighted, :math:`a_{i,j} \propto e_{j,i} \exp(\bar{\mathbf{P}}_i^{\top}
      \bar{\mathbf{P}}_j / \sqrt{P})` over the edges :math:`(j, i)`; time and memory :math:`O(E)`.
    * ``"topk"``: the :math:`k` most similar other nodes of the whole city, softmax of the same similarity; they are
      found block by block, memory :math:`O(N k)`.
    * ``"factorised"``: all nodes, :math:`a_{i,j} \propto \phi(\bar{\mathbf{P}}_i)^{\top} \phi(\bar{\mathbf{P}}_j)`
      with :math:`\phi = \mathrm{elu} + 1`, multiplied out from the right; time and memory :math:`O(N)`.
    * ``None``: no prompt graph, :math:`\mathbf{P}^{\prime} = \mathbf{P}`.

    This differs from the module as published where that one is bound to a city or to a batch. There, the bank is
    summed over its slots, so that it acts as one matrix: here each node retrieves its own mixture. There, LayerNorm is
    sized by the number of nodes: here all norms are over channels. There, attention runs across the samples of a
    batch: here over the time steps of one node in one window. There, the prompt adjacency is dense and
    unnormalised: here it is one of the sparse or factorised forms above. There, inputs are detached: here they are not.
    No parameter or buffer depends on the number of nodes or of time steps.

    Args:
        in_channels: Channels of each node's input.
        prompt_channels: Channels ``P`` of a prompt.
        num_prompts: Slots ``S`` of the bank.
        hidden_channels: Channels ``D`` of the encoder and of the keys, even. (default: ``prompt_channels``, rounded up
            to a multiple of ``2 * heads``)
        heads: Heads of the attention over time.
        prompt_graph: ``"road"``, ``"topk"``, ``"factorised"`` or ``None``.
        k: Neighbours of a node where ``prompt_graph="topk"``.
        block_size: Nodes which are compared with the whole city at a time where ``prompt_graph="topk"``.
        **kwargs: Arguments of :class:`torch_geometric.nn.conv.MessagePassing`.

    Shapes:
        - **input:** node features :math:`(N, F)`, :math:`(T, N, F)` or :math:`(B, T, N, F)`,
          edge indices :math:`(2, E)`, non-negative edge weights :math:`(E)` *(optional)*
        - **output:** node features and prompts, :math:`(\ldots, N, F + P)`
    """

    def __init__(
        self,
        in_channels: int,
        prompt_channels: int,
        num_prompts: int,
        *,
        hidden_channels: int | None = None,
        heads: int = 1,
        prompt_graph: str | None = "road",
        k: int = 8,
        block_size: int = 256,
        **kwargs: object,
    ) -> None:
        kwargs.setdefault("aggr", "add")
        super().__init__(node_dim=1, **kwargs)
        if hidden_channels is None:
            hidden_channels = -(-prompt_channels // (2 * heads)) * 2 * heads if heads > 0 else prompt_channels
        sizes = {
            "in_channels": in_channels,
            "prompt_channels": prompt_channels,
            "num_prompts": num_prompts,
            "hidden_channels": hidden_channels,
            "heads": heads,
            "k": k,
            "block_size": block_size,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be a positive integer, found {size}")
        if hidden_channels % heads or hidden_channels % 2:
            raise ValueError(f"hidden_channels must be even and a multiple of heads={heads}, found {hidden_channels}")
        if prompt_graph not in _PROMPT_GRAPHS:
            raise ValueError(f"prompt_graph must be one of {_PROMPT_GRAPHS}, found {prompt_graph!r}")

        self.in_channels = in_channels
        self.prompt_channels = prompt_channels
        self.num_prompts = num_prompts
        self.hidden_channels = hidden_channels
        self.heads = heads
        self.prompt_graph = prompt_graph
        self.k = k
        self.block_size = block_size

        self.lin_root = Linear(in_channels, hidden_channels)
        self.lin_neighbour = Linear(in_channels, hidden_channels, bias=False)
        self.lin_attention = Linear(hidden_channels, 3 * hidden_channels)
        self.lin_out = Linear(hidden_channels, hidden_channels)
        self.norm = LayerNorm(hidden_channels)
        self.keys = Parameter(torch.empty(num_prompts, hidden_channels))
        self.values = Parameter(torch.empty(num_prompts, prompt_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for layer in (self.lin_root, self.lin_neighbour, self.lin_attention, self.lin_out, self.norm):
            layer.reset_parameters()
        torch.nn.init.normal_(self.keys)
        torch.nn.init.normal_(self.values)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        if x.dim() not in (2, 3, 4) or x.size(-1) != self.in_channels:
            raise ValueError(
                f"x must be [N, {self.in_channels}], [T, N, {self.in_channels}] or [B, T, N, {self.in_channels}], "
                f"found {list(x.shape)}"
            )
        edge_weight = x.new_ones(edge_index.size(1)) if edge_weight is None else edge_weight.to(x.dtype)
        windows = x.reshape((1,) * (4 - x.dim()) + x.shape)
        # A node's steps lie in one piece, for the attention over them and as one row of the prompt graph's product.
        prompts = self.retrieve(self.encode(windows.transpose(1, 2).contiguous(), edge_index, edge_weight))
        if self.prompt_graph is not None:
            prompts = prompts + self._mix(prompts, edge_index, edge_weight)
        prompts = prompts.transpose(1, 2).reshape(*x.shape[:-1], self.prompt_channels)
        return torch.cat([x, prompts], dim=-1)

    def encode(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        """``[B, N, T, F] -> [B, N, T, D]``."""
        target = edge_index[1]
        degree = scatter(edge_weight, target, dim_size=x.size(1), reduce="sum")
        share = _divide(edge_weight, degree[target])
        # propagate_type: (x: Tensor, weight: Tensor)
        neighbours = self.propagate(edge_index, x=x, weight=share[None, :, None, None])
        hidden = torch.relu(self.lin_root(x) + self.lin_neighbour(neighbours))
        hidden = hidden + self._positions(x.size(2), hidden)
        return self.norm(hidden + self._attend(hidden))

    def retrieve(self, encoded: Tensor) -> Tensor:
        """``[..., D] -> [..., P]``: a mixture of the bank's values."""
        share = torch.softmax(encoded @ self.keys.t() / math.sqrt(self.hidden_channels), dim=-1)
        return share @ self.values

    def _attend(self, hidden: Tensor) -> Tensor:
        """Attention over time, each node of each window on its own."""
        *lead, steps, channels = hidden.shape
        projected = self.lin_attention(hidden).view(-1, steps, 3, self.heads, channels // self.heads)
        query, key, value = projected.permute(2, 0, 3, 1, 4).unbind(0)
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        return self.lin_out(out.transpose(1, 2).reshape(*lead, steps, channels))

    def _positions(self, steps: int, like: Tensor) -> Tensor:
        """Sinusoids counted back from the last step, so that "now" looks the same for every length of history."""
        dtype = torch.promote_types(like.dtype, torch.float32)  # half precision cannot count to long histories
        back = torch.arange(steps - 1, -1, -1, device=like.device, dtype=dtype)
        half = self.hidden_channels // 2
        frequency = torch.exp(torch.arange(half, device=like.device, dtype=dtype) * (-math.log(10000.0) / half))
        angle = back[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=-1).to(like.dtype)

    def _mix(self, prompts: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        """The weighted mean of other nodes' prompts, ``[B, N, T, P]``."""
        mean = prompts.mean(dim=2)
        if self.prompt_graph == "road":
            return self._mix_road(prompts, mean, edge_index, edge_weight)
        if self.prompt_graph == "topk":
            return self._mix_most_similar(prompts, mean)
        return self._mix_factorised(prompts, mean)

    def _mix_road(self, prompts: Tensor, mean: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        weight = self._road_weight(mean, edge_index, edge_weight).to(prompts.dtype)
        if self.explain:  # an explainer looks at the messages themselves
            return self.propagate(edge_index, x=prompts, weight=weight[..., None, None])
        windows, nodes = mean.shape[:2]
        # A bag holds the in-edges of one node in one window. Nothing of size E * T * P is formed.
        order = edge_index[1].argsort()
        first = torch.arange(windows, device=mean.device)[:, None]
        ends = torch.bincount(edge_index[1], minlength=nodes).cumsum(0)
        starts = torch.nn.functional.pad(ends[:-1], (1, 0))
        return self._bag_sums(
            prompts,
            (first * nodes + edge_index[0, order]).flatten(),
            weight[:, order].flatten(),
            (first * edge_index.size(1) + starts).flatten(),
        )

    def _road_weight(self, mean: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        """Softmax over each node's in-edges, ``[B, E]``; an edge of weight 0 counts as none."""
        source, target = edge_index
        similarity = (mean[:, target] * mean[:, source]).sum(dim=-1) / math.sqrt(self.prompt_channels)
        # Absent edges must not set the shift, which only keeps exp from overflowing.
        similarity = similarity.masked_fill(edge_weight <= 0, -math.inf)
        highest = similarity.new_full(mean.shape[:2], -math.inf).scatter_reduce(
            1, target.expand_as(similarity), similarity.detach(), "amax"
        )
        highest = highest.masked_fill(highest == -math.inf, 0.0)
        unnormalised = (similarity - highest[:, target]).exp() * edge_weight
        total = scatter(unnormalised, target, dim=1, dim_size=mean.size(1), reduce="sum")
        return _divide(unnormalised, total[:, target])

    def _mix_most_similar(self, prompts: Tensor, mean: Tensor) -> Tensor:
        windows, nodes = mean.shape[:2]
        k = min(self.k, nodes - 1)
        if k == 0:
            return torch.zeros_like(prompts)
        chosen = self._most_similar(mean.detach(), k) + torch.arange(windows, device=mean.device)[:, None, None] * nodes
        similarity = (mean[:, :, None] * mean.flatten(0, 1)[chosen]).sum(dim=-1) / math.sqrt(self.prompt_channels)
        weight = torch.softmax(similarity, dim=-1).to(prompts.dtype)
        return self._bag_sums(prompts, chosen.flatten(0, 1), weight.flatten(0, 1), None)

    def _most_similar(self, mean: Tensor, k: int) -> Tensor:
        """Indices ``[B, N, k]`` of the nodes of highest similarity to each node, itself excluded."""
        blocks = []
        for start in range(0, mean.size(1), self.block_size):
            block = mean[:, start : start + self.block_size]
            similarity = block @ mean.transpose(1, 2)
            own = torch.arange(block.size(1), device=mean.device)
            similarity[:, own, own + start] = -math.inf
            blocks.append(similarity.topk(k, dim=-1).indices)
        return torch.cat(blocks, dim=1)

    def _bag_sums(self, prompts: Tensor, index: Tensor, weight: Tensor, starts: Tensor | None) -> Tensor:
        """Weighted sums of rows (all steps of a node in a window), a sparse product with a gradient in its weights."""
        rows = prompts.reshape(-1, prompts.size(2) * prompts.size(3))
        sums = torch.nn.functional.embedding_bag(index, rows, starts, mode="sum", per_sample_weights=weight)
        return sums.view(prompts.shape)

    def _mix_factorised(self, prompts: Tensor, mean: Tensor) -> Tensor:
        feature = torch.nn.functional.elu(mean) + 1.0  # [B, N, P]
        summary = feature.transpose(1, 2) @ prompts.flatten(2)  # [B, P, T * P]
        total = feature @ feature.sum(dim=1).unsqueeze(-1)
        return _divide(feature @ summary, total).view(prompts.shape)

    def message(self, x_j: Tensor, weight: Tensor) -> Tensor:
        return weight * x_j

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}({self.in_channels}, {self.prompt_channels}, num_prompts={self.num_prompts}, "
            f"hidden_channels={self.hidden_channels}, heads={self.heads}, prompt_graph={self.prompt_graph!r})"
        )


def _divide(part: Tensor, total: Tensor) -> Tensor:
    """``part / total``, and 0 where the total is 0, in the gradient too."""
    empty = total <= 0
    return (part / total.masked_fill(empty, 1.0)).masked_fill(empty, 0.0)
