"""Which tests are extra, in which order files run, and where examples come from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from needs import FOLDERS, need_programs
from progress import Progress
from share import share

# A run of the tests is the same everywhere: property tests have fixed examples, as the
# simulation has fixed seeds. `make explore` looks for new ones.
# How long an example takes says something of the machine, and nothing of the code.
settings.register_profile(
    "fixed",
    max_examples=share(100),
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("fixed")

HERE = Path(__file__).parent
#: Files of half a minute and more, the longest first. With several processes, each of which
#: takes the next file when it is done with one, a long one that began last would run alone.
LONGEST = [
    "disks/test_disk_failures.py",
    "disks/test_disk_changes.py",
    "control/test_deaths.py",
    "cluster/test_promises.py",
    "control/test_loop.py",
    "simulation/test_append.py",
    "simulation/test_seeds.py",
    "kubernetes/test_backend_control.py",
    "kubernetes/test_fixture.py",
    "podman/test_podman_runs.py",
    "control/test_contract_storage.py",
    "cluster/test_disks.py",
    "control/test_schemathesis.py",
    "podman/test_podman_deaths.py",
    "control/test_hostile.py",
    "control/test_contract_auth.py",
    "podman/test_podman_images.py",
    "storm/test_storm.py",
    "cluster/test_tour.py",
    "control/test_control_process.py",
    "podman/test_podman_apart.py",
    "kubernetes/test_backend_life.py",
    "control/test_contract_common.py",
]
_PLACES = {HERE / name: place for place, name in enumerate(LONGEST)}


def pytest_configure(config: pytest.Config) -> None:
    is_worker = hasattr(config, "workerinput")
    if config.option.verbose == 0 and not is_worker and not config.option.collectonly:
        config.pluginmanager.register(Progress(config))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """More than cores: tests of real processes wait more than they work."""
    return 2 * (os.cpu_count() or 1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gone = [path for path in _PLACES if not path.exists()]
    if gone:
        raise pytest.UsageError(f"{__file__}: LONGEST names what is not there: {gone}")
    items.sort(key=lambda item: _PLACES.get(item.path, len(_PLACES)))
    for item in items:
        if item.path.parent.name in FOLDERS:
            item.add_marker("extra")


def pytest_runtest_setup(item: pytest.Item) -> None:
    need_programs(item)
