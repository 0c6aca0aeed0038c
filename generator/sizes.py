# SPDX-License-Identifier: Apache-2.0
"""How large the files and networks of a user may be; looked at before anything is loaded or allocated.

All of them are far beyond what a board can learn (a task has at most 65,535 samples of at most 65,535 values)
and small enough for a computer with a few GiB of memory.  docs/evidence/security.md lists them for users.
"""

from __future__ import annotations

LARGEST_EXPERIMENT = 1 << 18
"""Bytes of an experiment file or a sweep."""

LARGEST_MODULE = 1 << 20
"""Bytes of a Python module."""

LARGEST_ARRAYS = 1 << 30
"""Bytes of an ``.npz``, and of its arrays, as their headers declare them; of all pictures, and of all windows."""

LARGEST_TABLE = 1 << 28
"""Bytes of a CSV table."""

LARGEST_LINE = 1 << 22
"""Bytes of a line of a table: 65,535 numbers of 60 characters."""

MOST_ROWS = 1 << 23
"""Lines of a table: a day of a sensor that measures 97 times a second."""

LARGEST_PICTURE = 1 << 28
"""Bytes of the file of a picture."""

LARGEST_PIXELS = 1 << 26
"""Pixels of a picture that is brought to ``data.size``: 8192 x 8192."""

LARGEST_FOLDER = 1 << 32
"""Bytes of all pictures of a folder."""

MOST_ENTRIES = 1 << 18
"""Files and folders in a folder of pictures."""

LARGEST_MODEL = 1 << 28
"""Bytes of a Keras model, and of what it declares: 2^24 weights in float32, and what an optimizer keeps of them."""

LARGEST_DESCRIPTION = 1 << 22
"""Bytes of the description of a Keras model; that of ResNet-152 has about 500,000."""

MOST_LAYERS = 2000
"""Layers in the description of a Keras model."""

LARGEST_DIRECTORY = 1 << 20
"""Bytes of the table of contents of a zip file: more than 10,000 members."""

LARGEST_RESULT = 1 << 28
"""Bytes of a JSON file that the tool itself has written."""

MOST_WEIGHTS = 1 << 24
"""Weights of a network, before any are masked: the host works on all of them."""

MOST_OUTPUTS = 1 << 20
"""Outputs of a layer."""

MOST_IN_KERNEL = 1 << 12
"""Places of the kernel of a convolution: 64 x 64."""

MOST_UNDER_WINDOWS = 1 << 21
"""Values under all windows of a convolution, for one sample: the host puts them side by side."""

MOST_AT_ONCE = 1 << 26
"""Outputs of all layers for the samples that the host looks at together."""


def shown(size: int) -> str:
    """A number of bytes for people."""
    for unit, step in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= step:
            return f"{size / step:,.1f}".removesuffix(".0") + f" {unit}"
    return f"{size} bytes"
