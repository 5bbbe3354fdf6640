"""What each figure shows, as data frames: computed here, drawn in `charts`."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from memrl.analysis.lengths import LEAST_LENGTH
from memrl.analysis.objectives import DISTILLED
from memrl.analysis.published import PUBLISHED_BUDGET, published_episodes
from memrl.analysis.style import LINES, agent_label, objective_label, tells_objectives
from memrl.analysis.summary import Summary
from memrl.analysis.wording import format_estimate, format_number
from memrl.tables.schema import Row


@dataclass(frozen=True)
class Figure:
    """A figure's words and numbers.

    Attributes:
        name: of its files, and its anchor in the page.
        title: heading.
        caption: what it shows and how to read it.
        data: what is drawn; its column `said` is what a mark says of itself.
        one_N: whether each drawing shows one N.
    """

    name: str
    title: str
    caption: str
    data: pd.DataFrame
    one_N: bool = False

    def views(self) -> list["View"]:
        """What each drawing shows: one model where there are several, and one N where the figure shows one."""
        models = sorted(self.data["model"].dropna().unique()) if "model" in self.data else []
        sizes = sorted(int(N) for N in self.data["N"].unique()) if self.one_N else [None]
        views = []
        for model in models if len(models) > 1 else [None]:
            of_model = self.data if model is None else self.data[self.data["model"].isin([model, None]).to_numpy()]
            for N in sizes:
                rows = of_model if N is None else of_model[(of_model["N"] == N).to_numpy()]
                if len(rows):
                    views.append(View(self.name, model, N, rows))
        return views


@dataclass(frozen=True)
class View:
    """The rows of one drawing.

    Attributes:
        figure: name of the figure.
        model: the one model that it shows, None where it shows all.
        N: the one N that it shows, None where it shows all.
        rows: what is drawn.
    """

    figure: str
    model: str | None
    N: int | None
    rows: pd.DataFrame

    @property
    def stem(self) -> str:
        """Of its files."""
        model = "" if self.model is None else f"-{re.sub(r'[^A-Za-z0-9._]+', '-', self.model).strip('-')}"
        return f"{self.figure}{model}" + ("" if self.N is None else f"-N{self.N}")

    @property
    def label(self) -> str:
        """What it shows, for a reader; empty where it shows all."""
        return ", ".join(part for part in (self.model, self.N and f"N = {self.N}") if part)


def first_view(figure: Figure, N: int | None) -> View:
    """The view that stands unfolded: the first of this N, or the first of all."""
    views = figure.views()
    return next((view for view in views if view.N == N), views[0])


def main_N(summary: Summary) -> int:
    """The N that figures of one N show first: the one nearest to 64 among those that most channels have."""
    lora = summary.estimates[(summary.estimates["agent"] == "lora").to_numpy()]
    counts = lora.groupby("N").size()
    covered = counts[counts == counts.max()].index.to_numpy()
    return int(covered[np.abs(np.log2(covered / 64)).argmin()])


def collect_figures(summary: Summary) -> dict[str, Figure]:
    """All figures of the report that have something to show, in reading order."""
    figures = [
        rate_figure(summary),
        lengths_figure(summary),
        ledger_figure(summary),
        learning_figure(summary),
        collapse_figure(summary),
        episodes_figure(summary),
        agents_figure(summary),
        groups_figure(summary),
        interference_figure(summary),
        maps_figure(summary),
    ]
    return {figure.name: figure for figure in figures if not figure.data.empty}


def rate_figure(summary: Summary) -> Figure:
    """Bits per episode beside effective capacity."""
    columns = ["channel", "N", "model", "objective", "objectives", "num_cells", "capacity_best_bits"]
    rates = [f"{name}{end}" for name in ("bits_per_episode", "rate_vs_capacity") for end in ("", "_lower", "_upper")]
    data = summary.estimates.loc[(summary.estimates["agent"] == "lora").to_numpy(), [*columns, *rates]]
    is_distilled = data["objective"].str.startswith(DISTILLED).any()
    distilled = "; a diamond is distillation, which is told all that an observer of its rewards knows"
    distilled = distilled if is_distilled else ""
    objectives = (
        "A line joins the usual objective to the triangle, the one that the other half of the secrets chose by E50, "
        f"which need not be the better one here{distilled}. Within a row N grows downwards. "
    )
    return Figure(
        "rate",
        "Bits per episode",
        "Dots: bits that the median run absorbed per episode until P(secret) = 0.9, with 95 % interval over secrets. "
        + (objectives if tells_objectives(data) else "")
        + "Ticks: what one episode can tell at most (effective capacity, the best single guess). An arrow is an "
        "interval that goes on beyond the axis; one without a dot says that fewer than half of the runs got there.",
        _tell(data, _say_rate),
    )


def lengths_figure(summary: Summary) -> Figure:
    """Episodes to half of the bits of a sequence against its length."""
    data = summary.lengths
    long = bool(len(data)) and data["secret_length"].nunique() > 2
    return Figure(
        "lengths",
        "Episodes to half of the bits",
        "Median episodes until the policy has absorbed half of the bits of a random sequence (Kaplan–Meier, with 95 % "
        "interval), at the setting that the other half of the secrets chose: by SFT, by a reward for each symbol, and "
        "by their sum. Full dots: the objective that other secrets chose; open dots: the usual one, group-"
        "centered advantages with each batch used once. Dotted: policy gradient on a table, whose symbols share no "
        "parameters. Dashed: no learner can be faster, as an episode has no more feedback. An arrow marks an interval "
        "that the runs leave open; without a dot, fewer than half of the runs got there. Numbers are exponents of the "
        f"bits, from {LEAST_LENGTH} symbols on, with 95 % intervals.",
        _tell_lengths(data) if long else data.head(0),
    )


def _tell_lengths(data: pd.DataFrame) -> pd.DataFrame:
    """The lines that are drawn, with their names, colors, bounds, and where a median that was not reached stands."""
    data = data[data["agent"].isin(["lora", "tabular_pg"]).to_numpy() & data["line"].isin(list(LINES)).to_numpy()]
    names, colors = (data["line"].map({line: told[place] for line, told in LINES.items()}) for place in (0, 1))
    named = names + data["objective"].map({"usual": ", usual objective", "chosen": ", chosen objective"}).fillna("")
    lower = data["half_bits_lower"].to_numpy()
    data = data.assign(
        name=named.where(data["agent"] == "lora", names + ", table"),
        color=colors,
        half_bits_at_least=np.where(np.isfinite(lower), lower, data["most_episodes"]),
        bound=np.maximum(data["signal_bits"] / 2 / data["nominal_bits"], 1.0),
    )
    said = [
        f"{row['name']}, {row['signal_bits']:g} bits: {say_estimate(row, 'half_bits')} episodes to half of them, "
        f"{row['num_reached']:.0f} of {row['num_cells']:.0f} runs got there"
        for row in data.to_dict("records")
    ]
    return data.assign(said=said)


def ledger_figure(summary: Summary) -> Figure:
    """Capacity, observed and absorbed bits per episode, over all runs."""
    return Figure(
        "ledger",
        "Where the bits of an episode go",
        "What one episode of the channel can tell (capacity), what an ideal observer of the same rewards gained per "
        "episode until it was one bit short of the secret (observed), and what the policy absorbed per episode; "
        "with 95 % intervals over secrets, arrows where they go on. Exploration loss is what the guesses never asked "
        "for, absorption loss what the rewards told and the policy did not take up. These are bits of all runs over "
        "episodes of all runs, those that collapsed or spent their budget included, so they lie below the median "
        "run's; an episode that could only repeat what others of its update told is exploration loss too. What was "
        "kept is absorbed over observed"
        + ("; its share stands at the right, objective by objective." if tells_objectives(summary.ledger) else "."),
        _tell(summary.ledger.drop(columns="agent", errors="ignore"), _say_ledger),
        one_N=True,
    )


def learning_figure(summary: Summary) -> Figure:
    """Observed and absorbed bits against episodes."""
    return Figure(
        "learning",
        "Learning curves in bits",
        "Solid: what the median run absorbed, log₂ N + log₂ P(secret), with the band of the middle half of runs; "
        "dashed: what an ideal Bayes observer of its rewards knows. A finished run keeps its last value. The dotted "
        "line is all there is to know, log₂ N; the axis ends at −2 bits, where a policy is sure of a wrong answer.",
        _tell(summary.learning.drop(columns="agent", errors="ignore"), _say_learning),
        one_N=True,
    )


def collapse_figure(summary: Summary) -> Figure:
    """Share of the runs that reached 1/2 and ended below it, by learning rate."""
    lost_any = bool(len(summary.collapse)) and summary.collapse["num_lost"].any()
    data = summary.collapse if lost_any else summary.collapse.head(0)
    if "objective_name" in data and data["objective_name"].replace("", np.nan).nunique() > 1:
        named = zip(data["channel"], data["objective_name"], strict=True)
        data = data.assign(channel=[", ".join(part for part in parts if part) for parts in named])
    return Figure(
        "collapse",
        "Reached, then lost",
        "Of the runs that gave the secret probability 1/2 at some time, how many ended below it, by channel and "
        "learning rate, over every N and rank that was tried; the stronger the shade, the larger the share. E50 counts "
        "the first time, so that it does not see this.",
        _tell(data, _say_collapse, with_N=False),
    )


def episodes_figure(summary: Summary) -> Figure:
    """E50 of every channel against N."""
    return Figure(
        "episodes",
        "Episodes to memorize",
        "The median number of episodes until the policy gives the secret probability 1/2 (E50, Kaplan–Meier, with "
        "95 % interval), at the setting that the other half of the secrets chose. An arrow marks an interval that "
        "the runs leave open; without a dot, fewer than half of the runs got there, and the line starts at the "
        "median's lower bound. Where exactly half of the runs have got there between two times, the median "
        "is their middle. The gray band is E = N; crosses are published numbers (an MLP, 10 seeds).",
        _collect_episodes(summary),
    )


def agents_figure(summary: Summary) -> Figure:
    """E50 of the policy beside agents that share its channel."""
    data = _collect_episodes(summary)
    has_agents = bool(len(data)) and not data["agent"].isin(["lora", "published"]).all()
    return Figure(
        "agents",
        "Episodes to memorize, beside agents that need no network",
        "E50 of the policy (squares, 95 % interval) and of agents that learn from the same rewards, channel by "
        "channel: the optimal or a greedy one, uniform guessing, and policy gradient on a table of N logits.",
        data if has_agents else data.head(0),
    )


def _collect_episodes(summary: Summary) -> pd.DataFrame:
    estimates = [
        f"{name}{end}" for name in ("e50", "e50_vs_optimal", "e50_vs_tabular_pg") for end in ("", "_lower", "_upper")
    ]
    columns = ["agent", "channel", "N", "model", "objective", "num_cells", "num_reached", "learning_rates"]
    own = summary.estimates[[*columns, "reference_agent", *estimates, "most_episodes"]]
    # Of an agent that played under several objectives, the usual one.
    own = own[((own["agent"] == "lora") | own["objective"].isin(["", "usual"])).to_numpy()]
    lower = own["e50_lower"].to_numpy()
    own = own.assign(e50_at_least=np.where(np.isfinite(lower), lower, own["most_episodes"]))
    published = published_episodes().assign(agent="published", objective="")
    published = published[published["N"].isin(own["N"]) & published["channel"].isin(own["channel"])]
    published = published.assign(
        e50=published["episodes"].where(published["reached"], np.inf), e50_at_least=PUBLISHED_BUDGET
    )
    data = pd.concat([own, published.drop(columns=["episodes", "source", "reached"])], ignore_index=True)
    colors = dict(zip(summary.channels["label"], summary.channels["color"], strict=True))
    data = data[data["channel"].isin(colors).to_numpy()].drop(columns="most_episodes")
    return _tell(data.assign(color=data["channel"].map(colors)), _say_episodes)


def groups_figure(summary: Summary) -> Figure:
    """E50 against group size, objective by objective."""
    columns = ["channel", "N", "model", "objective_name", "group_size", "num_cells", "num_reached", "most_episodes"]
    data = summary.objectives
    if len(data):
        data = data[data.groupby(columns[:4], dropna=False)["group_size"].transform("nunique").to_numpy() > 1]
    estimates = ["e50", "e50_lower", "e50_upper"]
    return Figure(
        "groups",
        "Episodes against group size",
        "E50 by the size of the group that an update's episodes are judged in, with 95 % interval, each at the "
        "learning rate (and whatever else was tuned) that the other half of the secrets chose. A line without a dot is "
        "a median that was not reached; it stands at the longest run.",
        _tell(data[[*columns, *estimates]] if len(data) else data, _say_groups),
        one_N=True,
    )


def interference_figure(summary: Summary) -> Figure:
    """Share of runs that reached the secret against the interference of their base."""
    columns = ["channel", "N", "model", "objective", "num_cells", "num_reached", "interference"]
    own = summary.estimates[(summary.estimates["agent"] == "lora").to_numpy()]
    data = own[own["interference"].notna().to_numpy()]
    bases = data.groupby(["channel", "N"])["interference"].transform("nunique") if len(data) else data["N"]
    data = data[(bases > 1).to_numpy()]
    if data.empty:
        return Figure("interference", "", "", data)
    panels = [f"{channel}, N = {N}" for channel, N in zip(data["channel"], data["N"], strict=True)]
    data = data[columns].rename(columns={"model": "base"}).assign(share=data["num_reached"] / data["num_cells"])
    return Figure(
        "interference",
        "Interference and what is memorized",
        "The share of runs that gave the secret probability 1/2 at some time, against the interference of the base "
        "model: the mean cosine of the gradients that different places of one answer send to a fresh adapter. Each at "
        "the setting that the other half of the secrets chose.",
        _tell(data, _say_interference).assign(channel=panels),
    )


def maps_figure(summary: Summary) -> Figure:
    """Median E50 by rank and learning rate."""
    columns = ["channel", "N", "model", "lora_rank", "learning_rate", "num_cells", "num_reached", "e50"]
    data = summary.maps
    both = bool(len(data)) and data["lora_rank"].nunique() * data["learning_rate"].nunique() > 1
    return Figure(
        "maps",
        "Rank and learning rate",
        "Median episodes to memorize (E50) at every rank and learning rate, all secrets. Dark is fast, on a scale of "
        "each panel's own. A frame marks the best learning rate of a rank, × a median that was not reached within "
        "the budget. These cells were not held out: the maps show the landscape, the other figures report.",
        _tell(data[[*columns, "e50_lower", "e50_upper"]] if both else data.head(0), _say_map),
        one_N=True,
    )


def _tell(data: pd.DataFrame, say: Callable[[Row], str], with_N: bool = True) -> pd.DataFrame:
    """The rows, each with what its mark says of itself."""
    rows = data.to_dict("records")
    said = [f"{row['channel']}, N = {row['N']}: " if with_N else f"{row['channel']}, " for row in rows]
    return data.assign(said=[start + _say_objective(row) + say(row) for start, row in zip(said, rows, strict=True)])


def _say_objective(row: Row) -> str:
    return f"{objective_label(row['objective'])}, " if row.get("objective") else ""


def say_estimate(row: Row, name: str) -> str:
    """The column NAME of a row with its interval."""
    return format_estimate(row[name], row[f"{name}_lower"], row[f"{name}_upper"])


def _say_rate(row: Row) -> str:
    reached = row["bits_per_episode"] > 0
    found = (
        say_estimate(row, "bits_per_episode")
        if reached
        else f"less than {format_number(row['bits_per_episode_upper'])}"
    )
    return f"{found} of {format_number(row['capacity_best_bits'])} bits per episode"


def _say_ledger(row: Row) -> str:
    absorbed, observed = (say_estimate(row, f"{name}_rate") for name in ("absorbed", "observed"))
    capacity, kept = format_number(row["capacity_bits"]), format_number(100 * row["kept"])
    return f"absorbed {absorbed}, observed {observed}, capacity {capacity} bits per episode; {kept} % kept"


def _say_learning(row: Row) -> str:
    low, median, high = (format_number(row[f"absorbed_{name}"]) for name in ("low", "median", "high"))
    return f"after {row['episodes']:,.0f} episodes {median} bits ({low} to {high})"


def _say_episodes(row: Row) -> str:
    agent = "published" if row["agent"] == "published" else agent_label(row["agent"])
    if row["agent"] == "published":
        return f"published, {format_number(row['e50'])}"
    text = f"{agent}, E50 {say_estimate(row, 'e50')}, {row['num_reached']:.0f} of {row['num_cells']:.0f} runs got there"
    return f"{text}, learning rate {row['learning_rates']}" if row["learning_rates"] else text


def _say_collapse(row: Row) -> str:
    return f"learning rate {row['learning_rate']:g}: {row['num_lost']} of {row['num_reached']} runs that got to 1/2"


def _say_groups(row: Row) -> str:
    reached = f"{row['num_reached']} of {row['num_cells']} runs"
    return f"{row['objective_name']}, groups of {row['group_size']:g}: E50 {say_estimate(row, 'e50')}, {reached}"


def _say_interference(row: Row) -> str:
    return f"interference {row['interference']:.2f}: {row['num_reached']} of {row['num_cells']} runs reached 1/2"


def _say_map(row: Row) -> str:
    return f"rank {row['lora_rank']:g}, learning rate {row['learning_rate']:g}: E50 {say_estimate(row, 'e50')}"
