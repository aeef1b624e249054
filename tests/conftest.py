"""Fixtures and options that all tests share."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# No example is too slow: how long one takes says how busy the machine is.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None)  # the same examples each time
settings.load_profile("ci" if os.environ.get("CI") else "here")

REPOSITORY = Path(__file__).parents[1]
SHARED = REPOSITORY.parent / "shared"


def pytest_addoption(parser):
    parser.addoption("--reference-dir", type=Path, default=None, help="folder of further reference vectors (*.npz)")


@pytest.fixture(scope="session")
def shared():
    """The folder of data that lies beside a developer's checkout and that a user has not."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared, which is not part of the project")
    return SHARED
