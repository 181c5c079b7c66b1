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
    raise SystemExit(f"daycap: {error}") from None  # What Celery makes of any other exception is a page of traceback.
_lease_life_s = settings.lease_ttl_seconds + settings.grace_seconds
_on_redis = settings.broker_url.startswith(("redis://", "rediss://"))
_on_amqp = settings.broker_url.startswith(("amqp://", "amqps://", "pyamqp://"))

# --- the broker ---------------------------------------------------------------------------------------------

_broker_timeout_s = 3

broker_url = _broker["broker_url"]
broker_use_ssl = _broker.get("broker_use_ssl", False)
broker_connection_retry_on_startup = True  # A worker that starts before its broker waits for it ...
broker_connection_max_retries = None  # ... and never gives up: a supervisor has nothing better to offer.

if _on_redis:
    broker_transport_options = {
        # What a killed worker had comes back after this, and until then expire and fences wait for it: not longer than
        # its runners' leases live. A worker hardly ever has a message for as long: a batch, the wait for a busy ledger
        # and the backoff. If it does, the message is delivered twice, which settle bears.
        "visibility_timeout": held_back_s(settings),
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": 10,  # A worker that is killed while it brings messages back holds up the others.
        # A half-open connection is noticed in about ten seconds; without these a worker hangs for ever.
        "socket_timeout": _broker_timeout_s,
        "socket_connect_timeout": _broker_timeout_s,
        "socket_keepalive": True,
        "health_check_interval": _broker_timeout_s,
        "polling_interval": 1,
    }
elif _on_amqp:
    broker_transport_options = {
        "confirm_publish": True,  # What is written to a connection that is gone would be lost without an error.
        "read_timeout": _broker_timeout_s,
        "write_timeout": _broker_timeout_s,  # A broker that is short of memory or disk reads nothing from publishers.
    }
    # A worker that is stopped or cut off loses what it has after this, as on Redis.
    broker_heartbeat = held_back_s(settings)
# RabbitMQ 4 refuses queues that are neither durable nor exclusive; an exclusive one is locked until a connection that
# was cut off is given up. These go some seconds after the last one who listens.
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

globals().update(result_settings(settings.broker_url))  # As the command line has them.
result_expires = timedelta(minutes=10)  # Nobody waits longer.
task_ignore_result = True  # Finalize has no one who waits; the tasks of administration say otherwise.

# --- the worker -------------------------------------------------------------------------------------------------

imports = ("tasks.finalize", "tasks.control", "tasks.housekeeping")
worker_consumer = "worker.consumer:Consumer"  # Stock workers end at what a broker says when it is in trouble.
worker_pool = "solo"  # Settling is one transaction at a time; a second process would only wait for the lock.
task_acks_late = True  # An event leaves the queue after its commit, never before.
task_reject_on_worker_lost = True  # And goes back into it when the process that held it is gone.
worker_prefetch_multiplier = 200  # Of a pool of one: as many messages as one transaction settles (worker/batching.py).
worker_enable_prefetch_count_reduction = False  # What was gathered before a connection was lost runs nowhere.
worker_cancel_long_running_tasks_on_connection_loss = False  # A commit under way is finished; P2 bears the repeat.
worker_send_task_events = True  # Flower shows what happens.
task_send_sent_event = True
worker_hijack_root_logger = True
worker_proc_alive_timeout = 30

# --- beat: each of these may be late, missed, or sent twice -----------------------------------------------------

timezone = "UTC"
beat_scheduler = "celery.beat:Scheduler"  # In memory: a file of past runs is of no use to tasks that catch up.
_every_s = {"rollover": 600.0, "expire": min(60.0, max(1.0, _lease_life_s / 4)), "reconcile": 300.0}
beat_schedule = {
    name: {
        "task": f"daycap.{name}",
        "schedule": crontab(minute="*/10") if name == "rollover" else every_s,
        "kwargs": {"every_s": every_s},  # A worker that comes back does one of each, not a day's worth.
    }
    for name, every_s in _every_s.items()
}
