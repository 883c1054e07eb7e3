"""Strategies, and the training that follows them."""

from ..progress import progress_bar
from .distributed import Processes, ProcessLostError
from .forecasting import forecast_windows
from .guard import SourceVerdict
from .losses import masked_mae
from .model_config import CELLS, ModelConfig
from .saved_model import SavedModel
from .strategies import STRATEGIES, Strategy
from .trainer import FitResult, TrainingStopped, fit, training_split

__all__ = [
    "CELLS",
    "STRATEGIES",
    "FitResult",
    "ModelConfig",
    "ProcessLostError",
    "Processes",
    "SavedModel",
    "SourceVerdict",
    "Strategy",
    "TrainingStopped",
    "fit",
    "forecast_windows",
    "masked_mae",
    "progress_bar",
    "training_split",
]
