"""``tsjt …``: a thin skin over the library."""

from __future__ import annotations

import logging
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import joblib
import torch
import typer
from rich.table import Table

from . import __version__, environment
from .cli_cities import Root, cities
from .console import EXPECTED, LogHandler, clear_errors, errors, out, plain
from .data.atomic import atomic_path
from .data.parts import interval_text
from .datasets import Task, load_task
from .evaluation import compare as compare_strategies
from .evaluation import plot_conflict, write_report
from .evaluation.comparison import DEFAULT_STRATEGIES
from .evaluation.details import CITY, LAST_VALUE, RUN, ErrorDetails, Excerpt, city_arrays, fit_arrays, save_details
from .evaluation.measuring import measure, measure_naive
from .evaluation.naive import fit_last_value
from .evaluation.sweep import dask_cluster
from .evaluation.unseen import check_test_period
from .training import CELLS, STRATEGIES, ModelConfig, SavedModel, fit, progress_bar
from .training.checkpoint import METRICS, save_json
from .training.distributed import PARALLEL, PRECISIONS, launched_rank, launched_size, processes_for
from .training.forecast_files import changed_files, forecast_file
from .training.strategies import get_strategies

app = typer.Typer(
    help="City road networks in, forecasts for the data-poor city out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Target = Annotated[
    str,
    typer.Option(
        help="Target city: one that `tsjt cities` lists, a folder of your own city, or a .npz that City.save wrote."
    ),
]
Sources = Annotated[
    str | None,
    typer.Option(
        help="Source cities, by comma, named as targets are, brought to its interval. Default: the others of its group."
    ),
]
Channel = Annotated[str | None, typer.Option(help="What to forecast. Default: the first channel all cities have.")]
VisibleDays = Annotated[float, typer.Option(help="Days of the target that one may learn from.")]
ValidationDays = Annotated[float, typer.Option(help="How much of the end of them chooses the checkpoint.")]
Steps = Annotated[int, typer.Option(help="Optimizer steps of a run.", min=1)]
BatchSize = Annotated[int, typer.Option(help="Windows a step, of each city.", min=1)]
LearningRate = Annotated[float, typer.Option("--lr", help="Learning rate.")]
Cell = Annotated[str, typer.Option(help=f"Recurrent cell: {', '.join(CELLS)}.")]
Hidden = Annotated[int, typer.Option(help="Size of the hidden state.", min=1)]
Prompts = Annotated[int, typer.Option(help="Slots of the prompt bank; 0: no node prompts.", min=0)]
History = Annotated[int, typer.Option(help="Steps in.", min=1)]
Profile = Annotated[
    bool, typer.Option("--profile/--no-profile", help="Let the model see each node's typical day, of the visible days.")
]
Horizon = Annotated[int, typer.Option(help="Steps out.", min=1)]
NodesPerBatch = Annotated[
    int | None,
    typer.Option(
        help="See cities of more nodes in blocks of at most so many. Default: a batch is a whole city.", min=1
    ),
]
Threads = Annotated[int, typer.Option(help="Threads of a run; for models this small, one is fastest.", min=1)]
Device = Annotated[str, typer.Option(help="Where the model is trained: cpu, cuda, cuda:1, …")]


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what is done.")] = False,
) -> None:
    """What every command shares."""
    logging.basicConfig(
        # What all processes of a training find, one of them says.
        level=logging.ERROR if launched_rank() else logging.INFO if verbose else logging.WARNING,
        format="%(message)s",
        handlers=[LogHandler()],
    )
    if version:
        out.print(__version__)
        raise typer.Exit


def _load_task(target: str, sources: str | None, root: Path | None, channel: str | None, names: list[str]) -> Task:
    """The task of these strategies; sources that none of them uses need not be there."""
    used = any(strategy.uses_sources for strategy in get_strategies(names))
    return load_task(target, _names(sources) if used else [], root, channel)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("expected cpu, cuda or mps")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {name!r} cannot be used here ({str(error).splitlines()[0]})") from error
    return device


