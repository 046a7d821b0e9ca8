"""What passes cost on this device, measured before the first request: a second or two.

The passes run through the engine as a scheduler's would, on one made-up document, whose KV its
chunks write. Decodes attend to blocks of their own: contexts that share blocks would come from the
CPU's caches and look cheaper by a quarter. So would blocks that nobody ever wrote, which share one
page of zeros; that is why each is written once beforehand, and why there are not more of them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

from common.messages import (
    Chunk,
    NewSequence,
    SamplingParams,
    StepPlan,
    StepRejected,
    StepTiming,
    WorkerJoin,
)
from common.token_ids import pack_ids
from services.worker.engine import Engine

TIME_LIMIT_S: Final = 1.8  # passes that would probably end later are left out
ROUNDS: Final = 5
_GREEDY: Final = SamplingParams(temperature=0.0)


@dataclass(frozen=True, slots=True)
class Pass:
    """Decodes that are alike, and a chunk of a prompt; either may be missing."""

    num_decodes: int = 0
    decode_context: int = 0  # tokens before the one that each brings, cut to whole blocks
    num_prompt_tokens: int = 0
    prompt_context: int = 0  # tokens before the chunk
    sample: bool = False  # the chunk is its prompt's last

    @property
    def num_tokens(self) -> int:
        return self.num_decodes + self.num_prompt_tokens

    @property
    def document_tokens(self) -> int:
        """How long the document must be."""
        return self.prompt_context + self.num_prompt_tokens


#: Between them they tell all that time depends on: tokens, few and many sequences, short and long
#: contexts, logits.
#: Decodes have 272 blocks of 16 tokens, the document 64: 125 MB of KV for SmolLM2-135M. L2 caches
#: hold less than that of a layer; with half as much, contexts looked half as expensive.
STARTUP_PASSES: Final = (
    Pass(num_prompt_tokens=16),
    Pass(num_prompt_tokens=32, sample=True),
    Pass(num_prompt_tokens=128),
    Pass(1, 64),
    Pass(1, 1008),
    Pass(4, 1008),
    Pass(8, 32),
    Pass(8, 512),
    Pass(16, 256),
    Pass(32, 16),
    Pass(32, 112),
    Pass(64, 48),
    Pass(num_prompt_tokens=512, sample=True),
    Pass(num_prompt_tokens=512, prompt_context=512),
    Pass(num_prompt_tokens=128, prompt_context=896),
    Pass(num_prompt_tokens=32, prompt_context=992, sample=True),
    Pass(8, 512, num_prompt_tokens=120, prompt_context=512),
)


def curve_passes(sizes: Iterable[int], contexts: Iterable[int]) -> tuple[Pass, ...]:
    """A chunk of each size behind each context, as far as the document reaches."""
    return tuple(
        Pass(num_prompt_tokens=size, prompt_context=context)
        for context in sorted(contexts)
        for size in sorted(sizes)
    )


def calibrate(
    engine: Engine,
    now: Callable[[], float],
    passes: Sequence[Pass] = STARTUP_PASSES,
    *,
    time_limit_s: float = TIME_LIMIT_S,
    rounds: int = ROUNDS,
    checkpoint: Callable[[], None] = lambda: None,
) -> dict[Pass, StepTiming]:
    """Measure passes on an engine without sequences, and leave it so.

    Passes take turns so that each gets as much time as the others: short ones, on which a hiccup
    weighs most, run several times before the longest run once.

    Args:
        now: seconds, monotonic.
        passes: those that the engine's cache and lengths cannot hold are left out.
        time_limit_s: after so long no pass begins, nor one that would end later, judging by those
            before it.
        rounds: how often each runs at most; its timing is the lower median.
        checkpoint: called before each pass; may raise to give up.

    Returns:
        The timing of each pass that ran, in the order of `passes`.
    """
    document = _Document(engine.join, passes)
    times = _Times([p for p in passes if document.holds(p)], rounds)
    deadline = now() + time_limit_s
    is_warm = is_written = False
    while (chosen := times.next(deadline - now())) is not None:
        checkpoint()
        if not is_warm:  # the first pass of a process touches all code and all weights
            _run(engine, document.plan(chosen))
            is_warm = True
        elif chosen.num_decodes and not is_written:
            is_written = True
            if times.expected_s(document.num_blocks) <= deadline - now():
                for plan in document.plans_writing():
                    _run(engine, plan)
        else:
            times.add(chosen, _run(engine, document.plan(chosen)))
    engine.reset()
    return times.medians()


class _Times:
    """What was measured of each pass, and what to measure next."""

    def __init__(self, passes: Sequence[Pass], rounds: int) -> None:
        self._rounds = rounds
        self._timings: dict[Pass, list[StepTiming]] = {p: [] for p in passes}
        self._largest: StepTiming | None = None  #: of the pass with most tokens

    def add(self, measured: Pass, timing: StepTiming) -> None:
        """Take the timing of a pass in."""
        self._timings[measured].append(timing)
        if self._largest is None or timing.num_tokens > self._largest.num_tokens:
            self._largest = timing

    def next(self, seconds_left: float) -> Pass | None:
        """Of the passes that fit the time left, the one that had least of it; None if none fits."""
        costs = [
            (sum(t.step_ns for t in timings) / 1e9, expected_s, wanted)
            for wanted, timings in self._timings.items()
            if len(timings) < self._rounds
            and (expected_s := self._next_s(wanted, timings)) <= seconds_left
        ]
        return min(costs, key=lambda cost: cost[0] + cost[1])[2] if costs else None

    def expected_s(self, num_tokens: int) -> float:
        """As many seconds per token as the largest pass took, and no fewer in all; 0: none ran."""
        if self._largest is None:
            return 0.0
        return self._largest.step_ns / 1e9 * max(1.0, num_tokens / self._largest.num_tokens)

    def medians(self) -> dict[Pass, StepTiming]:
        """Lower ones: other work on the machine makes passes slower, never faster."""
        return {
            measured: sorted(timings, key=lambda t: t.step_ns)[(len(timings) - 1) // 2]
            for measured, timings in self._timings.items()
            if timings
        }

    def _next_s(self, wanted: Pass, timings: Sequence[StepTiming]) -> float:
        return timings[-1].step_ns / 1e9 if timings else self.expected_s(wanted.num_tokens)


def room_tokens(join: WorkerJoin) -> int:
    """The longest context that a calibration at start measures, as far as this worker has room."""
    return _Document(join, STARTUP_PASSES).room_tokens


class _Document:
    """Tokens and blocks that passes are made of.

    The cache's first blocks are the document's, the next ones belong to decodes.

    Args:
        join: what the engine can hold.
        passes: what it is to hold.
    """

    def __init__(self, join: WorkerJoin, passes: Sequence[Pass]) -> None:
        self._block_size = join.block_size
        self._vocab_size = join.vocab_size
        self._max_num_seqs = join.max_num_seqs // 2  # those of two passes are known at once
        length = max((p.document_tokens for p in passes), default=0)
        num_blocks = min(-(-length // join.block_size), -(-join.num_blocks // 2))
        num_others = max(map(self._num_blocks, passes), default=0)
        num_others = min(num_others, join.num_blocks - num_blocks)
        self._blocks = range(num_blocks)
        self._contexts = range(num_blocks, num_blocks + num_others)
        #: of which the last is known and not computed: a chunk that does not sample ends before it
        self.room_tokens = min(num_blocks * join.block_size, join.max_model_len - 1)
        self._ids = count(1)  # of steps and of sequences
        self._last_sequences: list[int] = []

    @property
    def num_blocks(self) -> int:
        """In use, by the document or by decodes."""
        return self._contexts.stop

    def holds(self, wanted: Pass) -> bool:
        """Whether the cache has the blocks, and the model takes the lengths."""
        return (
            wanted.num_tokens > 0
            and max(wanted.document_tokens, wanted.decode_context, 1) <= self.room_tokens
            and wanted.num_decodes <= self._max_num_seqs
            and self._num_blocks(wanted) <= len(self._contexts)
        )

    def plans_writing(self) -> Iterator[StepPlan]:
        """Passes that write a token to each block, so that all have memory of their own."""
        for begin in range(0, self.num_blocks, self._max_num_seqs):
            blocks = range(begin, min(begin + self._max_num_seqs, self.num_blocks))
            yield self._plan([(self._sequence(2, 0, [block]), 1) for block in blocks])

    def plan(self, wanted: Pass) -> StepPlan:
        """The next step: this pass, of sequences made for it; those of the last one are dropped."""
        context = wanted.decode_context // self._block_size * self._block_size
        work = [(self._decode(context, number), 1) for number in range(wanted.num_decodes)]
        if wanted.num_prompt_tokens:
            length = wanted.prompt_context + wanted.num_prompt_tokens + (not wanted.sample)
            prompt = self._sequence(length, wanted.prompt_context, self._blocks)
            work.append((prompt, wanted.num_prompt_tokens))
        return self._plan(work)

    def _plan(self, work: Sequence[tuple[NewSequence, int]]) -> StepPlan:
        """So many tokens of each; who comes to its end samples."""
        dropped, self._last_sequences = self._last_sequences, [n.sequence_id for n, _ in work]
        chunks = tuple(
            Chunk(
                new.sequence_id,
                new.num_computed_tokens,
                num_tokens,
                b"",
                new.num_computed_tokens + num_tokens == new.num_prompt_tokens,
            )
            for new, num_tokens in work
        )
        return StepPlan(next(self._ids), chunks, tuple(new for new, _ in work), tuple(dropped))

    def _num_blocks(self, wanted: Pass) -> int:
        """Blocks of the decodes together."""
        return wanted.num_decodes * (wanted.decode_context // self._block_size + 1)

    def _decode(self, context: int, number: int) -> NewSequence:
        """A sequence on blocks that no other has, the last for the token that it brings."""
        length = context // self._block_size + 1
        blocks = self._contexts[number * length : (number + 1) * length]
        return self._sequence(context + 1, context, blocks)

    def _sequence(self, length: int, num_computed: int, blocks: Sequence[int]) -> NewSequence:
        # A stride coprime to nearly every vocabulary: embeddings and experts are all visited.
        token_ids = [7919 * position % self._vocab_size for position in range(length)]
        return NewSequence(
            next(self._ids), pack_ids(token_ids), length, num_computed, pack_ids(blocks), _GREEDY
        )


def _run(engine: Engine, plan: StepPlan) -> StepTiming:
    result = engine.step(plan)
    if isinstance(result, StepRejected):
        raise RuntimeError(f"a pass of the calibration was refused: {result.reason}")
    return StepTiming(*_counts(plan.chunks), result.step_ns)


def _counts(chunks: Sequence[Chunk]) -> tuple[int, int, int, int, int]:
    """Tokens, context, attended tokens, sequences and rows of logits."""
    ends = [c.num_computed_tokens + c.num_tokens for c in chunks]
    attended = sum(
        c.num_tokens * (c.num_computed_tokens + end + 1) // 2
        for c, end in zip(chunks, ends, strict=True)
    )
    num_tokens = sum(c.num_tokens for c in chunks)
    return num_tokens, sum(ends), attended, len(chunks), sum(c.sample for c in chunks)
