"""From a record: who sent what and when, how each request ended, which passes ran."""

import pytest

from common.errors import RecordError
from common.token_ids import unpack_ids
from services.scheduler import record
from services.scheduler.events import (
    LiveRequestsListed,
    OwnerLost,
    RequestCancelled,
    WorkerDraining,
    WorkerJoined,
)
from services.scheduler.replay.recorded_load import RecordedRequest, read_load
from tests.support.checking_worker import CheckingWorker
from tests.support.recorded_mesh import RecordedMesh
from tests.support.scheduler_mesh import a_request


def by_id(mesh: RecordedMesh) -> dict[str, RecordedRequest]:
    return {request.message.request_id: request for request in read_load(mesh.entries).requests}


def test_a_finished_request_has_its_times_and_tokens() -> None:
    mesh = RecordedMesh()
    mesh.join()
    client = mesh.arrive(a_request("r", [1, 2, 3], max_tokens=4))
    sent_at = mesh.now
    mesh.run_until_idle()

    request = by_id(mesh)["r"]

    assert request.is_measured
    assert request.timeline.sent_at == sent_at
    assert len(request.timeline.token_at) == 4
    assert request.output_ids == client.output
    assert request.timeline.failure is None


def test_what_clients_and_owners_gave_up_is_cancelled_when_they_did() -> None:
    mesh = RecordedMesh()
    mesh.join()
    for name in ("cancelled", "unlisted", "again"):
        mesh.arrive(a_request(name, [1, 2, 3]), "o")
    mesh.arrive(a_request("orphan", [1, 2, 3]), "p")
    times = {}
    mesh.cancel("cancelled")
    times["cancelled"] = mesh.now
    mesh.handle(LiveRequestsListed("o", ("again",)))
    times["unlisted"] = mesh.now
    mesh.handle(OwnerLost("p"))
    times["orphan"] = mesh.now

    requests = by_id(mesh)

    assert {name: requests[name].cancelled_at for name in times} == times
    assert not any(requests[name].is_measured for name in requests)
    assert not requests["again"].is_over


def test_a_stop_string_is_an_end_like_others() -> None:
    mesh = RecordedMesh()
    mesh.join()
    client = mesh.arrive(a_request("r", [1, 2, 3], max_tokens=40))
    mesh.run_step()
    mesh.run_step()
    client.cancelled = True
    mesh.handle(RequestCancelled("o", "r", "stop_string"))

    request = by_id(mesh)["r"]

    assert request.stopped
    assert request.is_measured
    assert request.output_ids == client.output != []


def test_a_failed_request_is_measured_as_a_failure() -> None:
    mesh = RecordedMesh()
    mesh.join()
    mesh.arrive(a_request("long", [1] * 64))

    request = by_id(mesh)["long"]

    assert request.is_measured
    assert request.timeline.failure == "context_length_exceeded"


def test_what_was_there_before_goes_on_from_where_it_was_and_is_not_measured() -> None:
    mesh = RecordedMesh()
    mesh.join()
    client = mesh.arrive(a_request("r", [1, 2, 3], max_tokens=6))
    mesh.run_step()
    mesh.run_step()
    num_before = len(client.output)
    mesh.entries.clear()
    mesh.save_state()
    mesh.run_until_idle()

    (request,) = read_load(mesh.entries).requests

    assert list(unpack_ids(request.message.prompt_ids)) == [1, 2, 3]
    assert list(unpack_ids(request.message.output_ids)) == client.output[:num_before]
    assert request.output_ids == client.output
    assert request.is_over
    assert not request.is_measured


def test_workers_come_drain_and_go_and_those_refused_are_left_out() -> None:
    mesh = RecordedMesh()
    mesh.join("w0")
    mesh.handle(WorkerJoined("bad", CheckingWorker(block_size=0).join))
    mesh.handle(WorkerDraining("w0"))
    mesh.lose("w0")

    changes = read_load(mesh.entries).worker_changes

    assert [(c.worker, c.join is not None, c.is_drain) for c in changes] == [
        ("w0", True, False),
        ("w0", False, True),
        ("w0", False, False),
    ]


def test_passes_that_ran_are_known_with_what_was_in_them() -> None:
    mesh = RecordedMesh()
    mesh.join()
    mesh.arrive(a_request("r", [1, 2, 3], max_tokens=4))
    mesh.run_until_idle()

    passes = read_load(mesh.entries).passes

    assert [a_pass.shape.num_tokens for a_pass in passes] == [3, 1, 1, 1]
    assert {a_pass.ms for a_pass in passes} == {1e-6}  # the checking worker says one nanosecond
    # The first had no result before it; later ones had been sent before the last result came.
    assert [a_pass.wait_ms is not None for a_pass in passes] == [False, True, True, True]


def test_what_does_not_begin_with_a_state_is_refused() -> None:
    with pytest.raises(RecordError, match="no state"):
        read_load([record.Header(1, "", "", "", "")])