def _config(cell: str, hidden: int, prompts: int, profile: bool, history: int, horizon: int) -> ModelConfig:
    return ModelConfig(
        cell=cell, hidden_channels=hidden, num_prompts=prompts, profile=profile, history=history, horizon=horizon
    )


app.command()(cities)


@app.command()
def train(
    target: Target,
    output: Annotated[Path, typer.Option(help="Folder for checkpoints, settings and metrics.")],
    sources: Sources = None,
    strategy: Annotated[str, typer.Option(help=f"One of {', '.join(STRATEGIES)}.")] = "tsjt",
    visible_days: VisibleDays = 3,
    validation_days: ValidationDays = 1,
    channel: Channel = None,
    root: Root = None,
    steps: Steps = 200,
    batch_size: BatchSize = 32,
    lr: LearningRate = 3e-3,
    cell: Cell = "GConvGRU",
    hidden: Hidden = 32,
    prompts: Prompts = 0,
    profile: Profile = True,
    history: History = 12,
    horizon: Horizon = 12,
    nodes_per_batch: NodesPerBatch = None,
    seed: Annotated[int, typer.Option(help="Seed of initial parameters and batches.", min=0, max=2**31)] = 0,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.", min=1)] = 100,
    keep: Annotated[
        int, typer.Option("--keep-checkpoints", help="Checkpoints to keep: last.pt, last-1.pt, ….", min=1)
    ] = 2,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest good checkpoint of the output folder.")
    ] = False,
    threads: Threads = 1,
    device: Device = "cpu",
    parallel: Annotated[
        str,
        typer.Option(help=f"How the processes of torchrun or srun train together: {', '.join(PARALLEL)}."),
    ] = "ddp",
    precision: Annotated[str, typer.Option(help=f"Of the forward passes in training: {', '.join(PRECISIONS)}.")] = "32",
) -> None:
    """Train one strategy and keep its checkpoint.

    Ctrl-C and SIGTERM stop it after the step it is at, with a checkpoint; a second one at once. --resume goes on, and
    ends with the bits of a run that was never stopped (on the CPU).

    Started by torchrun or srun, all processes train it together: torchrun --nproc-per-node=2 -m tsjt_pyg train …
    """
    with clear_errors() as stop, processes_for(parallel, precision, device) as processes:
        where = processes.device or _device(device)
        task = _load_task(target, sources, root, channel, [strategy])
        visible, test = task.target.few_shot(visible_days)
        check_test_period(test, task.sources, history, horizon)
        excerpt = Excerpt.choose(visible, test, history, horizon)
        of_naive, of_run = (ErrorDetails(test, excerpt) for _ in range(2))
        naive = measure_naive(fit_last_value(visible), test, history, horizon, of_naive)
        config = _config(cell, hidden, prompts, profile, history, horizon)
        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        model = config.build().to(where)
        with progress_bar(f"{strategy} on {target}", hidden=processes.rank > 0) as progress:
            result = fit(
                model,
                visible,
                task.sources,
                strategy,
                steps=steps,
                batch_size=batch_size,
                lr=lr,
                seed=seed,
                validation_days=validation_days,
                nodes_per_batch=nodes_per_batch,
                output=output,
                checkpoint_every=checkpoint_every,
                keep=keep,
                resume=resume,
                config={"channel": task.target.channels[0], "visible_days": visible_days},
                progress=progress,
                stop=stop,
                processes=processes,
            )
            stop.finished("the training is finished, its metrics are not; --resume writes them")
        if processes.rank > 0:
            return
        found = measure(model, test, result.scaler, history, horizon, result.support, result.blocks, of_run)
        metrics: dict[str, Any] = {
            "test": vars(found),
            "test_last_value": vars(naive),
            "validation_loss": result.validation_loss,
            "best_step": result.best_step,
            "skipped_steps": result.skipped_steps,
            "log": result.log,
            "optimizer": result.stats,
            "sources": [verdict.as_dict() for verdict in result.verdicts],
            "seconds": result.seconds,
        }
        save_details(output, CITY, city_arrays(test, excerpt, test.fingerprint()))
        save_details(output, LAST_VALUE, of_naive.arrays())
        save_details(output, RUN, {**of_run.arrays(), **fit_arrays(result, visible, task.sources, history)})
        save_json(output / METRICS, metrics)
        if result.conflict is not None:
            with atomic_path(output / "conflict.csv") as temporary:
                result.conflict.to_csv(temporary, index=False)
            if result.conflict["filtered"].any():
                plot_conflict(result.conflict, output / "conflict.png")
        unit = task.target.units[0]
        out.print(
            f"{strategy}: test MAE {found.mean_mae:.3f} {unit}, RMSE {found.mean_rmse:.3f} {unit}, MAPE "
            f"{found.mean_mape:.1f} % (last value: MAE {naive.mean_mae:.3f}); best step {result.best_step} of "
            f"{result.log[-1]['step']}; "
            f"{result.seconds:.1f} s. Written to {output}; `tsjt report {shlex.quote(str(output))}` shows it.",
            highlight=False,
            soft_wrap=True,
        )
        for verdict in result.verdicts:
            out.print(f"source {verdict}", highlight=False, soft_wrap=True)


