# SPDX-License-Identifier: Apache-2.0
"""Methods side by side, over seeds, in fixed point and in floating point: `sparcl sweep`.

plan.py      a sweep file -> jobs
work.py      one job -> what it showed, in any process
cluster.py   many jobs at a time, on this computer or on a Dask cluster
results.py   what is kept; tidy table and summary
"""
