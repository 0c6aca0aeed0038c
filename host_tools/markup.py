# SPDX-License-Identifier: Apache-2.0
"""Pages and pictures from templates."""

from __future__ import annotations

from pathlib import Path


def fill(template: Path, **values: object) -> str:
    """The text of an HTML or SVG template with ``values``, which are escaped; a value that is missing is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**values)
