"""A Ray cluster: reached, or started on this machine. Ray is an extra, imported when it is asked for."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tutelage.errors import UserError, first_line


@contextmanager
def connected(address: str | None, workers: int) -> Iterator[Any]:
    """Ray, connected; what was started here is ended here.

    Args:
        address: of the cluster; None starts one on this machine, unless this process is connected to one already.
        workers: that will be asked for at once.

    Raises:
        UserError: Ray is not installed, or not reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Ray says of its own future is nothing that a user could mend
        try:
            import ray
            import ray.cloudpickle
        except ImportError as problem:
            raise UserError(
                f"this engine needs Ray: {problem}", field="engine", value="ray", fix="pip install 'ray>=2.40'"
            ) from None
        mine = not ray.is_initialized()
        if mine:
            _start(ray, address, workers)
        try:
            yield ray
        finally:
            if mine:
                ray.shutdown()


def _start(ray: Any, address: str | None, workers: int) -> None:
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    if address is None:
        settings |= {"address": "local", "include_dashboard": False, "num_cpus": max(workers, os.cpu_count() or 1)}
    else:
        settings |= {"address": address}
    try:
        ray.init(**settings)
    except (ConnectionError, RuntimeError, ValueError, OSError) as problem:
        raise UserError(
            f"Ray cannot be reached: {first_line(problem)}",
            field="address",
            value=address,
            fix="start a cluster (`ray start --head`) and give its address; without one, Ray runs on this machine",
        ) from None
