"""Where a pandas user starts: load the tables of a sweep, look at them, plot one figure.

`python docs/tutorial.py` reads sweeps/reference/bitrate, the result that comes with the code (or results/bitrate, where
you have run the sweep yourself), and writes tutorial.png; `python docs/tutorial.py results/mine` reads another sweep,
also while it runs. docs/columns.md describes the columns.
"""

import sys

import altair as alt

import memrl
from memrl.analysis.cells import measured_cells
from memrl.analysis.selection import hold_out_settings

# One row per cell that has ended, one per cell and update, and one per baseline agent and secret.
cells, curves, agents = memrl.load(sys.argv[1] if len(sys.argv) > 1 else "bitrate")
print(f"{len(cells):,} cells, {len(curves):,} rows of curves, status: {cells['status'].value_counts().to_dict()}")

# A run that ended before P(secret) = 1/2 is censored: it has no e50, and would have taken more than its `episodes`.
by_channel = cells.groupby(["channel", "N"])
print(by_channel.agg(cells=("e50", "size"), censored=("e50_censored", "sum"), fastest=("e50", "min")).to_string())

# Medians with censoring and intervals, at settings chosen on other secrets: what the report uses.
estimates = memrl.estimate(cells)
print(estimates[["channel", "N", "num_cells", "e50", "e50_lower", "e50_upper"]].to_string(index=False))

# The same of the agents, which have no network: what could be reached.
print(memrl.estimate(agents, by=["agent", "channel", "N"])[["agent", "channel", "N", "e50"]].to_string(index=False))

# One figure: what an ideal observer knew (gray) and what the policy absorbed (blue), one line a cell, for one N.
chosen = hold_out_settings(measured_cells(cells))
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
