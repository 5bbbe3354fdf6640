"""Every kind of tokenizer that cuts texts in its own way, small: what prompt and answers become."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from memrl.policy.base_model import encode_task

CHARACTERS = [chr(code) for code in range(32, 127)] + ["\n"]
CHAT = (
    "<s>{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def build_tokenizer(merges=(), *, starts=False, ends=False, puts_blank=False, drops_blank=False, **special):
    """A tokenizer of characters and merges, with <s> and </s>, and the habits of one family or another."""
    special = {"bos_token": "<s>", "eos_token": "</s>", **special}
    blank = "▁" if puts_blank else " "
    characters = [blank if character == " " else character for character in CHARACTERS]
    vocabulary = ["<s>", "</s>", "<end>", *characters, *("".join(pair) for pair in merges)]
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=list(merges)))
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<s>", "</s>", "<end>")])
    core.decoder = decoders.Metaspace() if puts_blank else decoders.Fuse()
    if puts_blank:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    if drops_blank:
        core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    single = f"{'<s> ' if starts else ''}$A{' </s>' if ends else ''}"
    core.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


def say(tokenizer, task, number):
    """The tokens of an answer, each as its text."""
    tokens = task.automaton.tokens(task.answer_format.digits(number))
    return tokenizer.convert_ids_to_tokens(tokens.tolist())


@pytest.mark.parametrize("habits", [{"starts": True}, {"starts": True, "ends": True}])
def test_a_plain_prompt_begins_as_the_tokenizer_begins_every_text_and_does_not_end(habits):
    tokenizer = build_tokenizer(**habits)
    task = encode_task(tokenizer, 64, "single_step")
    assert tokenizer.convert_ids_to_tokens(list(task.prompt_ids)) == ["<s>", *"0-63:"]
    assert say(tokenizer, task, 42) == ["4", "2", "</s>"]


def test_a_tokenizer_that_begins_nothing_stays_without_a_beginning():
    tokenizer = build_tokenizer()
    assert tokenizer.convert_ids_to_tokens(list(encode_task(tokenizer, 64, "single_step").prompt_ids)) == list("0-63:")


def test_a_blank_put_before_every_text_is_no_part_of_an_answer_and_bits_need_no_separator():
    tokenizer = build_tokenizer(puts_blank=True, starts=True)
    task = encode_task(tokenizer, 8, "multi_step")
    assert tokenizer.convert_ids_to_tokens(list(task.prompt_ids)) == ["<s>", *"▁bits▁0-7:"]
    assert say(tokenizer, task, 5) == ["1", "0", "1"]
    assert say(tokenizer, encode_task(tokenizer, 8, "single_step"), 5) == ["5", "</s>"]


def test_the_error_on_merged_bits_names_a_separator_that_works():
    merges = [("0", "0"), ("1", ","), (",", "0"), (",", "1")]
    with pytest.raises(ValueError, match=r"^bit_separator must keep .* got ''.*; ' ' does$") as error:
        encode_task(build_tokenizer(merges), 16, "multi_step")
    assert "\n" not in str(error.value)
    assert encode_task(build_tokenizer(merges), 16, "multi_step", "plain", " ").max_tokens == 7


def test_a_tokenizer_that_loses_blanks_is_refused():
    with pytest.raises(
        ValueError, match=r"^model must have a tokenizer whose tokens say the text again, got 'bits0-7:'"
    ):
        encode_task(build_tokenizer(drops_blank=True), 8, "multi_step")


def test_a_prompt_whose_end_merges_with_an_answer_is_refused():
    tokenizer = build_tokenizer([("=", "1")])
    with pytest.raises(
        ValueError, match=r"^prompt must end so that the tokenizer does not merge it .* got 'x=' before '1"
    ):
        encode_task(tokenizer, 8, "single_step", "plain", "", "x=")
    assert encode_task(tokenizer, 8, "single_step", "plain", "", "x =: ").max_tokens == 2


def test_a_chat_ends_with_what_ends_the_templates_turn_and_has_its_beginning_once():
    tokenizer = build_tokenizer(starts=True)
    tokenizer.chat_template = CHAT
    task = encode_task(tokenizer, 8, "single_step", "chat")
    assert tokenizer.decode(list(task.prompt_ids)) == "<s>[user]0-7:<end>[assistant]"
    assert say(tokenizer, task, 5) == ["5", "<end>"]
    assert say(tokenizer, encode_task(tokenizer, 8, "single_step"), 5) == ["5", "</s>"]


def test_a_template_that_writes_the_date_writes_the_same_one_for_ever():
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%Y-%m-%d') }} {{ date_string }} {{ messages[0]['content'] }}"
    task = encode_task(tokenizer, 8, "single_step", "chat")
    assert tokenizer.decode(list(task.prompt_ids)) == "2024-07-26 26 Jul 2024 0-7:"


def test_a_template_of_ones_own_is_filled_in():
    tokenizer = build_tokenizer()
    task = encode_task(tokenizer, 8, "multi_step", "plain", "", "Of {N}, 0 to {last}, in bits: ")
    assert tokenizer.decode(list(task.prompt_ids)) == "Of 8, 0 to 7, in bits: "
    assert task.prompt == "Of {N}, 0 to {last}, in bits: "
