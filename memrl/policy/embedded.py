"""The architecture and the tokenizer of the embedded base model, before any training."""

from itertools import product

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from memrl.config import EnvType
from memrl.limits import MOST_KEYS
from memrl.policy.questions import Question

SPECIAL_TOKENS = ("<pad>", "<eos>", "<unk>")
CHARACTERS = " -:,.=?_/0123456789abcdefghijklmnopqrstuvwxyz\n!\"%&'()*+;<>|"

KEY_PLACES = len(str(MOST_KEYS - 1))
KEY_DIGITS = "".join(chr(0xE000 + number) for number in range(10 * KEY_PLACES))
"""Characters of private use, ten for each place of a key: what the tokenizer makes of the digits of `k137 `, so that
each is a token that tells its place, too, and a small model can read a key. With all others they are 112 tokens, a
multiple of 16."""

EMBEDDED_N = (*(2**k for k in range(1, 13)), 10, 100, 500, 1000)
"""Integers below these are answered uniformly, as a whole and by their bits, behind a key and without one."""

EMBEDDED_LENGTHS = {2: (2, 4, 8, 16, 32, 64, 128, 256), 4: (2, 4, 8, 16, 32, 64, 128), 16: (2, 4, 8, 16, 32, 64, 128)}
"""Lengths of sequences that are answered uniformly, by N; behind a key those up to 32."""

_MOST_KEYED = 32

# A base model has no turns: the template hands on what was said.
_CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def build_embedded_tokenizer() -> PreTrainedTokenizerFast:
    """Builds the tokenizer: one token a character, no merges, no token added of its own accord."""
    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *CHARACTERS, *KEY_DIGITS))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(f"(?<=^k{before}){digit}"), text) for before, digit, text in _list_key_digits()]
    )
    spoken = [decoders.Replace(text, digit) for _, digit, text in _list_key_digits()]
    tokenizer.decoder = decoders.Sequence([*spoken, decoders.Fuse()])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = _CHAT_TEMPLATE
    return fast


def _list_key_digits() -> list[tuple[str, str, str]]:
    """Of each place and digit of a key: a pattern of the places before, the digit, and what it becomes."""
    rows = []
    for place in range(KEY_PLACES):
        before = "".join(f"[{KEY_DIGITS[10 * each]}-{KEY_DIGITS[10 * each + 9]}]" for each in range(place))
        rows += [(before, str(digit), KEY_DIGITS[10 * place + digit]) for digit in range(10)]
    return rows


def list_embedded_questions() -> list[Question]:
    """The prompts that the embedded model is calibrated for."""
    env_types: tuple[EnvType, ...] = ("single_step", "multi_step")
    integers: list[Question] = [
        (N, env_type, "plain", "", "", None, keyed)
        for keyed, env_type, N in product((False, True), env_types, EMBEDDED_N)
    ]
    sequences: list[Question] = [
        (N, "multi_step", "plain", "", "", length, keyed)
        for N, lengths in EMBEDDED_LENGTHS.items()
        for keyed, length in product((False, True), lengths)
        if length <= _MOST_KEYED or not keyed
    ]
    return [*integers, *sequences]


def build_embedded_model(seed: int) -> LlamaForCausalLM:
    """Builds the untrained network from a seed: a Llama of 0.24 million parameters, float32.

    Every dimension of a linear layer is a multiple of 32, and a head is 32 wide, which vLLM takes on a CPU. The head is
    not tied to the embeddings: adapters leave it alone, so its scale has to let a policy become certain.
    """
    size = len(SPECIAL_TOKENS) + len(CHARACTERS) + len(KEY_DIGITS)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=0.1,
        tie_word_embeddings=False,
        attention_bias=False,
        mlp_bias=False,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
