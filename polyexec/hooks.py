"""Asking a caller's retry hook; runs in the callback thread, because hook and error are the user's."""

from __future__ import annotations

import logging
import pickle
from typing import Any

import attrs

from polyexec import outcome
from polyexec.errors import SpecificationError
from polyexec.options import TaskOptions
from polyexec.stored import Stored
from polyexec.wire import TaskSpec

_logger = logging.getLogger("polyexec")


def ask_hook(spec: TaskSpec, stored: Stored, attempt: int) -> TaskSpec | None:
    """Ask whether, and how, a task runs again.

    Args:
        spec: the task.
        stored: how its latest attempt ended.
        attempt: the number of that attempt.

    Returns:
        The changed task, or None if it shall not run again.
    """
    try:
        hook, options = _loaded(spec.retry)
        changed = hook(outcome.decode_error(stored), attempt, options)
        if changed is None:
            return None
        if not isinstance(changed, TaskOptions):
            raise SpecificationError(f"the retry hook of {spec.name!r} returned {changed!r}, not options or None")
        return attrs.evolve(
            spec,
            request=changed.request,
            timeout=changed.timeout,
            env=dict(changed.env),
            retries=changed.retries,
            retry=(hook, changed),
        )
    except BaseException:
        _logger.exception("the retry hook of task %r raised; the task does not run again", spec.name)
        return None


def _loaded(retry: Any) -> tuple[Any, TaskOptions]:
    hook, options = pickle.loads(retry) if isinstance(retry, bytes) else retry
    return hook, options
