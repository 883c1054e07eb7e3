r"""Three graphs that join nodes by their prompts: a node's own with a weighted mean of other nodes' added.

All take prompts :math:`(B, N, T, P)` and their means over the window :math:`(B, N, P)`, whose similarity is
:math:`s_{i,j} = \bar{\mathbf{P}}_i^{\top} \bar{\mathbf{P}}_j / \sqrt{P}`, and return :math:`(B, N, T, P)`. No matrix of
:math:`N \times N` is formed, and as little as can be of the size of the prompts: a large city pays for memory fresh
from the system.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch_geometric.utils import scatter

_EDGES = 8192
"""Edges that a CPU handles at a time, so that what is made of them stays in its cache."""


def road_weight(mean: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
    r"""The road network re-weighted by similarity, :math:`a_{i,j} = e_{j,i} \exp(s_{i,j}) / \sum_k e_{k,i}
    \exp(s_{i,k})`; an edge of weight 0 counts as none.

    Shapes:
        - **input:** mean :math:`(B, N, P)`, edge_index :math:`(2, E)`, edge_weight :math:`(E)`
        - **output:** :math:`(B, E)`
    """
    source, target = edge_index
    similarity = _edge_products(mean, source, target) / math.sqrt(mean.size(-1))
    # Absent edges must not set the shift, which only keeps exp from overflowing.
    similarity = similarity.masked_fill(edge_weight <= 0, -math.inf)
    highest = similarity.new_full(mean.shape[:2], -math.inf).scatter_reduce(
        1, target.expand_as(similarity), similarity.detach(), "amax"
    )
    highest = highest.masked_fill(highest == -math.inf, 0.0)
    unnormalised = (similarity - highest[:, target]).exp() * edge_weight
    total = scatter(unnormalised, target, dim=1, dim_size=mean.size(1), reduce="sum")
    return divide(unnormalised, total[:, target])


def _edge_products(features: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Inner product of the features at both ends, ``[B, N, P] -> [B, E]``."""
    if features.device.type != "cpu" or torch.compiler.is_compiling():
        return (features[:, target] * features[:, source]).sum(dim=-1)
    windows, nodes, _ = features.shape
    first = torch.arange(windows)[:, None] * nodes
    ends = (first + source).flatten(), (first + target).flatten()
    products: Tensor = _EdgeProducts.apply(features.flatten(0, 1), *ends)
    return products.view(windows, -1)


class _EdgeProducts(torch.autograd.Function):
    """Of so many edges at a time that nothing of size ``E * P`` is formed."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, source: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(features, source, target)
        products = features.new_empty(source.shape)
        for s, t, out in zip(*(edges.split(_EDGES) for edges in (source, target, products)), strict=True):
            torch.sum(features[s] * features[t], dim=1, out=out)
        return products

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        features, *ends = ctx.saved_tensors
        found = torch.zeros_like(features)
        for s, t, g in zip(*(edges.split(_EDGES) for edges in (*ends, gradient)), strict=True):
            for here, there in ((s, t), (t, s)):  # a third of the time of index_add_
                found.scatter_add_(0, here[:, None].expand(-1, features.size(1)), features[there] * g[:, None])
        return found, None, None


def join_road(prompts: Tensor, edge_index: Tensor, weight: Tensor) -> Tensor:
    """With the sum over each node's in-edges, ``weight`` ``[B, E]``; nothing of size ``E * T * P`` is formed."""
    windows, nodes = prompts.shape[:2]
    itself = torch.arange(nodes, device=prompts.device)
    source, target = torch.cat([edge_index, itself.expand(2, -1)], dim=1)
    weight = torch.cat([weight, weight.new_ones(windows, nodes)], dim=1)
    order = target.argsort()
    first = torch.arange(windows, device=prompts.device)[:, None]
    starts = first * source.numel() + _starts(target, nodes)
    bags = (first * nodes + source[order]).flatten(), weight[:, order].flatten(), starts.flatten()
    return _bag_sums(prompts.flatten(0, 1).flatten(1), *bags).view(prompts.shape)


def join_topk(prompts: Tensor, mean: Tensor, k: int, block_size: int, batch: Tensor | None = None) -> Tensor:
    """With the mean over the ``k`` most similar other nodes of the same graph, by the softmax of their similarity.

    They are found for ``block_size`` nodes at a time: time ``O(N^2)``, memory ``O(N k + block_size N)``.
    """
    windows, nodes = mean.shape[:2]
    k = min(k, nodes - 1)
    if k == 0:
        return prompts
    own = torch.arange(nodes, device=mean.device)[:, None]
    chosen = _most_similar(mean.detach(), k, block_size, batch)
    first = torch.arange(windows, device=mean.device)[:, None, None] * nodes
    similarity = (mean[:, :, None] * mean.flatten(0, 1)[chosen + first]).sum(dim=-1) / math.sqrt(mean.size(-1))
    if batch is None:
        weight = torch.softmax(similarity, dim=-1)
    else:  # a graph of k nodes or fewer has not k others: the rest are any nodes, the node itself among them
        inside = (chosen != own) & (batch[chosen] == batch[:, None])
        weight = torch.softmax(similarity.masked_fill(~inside, torch.finfo(similarity.dtype).min), dim=-1) * inside
    rows = torch.cat([chosen, own.expand(windows, -1, -1)], dim=-1) + first
    weight = torch.cat([weight, torch.ones_like(weight[..., :1])], dim=-1)
    return _bag_sums(prompts.flatten(0, 1).flatten(1), rows.flatten(0, 1), weight.flatten(0, 1)).view(prompts.shape)


