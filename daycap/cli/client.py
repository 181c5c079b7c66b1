"""Send a task to a worker and wait for its answer."""

from __future__ import annotations

import functools
import os
import time
from typing import Any

import click
from celery import Celery
from celery.exceptions import TimeoutError as NoAnswer
from celery.result import AsyncResult
from kombu.exceptions import OperationalError

from daycap.delivery.celery import ignore_celery_variables, producer_app, result_settings
from daycap.errors import DaycapError
from daycap.protocol.wire import CONTROL_QUEUE
from daycap.settings import Settings

ANSWER_TIMEOUT_S = 15.0


class NoWorker(click.ClickException):
    """no worker can be asked: none answered, the broker is down, or no broker is set"""


def ask(task: str, timeout_s: float = ANSWER_TIMEOUT_S, **kwargs: Any) -> Any:
    """Return the task's result. A refusal, a broker that is down or a worker that does not answer ends the command."""
    answer = answer_of(task, timeout_s, **kwargs)
    if "error" in answer:
        raise click.ClickException(answer["message"])
    return answer["result"]


def answer_of(task: str, timeout_s: float = ANSWER_TIMEOUT_S, **kwargs: Any) -> dict[str, Any]:
    """Return the task's answer, which may be a refusal."""
    settings = Settings.from_env()
    if settings.embedded:
        from daycap.cli import local  # noqa: PLC0415  (slow to import)

        if local.is_possible(settings):
            return local.answer_of(settings, task, **kwargs)
    if not settings.broker_url:
        raise NoWorker("set DAYCAP_BROKER_URL, for example redis://127.0.0.1:6379/1")
    app = operator_app()
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
        # A task that no worker takes in time is dropped: what the command reports as failed must not happen later.
        sent = app.send_task(task, kwargs=kwargs, expires=timeout_s, retry=False, ignore_result=False)
        answer: dict[str, Any] = _wait(sent, timeout_s)
    except NoAnswer:
        raise NoWorker(
            f"no worker answered within {timeout_s:g} s; is one running (celery -A worker worker), "
            "and has its host the same time as this one?"
        ) from None
    except (OperationalError, ConnectionError, OSError) as error:
        raise NoWorker(f"the broker of DAYCAP_BROKER_URL did not answer: {error}") from error
    except DaycapError:
        raise
    except Exception as error:
        raise click.ClickException(f"the worker failed at {task}: {type(error).__name__}: {error}") from error
    return answer


@functools.cache
def operator_app() -> Celery:
    """Return the Celery app that sends tasks to workers and waits for their answers."""
    ignore_celery_variables(os.environ)
    url = Settings.from_env().broker_url
    return producer_app(
        "daycap-operator", url, (CONTROL_QUEUE,), task_default_queue=CONTROL_QUEUE, **result_settings(url)
    )


def _wait(sent: AsyncResult[Any], timeout_s: float) -> Any:
    """Poll for the result: a subscription would end when the broker restarts."""
    end = time.monotonic() + timeout_s
    pause_s = 0.005
    while not sent.ready():
        if time.monotonic() > end:
            raise NoAnswer
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.1)
    return sent.get(timeout=1)
