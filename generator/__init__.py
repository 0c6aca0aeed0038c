# SPDX-License-Identifier: Apache-2.0
"""Host side of sparcl-mcu: from an experiment file to rendered firmware."""

__version__ = "0.1.0"
