"""The architecture and the tokenizer of the embedded base model, before any training."""

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<pad>", "<eos>", "<unk>")
CHARACTERS = " -:,.=?_/0123456789abcdefghijklmnopqrstuvwxyz"
"""With the special tokens 48 in all, a multiple of 16."""

# A base model has no turns: the template hands on what was said.
_CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def build_embedded_tokenizer() -> PreTrainedTokenizerFast:
    """Builds the tokenizer: one token a character, no merges, no token added of its own accord."""
    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *CHARACTERS))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = _CHAT_TEMPLATE
    return fast


def build_embedded_model(seed: int) -> LlamaForCausalLM:
    """Builds the untrained network from a seed: a Llama of 0.23 million parameters, float32.

    Every dimension of a linear layer is a multiple of 32, and a head is 32 wide, which vLLM takes on a CPU. The head is
    not tied to the embeddings: adapters leave it alone, so its scale has to let a policy become certain.
    """
    size = len(SPECIAL_TOKENS) + len(CHARACTERS)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=32,
        max_position_embeddings=128,
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
