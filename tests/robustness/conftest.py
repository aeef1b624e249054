"""The table of faults tried, and the seed from which moments of signals are drawn."""

import os
import random
import time

import pytest
import torch

from tests.robustness import stages, tally

SEED = int(os.environ.get("LEOKIT_ROBUSTNESS_SEED", time.time_ns() % 10**6))


def pytest_addoption(parser):
    parser.addoption("--robustness-table", action="store_true", help="print the faults that were tried, and how often")


def pytest_report_header(config):
    return f"robustness: moments are drawn from LEOKIT_ROBUSTNESS_SEED={SEED}"


def pytest_terminal_summary(terminalreporter, config):
    if config.getoption("--robustness-table", default=False) and tally.tried:
        terminalreporter.write_line("")
        for line in tally.table():
            terminalreporter.write_line(line)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def moments(request):
    """A random generator of this test, from the printed seed."""
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Inputs of every command, and what each makes of them uninterrupted."""
    return stages.prepare(tmp_path_factory.mktemp("made"))
