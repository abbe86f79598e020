"""In which tier each test is, and where examples and chance come from."""

from __future__ import annotations

import gc
import os
import random
import signal

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

#: From this share of the seeds on the costly tests run, too.
COSTLY_PERCENT = 25

# A run under nohup ignores SIGHUP, one in the background of a shell SIGINT, and what it starts
# would do so, too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


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
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        tiers.mark(item)
    if share(100) < COSTLY_PERCENT:
        left = [item for item in items if item.get_closest_marker("costly")]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item.get_closest_marker("costly") is None]
    # What may take a minute is begun first: begun last, one process ends it while others wait.
    items.sort(key=lambda item: item.path.name != "test_seeds.py")


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
