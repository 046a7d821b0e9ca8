"""The protocol: every type that crosses a socket, grouped by its receiver.

    gateway ──TokenizeRequest──▶ tokenizer ──GenerateRequest──▶ scheduler ──StepPlan──▶ worker
    gateway ◀───TextDeltas────── tokenizer ◀───TokenDeltas───── scheduler ◀─StepResult─ worker

Each message is an array on the wire, `[tag, *fields]`, as MessagePack. Tags are never reused;
fields are only ever appended, with a default. Any change that an older peer would misread raises
`PROTOCOL_VERSION`: peers of different versions refuse each other in `Hello`.

Units: `*_s` seconds, `*_ns` nanoseconds, `*_tokens` and `*_blocks` counts, `*_ids: bytes` packed
int32 (see `common.token_ids`). Ids of requests are chosen by the gateway and are unique within it;
ids of sequences are chosen by the scheduler and are unique within it.
"""

from typing import Literal, TypeAlias

import msgspec

PROTOCOL_VERSION = 1

ServiceKind: TypeAlias = Literal["gateway", "tokenizer", "scheduler", "worker"]
FinishReason: TypeAlias = Literal["stop", "length", "cancelled", "error"]
CancelReason: TypeAlias = Literal[
    "client_disconnected", "stop_string", "deadline", "shutdown", "superseded"
]


class Part(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True):
    """A record inside a message; on the wire an array of its fields."""


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True):
    """Base of everything that may stand alone on a link."""


# ── to any peer ──────────────────────────────────────────────────────────────────────────────────


class Limits(Part, frozen=True):
    """What the mesh behind a peer can serve. Flows upstream; each hop passes on the smallest."""

    model: str  # served model name
    max_model_len: int  # tokens of prompt + output that one sequence may reach
    kv_capacity_tokens: int  # tokens that fit the smallest worker's KV cache
    vocab_size: int


class Hello(
    msgspec.Struct, frozen=True, array_like=True, gc=False, tag=1, forbid_unknown_fields=False
):
    """First message in both directions. Its first four fields never change between versions."""

    version: int
    kind: str
    name: str  # stable over restarts, e.g. "worker-0"
    instance_id: str  # fresh for every process: a known name with a new id means the old one died


class Refused(Message, frozen=True, tag=2):
    """The peer will not talk to us; the link is closed after it."""

    reason: str


class Heartbeat(Message, frozen=True, tag=3):
    """Sent every heartbeat interval and at once when one of its fields changes."""

    ready: bool  # can take new work
    draining: bool  # finishes what it has, takes nothing new
    num_requests: int = 0  # live in this process
    limits: Limits | None = None  # None until known
    num_workers: int = 0  # a scheduler's; workers join the one that has fewest


class Goodbye(Message, frozen=True, tag=4):
    """The sender is leaving on purpose: treat it as lost now, not after the heartbeat limit."""

    reason: str


class CancelRequest(Message, frozen=True, tag=5):
    """Downstream: stop working on this request and free what it holds."""

    request_id: str
    reason: CancelReason


class LiveRequests(Message, frozen=True, tag=6):
    """Downstream, once per audit period: all requests that the sender still wants.

    Whatever the receiver holds for this sender and is not listed is freed (links keep order, so a
    request sent before this message is either listed or over). What is listed but unknown to the
    receiver is answered with `UnknownRequests`.
    """

    request_ids: tuple[str, ...]


class UnknownRequests(Message, frozen=True, tag=7):
    """Upstream: what `LiveRequests` lists and the sender does not have; to be sent again."""

    request_ids: tuple[str, ...]


class RequestFailed(Message, frozen=True, tag=8):
    """Upstream: the request is over without a result. `code` is an `errors.FailureCode` value."""

    request_id: str
    code: str
    message: str
    param: str | None = None


# ── to the tokenizer ─────────────────────────────────────────────────────────────────────────────


class SamplingParams(Part, frozen=True):
    """How the next token is chosen; validated by the gateway, resolved by the tokenizer."""

    temperature: float = 1.0  # 0 = greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 = off
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # > 1 discourages tokens of prompt and output
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0  # in [0, 2**64); the gateway draws one when the client gives none
    min_tokens: int = 0  # stop tokens are masked until this many are out
    max_tokens: int | None = None  # None = up to the model's limit; never None behind the tokenizer
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()  # behind the tokenizer: with the model's own EOS ids
    logprobs: int | None = None  # alternatives per token; 0 = the sampled token only


class TextPrompt(Part, frozen=True, tag=1):
    text: str


class TokenPrompt(Part, frozen=True, tag=2):
    token_ids: bytes


class ChatPrompt(Part, frozen=True, tag=3):
    """`messages` and `tools` are JSON as the client sent it, checked by the gateway."""

    messages: bytes  # JSON list of {"role", "content", ...}
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: bytes = b"{}"  # JSON object
    tools: bytes | None = None  # JSON list


Prompt: TypeAlias = TextPrompt | TokenPrompt | ChatPrompt


class TextOptions(Part, frozen=True):
    """What happens to the text on its way out."""

    stop: tuple[str, ...] = ()
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    echo: bool = False  # the prompt's text comes first


class TokenizeRequest(Message, frozen=True, tag=10):
    """One sequence asked for (a request with n choices is n of these)."""

    request_id: str
    prompt: Prompt
    sampling: SamplingParams
    text: TextOptions
    priority: int = 0
    tenant: str = ""  # prefix-cache salt and fairness account
    # Set when the request is re-sent because its tokenizer died: the output ids that the gateway
    # has already received the text of. The new tokenizer continues behind them.
    resume_output_ids: bytes = b""
    # Fields of `sampling` that the client did not give: the model's generation_config.json may
    # replace their values.
    defaulted: tuple[str, ...] = ()
    target_tbt_ms: float | None = None  # > 0; time between tokens that the client asks for (P99)
    stream_interval: int = 1  # >= 1; output tokens that may be told together


