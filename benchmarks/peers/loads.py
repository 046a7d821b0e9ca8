"""What clients ask for: how many at once, how long their prompts, how much they want back.

Prompts are random token ids, so nothing is shared between any two of them, and no prefix cache
helps anybody. The same load in the same round is the same for every server.
"""

import random
from dataclasses import dataclass, replace

from common.workload.lengths import Lengths
from common.workload.timeline import RequestShape
from splitfuse.bench.prompts import IdPrompts


@dataclass(frozen=True)
class Load:
    name: str
    clients: int  # each sends its next request when its last one is answered
    requests: int
    prompt_tokens: int  # mean
    output_tokens: int  # mean; exact, since the end of sequence is ignored
    spread: float  # lengths are uniform over mean * (1 ± spread)


@dataclass(frozen=True)
class Ask:
    """One request."""

    prompt: tuple[int, ...]  # token ids
    output_tokens: int

    @property
    def shape(self) -> RequestShape:
        return RequestShape(len(self.prompt), self.output_tokens)


LOADS = {
    load.name: load
    for load in (
        Load("A", clients=1, requests=6, prompt_tokens=512, output_tokens=64, spread=0.0),
        Load("B8", clients=8, requests=40, prompt_tokens=512, output_tokens=64, spread=0.3),
        Load("B32", clients=32, requests=96, prompt_tokens=512, output_tokens=64, spread=0.3),
        Load("C", clients=8, requests=32, prompt_tokens=1500, output_tokens=64, spread=0.3),
    )
}
#: writes more KV than 1 GiB holds of SmolLM2-135M (46,600 tokens): memory that was never written
#: comes page by page from the system, in a virtual machine from its host, and slows all passes
WARM_UP = Load("warm-up", clients=8, requests=84, prompt_tokens=512, output_tokens=64, spread=0.3)
QUICK_SHARE = 0.25


def quick(load: Load) -> Load:
    """The same load, shorter; every client still has something to do."""
    return replace(load, requests=max(load.clients, 2, round(load.requests * QUICK_SHARE)))


def make_asks(load: Load, round_number: int, vocab_size: int) -> list[Ask]:
    """The requests of `load` in this round, in the order in which clients take them."""
    draw = random.Random(f"{load.name} {round_number}")
    lengths = Lengths(load.prompt_tokens, load.output_tokens, "uniform", load.spread)
    shapes = [lengths.draw(draw) for _ in range(load.requests)]
    prompts = IdPrompts(vocab_size)
    return [
        Ask(tuple(prompts.make(shape.num_prompt_tokens, draw)), shape.num_output_tokens)
        for shape in shapes
    ]
