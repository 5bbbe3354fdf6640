"""A model is calibrated for a grid's prompts once, and has another name then."""

import pytest

from memrl.config import TrainConfig
from memrl.policy.base_model import encode_task, load_base_model, save_base_model
from memrl.policy.calibration import measure_prior
from memrl.policy.calibrator import ensure_calibrated
from memrl.policy.embedded import build_embedded_model, build_embedded_tokenizer
from memrl.policy.model_folder import calibrated_folder


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """A model that is not calibrated, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("memrl.policy.calibrator.FULL_LIMIT", 0)
    save_base_model(build_embedded_model(seed=5), build_embedded_tokenizer(), tmp_path / "raw")
    return str(tmp_path / "raw")


def test_it_is_done_once_and_kept_under_a_name_of_its_own(raw):
    cells = [TrainConfig(model=raw, N=N, env_type="multi_step", seed=seed) for N in (4, 8) for seed in (0, 1)]
    told: list[str] = []
    address = ensure_calibrated(raw, cells, dry_run=True)
    assert not calibrated_folder(address.rpartition("@")[2]).exists()
    assert ensure_calibrated(raw, cells, report=lambda stage, done, total, word: told.append(stage)) == address
    assert {"hidden states", "head"} <= set(told)
    assert address.rpartition("@")[0] == raw
    told.clear()
    assert ensure_calibrated(raw, cells, report=lambda stage, done, total, word: told.append(stage)) == address
    assert not told
    model, tokenizer = load_base_model(address)
    assert all(measure_prior(model, encode_task(tokenizer, N, "multi_step")).kl_bits < 0.015 for N in (4, 8))
    assert ensure_calibrated(address, [TrainConfig(model=address, N=4, env_type="multi_step")]) == address
    assert ensure_calibrated(raw, cells[:2], dry_run=True) != address


def test_a_cache_that_can_not_be_written_is_refused_before_the_work(raw, tmp_path):
    told: list[str] = []
    (tmp_path / "cache" / "memrl").mkdir(parents=True)
    (tmp_path / "cache" / "memrl" / "calibrated").touch()
    with pytest.raises(ValueError, match=r"^the cache of calibrated models must be writable, got .+; XDG_CACHE_HOME"):
        ensure_calibrated(raw, [TrainConfig(model=raw, N=4)], report=lambda stage, *rest: told.append(stage))
    assert not told


def test_the_embedded_model_is_calibrated_already():
    assert ensure_calibrated("embedded", [TrainConfig(N=N, env_type="multi_step") for N in (4, 64)]) == "embedded"


def test_what_nobody_has_calibrated_here_is_refused_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"^model must be .* \(not calibrated on this machine; a grid with calibrate"):
        load_base_model("smollm2-135m@0123456789ab")
