# SPDX-License-Identifier: Apache-2.0
"""`python -m sparcl_mcu.host_tools.report` writes the JSON schema of report.json from the class `Report`."""

from __future__ import annotations

import json
from pathlib import Path

from .schema import Report

SCHEMA = Path(__file__).parent / "report_schema.json"

if __name__ == "__main__":
    SCHEMA.write_text(json.dumps(Report.model_json_schema(), indent=1) + "\n", encoding="utf-8")
    print(SCHEMA)
