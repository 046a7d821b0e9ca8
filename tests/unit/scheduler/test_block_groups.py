"""Where the blocks of a worker lie that wants those of a sequence side by side."""

from common.token_ids import unpack_ids
from tests.support.checking_worker import CheckingWorker
from tests.support.scheduler_mesh import SchedulerMesh, a_request, options

GROUP = 8


def tables(mesh: SchedulerMesh) -> list[list[int]]:
    """Block tables of all sequences, as the worker learnt them."""
    by_sequence: dict[int, list[int]] = {}
    for plan in mesh.sent:
        for new in plan.new_sequences:
            by_sequence[new.sequence_id] = list(unpack_ids(new.block_ids))
        for chunk in plan.chunks:
            by_sequence[chunk.sequence_id] += unpack_ids(chunk.new_block_ids)
    return list(by_sequence.values())


def test_sequences_that_take_turns_get_whole_groups_though_the_cache_is_full() -> None:
    mesh = SchedulerMesh(options(token_budget=16))
    mesh.join("w", CheckingWorker(num_blocks=96, blocks_per_group=GROUP, max_model_len=64))
    for turn in range(9):
        for index in range(3):  # 16 blocks each
            mesh.arrive(a_request(f"{turn}.{index}", [turn, index, *range(34)], max_tokens=28))
        mesh.run_until_idle()

    assert len(tables(mesh)) == 27
    for table in tables(mesh):
        for place in range(0, len(table), GROUP):
            group = table[place : place + GROUP]
            assert group[0] % GROUP == 0
            assert group == list(range(group[0], group[0] + len(group)))


def test_behind_a_prefix_that_was_found_a_sequence_begins_a_group() -> None:
    mesh = SchedulerMesh(options(token_budget=16))
    mesh.join("w", CheckingWorker(num_blocks=48, blocks_per_group=GROUP, max_model_len=64))
    for name, last in (("first", range(4)), ("second", range(4, 8))):
        mesh.arrive(a_request(name, [*range(28), *last], max_tokens=1))
        mesh.run_until_idle()

    first, second = tables(mesh)
    assert mesh.core.stats.num_cache_hit_tokens == 28
    assert first[:7] == second[:7]
    assert second[7] not in first
    assert second[7] % GROUP == 0
    mesh.check_ended()


def test_short_sequences_share_groups_so_that_the_cache_holds_as_many_as_it_has_room_for() -> None:
    mesh = SchedulerMesh(options(token_budget=16))
    mesh.join("w", CheckingWorker(num_blocks=48, blocks_per_group=16, max_model_len=64))
    for turn in range(2):
        for index in range(11):  # 4 blocks each
            mesh.arrive(a_request(f"{turn}.{index}", [index, *range(15)], max_tokens=1))
            mesh.run_until_idle()

    assert mesh.core.stats.num_cache_hit_tokens == 11 * 12
    mesh.check_ended()
