"""A tokenizer whose tokens are words."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors


def words(count: int) -> list[str]:
    """Distinct words of letters only."""
    letters = "abcdefghij"
    return ["w" + "".join(letters[int(digit)] for digit in f"{i:04d}") for i in range(count)]


def word_tokenizer(count: int, *, prefix: str = "▁") -> Tokenizer:
    """One token per word, and a token that every text begins with, as Llama's."""
    vocab = {"<s>": 0, "<unk>": 1} | {f"{prefix}{w}": i + 2 for i, w in enumerate(words(count))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return tokenizer
