"""The schedulers that are up, what they can serve together, and which one is next. Pure."""

from collections.abc import Iterator, Mapping

from common.messages import Heartbeat, Limits
from services.tokenizer.model_info import ModelInfo


class Schedulers:
    """Peers downstream, by instance id."""

    def __init__(self, model: ModelInfo) -> None:
        self._model = model
        self._heartbeats: dict[str, Heartbeat | None] = {}  # None until the first
        self._full: set[str] = set()  # links that have refused a message since the last `retry`

    def __iter__(self) -> Iterator[str]:
        return iter(self._heartbeats)

    @property
    def has_full(self) -> bool:
        """Whether `retry` would bring a scheduler back."""
        return bool(self._full)

    def up(self, scheduler: str) -> None:
        self._heartbeats.setdefault(scheduler, None)

    def changed(self, scheduler: str, heartbeat: Heartbeat) -> None:
        self._heartbeats[scheduler] = heartbeat

    def down(self, scheduler: str) -> None:
        self._heartbeats.pop(scheduler, None)
        self._full.discard(scheduler)

    def refused(self, scheduler: str) -> None:
        """Its link is full: it is not chosen until `retry`."""
        self._full.add(scheduler)

    def retry(self) -> None:
        self._full.clear()

    def is_fitting(self, limits: Limits) -> bool:
        """Whether the model behind a scheduler has a row for every token id that we can give."""
        return limits.vocab_size > self._model.max_token_id

    def limits(self) -> Limits | None:
        """What every usable scheduler can serve: what fits one then fits all; None without any."""
        usable = [limits for _, _, limits in self._usable()]
        if not usable:
            return None
        own_len, own_vocab = self._model.max_model_len, self._model.vocab_size
        lens = [limits.max_model_len for limits in usable]
        vocabs = [limits.vocab_size for limits in usable]
        return Limits(
            model=self._model.name,
            max_model_len=min(lens if own_len is None else [*lens, own_len]),
            kv_capacity_tokens=min(limits.kv_capacity_tokens for limits in usable),
            vocab_size=min(vocabs if own_vocab is None else [*vocabs, own_vocab]),
        )

    def choose(self, num_running: Mapping[str, int]) -> str | None:
        """The usable scheduler with the fewest of our requests, then with the fewest of all.

        Args:
            num_running: our live requests by scheduler.
        """
        return min(
            (
                (num_running.get(scheduler, 0), heartbeat.num_requests, scheduler)
                for scheduler, heartbeat, _ in self._usable()
                if scheduler not in self._full
            ),
            default=(0, 0, None),
        )[2]

    def _usable(self) -> Iterator[tuple[str, Heartbeat, Limits]]:
        for scheduler, heartbeat in self._heartbeats.items():
            if heartbeat is None or not heartbeat.ready or heartbeat.draining:
                continue
            if heartbeat.limits is not None and self.is_fitting(heartbeat.limits):
                yield scheduler, heartbeat, heartbeat.limits
