"""The term that keeps an answer's places apart: against a plain loop over pairs, and what it does to a model."""

import numpy as np
import pytest
import torch

from memrl.policy.base_model import encode_task
from memrl.policy.decorrelation import Decorrelation
from memrl.policy.embedded import build_embedded_model, build_embedded_tokenizer
from memrl.policy.interference import measure_interference
from memrl.policy.tree_pass import plant_trees, score_nodes
from memrl.policy.warmup import WarmupRecipe, warm_up

TOKENIZER = build_embedded_tokenizer()
TASKS = [encode_task(TOKENIZER, 12, "single_step"), encode_task(TOKENIZER, 11, "multi_step")]


def read_inputs(model, ids) -> list[torch.Tensor]:
    """What each distinct input of a linear layer is, (positions, width)."""
    seen: list[torch.Tensor] = []
    names = ("q_proj", "o_proj", "up_proj", "down_proj")
    layers = [layer for name, layer in model.named_modules() if name.endswith(names)]
    watches = [layer.register_forward_pre_hook(lambda _, given: seen.append(given[0][0])) for layer in layers]
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    for watch in watches:
        watch.remove()
    return seen


def average_cosines(model, tasks, answers) -> float:
    """The same from plain passes over single answers, pair by pair."""
    losses = []
    for task, chosen in zip(tasks, answers, strict=True):
        cosines: dict[tuple[int, int], list[float]] = {}
        for path in task.tree.paths[chosen]:
            nodes = [0, *path[path >= 0][:-1].tolist()]
            inputs = read_inputs(model, [*task.prompt_ids, *task.tree.token[nodes[1:]]])
            start = len(task.prompt_ids) - 1
            for s in range(len(nodes)):
                for t in range(s):
                    pair = [torch.cosine_similarity(x[start + t], x[start + s], dim=0).item() for x in inputs]
                    cosines[nodes[t], nodes[s]] = pair
        of_layers = np.array(list(cosines.values()))
        losses.append((of_layers**2).mean(0) + np.maximum(of_layers.mean(0), 0.0))
    return float(np.mean(losses))


def test_it_is_the_mean_over_pairs_of_places_of_one_answer():
    model = build_embedded_model(seed=1).double().eval()
    answers = [np.array([1, 7, 11]), np.arange(11)]
    watching = Decorrelation(model)
    batch = plant_trees(TASKS, [task.tree.inner_nodes(chosen) for task, chosen in zip(TASKS, answers, strict=True)])
    score_nodes(model, batch)
    loss = watching.compute_loss(batch)
    watching.close()
    assert loss.item() == pytest.approx(average_cosines(model, TASKS, answers))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_prompt_of_one_place_has_nothing_to_compare():
    model, task = build_embedded_model(seed=1), encode_task(TOKENIZER, 2, "multi_step")
    watching = Decorrelation(model)
    batch = plant_trees([task], [np.array([0])])
    score_nodes(model, batch)
    assert watching.compute_loss(batch).item() == 0.0


def test_its_weight_is_a_dial_of_interference():
    task, measured = encode_task(TOKENIZER, 16, "multi_step"), []
    for weight in (-1.0, 0.0, 1.0):
        model = build_embedded_model(seed=2)
        warm_up(model, [task], WarmupRecipe(steps=60, learning_rate=3e-3, probe_weight=0.1, decorrelate=weight))
        measured.append(measure_interference(model, task))
    assert measured[0] > measured[1] > measured[2] + 0.2
