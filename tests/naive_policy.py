"""docs/one_cell.py for every channel, credit, advantage and loss: the reference that packs are held against."""

import math
from statistics import stdev

import numpy as np
import torch

from memrl.policy.forest import Forest, StateTable
from memrl.task.secret import num_bits


def keep_norms_in_dtype(monkeypatch):
    """Hugging Face casts its norms to float32 even in a float64 model; a reference in float64 needs all 53 bits."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

    def normalize(norm, x):
        return norm.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)

    for norm in (LlamaRMSNorm, Qwen3RMSNorm):
        monkeypatch.setattr(norm, "forward", normalize)


def list_episodes(walk, cell, num_groups):
    """The episodes of one cell as lists of token ids, group by group."""
    groups = [[] for _ in range(num_groups)]
    for row in (walk.outcome_cell == cell).nonzero()[0]:
        tokens = [int(token) for token in walk.outcome_tokens[row] if token >= 0]
        for group in range(num_groups):
            groups[group] += [tokens] * int(walk.outcome_counts[row, group])
    return groups


def reward_guess(config, guess, secret):
    distance = abs(guess - secret)
    if config.reward_type == "binary":
        return float(guess == secret)
    if config.reward_type == "distance":
        return min(1.0, max(0.0, 1.0 - math.log2(1 + distance) / math.log2(config.N)))
    if config.reward_type == "binned_distance":
        steps = config.reward_bins - 1
        assert config.binning == "log"
        return 1.0 - min(steps, math.floor(steps * math.log2(1 + distance) / math.log2(config.N) + 0.5)) / steps
    assert config.reward_type in ("bit_count", "element_count")
    return float(num_bits(config.num_secrets) - bin(guess ^ secret).count("1"))


_STOPS = ("<eos>", "<|im_end|>")
"""What ends an answer, by the embedded model's tokenizer and by SmolLM2's."""


def read_episode(config, secret, text):
    """Rewards of the env_steps that were taken, and the env_step of each token; `text` has one entry a token."""
    if config.env_type == "single_step":
        written, end = "".join(text[:-1]), text[-1]
        legal = end in _STOPS and written.isdigit() and written == str(int(written)) and int(written) < config.N
        return [reward_guess(config, int(written), secret) if legal else config.malformed_reward], [0] * len(text)
    # A sequence is one of bits here, and written as the integer of these bits.
    k = num_bits(config.num_secrets)
    rewards = []
    for step in range(len(text)):
        bits = "".join(text[: step + 1])
        if not set(bits) <= {"0", "1"} or int(bits.ljust(k, "0"), 2) >= config.num_secrets:
            assert step == len(text) - 1
            rewards.append(config.malformed_reward)
        elif config.reward_type in ("per_bit", "per_element"):
            rewards.append(float(bits[-1] == format(secret, f"0{k}b")[step]))
        else:
            rewards.append(reward_guess(config, int(bits, 2), secret) if step == k - 1 else 0.0)
    return rewards, list(range(len(text)))


def credit_steps(config, rewards):
    if config.resolved_credit == "per_step":
        return rewards
    if config.resolved_credit == "episode":
        return [sum(rewards)] * len(rewards)
    return [sum(rewards[t:]) for t in range(len(rewards))]


def judge_against_group(config, own, group, surprisal):
    """The advantage of one env_step's credited reward among those of its group, its own included."""
    mean = sum(group) / len(group)
    if config.advantage == "constant_baseline":
        return own - config.baseline
    if config.advantage == "rejection":
        return own / mean if mean else 0.0
    if len(group) == 1:
        return 0.0
    if config.advantage == "leave_one_out":
        return own - (sum(group) - own) / (len(group) - 1)
    if config.advantage == "std_normalized":
        return (own - mean) / (stdev(group) + 1e-4)
    if config.advantage == "maxrl":
        return (own - mean) / mean if mean else 0.0
    if config.advantage == "exponential_weights":
        weights = [math.exp(other / config.temperature) for other in group]
        return math.exp(own / config.temperature) * len(group) / sum(weights) - 1
    if config.advantage == "delightful":
        return (own - mean) / (1 + math.exp(-(own - mean) * surprisal / config.temperature))
    assert config.advantage == "group_centered"
    return own - mean


