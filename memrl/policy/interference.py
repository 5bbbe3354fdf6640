"""Interference: how far the places of one answer pull a fresh adapter the same way.

Every place of an answer (a token where more than one symbol may follow) has to be learned by the one adapter. Where the
gradients of two places' logits are parallel, what raises a symbol at one place raises it at the other as well, right
or wrong, and a policy gradient can fall into a plateau; where they are orthogonal, places are learned independently.

The logit of symbol a at place t, centered over the symbols that may follow there, has the gradient

    g_t = ∂/∂B [ z_t(a) − mean_b z_t(b) ]    at B = 0, over every linear layer that adapters go on,

and interference is the mean cosine of g_s and g_t over the pairs s ≠ t of one answer's places, averaged over answers.
With A drawn as an adapter's is (independent entries of variance 1 / (3 d_in)), δ_t(p) the gradient on a layer's output
at position p and x(p) the layer's input, the mean inner product over A is, up to a factor that all pairs share,

    ⟨g_s, g_t⟩ = Σ_layers 1/d_in Σ_{p,q} (δ_s(p) · δ_t(q)) (x(p) · x(q)),

so that no A need be drawn and the rank does not matter.

Source: Schaul, Borsa, Modayil and Pascanu, Ray Interference: a Source of Plateaus in Deep Reinforcement Learning, 2019,
arXiv 1904.11455 (interference as the inner product of the components' gradients).
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from memrl.policy.adapter_pack import find_linears
from memrl.policy.base_model import EncodedTask
from memrl.policy.experts import leave_out_routers

ANSWERS = 4
"""Answers whose mean is taken; a mean of four is within about 0.02 of the mean over all answers."""

MOST_PLACES = 32
"""Of a longer answer so many places are drawn, whose pairs have the mean of all pairs in expectation."""


@dataclass(frozen=True)
class Places:
    """The places of one answer, and a symbol that may stand at each of them.

    Attributes:
        tokens: the answer's token ids but the last, which no place follows.
        symbol: the symbol whose logit is looked at, an index in the alphabet.
        following: for each place the tokens before it, ascending.
        allowed: for each place the symbols that may follow, indices in the alphabet.
    """

    tokens: tuple[int, ...]
    symbol: int
    following: tuple[int, ...]
    allowed: tuple[np.ndarray, ...]


def measure_interference(model: PreTrainedModel, task: EncodedTask, num_answers: int = ANSWERS, seed: int = 0) -> float:
    """Measures the interference of a prompt's places in a model without adapter; see this module.

    Args:
        model: the base model; it is left as it was.
        task: the prompt and its answers.
        num_answers: answers to average over.
        seed: draws the answers and the symbols.

    Returns:
        The mean cosine, -1 … 1; NaN where no answer has two places that a symbol could stand at.
    """
    rng = np.random.default_rng(seed)
    answers = task.answer_format.list_answers()
    found = (find_places(task, answers[place], rng) for place in rng.permutation(len(answers)))
    cosines: list[float] = []
    for places in found:
        if places is not None:
            cosines.append(_average_cosine(_multiply_gradients(model, task, places)))
        if len(cosines) == num_answers:
            break
    return float(np.mean(cosines)) if cosines else math.nan


def find_places(task: EncodedTask, digits: np.ndarray, rng: np.random.Generator) -> Places | None:
    """Finds the places of the answer that writes some digits, and draws a symbol that may stand at each.

    Returns:
        None where the answer has fewer than two places, or they have no symbol in common.
    """
    automaton = task.automaton
    letters = automaton.encode(digits)
    states = np.concatenate([[0], automaton.follow(letters)[:-1]])
    allowed = [np.flatnonzero(children >= 0) for children in automaton.child[states]]
    following = [place for place, symbols in enumerate(allowed) if len(symbols) > 1]
    if len(following) > MOST_PLACES:
        following = sorted(rng.choice(following, size=MOST_PLACES, replace=False).tolist())
    common = set.intersection(*(set(allowed[place].tolist()) for place in following)) if following else set()
    if len(following) < 2 or not common:
        return None
    tokens = tuple(int(token) for token in automaton.alphabet[letters[:-1]])
    symbol = int(rng.choice(sorted(common)))
    return Places(tokens, symbol, tuple(following), tuple(allowed[place] for place in following))


def _average_cosine(products: np.ndarray) -> float:
    """The mean cosine of distinct vectors, from their inner products, float64 (places, places)."""
    norms = np.sqrt(np.diag(products))
    cosines = products / np.outer(norms, norms)
    return float(cosines[~np.eye(len(cosines), dtype=bool)].mean())


def _multiply_gradients(model: PreTrainedModel, task: EncodedTask, places: Places) -> np.ndarray:
    """The mean inner products of the places' gradients, up to a common factor: float64 (places, places)."""
    ids = torch.tensor([[*task.prompt_ids, *places.tokens]], device=model.device)
    alphabet = torch.from_numpy(task.automaton.alphabet).to(model.device)
    with torch.enable_grad(), _watch(model, leave_out_routers(model, find_linears(model))) as seen:
        output = model(input_ids=ids, use_cache=False)
        logits = output.logits[0, len(task.prompt_ids) - 1 :][:, alphabet]
        centered = [
            logits[place, places.symbol] - logits[place, torch.from_numpy(allowed).to(model.device)].mean()
            for place, allowed in zip(places.following, places.allowed, strict=True)
        ]
        outputs = [y for _, y in seen]
        gradients = [torch.autograd.grad(logit, outputs, retain_graph=True) for logit in centered]
    layers = zip(seen, zip(*gradients, strict=True), strict=True)
    return np.sum([_multiply_layer(x, torch.stack(by_place)) for (x, _), by_place in layers], axis=0)


def _multiply_layer(x: Tensor, delta: Tensor) -> np.ndarray:
    """One layer's share of the inner products: float64 (places, places).

    Args:
        x: its input, (positions, d_in).
        delta: the gradients on its output, (places, ..., d_out) of as many positions.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    x, delta = x.to(wide), delta.to(wide).reshape(len(delta), len(x), -1)
    mixed = (x @ x.T) @ delta / x.shape[1]
    return (delta.flatten(1) @ mixed.flatten(1).T).double().cpu().numpy()


@contextmanager
def _watch(model: PreTrainedModel, layers: Mapping[str, nn.Linear]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Collects the layers' inputs, (positions, d_in), and their outputs, with a graph from the embeddings on."""
    seen: list[tuple[Tensor, Tensor]] = []

    def see(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((inputs[0].detach().flatten(0, -2), output))

    def start_graph(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.detach().requires_grad_()

    with ExitStack() as stack:
        embeddings = model.get_input_embeddings()
        stack.callback(embeddings.register_forward_hook(start_graph).remove)
        for layer in layers.values():
            stack.callback(layer.register_forward_hook(see).remove)
        yield seen
