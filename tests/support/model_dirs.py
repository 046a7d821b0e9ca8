"""A model directory for tests: a tiny random Llama with a tokenizer, made on the spot."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CORPUS = (
    "The scheduler composes every forward pass to the same size. Running generations go first, "
    "and prompt chunks fill the rest. 日本語のテキスト、絵文字 🙂🚀 и кириллица, naïve café."
)
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
EOS = "<|end|>"


def make_tiny_model(directory: Path, max_model_len: int = 2048) -> Path:
    """A two-layer Llama with a byte-level tokenizer of 384 tokens; loads in milliseconds.

    Its weights are large enough that sampling at temperature 1 gives text that depends on the
    whole context: a token lost or repeated anywhere changes everything behind it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = [EOS, "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS)
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(directory)

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_model_len,
        initializer_range=0.25,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.token_to_id(EOS),
        bos_token_id=None,
    )
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(directory)
    (directory / "generation_config.json").write_text(
        json.dumps({"eos_token_id": tokenizer.token_to_id(EOS)})
    )
    return directory
