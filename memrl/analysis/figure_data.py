"""What each figure shows, as data frames: computed here once, drawn twice (static_figures, interactive_figures)."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from memrl.analysis.published import published_episodes
from memrl.analysis.style import sort_for_readers
from memrl.analysis.summary import Summary

CALIBRATED_KL_BITS = 0.1
"""Above this divergence from the uniform prior a run is not calibrated."""

MALFORMED_LIMIT = 0.02
"""Above this mass on malformed answers neither."""


@dataclass(frozen=True)
class Figure:
    """A figure's words and numbers.

    Attributes:
        name: of its files, and its anchor in the page.
        title: heading.
        caption: what it shows and how to read it.
        data: what is drawn; also the table under the figure.
    """

    name: str
    title: str
    caption: str
    data: pd.DataFrame


def main_N(summary: Summary) -> int:
    """The N that figures of one N show first: the one nearest to 64 among those that most channels have."""
    lora = summary.estimates[(summary.estimates["agent"] == "lora").to_numpy()]
    counts = lora.groupby("N").size()
    covered = counts[counts == counts.max()].index.to_numpy()
    return int(covered[np.abs(np.log2(covered / 64)).argmin()])


def collect_figures(summary: Summary) -> dict[str, Figure]:
    """All figures of the report that have something to show, in reading order."""
    figures = [
        ledger_figure(summary),
        episodes_figure(summary),
        rate_figure(summary),
        learning_figure(summary),
        maps_figure(summary),
        prior_figure(summary),
        leak_figure(summary),
    ]
    return {figure.name: figure for figure in figures if not figure.data.empty}


def ledger_figure(summary: Summary) -> Figure:
    """Capacity cut into exploration loss, absorption loss and absorbed, per channel and N."""
    data = summary.ledger.drop(columns="agent", errors="ignore")
    if not data.empty:
        whole = np.maximum(data["capacity_bits"].to_numpy(), data["observed_rate"].to_numpy())
        absorbed = np.maximum(data["absorbed_rate"].to_numpy(), 0.0)
        absorption = np.maximum(data["absorption_loss"].to_numpy(), 0.0)
        exploration = np.maximum(whole - absorbed - absorption, 0.0)
        data = data.assign(
            share_absorbed=absorbed / whole,
            share_absorption_loss=absorption / whole,
            share_exploration_loss=exploration / whole,
        )
    return Figure(
        "ledger",
        "Where the bits of an episode go",
        "First: each bar is what one episode of the channel could tell (its effective capacity, the best single "
        "guess), cut into what the policy's guesses never asked (exploration loss), what an ideal observer of the "
        "same rewards knew but the policy did not take up (absorption loss), and what the policy absorbed. Second: "
        "the same three levels in bits per episode on a logarithmic axis, with 95 % intervals over secrets. The "
        "observer's rate counts the episodes until it was one bit short of the secret, the policy's all of them; "
        "both are means over all runs, in whole updates: episodes that could only repeat what others of their update "
        "told are exploration loss too.",
        _in_channel_order(data),
    )


def episodes_figure(summary: Summary) -> Figure:
    """E50 against N: trained policies, agents, and published numbers."""
    columns = ["agent", "channel", "N", "model", "num_cells", "num_reached", "e50", "e50_lower", "e50_upper"]
    ratios = [f"{name}{end}" for name in ("e50_vs_optimal", "e50_vs_tabular_pg") for end in ("", "_lower", "_upper")]
    own = summary.estimates[[*columns, *ratios, "reference_agent", "learning_rates", "most_episodes"]]
    lower = own["e50_lower"].to_numpy(dtype=float)
    own = own.assign(
        reached=np.isfinite(own["e50"].to_numpy(dtype=float)),
        e50_at_least=np.where(np.isfinite(lower), lower, own["most_episodes"]),
    ).drop(columns="most_episodes")
    shown = own.loc[own["agent"] == "lora", "channel"].unique()
    published = published_episodes().rename(columns={"episodes": "e50"}).assign(agent="published")
    data = pd.concat([own, published], ignore_index=True)
    return Figure(
        "episodes",
        "Episodes to memorize against N",
        "One panel a channel: the median number of episodes until the policy gives the secret probability 1/2 (E50,"
        " Kaplan–Meier, with 95 % interval), at the setting that the other half of the secrets chose. An arrow says"
        " that fewer than half of the runs got there, within that many episodes at least. "
        "Lines are agents that share the policy's channel; open stars "
        "are published numbers (an MLP, 10 seeds), with an arrow where 10,000 episodes were not enough. Both axes "
        "are logarithmic; the thin gray line is E = N.",
        _in_channel_order(data[data["channel"].isin(shown)]),
    )


def rate_figure(summary: Summary) -> Figure:
    """Bits per episode against effective capacity."""
    columns = ["agent", "channel", "N", "model", "capacity_best_bits", "capacity_uniform_bits", "capacity_nominal_bits"]
    rates = [f"{name}{end}" for name in ("bits_per_episode", "rate_vs_capacity") for end in ("", "_lower", "_upper")]
    data = summary.estimates[[*columns, *rates]]
    keep = data["agent"].isin(["lora", "tabular_pg"]) & (data["bits_per_episode"] > 0)
    return Figure(
        "rate",
        "Bits per episode against what an episode can tell",
        "Each point is a channel at one N: across, the effective capacity of an episode (the best single guess); "
        "up, the bits that the median run absorbs per episode until P(secret) = 0.9, with 95 % interval. On the "
        "diagonal nothing would be lost. Lines join the N of a channel; open markers are tabular policy gradient on "
        "the same channel. Where fewer than half of the runs got there, there is no point.",
        _in_channel_order(data[keep.to_numpy()]),
    )


def learning_figure(summary: Summary) -> Figure:
    """Observed and absorbed bits against episodes."""
    data = summary.learning
    if not data.empty:
        data = data.drop(columns="agent", errors="ignore")
    return Figure(
        "learning",
        "Learning curves in bits",
        "Dashed: what an ideal Bayes observer of the policy's own rewards knows; solid: what the policy absorbed, "
        "log₂ N + log₂ P(secret). Means over secrets with 95 % bands; a finished run keeps its last value. The area"
        " between the curves is absorption still to be done; the dotted line is all there is to know, log₂ N. "
        "Below 0 a policy is surer of a wrong answer; the axes end at −log₂ N.",
        _in_channel_order(data),
    )


def maps_figure(summary: Summary) -> Figure:
    """Median E50 by rank and learning rate."""
    columns = ["channel", "N", "model", "lora_rank", "learning_rate", "num_cells", "num_reached", "e50"]
    data = summary.maps
    both = bool(len(data)) and data["lora_rank"].nunique() * data["learning_rate"].nunique() > 1
    return Figure(
        "maps",
        "Rank and learning rate",
        "Median episodes to memorize (E50) at every rank and learning rate, all secrets; dark is fast. A frame marks"
        " the best learning rate of a rank, × a median that was not reached within the budget. These cells were not"
        " held out: the maps show the landscape, the other figures report.",
        _in_channel_order(data[[*columns, "e50_lower", "e50_upper"]] if both else data.head(0)),
    )


def prior_figure(summary: Summary) -> Figure:
    """The prior check: divergence from uniform and mass on malformed answers."""
    data = summary.prior.assign(malformed_mass=1.0 - summary.prior["prior_well_formed"])
    keep = np.isfinite(data["prior_kl_bits"].to_numpy())
    return Figure(
        "prior",
        "Is the prior uniform?",
        "Before the first update: the divergence of the policy's answers from a uniform secret, in bits, and the "
        "mass on answers that are no integer in range. Above the dashed lines (0.1 bit, 2 %) log₂ N would be the "
        "wrong number of bits to learn, and the sweep refuses to run.",
        data[keep].reset_index(drop=True),
    )


def leak_figure(summary: Summary) -> Figure:
    """The no-leak check: how far mean absorbed stays below mean observed, at the worst update."""
    data = summary.leak_curve
    if not data.empty:
        observed = np.isfinite(data["mean_difference_bits"].to_numpy())
        last = data.groupby(["channel", "N"])["update"].transform("max")
        data = data[observed & (_is_spread_out(data["update"]) | (data["update"] == last)).to_numpy()]
    return Figure(
        "leak",
        "Does the secret leak?",
        "On average over secrets nobody can absorb more than an ideal observer of the same rewards knows. The line "
        "is the mean of absorbed − observed over all cells at each update, finished cells carried forward, with its"
        " 99 % half-width over secrets. A band that lies above 0 as a whole would mean that the secret leaks.",
        _in_channel_order(data),
    )


def level_range(ledger: pd.DataFrame) -> tuple[float, float]:
    """Ends of a logarithmic axis of bits per episode that shows every level, but not every interval near 0."""
    levels = ledger[["capacity_bits", "observed_rate", "absorbed_rate"]].to_numpy(dtype=float)
    levels = levels[levels > 0]
    return float(levels.min()) / 3, float(levels.max()) * 2


def rate_range(rates: pd.DataFrame) -> tuple[float, float]:
    """Ends of a logarithmic axis of rates that shows every point, but not every interval near 0."""
    shown = rates["bits_per_episode"][rates["bits_per_episode"] > 0]
    return float(shown.min()) / 4, max(float(shown.max()), float(rates["capacity_best_bits"].max())) * 2


def lowest_bits(absorbed: pd.Series, N: int) -> float:
    """Lower end of an axis of absorbed bits: what is needed, down to -log2 N."""
    return max(min(0.0, float(absorbed.min()) * 1.05), -float(np.log2(N)))


def _is_spread_out(updates: pd.Series, per_octave: int = 4) -> pd.Series:
    """Whether an update is one of about `per_octave` between each power of two and the next (all up to 8 are)."""
    step = np.maximum(2 ** np.floor(np.log2(np.maximum(updates, 1))) // per_octave, 1)
    return updates % step == 0


def _in_channel_order(data: pd.DataFrame) -> pd.DataFrame:
    """Rows by channel in the order of figures, then as they came."""
    return sort_for_readers(data, agents_first=False)
