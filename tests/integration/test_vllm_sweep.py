"""Whole sweeps whose episodes vLLM samples: the same result as the learner's own, few engines, and a clean end."""

import json
import os
import signal
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
from launching import DEADLINE_S, finish, read, start
from spans import measure_overlap, read_chrome_trace

from memrl.analysis.estimate import estimate_groups
from memrl.tables.store import TableStore

pytestmark = pytest.mark.vllm

SECRETS = 32


def run_to_the_end(folder: Path, *words: str, grid: str = "smoke") -> tuple[pd.DataFrame, pd.DataFrame]:
    folder.mkdir()
    process = start(folder, "N=16", *words, grid=grid)
    output = finish(process, deadline_s=1800)
    assert process.returncode == 0, output
    cells, curves = read(folder, f"results/{grid}")
    assert set(cells["status"]) <= {"memorized", "budget_spent"}
    return cells, curves


def check_same_e50(expected: pd.DataFrame, sampled: pd.DataFrame, channels: list[str], secrets: int) -> None:
    """Each sampler's E50 lies in the interval of the other's, or the other's in its, over episodes of their own."""
    assert set(sampled["rollout"]) == {"vllm"}
    assert not set(sampled["cell_id"]) & set(expected["cell_id"]), "episodes of their own, not the same ones"
    by_channel = [estimate_groups(cells, by=("channel",)).set_index("channel") for cells in (expected, sampled)]
    for estimates in by_channel:
        assert sorted(map(str, estimates.index)) == channels
    for channel in by_channel[0].index:
        ours, theirs = (estimates.loc[channel] for estimates in by_channel)
        assert ours["num_cells"] == theirs["num_cells"] == secrets
        assert theirs["e50_lower"] <= ours["e50"] <= theirs["e50_upper"] or (
            ours["e50_lower"] <= theirs["e50"] <= ours["e50_upper"]
        ), f"{channel}: {ours['e50']} episodes in process, {theirs['e50']} by vLLM"


def test_vllm_finds_the_e50_that_the_learners_own_sampler_finds(tmp_path: Path) -> None:
    words = [f"seeds={SECRETS}", "reward_type=binary,per_bit"]
    expected, _ = run_to_the_end(tmp_path / "in_process", *words)
    words += ["rollout=vllm", "num_rollout_actors=2", "pack_size=32", "timeline=True"]
    sampled, _ = run_to_the_end(tmp_path / "vllm", *words)
    check_same_e50(expected, sampled, ["binary", "multi_step/binary", "per_bit"], SECRETS)

    # Three packs, two engines, each with a file of what it printed.
    results = tmp_path / "vllm" / "results" / "smoke"
    traces = sorted((results / "timeline").iterdir())
    assert len(traces) == 3
    assert len(list((results / "logs").glob("VLLMRolloutActor-*.log"))) == 2
    for trace in traces:
        spans = read_chrome_trace(trace.read_text())
        assert measure_overlap(spans, "sample", "update") > 0.02, "one half samples while the other updates"


def test_vllm_finds_the_e50_of_a_pretrained_model(tmp_path: Path) -> None:
    words = ["seeds=16", "reward_type=per_bit", "stop_probability=0.5", "pack_size=16"]
    expected, _ = run_to_the_end(tmp_path / "in_process", *words, grid="llm-smoke")
    sampled, curves = run_to_the_end(tmp_path / "vllm", *words, "rollout=vllm", grid="llm-smoke")
    check_same_e50(expected, sampled, ["per_bit"], 16)
    assert 0 < curves["logprob_gap"].max() < 1e-3, "nats a token"


def find_marked(marker: str) -> list[psutil.Process]:
    """All processes that inherited the marker from the launcher, Ray's daemons and workers included."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MEMRL_TEST_MARKER") == marker and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return [process for process in found if process.pid != os.getpid()]


def test_ctrl_c_ends_the_engines_and_keeps_what_has_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMRL_TEST_MARKER", str(tmp_path))
    adapters = set(Path("/dev/shm").glob("memrl-adapters-*"))
    # Half of the cells end within seconds, and the other half would go on for hours.
    words = ["N=4", "seeds=4", "reward_type=binary", "env_type=single_step", "learning_rate=3e-3,1e-9"]
    process = start(tmp_path, *words, "n_steps=100000", "rollout=vllm")
    store = TableStore(str(tmp_path / "results" / "smoke"))
    deadline = time.monotonic() + DEADLINE_S
    while not store.finished_cell_ids() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    kept = store.finished_cell_ids()
    engines = [p for p in find_marked(str(tmp_path)) if "VLLMRolloutActor" in " ".join(p.cmdline())]
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
    output = finish(process)
    assert process.returncode == 130, output
    assert len(engines) == 1
    assert "Stopped; what has finished is kept." in output
    assert 1 <= len(kept) < 8
    assert kept <= store.finished_cell_ids()
    _, left = psutil.wait_procs(find_marked(str(tmp_path)), timeout=10)
    assert not left
    assert set(Path("/dev/shm").glob("memrl-adapters-*")) <= adapters, "the engine's folder is gone"


def test_a_model_that_vllm_cannot_serve_is_refused_in_one_line(tmp_path: Path) -> None:
    import transformers

    from memrl.policy.embedded import build_embedded_tokenizer

    tokenizer = build_embedded_tokenizer()
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=64, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=1
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    # Its record calls it calibrated, so that it is the engine that refuses it.
    common = {"N": 16, "prompt_format": "plain", "bit_separator": "", "kl_bits": 0.0, "well_formed_mass": 1.0}
    prompts = [{"env_type": env_type, **common} for env_type in ("single_step", "multi_step")]
    (tmp_path / "model" / "warmup.json").write_text(json.dumps({"prompts": prompts}))
    process = start(tmp_path, "N=16", "seeds=1", "rollout=vllm", f"model={tmp_path / 'model'}")
    output = finish(process)
    assert process.returncode == 2, output
    # What Ray and the engine's own libraries say of it may stand before.
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: model must be one that vLLM can serve, got ")
