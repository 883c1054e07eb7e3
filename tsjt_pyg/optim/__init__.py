from tsjt_pyg.optim.filters import combine, gramian, paper_weights, projection_coefficient, skew
from tsjt_pyg.optim.history import SkewHistory
from tsjt_pyg.optim.target_skewed import TargetSkewedOptimizer

__all__ = [
    "SkewHistory",
    "TargetSkewedOptimizer",
    "combine",
    "gramian",
    "paper_weights",
    "projection_coefficient",
    "skew",
]
