import pytest

from tests.support.scheduler_mesh import SchedulerMesh


@pytest.fixture
def mesh() -> SchedulerMesh:
    """A core with one worker "w"."""
    mesh = SchedulerMesh()
    mesh.join("w")
    return mesh
