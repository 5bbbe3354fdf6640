"""Execution: where and how a sweep runs. Nothing here changes what a cell measures, so none of it is in a cell_id."""

from typing import Literal

import chz

Device = Literal["auto", "cpu", "cuda"]


@chz.chz
class Execution:
    """Where and how it runs; none of this changes a cell's identity.

    Raises:
        ValueError: a field makes no sense; the message is one line.
    """

    results: str | None = chz.field(
        default=None, doc="address of the tables (folder, s3://, gs://); unset: results/<grid>"
    )
    dry_run: bool = chz.field(default=False, doc="print what would run, and where its tables would lie; run nothing")
    pack_size: int | None = chz.field(
        default=None, doc="most cells of a pack; 1: one cell a trial; unset: fills the trials, up to 128"
    )
    num_trials: int | None = chz.field(default=None, doc="trials at once; unset: one a GPU, or else one a core")
    num_threads: int = chz.field(default=1, doc="CPU threads of a trial")
    device: Device = chz.field(default="auto", doc="what trials train on; auto: GPUs that Ray sees, or the CPU")
    address: str | None = chz.field(default=None, doc="Ray cluster to run on, or auto; unset: Ray starts here")
    wandb_project: str | None = chz.field(default=None, doc="logs one run a cell there; unset: no wandb")
    timeline: bool = chz.field(default=False, doc="write a Chrome trace of who did what when, beside the tables")
    num_rollout_actors: int = chz.field(default=1, doc="engines that sample, with rollout=vllm")
    tensor_parallel_size: int = chz.field(default=1, doc="GPUs of an engine, with rollout=vllm")
    gpu_memory_utilization: float | None = chz.field(
        default=None, doc="share of a GPU's memory that an engine takes; unset: 0.9, or 0.45 when colocated"
    )
    colocated: bool = chz.field(default=False, doc="each trial shares an engine's GPU, with rollout=vllm")

    @chz.validate
    def _check_counts(self) -> None:
        counts = ("pack_size", "num_trials", "num_threads", "num_rollout_actors", "tensor_parallel_size")
        for name in counts:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    @chz.validate
    def _check_engine(self) -> None:
        share = self.gpu_memory_utilization
        if share is not None and not 0.0 < share <= 1.0:
            raise ValueError(f"gpu_memory_utilization must lie in (0, 1], got {share}")
        if self.colocated and self.tensor_parallel_size > 1:
            raise ValueError(f"tensor_parallel_size must be 1 when colocated, got {self.tensor_parallel_size}")

    def results_address(self, grid: str) -> str:
        """The address of a grid's tables.

        >>> Execution().results_address("smoke"), Execution(results="s3://bucket/run").results_address("smoke")
        ('results/smoke', 's3://bucket/run')
        """
        return self.results if self.results is not None else f"results/{grid}"
