# SPDX-License-Identifier: Apache-2.0
"""report.json and report.html: what a run showed (docs/reference/report-schema.md).

`schema` says what a report holds, `collect` makes it of what a session left behind, `page` shows it, `compare` sets
several side by side.
"""

from .collect import HTML, JSON, build, write
from .schema import Report

__all__ = ["HTML", "JSON", "Report", "build", "write"]