@app.command()
def compare(
    target: Target,
    sources: Sources = None,
    strategies: Annotated[str, typer.Option(help="By comma.")] = ",".join(DEFAULT_STRATEGIES),
    visible_days: VisibleDays = 3,
    validation_days: ValidationDays = 1,
    seeds: Annotated[int, typer.Option(help="Runs of each strategy.", min=1)] = 3,
    channel: Channel = None,
    root: Root = None,
    steps: Steps = 200,
    batch_size: BatchSize = 32,
    lr: LearningRate = 3e-3,
    cell: Cell = "GConvGRU",
    hidden: Hidden = 32,
    prompts: Prompts = 0,
    profile: Profile = True,
    history: History = 12,
    horizon: Horizon = 12,
    nodes_per_batch: NodesPerBatch = None,
    jobs: Annotated[int | None, typer.Option(help="Runs at the same time. Default: one a core.", min=1)] = None,
    dask: Annotated[str | None, typer.Option(help="Scheduler of a Dask cluster that does the runs.")] = None,
    threads: Threads = 1,
    device: Device = "cpu",
    output: Annotated[
        Path | None, typer.Option(help="Folder for JSON, CSV, picture, and the finished runs, which are not run again.")
    ] = None,
) -> None:
    """Compare strategies on a target city, beside naive forecasts; status 1 if some run failed."""
    with clear_errors():
        if launched_size()[0] > 1:
            raise ValueError("compare: several processes would each do all runs; start one, with --jobs or --dask")
        task = _load_task(target, sources, root, channel, _names(strategies) or [])
        kind = _device(device).type if dask is None else device
        output = output or Path("runs") / f"compare-{target.replace('/', '-')}"
        with nullcontext() if dask is None else dask_cluster(dask), progress_bar(f"comparing on {target}") as progress:
            result = compare_strategies(
                task.target,
                task.sources,
                _names(strategies) or [],
                visible_days=visible_days,
                seeds=seeds,
                model=_config(cell, hidden, prompts, profile, history, horizon),
                steps=steps,
                batch_size=batch_size,
                lr=lr,
                validation_days=validation_days,
                nodes_per_batch=nodes_per_batch,
                jobs=jobs or (joblib.cpu_count() if kind == "cpu" else 1),
                threads=threads,
                device=device,
                output=output,
                verbose=False,
                progress=progress,
            )
        result.show()
        out.print(f"Written to {output}: comparison.json, comparison.csv, comparison.png", soft_wrap=True)
        out.print(f"All of it on one page: tsjt report {shlex.quote(str(output))}", highlight=False, soft_wrap=True)
        if result.failures:
            errors.print(
                f"{len(result.failures)} of {len(result.failures) + sum(r.seed is not None for r in result.records)} "
                f"runs failed; the same command runs these again, and only these",
                highlight=False,
                soft_wrap=True,
            )
            raise typer.Exit(1)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for JSON, CSV and picture.")] = Path("runs/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="A few steps only: to see that everything works.")] = False,
) -> None:
    """The main job on bundled cities: riverton, with three days of readings, from gridport and ringwood."""
    compare(
        target="demo/riverton",
        visible_days=3,
        steps=15 if quick else 120,
        seeds=1 if quick else 3,
        output=output,
    )


