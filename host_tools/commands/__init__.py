# SPDX-License-Identifier: Apache-2.0
"""One file a command of `sparcl`: a function of the file's name, whose docstring is its help (cli.py finds it)."""
