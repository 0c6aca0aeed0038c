# SPDX-License-Identifier: Apache-2.0
"""profile.json: the instructions of one experiment on one board, by function and by layer.

`sparcl bench EXP.toml --board B` counts and writes them, the report shows them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sparcl_mcu.generator import files
from sparcl_mcu.generator.sizes import LARGEST_RESULT
from sparcl_mcu.spec.errors import UserError

RESULT = "profile.json"


class Profile(BaseModel):
    """Executed instructions per training step, mean over the first epoch of the first task."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    format: Literal[1] = 1
    model_hash: str = Field(pattern="^[0-9a-f]{16}$")
    steps: int = Field(gt=0, description="Training steps that were counted")
    instructions: float = Field(description="Of a whole step, replay, mask updates and serial line included")
    layers: dict[str, dict[str, float]] = Field(description="Layer (l0 is the first that learns), then its passes")
    functions: dict[str, float] = Field(description="Of the functions that take more than a thousandth")

    def save(self, folder: Path) -> Path:
        """Write into a project's folder; the path."""
        path = folder / RESULT
        files.write(path, self.model_dump_json(indent=1) + "\n")
        return path


def load(folder: Path, model_hash: str) -> Profile | None:
    """Read the counts of this model in a project's folder, if any; raises UserError if they cannot be read."""
    path = folder / RESULT
    if not path.exists():
        return None
    try:
        found = Profile.model_validate_json(files.read(path, LARGEST_RESULT))
    except (ValidationError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error.errors()[0]["msg"]
        raise UserError(f"{path} cannot be read ({reason}): run `sparcl bench` again") from error
    return found if found.model_hash == model_hash else None
