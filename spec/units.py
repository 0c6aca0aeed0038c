# SPDX-License-Identifier: Apache-2.0
"""Numbers as people read them."""

from __future__ import annotations


def kib(size: int) -> str:
    """Bytes as KiB, with one decimal below 100 KiB."""
    value = size / 1024
    return f"{value:.0f} KiB" if value >= 100 or value == int(value) else f"{value:.1f} KiB"
