"""Log lines: one event in plain words and key=value fields, on stderr, as text or JSON.

    logger = structlog.get_logger(__name__)
    logger.info("peer up", peer="worker-0")

Lines of libraries that use `logging` look the same. What users write, and what grants access, is
never logged: fields with such names are dropped whatever they hold.
"""

import logging
import sys
from collections import OrderedDict
from collections.abc import Hashable
from typing import Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

# Compared with the last word of a field's name: `user_prompt` is caught. Counts (`num_...`) pass.
SECRET_WORDS = frozenset(
    {"authorization", "key", "messages", "password", "prompt", "secret", "text", "token"}
)


def configure(
    level: Literal["debug", "info", "warning", "error"],
    log_format: Literal["console", "json"],
    service: str,
    name: str,
) -> None:
    """Set up logging of this process; every line carries `service` and `name`."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _adds(service=service, name=name),
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        drop_secrets,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(log_format),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())


def _adds(**fields: str) -> Processor:
    """Not context variables: threads other than the event loop's do not inherit those."""
    return lambda _logger, _method, event: {**event, **fields}


def _renderers(log_format: Literal["console", "json"]) -> list[Processor]:
    if log_format == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    return [
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    ]


def drop_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Remove the fields that must not reach a log, by their names."""
    for field in [f for f in event if _is_secret(f.lower())]:
        del event[field]
    return event


def _is_secret(field: str) -> bool:
    return field.rpartition("_")[2] in SECRET_WORDS and not field.startswith("num_")


class Once:
    """Says whether something happens for the first time, so that it is logged once.

    Remembers the last `capacity` things: a hostile peer cannot make it grow.
    """

    def __init__(self, capacity: int = 1024) -> None:
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._capacity = capacity

    def first(self, thing: Hashable) -> bool:
        """True the first time that `thing` is asked about."""
        known = thing in self._seen
        self._seen[thing] = None
        self._seen.move_to_end(thing)
        if len(self._seen) > self._capacity:
            self._seen.popitem(last=False)
        return not known

    def forget(self, thing: Hashable) -> None:
        """The matter is over: its next occurrence is a first one again."""
        self._seen.pop(thing, None)
