"""What reports say of a sweep in words, from its summary."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from memrl.analysis.leak import ENOUGH_SECRETS
from memrl.analysis.objectives import CHOSEN, USUAL, USUAL_NAME
from memrl.analysis.published import published_episodes
from memrl.analysis.style import tells_objectives
from memrl.analysis.summary import Summary
from memrl.analysis.wording import format_estimate, format_number
from memrl.policy.model_folder import SMOLLM2
from memrl.tables.rows import LORA
from memrl.tables.schema import Row

SCALING = (
    "E50 as a power of N, with its 95 % interval, and the test of that power against an overhead, E = c + a N. "
    "“Exponent” says that the overhead is rejected at 5 %, “overhead” that the power is, “either” that these N can't "
    "tell, “neither” that both are, and “flat” that the exponent's interval holds 0, so that E50 may not grow with N."
)
"""What the table of scaling exponents says."""

LEDGER_NOTE = (
    "These are bits of all runs over episodes of all runs, those included that collapsed or spent their budget, so "
    "they lie below the median run's. Episodes come in whole updates: where the first one tells nearly all, the others "
    "of its update have little left to tell, which counts as exploration loss too. More can be observed than the "
    "capacity: guesses chosen in view of earlier rewards may be told more than the best first guess."
)
"""How the numbers of the ledger are to be read."""


KEPT_NOTE = (
    "Of the bits that an episode's rewards told an ideal observer, the share that the policy absorbed per episode, "
    "with its 95 % interval over secrets: under the usual objective, under the one that other secrets chose, and where "
    "the policy was trained towards the observer's posterior."
)
"""How the shares of the ledger are to be read."""


@dataclass(frozen=True)
class Answer:
    """One number of the answer: bits per episode of a channel, in words."""

    number: str
    words: str


def answer_question(summary: Summary) -> tuple[str, list[Answer]]:
    """The largest N that most channels have, and bits per episode there: by SFT, the best reward, and the binary one.

    Of several models it is the first by name that answers.
    """
    lora = summary.estimates[(summary.estimates["agent"] == "lora").to_numpy()]
    models = sorted(lora["model"].unique())
    lora = lora[(lora["model"] == models[0]).to_numpy()]
    # Of several objectives the chosen one answers; distillation, which is told more than a reward, where it is alone.
    order = lora["objective"].map({CHOSEN: 0, USUAL: 1, "": 2}).fillna(3)
    lora = lora.assign(order=order)[((order < 3) | (order.min() == 3)).to_numpy()]
    channels = lora.groupby("N")["channel"].nunique()
    N = int(channels[channels == channels.max()].index.max())
    place = f"N = {N:,}" + (f", with the model {models[0]}," if len(models) > 1 else ",")
    lora = lora[(lora["N"] == N).to_numpy()]
    usual = lora[(lora["objective"] == USUAL).to_numpy()].drop_duplicates("channel").set_index("channel")
    lora = lora.sort_values("order", kind="stable").drop_duplicates("channel").sort_index().set_index("channel")
    kinds = dict(zip(summary.channels["label"], summary.channels["kind"], strict=True))
    rewards = lora[[kinds[channel] != "sft" for channel in lora.index]]
    picked: dict[str, str] = {}
    for channel in lora.index:
        if kinds[channel] == "sft":
            picked.setdefault(channel, "by SFT, which shows the secret")
    if len(rewards):
        best, worst = (str(found) for found in rewards["bits_per_episode"].agg(["idxmax", "idxmin"]))
        binary = "binary" if "binary" in rewards.index else worst
        most = ", the most of all rewards" if len(rewards) > 1 else ""
        picked.setdefault(best, f"by RL with the reward “{best}”{most}")
        picked.setdefault(binary, f"by RL with the reward “{binary}”")
    answers = []
    for channel, words in picked.items():
        row = lora.loc[channel]
        reached = row["bits_per_episode"] > 0
        number = (
            format_number(row["bits_per_episode"]) if reached else f"< {format_number(row['bits_per_episode_upper'])}"
        )
        most = f"at most {format_number(row['capacity_best_bits'])}"
        if row["objective"] == CHOSEN:
            words += f", under {_name_chosen(row['objectives'])}"
            most += _say_usual(row, usual)
        answers.append(Answer(number, f"{words} ({most})"))
    return place, answers[:3]


def _name_chosen(objectives: str) -> str:
    """The chosen objective in words, of which each half of the secrets may have one."""
    if objectives == USUAL_NAME:
        return "the usual objective, which other secrets chose"
    return f"the objective that other secrets chose: {objectives}"


def _say_usual(row: pd.Series, usual: pd.DataFrame) -> str:
    """What the usual objective taught on the channel of a row of the chosen one, where that is another number.

    Args:
        row: the chosen objective's estimates, named by its channel.
        usual: the usual objective's, by channel.
    """
    if row["objectives"] == USUAL_NAME or row.name not in usual.index:
        return ""
    rate, chosen = usual.loc[row.name, "bits_per_episode"], row["bits_per_episode"]
    if not rate > 0:
        return ""
    more = "more, " if rate > chosen else ""
    return f"; on these secrets the usual objective taught {more}{format_number(rate)}"


def count_noun(number: int, noun: str) -> str:
    """A number with its noun.

    >>> count_noun(1, "channel"), count_noun(5760, "channel")
    ('1 channel', '5,760 channels')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def describe_scope(summary: Summary) -> str:
    """How much the sweep covers, in two sentences."""
    lora = summary.estimates[(summary.estimates["agent"] == "lora").to_numpy()]
    N = f"N = {lora['N'].min():,} to {lora['N'].max():,}" if lora["N"].nunique() > 1 else f"N = {lora['N'].iloc[0]:,}"
    trained = "policy was" if summary.num_finished == 1 else "policies were"
    return (
        f"{summary.num_finished:,} {trained} trained to memorize a secret, over "
        f"{count_noun(lora['channel'].nunique(), 'channel')}, {N}, with {count_noun(summary.num_secrets, 'secret')} "
        f"drawn independently. {_tell_stopped(summary.num_stopped)}Brackets are 95 % intervals over secrets."
    )


