"""Retrieval from a bank of prompts: which slots a node uses, and whether all slots are used."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def slot_scores(encoded: Tensor, keys: Tensor) -> Tensor:
    r"""How well each slot's key fits, :math:`\mathbf{Z} \mathbf{K}^{\top} / \sqrt{D}`.

    Shapes:
        - **input:** encoded :math:`(\ldots, D)`, keys :math:`(S, D)`
        - **output:** :math:`(\ldots, S)`
    """
    return encoded @ keys.t() / math.sqrt(keys.size(1))


def slot_shares(scores: Tensor, top_k: int | None = None) -> Tensor:
    r"""Softmax over the slots, or over the ``top_k`` best slots of each row alone; the others' share is 0.

    Keeping the best before the softmax is the gate of `"Outrageously Large Neural Networks: The Sparsely-Gated
    Mixture-of-Experts Layer" <https://arxiv.org/abs/1701.06538>`_ (Shazeer et al., ICLR 2017), without its noise.

    Shapes:
        - **input:** scores :math:`(\ldots, S)`
        - **output:** shares :math:`(\ldots, S)`, which sum to one
    """
    if top_k is not None and top_k < scores.size(-1):
        best = scores.topk(top_k, dim=-1)
        scores = torch.full_like(scores, -math.inf).scatter(-1, best.indices, best.values)
    return torch.softmax(scores, dim=-1)


def slot_usage(scores: Tensor, top_k: int | None = None) -> Tensor:
    r"""How often each slot is among the ``top_k`` best (the best, where ``None``), and the sum of its probability.

    These are the two sums which :func:`load_balance` is made of. Sums of parts add up to the sum of the whole.

    Shapes:
        - **input:** scores :math:`(\ldots, S)`
        - **output:** :math:`(2, S)`
    """
    slots = scores.size(-1)
    scores = scores.reshape(-1, slots).to(torch.promote_types(scores.dtype, torch.float32))
    best = scores.detach().topk(min(top_k or 1, slots), dim=-1).indices.flatten()
    times = scores.new_zeros(slots).scatter_add(0, best, scores.new_ones(1).expand(best.size(0)))
    return torch.stack([times, torch.softmax(scores, dim=-1).sum(dim=0)])


def load_balance(usage: Tensor) -> Tensor:
    r"""The load-balancing loss of `"Switch Transformers: Scaling to Trillion Parameter Models with Simple and Efficient
    Sparsity" <https://arxiv.org/abs/2101.03961>`_ (Fedus et al., JMLR 2022), equations (4) to (6),

    .. math::
        \mathcal{L} = S \sum_{s=1}^{S} f_s \, p_s,

    with :math:`f_s` the fraction of choices that fell on slot :math:`s` (which has no gradient) and :math:`p_s` the
    mean probability of slot :math:`s` in the softmax over all slots. It is 1 where both are spread evenly, and up to
    :math:`S` where all nodes choose one slot.

    Shapes:
        - **input:** usage :math:`(2, S)` of :func:`slot_usage`
        - **output:** scalar
    """
    fraction, probability = usage / usage.sum(dim=1, keepdim=True).clamp(min=1.0)
    return usage.size(1) * (fraction * probability).sum()
