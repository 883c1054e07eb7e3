"""City road networks in, forecasts for the data-poor city out; the data-rich cities help only where they do not hurt.

Target-Skewed Joint Training (Zhang et al., AAAI 2025) for PyTorch Geometric and PyG-Temporal.
"""

import contextlib
from importlib.metadata import version

from ._compat import import_temporal
from .data import City, CityPairLoader
from .nn import Forecaster, NodePrompting, check_transferable
from .optim import TargetSkewedOptimizer

# After this, `import torch_geometric_temporal` works everywhere in the process, without torch-sparse. Where it is not
# installed, what needs it says how to install it.
with contextlib.suppress(ImportError):
    import_temporal()

__version__ = version("tsjt-pyg")

__all__ = [
    "City",
    "CityPairLoader",
    "Forecaster",
    "NodePrompting",
    "TargetSkewedOptimizer",
    "__version__",
    "check_transferable",
]
