"""All of Celery's settings. Each one that is not Celery's default says why."""

from __future__ import annotations

from datetime import timedelta

from celery.schedules import crontab

from daycap.delivery.celery import result_settings
from daycap.delivery.queues import own_queue
from daycap.errors import InvalidSetting
from daycap.protocol.wire import CONTROL_QUEUE, FINALIZE_QUEUE, FINALIZE_TASK, OPEN_DAY_TASK, OPEN_QUEUE
from daycap.settings import Settings
from daycap.urls import celery_broker
from worker.queue import held_back_s

try:
    settings = Settings.from_env()
    if not settings.broker_url:
        raise InvalidSetting("set DAYCAP_BROKER_URL, for example redis://127.0.0.1:6379/1")
    _broker = celery_broker(settings.broker_url)
except InvalidSetting as error:
    raise SystemExit(f"daycap: {error}") from None  # Celery prints a page of traceback for any other exception.
_lease_life_s = settings.lease_ttl_seconds + settings.grace_seconds
_on_redis = settings.broker_url.startswith(("redis://", "rediss://"))
_on_amqp = settings.broker_url.startswith(("amqp://", "amqps://", "pyamqp://"))

# --- the broker ---------------------------------------------------------------------------------------------

_broker_timeout_s = 3

broker_url = _broker["broker_url"]
broker_use_ssl = _broker.get("broker_use_ssl", False)
broker_connection_retry_on_startup = True  # A worker that starts before its broker waits for it ...
broker_connection_max_retries = None  # ... and never gives up: a restart by a supervisor would not help.

if _on_redis:
    broker_transport_options = {
        # A killed worker's messages are redelivered after this. Expire and fences wait for them, so it is no longer
        # than a lease's life. A worker rarely holds a message that long: it takes a batch, the wait for a busy ledger
        # and the backoff. If it does, the message is delivered twice, which settle tolerates.
        "visibility_timeout": held_back_s(settings),
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": 10,  # A worker that is killed while it restores messages blocks the others this long.
        # These detect a half-open connection in about ten seconds; without them a worker hangs forever.
        "socket_timeout": _broker_timeout_s,
        "socket_connect_timeout": _broker_timeout_s,
        "socket_keepalive": True,
        "health_check_interval": _broker_timeout_s,
        "polling_interval": 1,
    }
elif _on_amqp:
    broker_transport_options = {
        "confirm_publish": True,  # Otherwise a write to a dead connection is lost without an error.
        "read_timeout": _broker_timeout_s,
        "write_timeout": _broker_timeout_s,  # A broker that is short of memory or disk stops reading from publishers.
    }
    # The messages of a stopped or disconnected worker are redelivered after this, as on Redis.
    broker_heartbeat = held_back_s(settings)
# RabbitMQ 4 refuses queues that are neither durable nor exclusive. An exclusive queue stays locked until RabbitMQ gives
# up a lost connection. These queues are deleted seconds after their last consumer is gone.
control_queue_durable = event_queue_durable = True
control_queue_exclusive = event_queue_exclusive = False

# --- messages -----------------------------------------------------------------------------------------------

task_serializer = result_serializer = "json"
# Never pickle: whoever can write to the queue must not be able to run code.
accept_content = ["json"]
task_queues = [own_queue(name) for name in (FINALIZE_QUEUE, OPEN_QUEUE, CONTROL_QUEUE)]
task_default_queue = CONTROL_QUEUE
task_routes = {FINALIZE_TASK: {"queue": FINALIZE_QUEUE}, OPEN_DAY_TASK: {"queue": OPEN_QUEUE}}

# --- results: only the command line waits for answers ---------------------------------------------------------

globals().update(result_settings(settings.broker_url))  # The same as on the command line.
result_expires = timedelta(minutes=10)  # The command line gives up before that.
task_ignore_result = True  # Nothing waits for finalize's result; the administration tasks override this.

# --- the worker -------------------------------------------------------------------------------------------------

imports = ("tasks.finalize", "tasks.control", "tasks.budgets", "tasks.raises", "tasks.housekeeping")
worker_consumer = "worker.consumer:Consumer"  # Celery's own consumer exits on some broker errors.
worker_pool = "solo"  # Settling is one transaction at a time; a second process would only wait for the lock.
task_acks_late = True  # An event leaves the queue after its commit, never before.
task_reject_on_worker_lost = True  # And it is requeued if the process that holds it dies.
worker_prefetch_multiplier = 200  # Times a pool of one: the messages that one transaction settles (worker/batching.py).
worker_enable_prefetch_count_reduction = False  # A batch that was open when the connection broke is not running.
worker_cancel_long_running_tasks_on_connection_loss = False  # Finish a running commit; P2 makes the repeat harmless.
worker_send_task_events = True  # For Flower.
task_send_sent_event = True
worker_hijack_root_logger = True
worker_proc_alive_timeout = 30

# --- beat: each of these may be late, missed, or sent twice -----------------------------------------------------

timezone = "UTC"
beat_scheduler = "worker.beat:Scheduler"  # In memory: tasks that catch up by themselves need no file of past runs.
beat_max_loop_interval = 20  # It goes round often enough for its /healthz to notice when it no longer does.
_every_s = {
    "rollover": 600.0,
    "adjust_caps": 10.0,  # How much later than its time a raise may end.
    "expire": min(60.0, max(1.0, _lease_life_s / 4)),
    "reconcile": 300.0,
}
beat_schedule = {
    name: {
        "task": f"daycap.{name}",
        "schedule": crontab(minute="*/10") if name == "rollover" else every_s,
        "kwargs": {"every_s": every_s},  # A worker that was down runs each task once, not a day's worth of them.
    }
    for name, every_s in _every_s.items()
}
