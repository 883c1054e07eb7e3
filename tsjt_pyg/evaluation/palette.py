"""Colours that the colour-blind can tell apart, and the markers and dashes that go with them."""

from __future__ import annotations

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#E69F00")
"""Okabe and Ito's palette (2008), without its yellow, which is hard to see on white."""

MARKERS = "osD^vP*"
DASHES = (":", "--", "-.", (0, (5, 1)), (0, (1, 3)), (0, (3, 1, 1, 1)))
"""As matplotlib knows them."""
