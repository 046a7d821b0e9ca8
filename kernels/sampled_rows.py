"""A program that computes behind its last attention only what is sampled.

Behind the last attention every op treats each row alone, and of its rows only those are wanted
whose next token is sampled: one of a prompt, none of a chunk that does not end one. So these rows
can be gathered where attention ends instead of before the logits. A prompt then saves what stands
behind the attention of one layer, and decodes, of which every row is sampled, one or two copies.
"""

from collections.abc import Iterator
from dataclasses import replace

from kernels.program import (
    Buffer,
    Embed,
    EmbedPositions,
    GatedActivation,
    GatherRows,
    Linear,
    Logits,
    MixtureOfExperts,
    Norm,
    Op,
    PagedAttention,
    Program,
    RopeStoreKv,
    buffers_read,
)

_SUFFIX = ":sampled"  # behind the name of a buffer that holds its sampled rows


def gather_early(program: Program) -> Program:
    """The program with the same logits, bit for bit where rows do not depend on each other.

    Args:
        program: validated. One that embeds tokens behind its last attention, or goes on with all
            rows after it has gathered some, comes back as it is.
    """
    attention = max(i for i, op in enumerate(program.ops) if isinstance(op, PagedAttention))
    head, tail = program.ops[: attention + 1], program.ops[attention + 1 :]
    if not _is_row_by_row(program, tail):
        return program
    rewriting = _Rewriting(program)
    ops = (*head, *(new for op in tail for new in rewriting.rewrite(op)))
    declared = {**program.buffers, **rewriting.sampled}
    used = {name for op in ops for name in _buffers(op)}
    buffers = {name: b for name, b in declared.items() if name in used}
    early = Program(ops, buffers, program.weights)
    early.validate()
    return early


class _Rewriting:
    """Renames the buffers of one op after the other, and gathers what one reads first."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._names: dict[str, str] = {}  # of what holds a buffer's sampled rows by now
        self.sampled: dict[str, Buffer] = {}

    def rewrite(self, op: Op) -> Iterator[Op]:
        for name in buffers_read(op):
            yield from self._gather(name)
        match op:
            case GatherRows():
                self._names[op.out] = self._names[op.input]
            case Norm() | Linear() | MixtureOfExperts():
                residual = None if op.residual is None else self._names[op.residual]
                name = self._names[op.input]
                yield replace(op, input=name, residual=residual, out=self._written(op.out))
            case GatedActivation():
                yield replace(op, input=self._names[op.input], out=self._written(op.out))
            case Logits():
                yield replace(op, input=self._names[op.input])
            case _:
                raise AssertionError(f"{type(op).__name__} does not treat each row alone")

    def _gather(self, name: str) -> Iterator[Op]:
        if name in self._names:
            return
        if self._program.buffers[name].rows == "logits":
            self._names[name] = name  # from before the last attention
        else:
            yield GatherRows(name, self._written(name))

    def _written(self, name: str) -> str:
        """The buffer by sampled rows that is written instead of this one."""
        buffer = self._program.buffers[name]
        sampled = name if buffer.rows == "logits" else name + _SUFFIX
        self.sampled[sampled] = Buffer(buffer.width, "logits")
        self._names[name] = sampled
        return sampled


def _is_row_by_row(program: Program, tail: tuple[Op, ...]) -> bool:
    """Whether these ops treat each row alone, and after the first gathering only sampled ones."""
    gathered = False
    for op in tail:
        if isinstance(op, Embed | EmbedPositions | RopeStoreKv):
            return False
        if isinstance(op, GatherRows):
            gathered = True
        elif gathered and any(program.buffers[n].rows == "tokens" for n in _buffers(op)):
            return False
    return True


def _buffers(op: Op) -> Iterator[str]:
    """All that an op reads or writes."""
    yield from buffers_read(op)
    if (out := getattr(op, "out", None)) is not None:
        yield out