def _most_similar(mean: Tensor, k: int, block_size: int, batch: Tensor | None) -> Tensor:
    """Indices ``[B, N, k]`` of the nodes of highest similarity to each node, itself excluded."""
    blocks = []
    for start in range(0, mean.size(1), block_size):
        block = mean[:, start : start + block_size]
        similarity = block @ mean.transpose(1, 2)
        own = torch.arange(block.size(1), device=mean.device)
        similarity[:, own, own + start] = -math.inf
        if batch is not None:
            similarity.masked_fill_(batch[start : start + block_size, None] != batch, -math.inf)
        blocks.append(similarity.topk(k, dim=-1).indices)
    return torch.cat(blocks, dim=1)


def join_factorised(
    prompts: Tensor, mean: Tensor, batch: Tensor | None = None, batch_size: int | None = None
) -> Tensor:
    r"""With the mean over all nodes of the same graph, :math:`a_{i,j} \propto \phi(\bar{\mathbf{P}}_i)^{\top}
    \phi(\bar{\mathbf{P}}_j)` with :math:`\phi = \mathrm{elu} + 1`, multiplied out from the right: time and memory
    :math:`O(N)`. The feature map is that of `"Transformers are RNNs: Fast Autoregressive Transformers with Linear
    Attention" <https://arxiv.org/abs/2006.16236>`_ (Katharopoulos et al., ICML 2020).
    """
    feature = torch.nn.functional.elu(mean) + 1.0  # [B, N, P]
    rows = prompts.flatten(2)
    if batch is None:
        summary = feature.transpose(1, 2) @ rows  # [B, P, T * P]
        total = feature @ feature.sum(dim=1).unsqueeze(-1)
        share = divide(feature, total)  # narrow features, rather than wide sums
        return torch.baddbmm(rows, share, summary).view(prompts.shape)
    windows, nodes, channels = feature.shape
    graphs = int(batch.max()) + 1 if batch_size is None else batch_size
    window = torch.arange(windows, device=mean.device)[:, None, None]
    channel = torch.arange(channels, device=mean.device)
    # A bag for each window, channel and graph holds that graph's nodes, weighted by this channel of their features.
    order = batch.argsort()
    members = (window * nodes + order).expand(windows, channels, nodes)
    starts = (window * channels + channel[:, None]) * nodes + _starts(batch, graphs)
    weight = feature.transpose(1, 2)[:, :, order]
    summary = _bag_sums(rows.flatten(0, 1), members.flatten(), weight.flatten(), starts.flatten())
    # And a bag for each node holds its graph's summaries, weighted by its own features.
    own = (window * channels + channel) * graphs + batch[:, None]
    totals = scatter(feature, batch, dim=1, dim_size=graphs, reduce="sum")[:, batch]
    share = divide(feature, (feature * totals).sum(dim=-1, keepdim=True))
    return prompts + _bag_sums(summary, own.flatten(0, 1), share.flatten(0, 1)).view(prompts.shape)


def divide(part: Tensor, total: Tensor) -> Tensor:
    """``part / total``, and 0 where the total is 0, in the gradient too."""
    empty = total <= 0
    return (part / total.masked_fill(empty, 1.0)).masked_fill(empty, 0.0)


def refuse_other_messages(kwargs: Mapping[str, object]) -> None:
    """Raises a ValueError at arguments of MessagePassing by which messages are no weighted sums along the edges."""
    for name, only in (("aggr", "add"), ("flow", "source_to_target"), ("node_dim", None)):
        if kwargs.get(name, only) != only:
            way = "reverse the edges instead: edge_index.flip(0)" if name == "flow" else "leave it out"
            raise ValueError(f"{name} must be {only!r} in a prompting, found {kwargs[name]!r}; {way}")


def _starts(group: Tensor, groups: int) -> Tensor:
    """Where each group begins once its members are sorted, ``[groups]``.

    A sum of ones rather than :func:`torch.bincount`, whose output the compiler does not know the size of.
    """
    sizes = scatter(torch.ones_like(group), group, dim_size=groups, reduce="sum")
    return sizes.cumsum(0) - sizes


def _bag_sums(rows: Tensor, index: Tensor, weight: Tensor, starts: Tensor | None = None) -> Tensor:
    """Weighted sums of rows, a sparse product with a gradient in its weights. A row that is a member of its own bag is
    added at no further memory.

    The bags are the rows of a two-dimensional ``index``, or begin at ``starts``.
    """
    weight = weight.to(rows.dtype)
    return torch.nn.functional.embedding_bag(index, rows, starts, mode="sum", per_sample_weights=weight)
