"""What the layers of a cell hold, side by side."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def biases(*layers: Any) -> Tensor:
    """Biases side by side; zeros where a layer has none."""
    return torch.cat(
        [
            layer.bias if layer.bias is not None else next(layer.parameters()).new_zeros(layer.out_channels)
            for layer in layers
        ]
    )