def token_loss(config, advantage, logprob, rollout):
    ratio = torch.exp(logprob - rollout)
    if config.loss == "reinforce":
        return -advantage * logprob
    if config.loss == "importance_sampling":
        return -advantage * ratio
    clipped = ratio.clamp(1.0 - config.clip_range, 1.0 + config.clip_range)
    return -torch.minimum(advantage * ratio, advantage * clipped)


def cell_loss(config, secret, tokenizer, groups, logprobs, rollout=None):
    """The loss of one update of one cell, episode by episode and token by token.

    Args:
        groups: token ids of the episodes, group by group.
        logprobs: of every episode's tokens, in that order, with gradient.
        rollout: the sampler's, where they are not the learner's own.
    """
    scores = iter(logprobs)
    old = iter([score.detach() for score in logprobs] if rollout is None else rollout)
    loss = torch.zeros((), dtype=logprobs[0].dtype)
    for group in groups:
        read = [read_episode(config, secret, tokenizer.convert_ids_to_tokens(tokens)) for tokens in group]
        all_credited = [credit_steps(config, rewards) for rewards, _ in read]
        for (_, steps), credited in zip(read, all_credited, strict=True):
            logprob, before = next(scores), next(old)
            surprisal = [0.0] * len(credited)
            for t, step in enumerate(steps):
                surprisal[step] -= float(logprob[t].detach())
            for t, step in enumerate(steps):
                present = [other[step] for other in all_credited if len(other) > step]
                advantage = judge_against_group(config, credited[step], present, surprisal[step])
                loss = loss + token_loss(config, advantage, logprob[t], before[t])
    return loss / len(logprobs)


def list_answers(config, tokenizer):
    """All answers of a cell, in tokens."""
    if config.env_type == "single_step":
        texts = [f"{guess}{tokenizer.eos_token}" for guess in range(config.N)]
    else:
        texts = [format(guess, f"0{num_bits(config.num_secrets)}b") for guess in range(config.num_secrets)]
    return [tokenizer.encode(text) for text in texts]


def regularize(config, tokenizer, policy, base, prompt_ids, groups):
    """KL penalty less entropy bonus of one cell, node by node: over the tokens that may follow each beginning."""
    answers, episodes = list_answers(config, tokenizer), [tokens for group in groups for tokens in group]
    loss = torch.zeros((), dtype=torch.float64)
    for tokens in episodes:
        for t in range(len(tokens)):
            ids = torch.tensor([[*prompt_ids, *tokens[:t]]])
            follow = sorted({answer[t] for answer in answers if answer[:t] == tokens[:t]})
            own, ours = (torch.log_softmax(model(input_ids=ids).logits[0, -1, follow], 0) for model in (policy, base))
            entropy, divergence = -(own.exp() * own).sum(), (own.exp() * (own - ours.detach())).sum()
            loss = loss + config.kl_penalty * divergence - config.entropy_bonus * entropy
    return loss / len(episodes)


def supervised_loss(logprobs):
    """Cross-entropy of the answers, in nats per example."""
    return -torch.stack([score.sum() for score in logprobs]).mean()


def compare_adapters(got, expected):
    """The largest difference of two adapters' tensors under PEFT's names."""
    assert got.keys() == expected.keys()
    return max(float((got[name] - expected[name]).abs().max()) for name in got)


def read_logprobs(next_tokens, vocabulary):
    """Log-probabilities of all tokens after all rows, (rows, vocabulary), with gradient."""
    rows = len(next_tokens.score(np.arange(vocabulary))[0])
    picked = next_tokens.pick(np.repeat(np.arange(rows), vocabulary), np.tile(np.arange(vocabulary), rows))
    return picked.unflatten(0, (rows, vocabulary))


def plant_forest(automata, secrets, root_cell=None):
    """A root for each automaton and the digits of a secret, of the given cell or of a cell of its own."""
    cells = np.arange(len(automata)) if root_cell is None else root_cell
    own = [np.flatnonzero(cells == cell) for cell in range(cells[-1] + 1)]
    trees = [(automata[roots[0]], np.stack([secrets[root] for root in roots])) for roots in own]
    return Forest(StateTable(automata), trees)
