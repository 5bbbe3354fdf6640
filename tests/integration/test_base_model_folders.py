"""Which models are read, which are refused and how, and which tokenizers can write bits."""

import json
import shutil
import struct
import time
from collections.abc import Iterator

import pytest
from huggingface_hub import constants
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from memrl.policy import base_model
from memrl.policy.base_model import (
    encode_task,
    load_base_model,
    save_base_model,
)
from memrl.policy.embedded import build_embedded_model, build_embedded_tokenizer
from memrl.policy.model_folder import check_model_folder, embedded_model_folder


@pytest.fixture
def folder(tmp_path):
    """A readable copy of the embedded model."""
    return shutil.copytree(embedded_model_folder(), tmp_path / "model")


def build_tokenizer(merges: list[tuple[str, str]], **special: str) -> PreTrainedTokenizerFast:
    """A tokenizer of characters, with some merges."""
    tokens = [*special.values(), *" -:0123456789bits", *("".join(pair) for pair in merges)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def test_embedded_is_a_folder_and_hub_names_pass():
    assert check_model_folder("embedded") == str(embedded_model_folder())
    assert check_model_folder("gpt2") == "gpt2"


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("/no/such/folder", "no such folder"),
        ("./models/mine", "no such folder"),
        ("owner/name/rest", "no such folder"),
        ("", "no such folder"),
        ("embeded", "did you mean 'embedded'"),
    ],
)
def test_an_address_that_leads_nowhere_is_refused_by_its_name(model, reason):
    with pytest.raises(ValueError, match=r"^model must be embedded, a readable model folder, .*" + reason):
        check_model_folder(model)


def test_a_file_is_no_folder(folder):
    with pytest.raises(ValueError, match="no such folder"):
        check_model_folder(str(folder / "config.json"))


def empty_file(path):
    path.write_bytes(b"")


def write_lfs_pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 925664\n")


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-1])


def write_scalar_header(path):
    path.write_bytes(struct.pack("<Q", 2) + b"[]")


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("config.json", lambda path: path.unlink(), "it holds no config.json"),
        ("config.json", lambda path: path.write_text("{"), "its config.json is not JSON"),
        ("config.json", lambda path: path.write_text("{}"), "its config.json names no model_type"),
        ("model.safetensors", lambda path: path.unlink(), "it holds no weights"),
        ("model.safetensors", empty_file, "model.safetensors is no safetensors file"),
        ("model.safetensors", write_lfs_pointer, "model.safetensors is no safetensors file"),
        ("model.safetensors", write_scalar_header, "model.safetensors is no safetensors file"),
        ("model.safetensors", cut_off, "model.safetensors is cut off"),
    ],
)
def test_a_damaged_folder_is_refused_before_it_is_loaded(folder, name, damage, reason):
    damage(folder / name)
    with pytest.raises(ValueError, match=reason) as error:
        check_model_folder(str(folder))
    assert "\n" not in str(error.value)


def test_a_folder_without_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="it holds no tokenizer"):
        load_base_model(str(folder))


def test_what_only_loading_shows_is_one_line_too(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "no_such_architecture"}))
    with pytest.raises(ValueError, match=r"^model must be") as error:
        load_base_model(str(folder))
    assert "\n" not in str(error.value)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"^model must be") as error:
        load_base_model(str(folder))
    assert "\n" not in str(error.value)


def test_a_name_that_no_hub_answers_for_is_one_line(monkeypatch):
    with pytest.raises(ValueError, match=r"^model must be .* got 'nobody/nothing-of-this-name'") as error:
        load_base_model("nobody/nothing-of-this-name")
    assert "\n" not in str(error.value)


def test_what_is_saved_loads_alike(tmp_path):
    model = build_embedded_model(seed=4)
    save_base_model(model, build_embedded_tokenizer(), tmp_path)
    loaded, tokenizer = load_base_model(str(tmp_path), "float64")
    assert str(loaded.dtype) == "torch.float64"
    assert not loaded.training
    for name, parameter in model.named_parameters():
        assert (loaded.get_parameter(name) == parameter).all(), name
    assert tokenizer.get_vocab() == build_embedded_tokenizer().get_vocab()


def test_a_tokenizer_that_merges_bits_is_refused_or_given_a_separator():
    tokenizer = build_tokenizer([("0", "1")], eos_token="<eos>")
    with pytest.raises(ValueError, match=r"^bit_separator must keep the tokenizer from merging bits, got ''") as error:
        encode_task(tokenizer, 8, "multi_step")
    assert "\n" not in str(error.value)
    task = encode_task(tokenizer, 8, "multi_step", "plain", " ")
    assert [tokenizer.decode(ids) for ids in task.automaton.alphabet] == [" ", "0", "1"]
    assert task.num_env_steps == 3
    assert task.max_tokens == 5


def test_single_step_needs_a_token_that_ends_the_answer():
    with pytest.raises(ValueError, match=r"^model must have an end-of-sequence token"):
        encode_task(build_tokenizer([]), 8, "single_step")
    assert encode_task(build_tokenizer([]), 8, "multi_step").stop_token_id is None


def test_merged_digits_make_shorter_answers_with_paths_of_their_own():
    tokenizer = build_tokenizer([("1", "0")], eos_token="<eos>")
    task = encode_task(tokenizer, 12, "single_step")
    assert [len(task.automaton.tokens([answer])) for answer in range(12)] == [2] * 11 + [3]


def test_chat_wraps_the_prompt_by_the_tokenizers_template():
    tokenizer = build_tokenizer([], eos_token="<eos>")
    with pytest.raises(ValueError, match=r"^prompt_format must be plain for a tokenizer without a chat template"):
        encode_task(tokenizer, 8, "single_step", "chat")
    tokenizer.chat_template = (
        "{% for m in messages %}-{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    )
    task = encode_task(tokenizer, 4, "single_step", "chat")
    assert [tokenizer.decode(token) for token in task.prompt_ids] == list("-0-3::")


def test_the_embedded_template_adds_nothing():
    tokenizer = build_embedded_tokenizer()
    plain, chat = (encode_task(tokenizer, 64, "multi_step", style) for style in ("plain", "chat"))
    assert plain.prompt_ids == chat.prompt_ids


def test_without_a_hub_and_without_the_extra_one_line_says_what_brings_smollm2(monkeypatch):
    monkeypatch.setattr(base_model, "packaged_smollm2", lambda: None)
    monkeypatch.setattr(base_model, "_hub_has", lambda name: False)
    with pytest.raises(ValueError, match=r"^model must be .* 'smollm2-135m' \(no hub answers; .* --extra pretrained"):
        base_model.load_base_model("smollm2-135m")


@pytest.fixture
def no_hub(monkeypatch) -> Iterator[None]:
    """A hub's address at which nobody answers."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    base_model._check_hub.cache_clear()
    yield
    base_model._check_hub.cache_clear()


def test_a_name_that_no_hub_answers_for_is_refused_at_once(no_hub, caplog):
    """transformers would ask and wait for minutes, and say so each time."""
    begun = time.monotonic()
    with pytest.raises(ValueError, match=r"^model must be .* 'gpt2' \(no folder of this machine, and no hub answers"):
        base_model.load_base_model("gpt2")
    assert time.monotonic() - begun < 15
    assert not caplog.records


def test_without_a_hub_a_model_of_its_cache_is_read_without_asking(no_hub, monkeypatch):
    monkeypatch.setattr(base_model, "_is_cached", lambda name: True)
    assert base_model.bring_model("gpt2") == "gpt2"
    assert constants.HF_HUB_OFFLINE
