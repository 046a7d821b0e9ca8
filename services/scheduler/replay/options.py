"""What `splitfuse replay` can be told."""

from pathlib import Path
from typing import Self, TypeVar

from pydantic import Field, model_validator
from pydantic_settings import (
    BaseSettings,
    CliPositionalArg,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from common.config import Settings
from common.errors import ConfigError
from services.scheduler.core import CoreOptions
from services.scheduler.policies import PolicyName, make_policy
from services.scheduler.splitfuse import Partition

Number = TypeVar("Number", int, float)


class ReplayConfig(Settings):
    """Decide again what a scheduler recorded, or ask what it would do under other options.

    Without options every decision must come out as it was. With any of them the same arrivals are
    simulated under the recorded options and under these.
    """

    model_config = SettingsConfigDict(cli_prog_name="splitfuse replay")

    file: CliPositionalArg[Path] = Field(description="record, as the scheduler wrote it")
    scheduling_policy: PolicyName | None = Field(None, description="what if: this policy")
    partition: Partition | None = Field(
        None, description="what if: splitfuse cuts prompts like this"
    )
    max_num_batched_tokens: int | None = Field(
        None, ge=0, description="what if: tokens per pass; 0 = let the scheduler find them"
    )
    target_tbt_ms: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="what if: time between tokens; 0 = none"
    )
    target_ttft_ms: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="what if: time to first token; 0 = none"
    )
    max_num_seqs: int | None = Field(None, ge=1, description="what if: sequences at once")
    enable_prefix_caching: bool | None = Field(
        None, description="what if: with prefix cache or not"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_: object,
        **__: object,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags only: a variable that is set for serving must not turn a replay into a what-if."""
        return (init_settings,)

    @model_validator(mode="after")
    def _only_splitfuse_cuts_prompts(self) -> Self:
        if self.scheduling_policy in (None, "splitfuse"):
            return self
        for name in ("partition", "target_tbt_ms"):
            value = getattr(self, name)
            if value:
                raise ValueError(
                    f"{name.replace('_', '-')} ({value}) is about how prompts are cut, and "
                    f"scheduling-policy {self.scheduling_policy} does not cut them"
                )
        return self

    @property
    def is_what_if(self) -> bool:
        """Whether anything but the file was given."""
        names = type(self).model_fields.keys() - {"file"}
        return any(getattr(self, name) is not None for name in names)


def changed_options(recorded: CoreOptions, config: ReplayConfig) -> CoreOptions:
    """The recorded options with what was given in their place.

    Raises:
        ConfigError: the recorded policy and what was given do not go together.
    """
    policy, target_tbt_ms = recorded.policy, recorded.target_tbt_ms
    if config.scheduling_policy is not None or config.partition is not None:
        policy = make_policy(config.scheduling_policy or "splitfuse", config.partition)
    if not policy.splits_prompts:
        target_tbt_ms = None
        if config.target_tbt_ms:
            raise ConfigError(
                f"target-tbt-ms ({config.target_tbt_ms:g}) is about how prompts are cut, and the "
                "recorded scheduling policy does not cut them: give --scheduling-policy, too"
            )
    return CoreOptions(
        policy=policy,
        token_budget=_given(config.max_num_batched_tokens, recorded.token_budget),
        max_num_seqs=config.max_num_seqs or recorded.max_num_seqs,
        max_queued_tokens=recorded.max_queued_tokens,
        caching=recorded.caching
        if config.enable_prefix_caching is None
        else config.enable_prefix_caching,
        target_tbt_ms=_given(config.target_tbt_ms, target_tbt_ms),
        target_ttft_ms=_given(config.target_ttft_ms, recorded.target_ttft_ms),
    )


def _given(value: Number | None, recorded: Number | None) -> Number | None:
    """0 takes a recorded number away."""
    return recorded if value is None else value or None
