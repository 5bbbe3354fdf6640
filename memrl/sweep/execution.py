"""Where and how a sweep, or one cell, runs. Nothing here changes what is found, so none of it is in a cell_id."""

from typing import Literal

import chz

from memrl.fields import field
from memrl.tables.open_log import check_project
from memrl.tables.places import own_address

Device = Literal["auto", "cpu", "cuda"]
LogTo = Literal["wandb", "tensorboard"]


@chz.chz
class Execution:
    """Where and how it runs; none of this changes a cell's identity.

    Raises:
        ValueError: a field makes no sense; the message is one line.
    """

    results: str | None = field(default=None, doc="address of the tables (folder, s3://, gs://); unset: results/<grid>")
    dry_run: bool = field(default=False, doc="say what would run, how long, in how much memory; run nothing")
    pack_size: int | None = field(
        default=None, doc="most cells of a pack; 1: one cell per trial; unset: fills the trials, up to 128"
    )
    num_trials: int | None = field(default=None, doc="trials at once; unset: one per GPU, or else one per core")
    num_threads: int = field(default=1, doc="CPU threads of a trial")
    device: Device = field(default="auto", doc="what trials train on; auto: GPUs that Ray sees, or the CPU")
    address: str | None = field(default=None, doc="Ray cluster to run on, or auto; unset: Ray starts here")
    save_adapters: str = field(default="", doc="folder for the adapter of each cell, in PEFT's layout; unset: none")
    retry_diverged: bool = field(default=False, doc="train cells again whose policies diverged in an earlier launch")
    stop_conditions: bool = field(
        default=False, doc="stop the runs of a learning rate that no report could choose any more, whatever comes"
    )
    log_to: LogTo | None = field(
        default=None, doc="where the sweep is shown while it runs, with a curve a condition; unset: live.html alone"
    )
    log_cells: bool = field(default=False, doc="one run for each cell too, once the sweep has ended")
    wandb_project: str | None = field(
        default=None, doc="project in wandb, which alone means log_to=wandb; unset: memrl"
    )
    serve: bool = field(default=False, doc="serve live.html on 127.0.0.1 while the sweep runs")
    timeline: bool = field(default=False, doc="write a Chrome trace of who did what when, beside the tables")
    num_rollout_actors: int = field(default=1, doc="engines that sample, with rollout=vllm")
    tensor_parallel_size: int = field(default=1, doc="GPUs of an engine, with rollout=vllm")
    gpu_memory_utilization: float | None = field(
        default=None, doc="share of a GPU's memory that an engine takes; unset: 0.9, or 0.45 when colocated"
    )
    colocated: bool = field(default=False, doc="each trial shares an engine's GPU, with rollout=vllm")

    @chz.validate
    def _check_counts(self) -> None:
        counts = ("pack_size", "num_trials", "num_threads", "num_rollout_actors", "tensor_parallel_size")
        for name in counts:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        _check_addresses(self)

    @chz.validate
    def _check_engine(self) -> None:
        share = self.gpu_memory_utilization
        if share is not None and not 0.0 < share <= 1.0:
            raise ValueError(f"gpu_memory_utilization must lie in (0, 1], got {share}")
        if self.colocated and self.tensor_parallel_size > 1:
            raise ValueError(f"tensor_parallel_size must be 1 when colocated, got {self.tensor_parallel_size}")


@chz.chz
class RunOptions:
    """Where it runs and what it leaves behind; none of this changes the cell's identity.

    Raises:
        ValueError: a field makes no sense; the message is one line.
    """

    results: str = field(default=own_address("runs"), doc="address of the tables (folder, s3://, gs://)")
    overwrite: bool = field(default=False, doc="train a cell again that has finished, and replace its rows")
    device: Device = field(default="auto", doc="what it trains on; auto: a GPU where torch finds one, or the CPU")
    num_threads: int | None = field(
        default=None, doc="CPU threads; unset: 1 for the embedded model, else as many as torch takes"
    )
    save_adapters: str = field(default="", doc="folder for the cell's adapter, in PEFT's layout; unset: none")
    log_to: LogTo | None = field(default=None, doc="where the run is shown; unset: nowhere")
    wandb_project: str | None = field(
        default=None, doc="project in wandb, which alone means log_to=wandb; unset: memrl"
    )

    @chz.validate
    def _check(self) -> None:
        if self.num_threads is not None and self.num_threads < 1:
            raise ValueError(f"num_threads must be at least 1, got {self.num_threads}")
        _check_addresses(self)


def _check_addresses(options: Execution | RunOptions) -> None:
    if options.results == "":
        raise ValueError("results must name a folder or an address, got nothing")
    check_project(options.wandb_project)
    if options.wandb_project is not None and options.log_to == "tensorboard":
        raise ValueError(f"wandb_project must be unset with log_to=tensorboard, got {options.wandb_project}")
