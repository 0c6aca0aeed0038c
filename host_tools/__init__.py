# SPDX-License-Identifier: Apache-2.0
"""The host's side of the line: link, protocol, stream, validate, report."""
