# SPDX-License-Identifier: Apache-2.0
"""Pages and pictures from templates."""

from __future__ import annotations

from pathlib import Path

from sparcl_mcu.spec.units import kib


def fill(template: Path, **values: object) -> str:
    """The text of an HTML or SVG template with ``values``, which are escaped; a value that is missing is an error.

    Filters besides those of Jinja: ``kib`` of bytes, ``number`` without decimals, ``signed``
    with one and with its sign.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"kib": kib, "number": "{:,.0f}".format, "signed": _signed}
    return environment.get_template(template.name).render(**values)


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "\N{MINUS SIGN}")
