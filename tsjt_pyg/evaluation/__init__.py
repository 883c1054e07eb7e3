"""Measuring forecasts, and comparing strategies honestly."""

from .advice import Advice, advise
from .city_plot import plot_city
from .comparison import compare
from .metrics import Errors, HorizonErrors, masked_mae, masked_mape, masked_rmse
from .plots import plot_conflict
from .prompt_plot import mean_slot_share, plot_shared_prompts
from .report import write_report
from .table import Comparison

__all__ = [
    "Advice",
    "Comparison",
    "Errors",
    "HorizonErrors",
    "advise",
    "compare",
    "masked_mae",
    "masked_mape",
    "masked_rmse",
    "mean_slot_share",
    "plot_city",
    "plot_conflict",
    "plot_shared_prompts",
    "write_report",
]
