"""Device time is split over tenants, all of it, in bounded memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.cost_model import CostModel, StepShape
from services.scheduler.time_account import MAX_NAMED_TENANTS, TimeAccount, shares
from services.scheduler.work import chunk_shape, plus
from tests.support.timed_worker import timed_worker

EMPTY = StepShape(0, 0, 0, 0, 0)


def test_the_tenant_of_a_pass_pays_all_of_it() -> None:
    shape = chunk_shape(0, 10)

    assert shares({"a": shape}, shape, CostModel()) == (("a", 1.0),)


def test_an_empty_pass_is_nobodys() -> None:
    assert shares({}, EMPTY, CostModel()) == ()


def test_a_pass_is_split_by_what_each_tenant_adds_to_it() -> None:
    model = CostModel.from_timings(timed_worker().calibration)
    prompt, decodes = chunk_shape(0, 90), StepShape(10, 1000, 1000, 10, 10)

    split = dict(shares({"reader": prompt, "chat": decodes}, plus(prompt, decodes), model))

    # 0.25 ms per token: 22.5 ms and 2.5 ms, as far as the model can tell tokens from context.
    assert split["reader"] > 0.7


def test_before_anything_is_known_tokens_count() -> None:
    parts = {"a": chunk_shape(0, 30), "b": chunk_shape(0, 10)}

    assert dict(shares(parts, plus(*parts.values()), CostModel())) == {"a": 0.75, "b": 0.25}


@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 500)), min_size=1, max_size=8))
def test_shares_add_up(chunks: list[tuple[int, int]]) -> None:
    model = CostModel.from_timings(timed_worker().calibration)
    parts = {str(index): chunk_shape(*chunk) for index, chunk in enumerate(chunks)}
    whole = EMPTY
    for part in parts.values():
        whole = plus(whole, part)

    split = shares(parts, whole, model)

    assert sum(share for _, share in split) == pytest.approx(1.0)
    assert all(share >= 0 for _, share in split)


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 1000)), max_size=300))
def test_no_time_is_lost_and_few_tenants_are_named(charges: list[tuple[int, int]]) -> None:
    account = TimeAccount()
    for tenant, ms in charges:
        account.charge(str(tenant), float(ms))

    assert sum(account.by_tenant.values()) + account.others_ms == sum(ms for _, ms in charges)
    assert len(account.by_tenant) <= MAX_NAMED_TENANTS


def test_who_uses_much_stays_named_while_many_come_by() -> None:
    account = TimeAccount()
    for number in range(1000):
        account.charge("heavy", 10.0)
        account.charge(f"one-shot {number}", 1.0)

    assert account.by_tenant["heavy"] == 10_000.0
