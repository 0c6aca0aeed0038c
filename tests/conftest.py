# SPDX-License-Identifier: Apache-2.0
"""What all tests share."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hypothesis import settings
from serial.urlhandler import protocol_socket

from sparcl_mcu.generator.user_module import CONSENT
from tests.compiled import forget_unused

# How long an example takes depends on what else the machine does.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


def pytest_configure(config: pytest.Config) -> None:
    """Once, not in each worker."""
    if not hasattr(config, "workerinput"):
        forget_unused()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """TensorFlow takes seconds to start: the worker with the last half of the tests starts it for all."""
    items.sort(key=lambda item: item.get_closest_marker("tensorflow") is not None)


class _Time:
    """``time`` for pyserial, without the 0.3 s it sleeps when it closes a socket."""

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)

    @staticmethod
    def sleep(seconds: float) -> None:
        """Sleep, unless it is that."""
        if seconds != 0.3:
            time.sleep(seconds)


@pytest.fixture(autouse=True, scope="session")
def _own_code() -> Iterator[None]:
    """The modules that tests name are their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CONSENT, "1")
        yield


@pytest.fixture(autouse=True, scope="session")
def _quick_close() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol_socket, "time", _Time())
        yield
