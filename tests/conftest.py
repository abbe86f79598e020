"""Which tests are extra, in which order files run, and where examples come from."""

from __future__ import annotations

import gc
import os
import random
import signal
from pathlib import Path

import pytest
import tiers
import trio
from hypothesis import HealthCheck, settings
from needs import need_programs
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

# A run under nohup ignores SIGHUP, and what it starts would do so, too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

HERE = Path(__file__).parent
#: Files of half a minute and more, the longest first. With several processes, each of which
#: takes the next file when it is done with one, a long one that began last would run alone.
LONGEST = [
    "cluster/test_three_machines.py",
    "cluster/test_mixed.py",
    "kubernetes/test_deployed_cluster.py",
    "disks/test_disk_failures.py",
    "disks/test_disk_changes.py",
    "control/test_several_planes_storage.py",
    "control/test_deaths.py",
    "control/test_several_planes.py",
    "control/test_several_planes_deaths.py",
    "control/test_records.py",
    "cluster/test_promises.py",
    "simulation/test_seeds.py",
    "kubernetes/test_backend_control.py",
    "kubernetes/test_fixture.py",
    "podman/test_podman_runs.py",
    "control/test_contract_storage.py",
    "cluster/test_disks.py",
    "control/test_schemathesis.py",
    "control/test_quotas.py",
    "podman/test_podman_deaths.py",
    "control/test_hostile.py",
    "cluster/test_up.py",
    "control/test_control_process.py",
    "control/test_compute_deaths.py",
    "simulation/test_snapshot.py",
    "simulation/test_mutants.py",
    "simulation/test_data_path.py",
    "control/test_contract_auth.py",
    "python/test_python_foreign.py",
    "podman/test_podman_images.py",
    "storm/test_storm.py",
    "cluster/test_tour.py",
    "control/test_loop.py",
    "simulation/test_append.py",
    "podman/test_podman_apart.py",
    "kubernetes/test_backend_life.py",
    "control/test_contract_common.py",
    "cluster/test_fsspec.py",
]
_PLACES = {HERE / name: place for place, name in enumerate(LONGEST)}


def pytest_configure(config: pytest.Config) -> None:
    is_worker = hasattr(config, "workerinput")
    if config.option.verbose == 0 and not is_worker and not config.option.collectonly:
        config.pluginmanager.register(Progress(config))
    if not is_worker:
        config.pluginmanager.register(tiers.Failures())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """As many as cores: a test with real processes brings four to nine of them."""
    return os.cpu_count() or 1


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gone = [path for path in _PLACES if not path.exists()]
    if gone:
        raise pytest.UsageError(f"{__file__}: LONGEST names what is not there: {gone}")
    items.sort(key=lambda item: _PLACES.get(item.path, len(_PLACES)))
    for item in items:
        tiers.mark(item)


def pytest_collection_finish() -> None:
    # Thousands of tests that are there to the end need not be looked at by each collection of
    # garbage, of which a simulated cluster that is not at rest yet makes one at each look.
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    need_programs(item)
    tiers.enter(item)
    if settings.get_current_profile_name() == "fixed":
        # Trio runs tasks that are ready in an order of chance: the same one each time.
        trio._core._run._r.seed(item.nodeid)
        random.seed(item.nodeid)
