"""Parameters that belong to one city: an embedding for each of its nodes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Module, Parameter


class CityEmbedding(Module):
    r"""A learned embedding :math:`\mathbf{E}^{(c)} \in \mathbb{R}^{N_c \times D}` of the nodes of each city :math:`c`.

    It is what a model may know of one city and no other: a batch uses the embedding of its own city only, so that
    those of the other cities get no gradient from it. Under a
    :class:`~tsjt_pyg.optim.TargetSkewedOptimizer` an embedding therefore has a gradient from one loss alone, and stays
    out of the comparison of the two.

    A node that had no readings to learn from keeps what it was drawn with: use it for cities that are trained on.

    Args:
        num_nodes: Number of nodes :math:`N_c` of each city, by the city's name.
        channels: Size :math:`D` of an embedding.

    Shapes:
        - **input:** the name of a city
        - **output:** :math:`(N_c, D)`

    Raises:
        ValueError: If a size is not positive.
    """

    def __init__(self, num_nodes: Mapping[str, int], channels: int) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be a positive integer, found {channels}")
        self.channels = channels
        self._keys: dict[str, str] = {}
        for name, nodes in num_nodes.items():
            self.add_city(name, nodes)

    @property
    def cities(self) -> tuple[str, ...]:
        """Names of the cities."""
        return tuple(self._keys)

    def add_city(self, name: str, num_nodes: int) -> None:
        """Draws an embedding for a further city. The optimizer has to be told of it (``add_param_group``), or made
        after it.

        Raises:
            ValueError: If the city is there already or has no nodes.
        """
        if name in self._keys:
            raise ValueError(f"name: the city {name!r} is there already; to draw it anew, call reset_parameters()")
        if num_nodes < 1:
            raise ValueError(f"num_nodes of {name!r} must be a positive integer, found {num_nodes}")
        like = next(self.parameters(), torch.empty(0))
        key = "city " + name.replace("%", "%25").replace(".", "%2E")  # a parameter's name holds no point
        self.register_parameter(key, Parameter(like.new_empty(num_nodes, self.channels)))
        self._keys[name] = key
        self._draw(name)

    def reset_parameters(self) -> None:
        """Draws all embeddings anew."""
        for name in self._keys:
            self._draw(name)

    def _draw(self, name: str) -> None:
        torch.nn.init.normal_(self.get_parameter(self._keys[name]), std=self.channels**-0.5)

    def forward(self, city: str | None) -> Tensor:
        """The embedding of a city's nodes, ``[N, channels]``.

        Args:
            city: Name of the city.

        Raises:
            ValueError: If it was not added.
        """
        if city not in self._keys:
            raise ValueError(
                f"city must be one of {', '.join(map(repr, self._keys)) or 'none: no city was added'}, found {city!r}; "
                f"add it with add_city(name, num_nodes) and train on it, or use a model without a city embedding for "
                f"cities that cannot be trained on"
            )
        return self.get_parameter(self._keys[city])

    def extra_repr(self) -> str:
        cities = ", ".join(f"{name!r}: {self(name).size(0)}" for name in self._keys)
        return f"{{{cities}}}, channels={self.channels}"