def _tell_stopped(num_stopped: int) -> str:
    if not num_stopped:
        return ""
    were = "was" if num_stopped == 1 else "were"
    return (
        f"{count_noun(num_stopped, 'run')} {were} stopped once neither half of the secrets could choose the learning "
        "rate any more, which changes no figure at a chosen rate. "
    )


def describe_collapse(collapse: pd.DataFrame) -> list[str]:
    """How many runs reached 1/2 and ended below it, and where most of them did."""
    reached = collapse[(collapse["num_reached"] > 0).to_numpy()]
    if reached.empty:
        return []
    lost, all_reached = int(reached["num_lost"].sum()), int(reached["num_reached"].sum())
    text = f"Of {count_noun(all_reached, 'run')} that gave the secret probability 1/2, {lost:,} ended below it"
    if not lost:
        return [f"{text}."]
    worst = reached.sort_values("share_lost").iloc[-1]
    rates = reached.groupby("learning_rate")[["num_lost", "num_reached"]].sum()
    if len(rates) > 1:
        ends = [f"{row.num_lost:,} of {row.num_reached:,} at {rate:g}" for rate, row in rates.iloc[[0, -1]].iterrows()]
        text += f", {ends[0]} (the smallest learning rate) and {ends[1]} (the largest)"
    return [
        f"{text}; most often with “{worst['channel']}” at {worst['learning_rate']:g}, {worst['num_lost']} of "
        f"{worst['num_reached']}."
    ]


def describe_edges(edges: pd.DataFrame) -> list[str]:
    """In how many conditions the learning rate that was chosen may not be the best one there is."""
    if edges.empty:
        return []
    at_edge = int(edges["at_edge"].sum())
    return [
        f"The learning rate that was chosen is the smallest or largest that was tried in {at_edge} of "
        f"{count_noun(len(edges), 'condition')} (channel, N and objective), so that the best may lie beyond."
    ]


