"""Small real tokenizers, trained on the spot and saved as model directories."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from services.tokenizer.encode import Encoder
from services.tokenizer.model_tokenizer import from_transformers

# Latin with and without accents, CJK, Arabic, Devanagari with combining signs, emoji with joiners.
TEXTS = (
    "The quick brown fox jumps over the lazy dog, and it's 12345 times faster than before.",
    "Größe und Übermut — c'est déjà l'été, mañana será otro día.",
    "你好,世界!今天天气很好。日本語のテキスト、한국어 텍스트.",
    "مرحبا بالعالم · नमस्ते दुनिया · Zażółć gęślą jaźń",
    "🙂 👩‍👩‍👧‍👦 🇩🇪 e\u0301 n\u0303 \u200b tab\there\nnew line  two spaces   three",
    "def f(x):\n    return x ** 2  # ½ ≤ ¾\n",
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ('system', 'user', 'assistant') %}"
    "{{ raise_exception('Unknown role: ' + message['role']) }}{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3, Qwen and SmolLM are built."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.add_tokens(["<tool>", "two words"])
    return tokenizer


@cache
def byte_fallback() -> Tokenizer:
    """As Llama 2 and Mistral are built; characters outside of Latin have no token."""
    raw_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # words, for training only
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<unk>", "<s>", "</s>", *raw_bytes], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS[:2] * 3, trainer)
    description = json.loads(tokenizer.to_str())
    description["pre_tokenizer"] = None
    # Trained as special tokens they would be hidden; in real models bytes are ordinary tokens.
    description["added_tokens"] = description["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(description))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


@cache
def metaspace() -> Tokenizer:
    """As T5 is built: a unigram model that knows whole characters only."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=260,
        unk_token="<unk>",
        special_tokens=["<unk>", "</s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer


KINDS = {"byte level": byte_level, "byte fallback": byte_fallback, "metaspace": metaspace}


def wrap(tokenizer: Tokenizer, **config: Any) -> PreTrainedTokenizerFast:
    """A transformers tokenizer around its own copy."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.to_str()),
        clean_up_tokenization_spaces=False,
        **config,
    )


@cache
def encoder(kind: str) -> Encoder:
    return Encoder(from_transformers(wrap(KINDS[kind]())))


def save_model(directory: Path, *, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    """A model directory with everything that the tokenizer reads."""
    tokenizer = wrap(byte_level(), eos_token="<|im_end|>")
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(directory)
    write_json(
        directory / "config.json",
        {"vocab_size": 500, "max_position_embeddings": 128, "eos_token_id": 0},
    )
    write_json(directory / "generation_config.json", {"eos_token_id": [0], "temperature": 0.6})
    return directory


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
