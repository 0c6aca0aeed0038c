# SPDX-License-Identifier: Apache-2.0
"""What the user sees while a session runs."""

from .view import LiveView, PlainView

__all__ = ["LiveView", "PlainView"]