def list_notices(summary: Summary) -> list[str]:
    """What a reader must know before the numbers: unfinished, failed, leaking or badly chosen cells."""
    notices = []
    if summary.trainer != LORA:
        notices.append(
            f"None of these runs is memrl's own: their policies were trained by “{summary.trainer}”, and measured by "
            "the same ledger."
        )
    if summary.is_unfinished:
        notices.append(
            f"This sweep is not finished: {summary.num_finished:,} of {summary.num_planned:,} cells have a row. "
            "Numbers and verdicts are provisional, and cells that finish early are the fast ones of their pack."
        )
    if len(summary.failed):
        first = str(summary.failed["error"].iloc[0])
        failed = "1 cell failed and is" if len(summary.failed) == 1 else f"{len(summary.failed):,} cells failed and are"
        notices.append(f"{failed} listed below; the first: {first}")
    leaks = summary.leaks[(summary.leaks["verdict"] == "leak").to_numpy()] if len(summary.leaks) else summary.leaks
    for row in leaks.to_dict("records"):
        notices.append(f"{row['channel']} at N = {row['N']}: the policies absorbed more than was observed.")
    if not summary.estimates["held_out"].all():
        notices.append("Some settings were chosen on the secrets that are reported, as the other half has not run yet.")
    return notices


def describe_leaks(leaks: pd.DataFrame) -> list[str]:
    """The outcome of the no-leak check."""
    observed = leaks[(leaks["verdict"] != "not observed").to_numpy()] if len(leaks) else leaks
    if observed.empty:
        return ["No cell has an observer, so that nothing can be said."]
    leaking = int((observed["verdict"] == "leak").sum())
    few = int((observed["num_secrets"] < ENOUGH_SECRETS).sum())
    sentences = [
        (f"A leak in {leaking} of" if leaking else "No leak found in")
        + f" {count_noun(len(observed), 'combination')} of channel and N: on average over secrets nobody can absorb "
        "more than an ideal observer of the same rewards knows. The largest odds against honest runs are "
        f"2^{format_number(observed['evidence_bits'].max())}; honest runs exceed "
        f"2^{observed['evidence_limit_bits'].iloc[0]:.2f} = 100 at one update with probability at most 1 %."
    ]
    if few:
        sentences.append(
            f"{'All' if few == len(observed) else few} of them have fewer than {ENOUGH_SECRETS} secrets: a leak in "
            "a few cells could go unseen there."
        )
    return sentences


def describe_scaling(scaling: pd.DataFrame) -> list[str]:
    """For how many channels the policy's exponent is told from an overhead."""
    if scaling.empty or "conclusion" not in scaling:
        return []
    own = scaling[((scaling["agent"] == "lora") & scaling["conclusion"].notna()).to_numpy()]
    if own.empty:
        return []
    if own["model"].nunique() > 1:
        own = own.assign(channel=own["channel"] + " on " + own["model"])
    if tells_objectives(own):
        objectives = own["objective"].map(lambda name: f" ({name})" if name else "")
        own = own.assign(channel=own["channel"] + objectives)
    named = own.groupby("conclusion")["channel"].agg(" and ".join)
    words = {
        "exponent": "a power of N fits and an overhead does not",
        "overhead": "an overhead fits and a power does not",
    }
    told = [f"{words[name]} for {named[name]}" for name in words if name in named]
    rest = int((~own["conclusion"].isin(list(words))).sum())
    told += [f"these N can't tell for {rest} of {count_noun(len(own), 'line')}"] if rest else []
    return [f"Of E50 as a function of N, in the policies: {'; '.join(told)}."]


