"""The requests of a simulated load: messages for the scheduler, and the tokens that answer them.

Prompts are told apart by their first ids, so nothing is shared and no prefix cache helps anybody.
"""

from common.messages import GenerateRequest, SamplingParams
from common.token_ids import ITEM_BYTES, pack_ids
from common.workload.timeline import RequestShape

EOS = 0
OUTPUT_TOKEN = 1


class Requests:
    """Makes messages, and remembers where each output ends.

    Args:
        vocab_size: of the workers, two at least.
        max_tokens: what clients allow; outputs then end with a stop token that nobody foresees, as
            chats do. None: exactly the output that the load wants, and stop tokens are ignored, as
            in benchmarks.

    Raises:
        ValueError: a number is too small.
    """

    def __init__(self, vocab_size: int, max_tokens: int | None = None) -> None:
        if vocab_size < 2 or (max_tokens is not None and max_tokens < 1):
            raise ValueError(
                f"vocab_size {vocab_size} must be 2 or more, and max_tokens {max_tokens} positive"
            )
        self._vocab_size = vocab_size
        self._max_tokens = max_tokens
        self._output_tokens: dict[int, int] = {}  # of live requests that a stop token ends, by seed

    def make(self, number: int, shape: RequestShape) -> GenerateRequest:
        """The message of the request with this number, unique in the simulation."""
        max_tokens = shape.num_output_tokens
        if self._max_tokens is not None:
            self._output_tokens[number] = max_tokens
            max_tokens = self._max_tokens
        sampling = SamplingParams(
            temperature=0.0,
            seed=number,
            max_tokens=max_tokens,
            ignore_eos=self._max_tokens is None,
            stop_token_ids=() if self._max_tokens is None else (EOS,),
        )
        return GenerateRequest(
            request_id=str(number),
            prompt_ids=self._prompt(number, shape.num_prompt_tokens),
            sampling=sampling,
            priority=shape.priority,
            tenant=shape.tenant,
        )

    def sample(self, sampling: SamplingParams, num_before: int) -> int:
        """The token that a simulated worker samples after so many output tokens."""
        return EOS if self._output_tokens.get(sampling.seed) == num_before + 1 else OUTPUT_TOKEN

    def forget(self, request_id: str) -> None:
        """The request has ended."""
        self._output_tokens.pop(int(request_id), None)

    def _prompt(self, number: int, num_tokens: int) -> bytes:
        first = pack_ids((number % self._vocab_size, number // self._vocab_size % self._vocab_size))
        return first[: num_tokens * ITEM_BYTES].ljust(num_tokens * ITEM_BYTES, b"\0")
