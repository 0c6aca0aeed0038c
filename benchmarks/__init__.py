# SPDX-License-Identifier: Apache-2.0
"""What learning costs on a board, in instructions: `sparcl bench`."""
