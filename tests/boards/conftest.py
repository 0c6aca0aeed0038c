# SPDX-License-Identifier: Apache-2.0
"""What the tests of boards share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where PlatformIO keeps objects from test to test, so that it compiles only what another experiment changes."""
    return tmp_path_factory.mktemp("built")