@app.command()
def forecast(
    checkpoint: Annotated[Path, typer.Option(help="Folder of `tsjt train`, or a .pt file.")],
    readings: Annotated[
        Path, typer.Option(help="CSV of the last readings: time, then one column a node id; or a folder of such CSVs.")
    ],
    output: Annotated[
        Path, typer.Option(help="CSV to write: the next steps, in original units; a folder where --readings is one.")
    ],
    every: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Go on until Ctrl-C or SIGTERM: look again every so many seconds, and forecast each CSV that is new "
            "or was changed. One that is broken is named and passed over.",
        ),
    ] = None,
) -> None:
    """Forecast the steps that follow a CSV of readings; --every: as long as new readings come."""
    with clear_errors():
        saved = SavedModel.load(checkpoint)
        several = readings.is_dir()
        if several:
            output.mkdir(parents=True, exist_ok=True)
            if output.samefile(readings):
                raise ValueError(f"output: {output} is the folder of the readings; choose another")
        elif output.exists() and readings.exists() and output.samefile(readings):
            raise ValueError(f"output: {output} is the file of the readings; choose another")
        failed = False
        for file in changed_files(readings, every):
            to = output / file.name if several else output
            try:
                found = forecast_file(saved, file, to)
            except EXPECTED as error:
                if not several and every is None:
                    raise
                errors.print(f"[bold red]error:[/] {plain(str(error))}", highlight=False, soft_wrap=True)
                failed = True
                continue
            out.print(
                f"{to}: {len(found)} steps of {found.shape[1]} nodes ({saved.unit}), {found.index[0]} to "
                f"{found.index[-1]}",
                highlight=False,
                soft_wrap=True,
            )
        if failed:
            raise typer.Exit(2)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Option(help="Folder of `tsjt train`, or a .pt file.")],
    output: Annotated[Path, typer.Option(help="File to write, ….pt2: model, scaler, roads and visible days.")],
) -> None:
    """Write a program that forecasts with torch alone: raw readings in, forecasts in original units out."""
    with clear_errors():
        saved = SavedModel.load(checkpoint)
        saved.export(output)
        out.print(
            f"{output}: {saved.model.history} steps of {len(saved.node_ids)} nodes in, {saved.model.horizon} out "
            f"({saved.unit}), every {interval_text(saved.interval)}; `about.json` within it says what goes in and "
            "comes out",
            highlight=False,
            soft_wrap=True,
        )


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of `tsjt compare`, `tsjt demo` or `tsjt train`.")],
    output: Annotated[
        Path | None, typer.Option(help="HTML file to write. Default: report.html in that folder.")
    ] = None,
) -> None:
    """Write one page that shows a run: tables, a map, forecasts against readings; it opens without a network."""
    with clear_errors():
        page = write_report(run, output)
        out.print(f"{page}: {page.stat().st_size / 1e6:.1f} MB, opens in any browser", highlight=False, soft_wrap=True)


@app.command()
def doctor(root: Root = None) -> None:
    """Print versions, what is missing, and the command that mends it."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("what", "found", "to mend it"):
        table.add_column(column, overflow="fold")
    checks = environment.checks(root)
    for check in checks:
        table.add_row(check.what, check.found if check.fine else f"[red]{check.found}[/]", check.remedy)
    out.print(table)
    if not all(check.fine for check in checks):
        raise typer.Exit(1)
