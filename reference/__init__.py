# SPDX-License-Identifier: Apache-2.0
"""The NumPy reference of the engine, written from docs/ and bit for bit what the firmware computes."""

from sparcl_mcu.reference.decode import Difference, arrays, first_difference
from sparcl_mcu.reference.device import Device, Reply
from sparcl_mcu.spec.wire import Command, Status

__all__ = ["Command", "Device", "Difference", "Reply", "Status", "arrays", "first_difference"]
