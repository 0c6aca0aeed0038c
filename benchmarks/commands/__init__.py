# SPDX-License-Identifier: Apache-2.0
"""Commands that benchmarks/ adds to `sparcl`; pyproject.toml registers them."""
