"""City road networks in, forecasts for the data-poor city out; the data-rich cities help only where they do not hurt.

Target-Skewed Joint Training (Zhang et al., AAAI 2025) for PyTorch Geometric and PyG-Temporal.
"""

from importlib.metadata import version

from .data import City, CityPairLoader
from .nn import Forecaster, NodePrompting, check_transferable
from .optim import TargetSkewedOptimizer

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
