"""Declares a model op by op, each with its weights and where a checkpoint has these."""

from collections.abc import Mapping
from typing import Literal, TypeAlias

from common.errors import StartupError
from kernels.program import (
    Activation,
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
    Rope,
    RopeStoreKv,
    Rows,
)
from services.worker.models.config import ModelConfig
from services.worker.models.model import Model, Part

Parts: TypeAlias = tuple[Part, ...]


class ModelBuilder:
    """Collects the ops of one model in order, their buffers, weights and checkpoint tensors.

    Every model here has a residual stream `hidden`, from the embedding to the logits. A method adds
    one op (`attention` and `head` a few); a buffer is made as wide as what is first written to it.
    `weight` is a name in the program, `tensor` one in the checkpoint, without `.weight` or `.bias`.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._ops: list[Op] = []
        self._buffers: dict[str, Buffer] = {}
        self._weights: dict[str, tuple[int, ...]] = {}
        self._sources: dict[str, Parts] = {}
        self._alternatives: dict[str, Parts] = {}

    def embed(self, tensor: str) -> None:
        """Start the stream with the embeddings of the tokens."""
        table = (self._config.vocab_size, self._config.hidden_size)
        self._weight("embed", table, (Part(f"{tensor}.weight", table[0]),))
        self._ops.append(Embed("embed", self._written("hidden", table[1])))

    def embed_positions(self, tensor: str, offset: int) -> None:
        """Add learned positions, of which the table holds as many as the model has, and `offset`.

        The engine refuses lengths above `max_position_embeddings`, so none is behind the table.
        """
        table = (self._config.max_position_embeddings + offset, self._config.hidden_size)
        self._weight("positions", table, (Part(f"{tensor}.weight", table[0]),))
        self._ops.append(EmbedPositions("positions", "hidden", offset))

    def norm(self, kind: Literal["rms", "layer"], weight: str, tensor: str, eps: float) -> None:
        """Normalise the stream to `normed`; a layer norm has a bias."""
        self._norm(kind, "hidden", "normed", weight, tensor, eps)

    def linear(
        self,
        input: str,
        out: str,
        weight: str,
        tensors: Mapping[str, int],
        *,
        bias: bool = False,
        activation: Activation | None = None,
        residual: str | None = None,
    ) -> None:
        """Multiply by one matrix made of all `tensors` (name: rows); with a bias, of all theirs."""
        num_rows = sum(tensors.values())
        shape = (num_rows, self._buffers[input].width)
        self._weight(weight, shape, _parts(tensors, "weight"))
        if bias:
            self._weight(f"{weight}_bias", (num_rows,), _parts(tensors, "bias"))
        self._written(out, num_rows)
        bias_name = f"{weight}_bias" if bias else None
        self._ops.append(Linear(input, out, weight, bias_name, activation, residual))

    def attention(
        self, layer: int, rope: Rope | None, num_kv_heads: int, window: int | None = None
    ) -> None:
        """Store K and V of `qkv`, and attend with its q; the result is `attended`.

        Raises:
            StartupError: the window holds no token.
        """
        if window is not None and window < 1:
            raise StartupError(f"sliding_window is {window}, it must be at least 1")
        num_heads, size = self._config.num_attention_heads, self._config.head_size
        self._ops.append(RopeStoreKv("qkv", layer, num_heads, num_kv_heads, size, rope))
        out = self._written("attended", num_heads * size)
        self._ops.append(
            PagedAttention(
                "qkv", out, layer, num_heads, num_kv_heads, size, size**-0.5, sliding_window=window
            )
        )

    def gated_activation(self, kind: Activation, input: str, out: str) -> None:
        self._written(out, self._buffers[input].width // 2)
        self._ops.append(GatedActivation(kind, input, out))

    def experts(
        self,
        layer: int,
        activation: Activation,
        *,
        router: tuple[Parts, Parts],
        gate_up: tuple[Parts, Parts],
        down: tuple[Parts, Parts],
    ) -> None:
        """Add to the stream what the experts make of `normed`; weights are spelled in two ways."""
        hidden, inner = self._config.hidden_size, self._config.intermediate_size
        count, top_k = self._config.num_local_experts, self._config.num_experts_per_tok
        at = f"layers.{layer}"
        self._weight(f"{at}.router", (count, hidden), *router)
        self._weight(f"{at}.experts_gate_up", (count, 2 * inner, hidden), *gate_up)
        self._weight(f"{at}.experts_down", (count, hidden, inner), *down)
        self._ops.append(
            MixtureOfExperts(
                "normed",
                "hidden",
                f"{at}.router",
                f"{at}.experts_gate_up",
                f"{at}.experts_down",
                count,
                top_k,
                activation,
                residual="hidden",
            )
        )

    def head(self, kind: Literal["rms", "layer"], norm: str, eps: float) -> None:
        """Norm and logits of the rows that are sampled; tied embeddings have no table of theirs."""
        hidden, tied = self._config.hidden_size, self._config.tie_word_embeddings
        self._ops.append(GatherRows("hidden", self._written("last", hidden, "logits")))
        self._norm(kind, "last", "scored", "norm", norm, eps)
        if not tied:
            shape = (self._config.vocab_size, hidden)
            self._weight("lm_head", shape, (Part("lm_head.weight", shape[0]),))
        self._ops.append(Logits("scored", "embed" if tied else "lm_head"))

    def build(self, ignored: frozenset[str] = frozenset()) -> Model:
        """The model; the copy of a tied table is ignored too."""
        program = Program(tuple(self._ops), self._buffers, self._weights)
        program.validate()
        if self._config.tie_word_embeddings:
            ignored |= {"lm_head.weight"}
        return Model(program, self._sources, ignored, self._alternatives)

    def _norm(
        self,
        kind: Literal["rms", "layer"],
        input: str,
        out: str,
        weight: str,
        tensor: str,
        eps: float,
    ) -> None:
        width, rows = self._buffers[input].width, self._buffers[input].rows
        bias = f"{weight}_bias" if kind == "layer" else None
        self._weight(weight, (width,), (Part(f"{tensor}.weight", width),))
        if bias is not None:
            self._weight(bias, (width,), (Part(f"{tensor}.bias", width),))
        self._ops.append(Norm(kind, input, self._written(out, width, rows), weight, eps, bias))

    def _weight(
        self, name: str, shape: tuple[int, ...], parts: Parts, alternative: Parts = ()
    ) -> None:
        self._weights[name] = shape
        self._sources[name] = parts
        if alternative:
            self._alternatives[name] = alternative

    def _written(self, name: str, width: int, rows: Rows = "tokens") -> str:
        """A buffer that is written; validate() finds it if it was of another width before."""
        self._buffers.setdefault(name, Buffer(width, rows))
        return name


def _parts(tensors: Mapping[str, int], ending: Literal["weight", "bias"]) -> Parts:
    return tuple(Part(f"{tensor}.{ending}", num_rows) for tensor, num_rows in tensors.items())