class TokenLogprob(Part, frozen=True):
    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), best first


class TokenDelta(Part, frozen=True):
    """New output tokens of one request."""

    request_id: str
    num_output_tokens: int  # before these; a delta that does not join on exactly is a repeat
    token_ids: bytes
    logprobs: tuple[TokenLogprob, ...] = ()  # one per token if asked for
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None  # which stop token ended it; it is the last of token_ids
    num_cached_tokens: int = 0  # prompt tokens taken from the prefix cache


class TokenDeltas(Message, frozen=True, tag=11):
    """What one tokenizer hears of after a step: new tokens, and those that had waited for them."""

    deltas: tuple[TokenDelta, ...]


# ── to the gateway ───────────────────────────────────────────────────────────────────────────────


class TextLogprob(Part, frozen=True):
    token: str
    token_bytes: bytes
    logprob: float
    top: tuple[tuple[str, bytes, float], ...] = ()
    token_id: int = -1


class TextDelta(Part, frozen=True):
    """New text of one request, and the ids that it came from.

    `text` is a function of the ids alone, however they were batched: replaying the ids of all
    deltas so far gives the same text so far, which is what makes a re-send possible.
    """

    request_id: str
    num_output_tokens: int  # before these
    text: str
    token_ids: bytes
    logprobs: tuple[TextLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None  # the stop string, or the id of a stop_token_ids entry
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0


class TextDeltas(Message, frozen=True, tag=20):
    deltas: tuple[TextDelta, ...]


# ── to the scheduler ─────────────────────────────────────────────────────────────────────────────


class GenerateRequest(Message, frozen=True, tag=30):
    """Generate for one sequence. `sampling.max_tokens` counts from the end of the prompt."""

    request_id: str
    prompt_ids: bytes
    sampling: SamplingParams
    output_ids: bytes = b""  # already emitted, when a request is re-sent
    priority: int = 0
    tenant: str = ""
    target_tbt_ms: float | None = None  # > 0; tightens the scheduler's own
    stream_interval: int = 1  # >= 1; output tokens that may be told together


class StepTiming(Part, frozen=True):
    """How long a pass took on the device. The counts are those of `StepShape`, over all chunks."""

    num_tokens: int
    num_context_tokens: int
    num_attended_tokens: int
    num_sequences: int
    num_logits: int
    step_ns: int


class WorkerJoin(Message, frozen=True, tag=31):
    """A worker attaches itself to this scheduler, empty: no KV, no sequences."""

    model: str
    device: str  # "cpu", "cuda:0"
    backend: str  # "reference", "cpu", "triton"
    dtype: str
    num_blocks: int  # KV blocks, ids 0 .. num_blocks - 1
    block_size: int  # tokens per block
    max_model_len: int
    vocab_size: int
    max_num_seqs: int  # sequences that its token buffers can hold
    calibration: tuple[StepTiming, ...] = ()  # passes it measured before; empty: none
    blocks_per_group: int = 1  # KV blocks of a sequence that shall lie side by side


class SampledToken(Part, frozen=True):
    sequence_id: int
    token_id: int
    logprob: TokenLogprob | None = None


class SequenceFault(Part, frozen=True):
    """The worker could not sample for this sequence (logits not finite)."""

    sequence_id: int
    reason: str


class StepResult(Message, frozen=True, tag=32):
    step_id: int
    sampled: tuple[SampledToken, ...]
    step_ns: int  # time on the device
    faults: tuple[SequenceFault, ...] = ()


class StepRejected(Message, frozen=True, tag=33):
    """The worker could not resolve the plan; nothing of the step ran."""

    step_id: int
    reason: str
    sequence_ids: tuple[int, ...] = ()  # those it could not resolve


# ── to the worker ────────────────────────────────────────────────────────────────────────────────


class NewSequence(Part, frozen=True):
    """Everything about a sequence, sent once; afterwards only `Chunk`s."""

    sequence_id: int
    token_ids: bytes  # prompt, then outputs so far
    num_prompt_tokens: int
    num_computed_tokens: int  # KV of these is already in block_ids (prefix cache)
    block_ids: bytes  # the block table so far
    sampling: SamplingParams


class Chunk(Part, frozen=True):
    """Tokens of one sequence that enter this step.

    A decode is a chunk of one token: the one that the step before sampled, which only the worker
    knows when the plan is made. `num_computed_tokens` lets the worker notice a plan that does not
    follow from the ones before it.
    """

    sequence_id: int
    num_computed_tokens: int  # before this step
    num_tokens: int
    new_block_ids: bytes  # appended to the block table before the step
    sample: bool  # the chunk reaches the last known token: sample the next one


class StepPlan(Message, frozen=True, tag=40):
    """One forward pass. The worker runs plans in the order of their ids.

    It stores the KV of the whole pass, layer by layer, before anything of the pass attends to it:
    a sequence may share blocks that an earlier chunk of the same plan fills.
    """

    step_id: int
    chunks: tuple[Chunk, ...]
    new_sequences: tuple[NewSequence, ...] = ()
    dropped_sequence_ids: tuple[int, ...] = ()  # forgotten before the step runs


AnyMessage: TypeAlias = (
    Hello
    | Refused
    | Heartbeat
    | Goodbye
    | CancelRequest
    | LiveRequests
    | UnknownRequests
    | RequestFailed
    | TokenizeRequest
    | TokenDeltas
    | TextDeltas
    | GenerateRequest
    | WorkerJoin
    | StepResult
    | StepRejected
    | StepPlan
)