def describe_prior(prior: pd.DataFrame) -> list[str]:
    """How far the prior is from uniform, where that was measured."""
    known = prior[prior["prior_kl_bits"].notna().to_numpy()]
    if known.empty:
        return []
    worst = known.sort_values("prior_kl_bits").iloc[-1]
    return [
        f"Over {len(known)} prompts the largest divergence from a uniform prior is {worst['prior_kl_bits']:.2g} bit "
        f"({worst['env_type'].replace('_', '-')}, N = {worst['N']}); the smallest mass on answers in range is "
        f"{100 * known['prior_well_formed'].min():.4g} %. Above 0.1 bit, or below 98 %, log₂ N would be the wrong "
        "number of bits to learn."
    ]


def list_facts(summary: Summary) -> list[tuple[str, str]]:
    """What it takes to run the sweep again: names and texts."""
    made = summary.provenance
    begun, ended = (pd.Timestamp(text) for text in made.created)
    versions = [f"{name} {' or '.join(found)}" for name, found in made.versions.items()]
    facts = [
        *(_list_times(begun, ended) if pd.notna(begun) else []),
        *_list_launches(made.launches),
        ("work", f"{_format_duration(made.busy_s)} of training in all"),
        ("tables", summary.address),
        ("seeds", made.seeds),
        ("commit", ", ".join(made.revisions) or "not a checkout"),
        ("versions", ", ".join(versions) or "not recorded"),
    ]
    if made.shared:
        facts.append(("shared fields", " ".join(f"{name}={value}" for name, value in made.shared.items())))
    return facts


def _list_launches(launches: Sequence[Row]) -> list[tuple[str, str]]:
    """What is noted of the launches that came to their end: how long they took, and where."""
    ended = [launch for launch in launches if launch.get("seconds") is not None]
    if not ended:
        return []
    took = _format_duration(sum(launch["seconds"] for launch in ended))
    machines = dict.fromkeys(
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']:.0f} GiB, {machine['system']}"
        for machine in (launch["machine"] for launch in ended)
    )
    return [("launches", f"{len(ended)}, {took} in all"), ("machine", "; ".join(machines))]


def _list_times(begun: pd.Timestamp, ended: pd.Timestamp) -> list[tuple[str, str]]:
    return [
        ("date", f"{begun:%Y-%m-%d %H:%M} UTC, when the first cell ended"),
        ("duration", f"{_format_duration((ended - begun).total_seconds())} from the first cell's end to the last's"),
    ]


def list_commands(summary: Summary, commands: Sequence[str]) -> list[str]:
    """Commands as one types them, in the checkout that made the tables where there was one.

    What trains the model that comes as a package asks for that package.
    """
    checkout = [
        f"git checkout {made}" for made in summary.provenance.revisions[:1] if len(summary.provenance.revisions) == 1
    ]
    typed = [f"uv run {command}" if command.startswith("python ") else command for command in commands]
    if summary.estimates["model"].astype(str).str.split("@").str[0].eq(SMOLLM2).any():
        launch = "python sweeps/launch.py"
        typed = [each.replace(f"uv run {launch}", f"uv run --extra pretrained {launch}") for each in typed]
    return [*checkout, *typed]


def _format_duration(seconds: float) -> str:
    """Seconds, minutes or hours.

    >>> _format_duration(42.4), _format_duration(170), _format_duration(7300)
    ('42 s', '2.8 min', '2 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.2g} min" if seconds < 5400 else f"{seconds / 3600:.2g} h"


def compare_with_published(estimates: pd.DataFrame) -> list[str]:
    """One sentence a channel that others measured too: E50 at their N beside their numbers."""
    lora = estimates[(estimates["agent"] == "lora").to_numpy()]
    both = lora.merge(published_episodes(), on=["channel", "N"], suffixes=("", "_published"))
    sentences = []
    for channel, found in both.groupby("channel", sort=False):
        rows = found.sort_values("N").to_dict("records")
        sizes = " / ".join(f"{row['N']}" for row in rows)
        ours = " / ".join(format_estimate(row["e50"], row["e50_lower"], row["e50_upper"]) for row in rows)
        theirs = " / ".join(format_number(row["episodes"]) if row["reached"] else "not reached" for row in rows)
        sentences.append(f"{channel}, N = {sizes}: E50 = {ours} episodes; published (MLP): {theirs}.")
    return sentences
