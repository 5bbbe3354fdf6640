"""Where a pandas user starts: load both tables of a sweep, look at them, plot one figure.

`python docs/tutorial.py` reads results/bitrate/reference, the result that comes with the code, and writes tutorial.png;
`python docs/tutorial.py results/bitrate` reads a sweep of your own, also while it runs. The columns are described in
memrl/tables/schema.py.
"""

import sys

import pandas as pd
from matplotlib.figure import Figure

from memrl.analysis.cells import measured_cells
from memrl.analysis.estimate import estimate_groups
from memrl.analysis.selection import hold_out_settings

folder = sys.argv[1] if len(sys.argv) > 1 else "results/bitrate/reference"

# One row a finished cell, and one row a cell and update.
cells = pd.read_parquet(f"{folder}/episodes_to_memorize")
curves = pd.read_parquet(f"{folder}/curves", columns=["cell_id", "episodes", "observed_bits", "absorbed_bits"])

# Trained policies alone; the other agents (optimal, greedy, uniform, tabular_pg) are baselines in the same table.
lora = cells[cells["agent"] == "lora"]
print(f"{len(lora):,} cells, {len(curves):,} rows of curves, status: {lora['status'].value_counts().to_dict()}")

# A run that ended before P(secret) = 1/2 is censored: its e50 says "more than that". Count it, and do not average it.
by_channel = lora.groupby(["channel", "N"])
print(by_channel.agg(cells=("e50", "size"), censored=("e50_censored", "sum"), fastest=("e50", "min")).to_string())

# Medians with censoring and intervals, at settings chosen on other secrets: what the report uses.
chosen = hold_out_settings(measured_cells(lora))
estimates = estimate_groups(chosen)
print(estimates[["channel", "N", "num_cells", "e50", "e50_lower", "e50_upper"]].to_string(index=False))

# One figure: what an ideal observer knew (gray) and what the policy absorbed (blue), one line a cell, for one N.
N = chosen["N"].mode()[0]
shown = chosen.loc[chosen["N"] == N, ["cell_id", "channel"]].merge(curves, on="cell_id")
channels = sorted(shown["channel"].unique())
figure = Figure(figsize=(9, 2.2 * -(-len(channels) // 4)), layout="constrained")
panels = figure.subplots(-(-len(channels) // 4), 4, sharey=True, squeeze=False).ravel()
for axes, channel in zip(panels, channels, strict=False):
    for _, run in shown[shown["channel"] == channel].groupby("cell_id"):
        axes.plot(run["episodes"], run["observed_bits"], color="#999999", linewidth=0.6)
        axes.plot(run["episodes"], run["absorbed_bits"], color="#0072B2", linewidth=0.8)
    axes.set(xscale="symlog", ylim=(-2, None))
    axes.set_title(channel, fontsize=8)
figure.supxlabel("episodes")
figure.supylabel(f"bits, N = {N}")
figure.savefig("tutorial.png", dpi=120)
print("wrote tutorial.png")
