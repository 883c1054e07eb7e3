"""Readings brought to a common scale, from observed entries only."""

from __future__ import annotations

import torch
from torch import Tensor

from .rows import row_blocks


class StandardScaler:
    r"""Standardises each channel: :math:`(x - \mu_c) / \sigma_c`, from observed entries only.

    It knows what it was fitted on and nothing else: give it the visible *training* days. A channel that never changes
    gets :math:`\sigma_c = 1`.

    Example:
        >>> from tsjt_pyg.datasets import load_city
        >>> visible, test = load_city("demo/riverton").few_shot(days=3)
        >>> scaler = StandardScaler().fit(visible.readings, visible.mask)
        >>> x = scaler.transform(test.readings, test.mask)
    """

    mean: Tensor
    std: Tensor

    def fit(self, readings: Tensor, mask: Tensor | None = None) -> StandardScaler:
        """Estimates mean and standard deviation of each channel, in float64.

        Args:
            readings: ``[..., C]``.
            mask: bool ``[..., C]``, ``True`` = observed; default: all.

        Raises:
            ValueError: If a channel has no observed entry, or the mask has another shape.
        """
        if mask is not None and mask.shape != readings.shape:
            raise ValueError(f"mask: expected the shape of the readings {[*readings.shape]}, found {[*mask.shape]}")
        count, mean, squares = self._moments(readings, mask)
        if (count == 0).any():
            raise ValueError(
                f"readings: channel {int((count == 0).nonzero()[0])} has no observed entry, so it has no mean; "
                "give the scaler more visible days or drop the channel"
            )
        std = (squares / count).sqrt()
        # Rounding leaves a constant channel with a std of about 1e-16 of its mean; dividing by that would make noise.
        std = torch.where(std > 1e-9 * mean.abs().clamp(min=1e-30), std, torch.ones_like(std))
        self.mean, self.std = mean.to(torch.float32), std.to(torch.float32)
        return self

    @staticmethod
    def _moments(readings: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Number of observed entries, their mean, and the sum of squared distances from it, of each channel ``[C]``.

        Block by block, so that readings in a file need not fit into memory; blocks are joined by the formula of Chan,
        Golub and LeVeque (1979).
        """
        channels = readings.shape[-1]
        count = torch.zeros(channels, dtype=torch.float64, device=readings.device)
        mean, squares = torch.zeros_like(count), torch.zeros_like(count)
        for block, *masks in row_blocks(readings) if mask is None else row_blocks(readings, mask):
            values = block.reshape(-1, channels).to(torch.float64)
            missing = ~masks[0].reshape(values.shape) if masks else torch.zeros_like(values, dtype=torch.bool)
            here = len(values) - missing.sum(dim=0)
            values = values.masked_fill(missing, 0.0)
            mean_here = values.sum(dim=0) / here.clamp(min=1)
            squares_here = (values - mean_here).masked_fill(missing, 0.0).square().sum(dim=0)
            share, between = here / (count + here).clamp(min=1), mean_here - mean
            squares += squares_here + between.square() * count * share
            mean += between * share
            count += here
        return count, mean, squares

    def transform(self, readings: Tensor, mask: Tensor | None = None) -> Tensor:
        """Original units ``[..., C]`` to scaled; entries under a ``False`` mask become 0, the mean."""
        self._check(readings)
        scaled = (readings - self.mean.to(readings.device)) / self.std.to(readings.device)
        return scaled if mask is None else scaled.masked_fill(~mask, 0.0)

    def inverse_transform(self, scaled: Tensor) -> Tensor:
        """Scaled ``[..., C]`` to original units."""
        self._check(scaled)
        return scaled * self.std.to(scaled.device) + self.mean.to(scaled.device)

    def state_dict(self) -> dict[str, Tensor]:
        """Mean and std, ``[C]`` each."""
        return {"mean": self.mean, "std": self.std}

    @classmethod
    def from_state_dict(cls, state_dict: dict[str, Tensor]) -> StandardScaler:
        """The scaler of a :meth:`state_dict`."""
        scaler = cls()
        scaler.mean, scaler.std = state_dict["mean"], state_dict["std"]
        return scaler

    def _check(self, values: Tensor) -> None:
        if values.shape[-1] != len(self.mean):
            raise ValueError(
                f"readings: expected {len(self.mean)} channels (last dimension), as the scaler was fitted on, found "
                f"shape {[*values.shape]}"
            )

    def __getattr__(self, name: str) -> Tensor:
        if name in ("mean", "std"):
            raise AttributeError(f"{name}: this scaler knows nothing yet; call fit(readings, mask) first")
        raise AttributeError(f"StandardScaler has no attribute {name!r}")

    def __repr__(self) -> str:
        if not hasattr(self, "mean"):
            return "StandardScaler()"
        return f"StandardScaler(mean={self.mean.tolist()}, std={self.std.tolist()})"
