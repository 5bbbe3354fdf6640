"""Where a pandas user starts: both tables of a sweep, and one figure of learning curves in bits.

uv run python docs/tutorial.py results/bitrate
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd


def main(results: str) -> None:
    """Prints medians by channel and N, and draws what binary reward tells and what the policy absorbs of it."""
    cells = pd.read_parquet(f"{results}/episodes_to_memorize")  # one row a finished cell
    curves = pd.read_parquet(f"{results}/curves")  # one row a cell and update
    policies = cells[cells.agent == "lora"]

    # A run whose budget was spent first is censored: its e50 says only "more than this".
    reached = policies[~policies.e50_censored]
    print(reached.groupby(["channel", "N"]).e50.median().unstack().round())

    N = policies.N.median()
    chosen = policies[(policies.channel == "binary") & (policies.N == N)]
    bits = curves.merge(chosen[["cell_id", "learning_rate"]], on="cell_id")
    mean = bits.groupby("episodes")[["observed_bits", "absorbed_bits"]].mean()
    axes = mean.plot(
        xlabel="episodes", ylabel="bits", title=f"Binary reward, N = {N:.0f}: mean over cells still training"
    )
    path = Path("tutorial.png")
    axes.figure.savefig(path)
    plt.close(axes.figure)
    print(f"figure: {path}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "results/bitrate")
