"""Make `golden.json`: what transformers' `generate` says to 64 prompts, greedily, in fp32.

    python -m tests.acceptance.make_golden MODEL_DIR

Each prompt runs alone (no padding, so no rounding that depends on its neighbours), for 64 tokens
past any end-of-sequence. `margins` are the distances between the two best logits: a serving engine
may choose differently only where a margin is smaller than the rounding of fp32 arithmetic.
"""

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import TypedDict

NUM_NEW_TOKENS = 64
HERE = Path(__file__).resolve().parent
GOLDEN = HERE / "golden.json"
TEXT = HERE.parents[1] / "LICENSE"

# 1 to 1,500 tokens, dense where blocks (16) and budgets (7, 64, 256, 768) begin and end.
LENGTHS = (
    *(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 15, 16, 17, 19, 22, 25, 28, 31, 32, 33, 36, 40),
    *(44, 47, 48, 49, 55, 61, 63, 64, 65, 70, 77, 85, 94, 100, 111, 123, 127, 128, 129, 140),
    *(155, 170, 188, 208, 230, 255, 256, 257, 290, 330, 375, 430, 511, 513, 600, 700, 767, 769),
    *(1025, 1500),
)


class Case(TypedDict):
    prompt: list[int]
    output: list[int]
    margins: list[float]


def prompts(text_ids: list[int]) -> list[list[int]]:
    """One prompt per length: slices of a text that no two prompts begin at the same place of."""
    starts = [17 * i % (len(text_ids) - max(LENGTHS)) for i in range(len(LENGTHS))]
    return [text_ids[s : s + n] for s, n in zip(starts, LENGTHS, strict=True)]


def continue_greedily(model_dir: Path, prompt_ids: list[list[int]]) -> list[Case]:
    """Run transformers on each prompt alone."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    cases: list[Case] = []
    for ids in prompt_ids:
        result = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=NUM_NEW_TOKENS,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        best = torch.cat(result.logits).topk(2).values
        cases.append(
            Case(
                prompt=ids,
                output=result.sequences[0, len(ids) :].tolist(),
                margins=[round(m, 6) for m in (best[:, 0] - best[:, 1]).tolist()],
            )
        )
    return cases


def main(model_dir: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_dir)
    text_ids = tokenizer(TEXT.read_text())["input_ids"]
    cases = continue_greedily(model_dir, prompts(text_ids))
    assert all(a["prompt"] != b["prompt"] for a, b in pairwise(cases))
    GOLDEN.write_text(json.dumps(cases, separators=(",", ":")) + "\n")
    print(f"{len(cases)} cases, smallest margin {min(min(c['margins']) for c in cases)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
