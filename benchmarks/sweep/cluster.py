# SPDX-License-Identifier: Apache-2.0
"""Many jobs at a time: worker processes of this computer, or a Dask cluster that runs already.

Whoever reaches a port of a Dask cluster runs code in it.  Those of this computer's workers take nobody without the
certificate that is made for the run, in memory; what a running cluster asks for is its own matter, see `require_trust`.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from sparcl_mcu.host_tools import view
from sparcl_mcu.spec.errors import BoardError, SparclError, UserError

from . import work
from .plan import Job
from .results import Result

CONNECT_SECONDS = 15
WORKERS_SECONDS = 10
"""Workers may have been started just before; after so long without any the user is told."""
TRIES = 3
"""Times a job is begun before it is given up, where workers die under it."""


def run(
    jobs: Sequence[Job],
    scheduler: str | None,
    processes: int | None,
    done: Callable[[Job, Result], None],
    failed: Callable[[Job, SparclError], None],
) -> None:
    """Do the jobs, several at a time; ``done`` and ``failed`` are called here, in the order they end.

    ``scheduler``: address of a Dask scheduler, else ``processes`` workers (default: one a processor)
    are started.  A job whose worker dies is done by another one, and has failed after ``TRIES``.  Raises
    ``UserError`` where no scheduler answers or the cluster has no sparcl, ``BoardError`` where the scheduler
    goes away; any other error of a job is raised.
    """
    import distributed

    as_completed: Any = distributed.as_completed
    with _cleared_away(), _client(scheduler, min(processes or os.cpu_count() or 1, len(jobs))) as client:
        # Each job has its own key, so that a cluster does not confuse the jobs of two sweeps.
        futures: Mapping[Any, Job] = {
            client.submit(work.execute, job, key=f"{job.key}-{os.getpid()}-{number}", pure=False, priority=-number): job
            for number, job in enumerate(jobs)
        }
        for future in as_completed(futures):
            job = futures[future]
            try:
                result = future.result()
            except SparclError as error:
                failed(job, error)
            except distributed.KilledWorker:
                failed(job, BoardError("every worker that ran this job died; they may be out of memory"))
            except distributed.CancelledError:
                raise BoardError(
                    "the scheduler went away; finished runs are kept: run the command again to continue"
                ) from None
            except (ImportError, RuntimeError) as error:
                raise (error if scheduler is None else _without_sparcl(error)) from None
            else:
                done(job, result)
            future.release()


def require_trust(scheduler: str, *, network: bool) -> None:
    """Raise ``UserError`` for a scheduler at the other end of a network that anybody could have put there.

    Workers run what the scheduler says, and this computer unpickles what comes back, which runs code too.  ``network``:
    the user trusts everybody on the way.
    """
    if network or scheduler.startswith(("tls://", "wss://")) or _is_here(scheduler):
        return
    raise UserError(
        f"--scheduler {scheduler}: without encryption, whoever is between here and there can run code on both: "
        "use tls://HOST:PORT with certificates in Dask's configuration, or add --trust-network where nobody else "
        "can reach the cluster"
    )


def _is_here(address: str) -> bool:
    """Whether the address is of this computer; names other than localhost are what the network says they are."""
    try:
        host = urlsplit(address if "://" in address else f"tcp://{address}").hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _without_sparcl(error: Exception) -> Exception:
    """Explain an error of a cluster computer that cannot read a job; other errors are returned unchanged."""
    if isinstance(error, RuntimeError) and "deserialization" not in str(error):
        return error
    return UserError(
        f"the cluster cannot read the jobs ({' '.join(str(error).split())}): start scheduler and workers in the "
        "environment of this version of sparcl"
    )


@contextmanager
def _client(scheduler: str | None, processes: int) -> Iterator[Any]:
    import dask
    import distributed

    # Their signatures are untyped.
    client_of: Any = distributed.Client
    cluster_of: Any = distributed.LocalCluster

    settings = {
        "distributed.scheduler.allowed-failures": TRIES - 1,
        "distributed.comm.timeouts.connect": f"{CONNECT_SECONDS}s",
        # A job holds its worker for seconds in TensorFlow; that is not a fault.
        "distributed.admin.tick.limit": "1h",
        "distributed.worker.memory.terminate": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.target": False,
        # Web pages have no password.
        "distributed.scheduler.http.routes": [],
        "distributed.worker.http.routes": [],
    }
    with dask.config.set(settings):
        for name in ("distributed", "distributed.client"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what goes away is said here
        if scheduler is not None:
            with _connected(client_of, scheduler) as client:
                yield client
            return
        with _interrupts_ignored():
            cluster = cluster_of(
                n_workers=processes,
                threads_per_worker=1,
                processes=True,
                security=True,
                dashboard_address=None,
                # It listens anyway: on any free port, so that a second sweep does not complain.
                scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
                silence_logs=logging.CRITICAL,
            )
        with cluster, client_of(cluster) as client:
            yield client


@contextmanager
def _cleared_away() -> Iterator[None]:
    """Boards of this computer's workers that were killed do not outlive the sweep."""
    try:
        yield
    finally:
        work.clear_away()


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes started in here do not notice Ctrl-C: this one does, and ends them."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _connected(client: Any, address: str) -> Iterator[Any]:
    try:
        connected = client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError, TypeError, ImportError) as error:  # the last two: tls: and ucx: without what they need
        raise UserError(
            f"--scheduler {address}: no Dask scheduler answers ({error}); start one with `dask scheduler` and workers "
            f"with `dask worker {address} --nthreads 1`, in the environment of sparcl"
        ) from None
    with connected:
        try:
            connected.wait_for_workers(1, timeout=WORKERS_SECONDS)
        except TimeoutError:
            view.warn(f"{address} has no workers yet: start some with `dask worker {address} --nthreads 1`")
        yield connected
