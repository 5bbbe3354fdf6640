"""What reports say of a sweep in words, from its summary."""

import pandas as pd

from memrl.analysis.leak import ENOUGH_SECRETS
from memrl.analysis.published import published_episodes
from memrl.analysis.style import channel_label, order_channels
from memrl.analysis.summary import Summary
from memrl.analysis.wording import format_estimate, format_number

SCALING = (
    "E50 as a power of N, with its 95 % interval, and the test of that power against an overhead, E = c + a N. "
    "“Exponent” says that the overhead is rejected at 5 %, “overhead” that the power is, “either” that these N can't "
    "tell, “neither” that both are, and “flat” that the exponent's interval holds 0, so that E50 may not grow with N."
)
"""What the table of scaling exponents says."""

LEDGER_NOTE = (
    "These are means over all runs, those included that did not memorize. Episodes come in whole updates: where the "
    "first one tells nearly all, the others of its update have little left to tell, which counts as exploration loss "
    "too. A loss below 0 in an interval is possible: guesses chosen in view of earlier rewards may be told more than "
    "the best first guess, and means have errors."
)
"""How the sentences of the ledger are to be read."""


def describe_scope(summary: Summary) -> str:
    """How much the sweep covers, in two sentences."""
    lora = summary.estimates[(summary.estimates["agent"] == "lora").to_numpy()]
    N = f"N = {lora['N'].min():,} to {lora['N'].max():,}" if lora["N"].nunique() > 1 else f"N = {lora['N'].iloc[0]:,}"
    return (
        f"{summary.num_finished:,} policies were trained to memorize a secret, over {lora['channel'].nunique()} "
        f"channels, {N}, and {summary.num_secrets:,} independent secrets in all. Every estimate stands with its 95 % "
        "interval."
    )


def list_notices(summary: Summary) -> list[str]:
    """What a reader must know before the numbers: unfinished, failed, leaking or badly chosen cells."""
    notices = []
    planned = summary.num_planned
    if planned is not None and summary.num_finished < planned:
        notices.append(
            f"This sweep is not finished: {summary.num_finished:,} of {planned:,} cells have a row. Numbers will move, "
            "and cells that finish early are the fast ones of their pack."
        )
    if len(summary.failed):
        first = str(summary.failed["error"].iloc[0])
        failed = "1 cell failed and is" if len(summary.failed) == 1 else f"{len(summary.failed):,} cells failed and are"
        notices.append(f"{failed} listed below; the first: {first}")
    leaks = summary.leaks[(summary.leaks["verdict"] == "leak").to_numpy()] if len(summary.leaks) else summary.leaks
    for row in leaks.to_dict("records"):
        notices.append(
            f"{channel_label(row['channel'])} at N = {row['N']}: the policies absorbed more than was observed."
        )
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
        f"In {leaking or 'none'} of {len(observed)} combinations of channel and N the policies absorbed more than was "
        f"observed. The largest evidence for a leak is {format_number(observed['evidence_bits'].max())} bits; an "
        f"honest run exceeds {observed['evidence_limit_bits'].iloc[0]:.2f} bits at one update with probability at "
        "most 1 %."
    ]
    if few:
        sentences.append(
            f"{'All' if few == len(observed) else few} of them have fewer than {ENOUGH_SECRETS} secrets: a leak in "
            "a few cells could go unseen there."
        )
    return sentences


def describe_prior(prior: pd.DataFrame) -> list[str]:
    """How far the prior is from uniform, where that was measured."""
    known = prior[prior["prior_kl_bits"].notna().to_numpy()]
    if known.empty:
        return []
    worst = known.sort_values("prior_kl_bits").iloc[-1]
    return [
        f"Over {len(known)} prompts the largest divergence from a uniform prior is {worst['prior_kl_bits']:.2g} bit "
        f"({worst['env_type']}, N = {worst['N']}); the smallest mass on answers in range is "
        f"{100 * known['prior_well_formed'].min():.4g} %. Above 0.1 bit, or below 98 %, log₂ N would be the wrong "
        "number of bits to learn."
    ]


def list_facts(summary: Summary) -> list[tuple[str, str]]:
    """What it takes to run the sweep again: names and texts."""
    made = summary.provenance
    facts = [
        ("tables", summary.address),
        ("seeds", made.seeds),
        ("revision", ", ".join(made.revisions) or "not a checkout"),
        (
            "versions",
            ", ".join(f"{name} {' or '.join(found)}" for name, found in made.versions.items()) or "not recorded",
        ),
    ]
    if made.shared:
        facts.append(("shared fields", " ".join(f"{name}={value}" for name, value in made.shared.items())))
    return facts


def compare_with_published(estimates: pd.DataFrame) -> list[str]:
    """One sentence a channel that others measured too: E50 at their N beside their numbers."""
    lora = estimates[(estimates["agent"] == "lora").to_numpy()]
    both = lora.merge(published_episodes(), on=["channel", "N"], suffixes=("", "_published"))
    sentences = []
    for channel in order_channels(both["channel"]):
        rows = both[(both["channel"] == channel).to_numpy()].sort_values("N").to_dict("records")
        sizes = " / ".join(f"{row['N']}" for row in rows)
        ours = " / ".join(format_estimate(row["e50"], row["e50_lower"], row["e50_upper"]) for row in rows)
        theirs = " / ".join(format_number(row["episodes"]) if row["reached"] else "not reached" for row in rows)
        sentences.append(f"{channel_label(channel)}, N = {sizes}: E50 = {ours} episodes; published (MLP): {theirs}.")
    return sentences


def describe_ledger(ledger: pd.DataFrame, N: int) -> list[str]:
    """One sentence a channel: what an episode could tell at one N, and where it went."""
    rows = ledger[(ledger["N"] == N).to_numpy()]
    by_channel = {row["channel"]: row for row in rows.to_dict("records")}
    sentences = []
    for channel in order_channels(by_channel):
        row = by_channel[channel]
        numbers = {
            name: format_estimate(row[name], row[f"{name}_lower"], row[f"{name}_upper"])
            for name in ("absorbed_rate", "absorption_loss", "exploration_loss")
        }
        sentences.append(
            f"{channel_label(channel)}, N = {N}: an episode can tell {format_number(row['capacity_bits'])} bits. The "
            f"policy absorbed {numbers['absorbed_rate']}; its rewards told {numbers['absorption_loss']} more, which it "
            f"did not absorb; and {numbers['exploration_loss']} went untold, as its guesses did not ask for them."
        )
    return sentences
