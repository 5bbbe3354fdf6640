"""Where a pandas user starts: load both tables of a sweep, look at them, plot one figure.

`python docs/tutorial.py` reads sweeps/reference/bitrate, the result that comes with the code, and writes tutorial.png;
`python docs/tutorial.py results/bitrate` reads a sweep of your own, also while it runs. The columns are described in
memrl/tables/schema.py.
"""

import sys

import altair as alt
import pandas as pd

from memrl.analysis.cells import measured_cells
from memrl.analysis.estimate import estimate_groups
from memrl.analysis.selection import hold_out_settings

folder = sys.argv[1] if len(sys.argv) > 1 else "sweeps/reference/bitrate"

# One row per finished cell, and one row per cell and update.
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
episodes = alt.X("episodes:Q", scale=alt.Scale(type="symlog"))
base = alt.Chart().encode(x=episodes, detail="cell_id:N")
layers = [
    base.mark_line(clip=True, color=color, strokeWidth=0.7).encode(
        alt.Y(f"{column}:Q", title=f"bits, N = {N}", scale=alt.Scale(domainMin=-2))
    )
    for column, color in (("observed_bits", "#999999"), ("absorbed_bits", "#0072B2"))
]
alt.data_transformers.disable_max_rows()
panels = alt.layer(*layers, data=shown).properties(width=170, height=120).facet("channel:N", columns=4)
panels.save("tutorial.png", ppi=120)
print("wrote tutorial.png")
