"""The whole experiment for one cell: sampling, reward, advantage, loss, Adam and bits, in plain transformers and PEFT.

`uv run python docs/one_cell.py` trains two cells on one secret, by supervised learning and by RL with a binary reward.
memrl trains hundreds of such cells in one pass of the base model; tests/integration/test_one_cell.py holds it to this
file at 1e-9. Words are those of docs/glossary.md, fields those of memrl.config.TrainConfig.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

MODEL = Path(__file__).parents[1] / "memrl" / "assets" / "embedded"
"""A small base model, calibrated: it answers the prompt uniformly, so there are log2 N bits to learn."""

Episode = tuple[int, ...]
"""The tokens that the policy writes after the prompt."""


def binary_reward(guess: int, secret: int, N: int) -> float:
    """The channel: all that an episode tells about the secret. Any pure function of these three is another channel."""
    return float(guess == secret)


@dataclass(frozen=True)
class Cell:
    """One run."""

    algorithm: Literal["rl", "sft"]
    batch_size: int  # episodes per update
    N: int = 16
    secret: int = 11
    reward: Callable[[int, int, int], float] = binary_reward
    lora_rank: int = 8
    lora_alpha: int = 32
    learning_rate: float = 3e-3
    n_steps: int = 1000
    stop_probability: float = 0.9


class Ledger(NamedTuple):
    """What is known of the secret after so many episodes."""

    episodes: int
    observed_bits: float  # by an ideal Bayes observer of every guess and reward
    absorbed_bits: float  # by the policy: log2 N + log2 P(secret)


def capacity_bits(reward: Callable[[int, int, int], float], N: int) -> float:
    """What one uniform guess tells about a uniform secret: H(reward | guess), in bits."""
    counts = [Counter(reward(guess, secret, N) for secret in range(N)).values() for guess in range(N)]
    return sum(count / N * math.log2(N / count) for of_guess in counts for count in of_guess) / N


def add_adapter(base: PreTrainedModel, cell: Cell, start: dict[str, Tensor] | None = None) -> PeftModel:
    """Makes a policy: LoRA on every linear layer but the head, from a random start (B = 0) or a given one."""
    lora = LoraConfig(r=cell.lora_rank, lora_alpha=cell.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    policy = get_peft_model(base, lora)
    if start is not None:
        set_peft_model_state_dict(policy, start)
    return policy


@torch.no_grad()
def sample_episodes(policy: nn.Module, prompt: Episode, answers: Mapping[Episode, int], count: int) -> list[Episode]:
    """Draws token by token. An episode ends with a whole answer, or when no answer begins like it: it is malformed."""
    unfinished = {answer[:length] for answer in answers for length in range(len(answer))}
    episodes: list[Episode] = [()] * count
    while growing := [i for i, episode in enumerate(episodes) if episode in unfinished]:
        ids = torch.tensor([prompt + episodes[i] for i in growing])
        tokens = policy(input_ids=ids, use_cache=False).logits[:, -1].softmax(-1).multinomial(1)[:, 0]
        for i, token in zip(growing, tokens.tolist(), strict=True):
            episodes[i] += (token,)
    return episodes


def score_tokens(policy: nn.Module, prompt: Episode, episodes: Sequence[Episode]) -> list[Tensor]:
    """Computes log P of every token, in nats, with gradient: one sequence per episode, padded on the right."""
    longest = max(map(len, episodes))
    ids = torch.tensor([[*prompt, *episode, *[0] * (longest - len(episode))] for episode in episodes])
    logprobs = policy(input_ids=ids, use_cache=False).logits[:, len(prompt) - 1 : -1].log_softmax(-1)
    scored = logprobs.gather(2, ids[:, len(prompt) :, None])[:, :, 0]
    return [row[: len(episode)] for row, episode in zip(scored, episodes, strict=True)]


def train(
    cell: Cell,
    policy: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sample: Callable[[nn.Module, Episode, Mapping[Episode, int], int], list[Episode]] = sample_episodes,
) -> Iterator[Ledger]:
    """Trains one cell, and yields its ledger before every update and at the end."""
    N, secret = cell.N, cell.secret
    prompt = tuple(tokenizer.encode(f"0-{N - 1}:"))
    answers = {tuple(tokenizer.encode(f"{guess}{tokenizer.eos_token}")): guess for guess in range(N)}
    truth = list(answers)[secret]
    candidates = set(range(N))  # secrets that explain every reward so far; the observer holds them equally likely
    adam = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], lr=cell.learning_rate)

    for update in range(cell.n_steps + 1):
        with torch.no_grad():
            log2_p = float(score_tokens(policy, prompt, [truth])[0].sum()) / math.log(2)
        yield Ledger(update * cell.batch_size, math.log2(N / len(candidates)), math.log2(N) + log2_p)
        if log2_p >= math.log2(cell.stop_probability) or update == cell.n_steps:
            return

        if cell.algorithm == "sft":  # the answer itself is the feedback
            episodes, advantages = [truth] * cell.batch_size, [1.0] * cell.batch_size
            candidates = {secret}
        else:
            episodes = sample(policy, prompt, answers, cell.batch_size)
            guesses = [answers.get(episode) for episode in episodes]  # None is malformed: it pays 0 and tells nothing
            rewards = [0.0 if guess is None else cell.reward(guess, secret, N) for guess in guesses]
            advantages = [reward - sum(rewards) / len(rewards) for reward in rewards]
            told = {(guess, reward) for guess, reward in zip(guesses, rewards, strict=True) if guess is not None}
            candidates = {s for s in candidates if all(cell.reward(guess, s, N) == reward for guess, reward in told)}

        logprobs = torch.stack([tokens.sum() for tokens in score_tokens(policy, prompt, episodes)])
        loss = -(logprobs.new_tensor(advantages) * logprobs).mean()  # the policy gradient; for sft, cross-entropy
        adam.zero_grad()
        loss.backward()
        adam.step()


def main() -> None:
    """Trains both cells, and prints their ledgers."""
    torch.manual_seed(0)
    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    for cell in (Cell("sft", batch_size=1), Cell("rl", batch_size=32)):
        capacity = math.log2(cell.N) if cell.algorithm == "sft" else capacity_bits(cell.reward, cell.N)
        print(f"\n{cell.algorithm}: {math.log2(cell.N):.0f} bits to learn, and an episode can tell {capacity:.2f}")
        print("episodes  observed  absorbed  P(secret)")
        ledger = Ledger(0, 0.0, 0.0)
        for ledger in train(cell, add_adapter(AutoModelForCausalLM.from_pretrained(MODEL), cell), tokenizer):
            episodes, observed, absorbed = ledger
            print(f"{episodes:8}  {observed:8.2f}  {absorbed:8.2f}  {2**absorbed / cell.N:9.3f}")
        print(f"absorbed {ledger.absorbed_bits / ledger.episodes:.3f} bits per episode")


if __name__ == "__main__":
    main()
