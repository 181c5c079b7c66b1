"""All of Celery's settings. Each one that is not Celery's default says why."""

from __future__ import annotations

from datetime import timedelta

from celery.schedules import crontab
from kombu import Exchange, Queue

from daycap.errors import InvalidSetting
from daycap.settings import Settings
from daycap.urls import celery_broker
from daycap.wire import CONTROL_QUEUE, FINALIZE_QUEUE, FINALIZE_TASK, OPEN_DAY_TASK, OPEN_QUEUE

try:
    settings = Settings.from_env()
    if not settings.broker_url:
        raise InvalidSetting("set DAYCAP_BROKER_URL, for example redis://127.0.0.1:6379/1")
    _broker = celery_broker(settings.broker_url)
except InvalidSetting as error:
    raise SystemExit(f"daycap: {error}") from None  # What Celery makes of any other exception is a page of traceback.
_lease_life_s = settings.lease_ttl_seconds + settings.grace_seconds
_on_redis = settings.broker_url.startswith(("redis://", "rediss://"))

# --- the broker ---------------------------------------------------------------------------------------------

_broker_timeout_s = 3

broker_url = _broker["broker_url"]
broker_use_ssl = _broker.get("broker_use_ssl", False)
broker_connection_retry_on_startup = True  # A worker that starts before its broker waits for it ...
broker_connection_max_retries = None  # ... and never gives up: a supervisor has nothing better to offer.

if _on_redis:
    broker_transport = "worker.broker:RedisTransport"  # Stock workers end at a malformed message, or at a restart.
    broker_transport_options = {
        # What a killed worker had comes back after this, and until then expire and fences wait for it: not longer than
        # its runners' leases live. A worker hardly ever has a message for as long: a batch, the wait for a busy ledger
        # and the backoff. If it does, the message is delivered twice, which settle bears.
        "visibility_timeout": min(30, max(5, round(_lease_life_s))),
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
elif broker_url.startswith(("amqp://", "amqps://", "pyamqp://")):
    broker_transport = "worker.broker:AmqpTransport"

# --- messages -----------------------------------------------------------------------------------------------

task_serializer = result_serializer = "json"
# Never pickle: whoever can write to the queue, or to the results, must not be able to run code.
accept_content = result_accept_content = ["json"]
# Each bound to an exchange of its own name, as a runner's Celery declares it too; by default all would share one.
task_queues = [Queue(name, Exchange(name), name) for name in (FINALIZE_QUEUE, OPEN_QUEUE, CONTROL_QUEUE)]
task_default_queue = CONTROL_QUEUE
task_routes = {FINALIZE_TASK: {"queue": FINALIZE_QUEUE}, OPEN_DAY_TASK: {"queue": OPEN_QUEUE}}

# --- results: only the command line waits for answers ---------------------------------------------------------

result_backend = broker_url if _on_redis else "rpc://"
redis_backend_use_ssl = broker_use_ssl
redis_socket_timeout = redis_socket_connect_timeout = _broker_timeout_s  # Else 120 s on a half-open connection.
result_expires = timedelta(minutes=10)  # Nobody waits longer.
task_ignore_result = True  # Finalize has no one who waits; the tasks of administration say otherwise.

# --- the worker -------------------------------------------------------------------------------------------------

imports = ("tasks.finalize", "tasks.control", "tasks.housekeeping")
worker_pool = "solo"  # Settling is one transaction at a time; a second process would only wait for the lock.
task_acks_late = True  # An event leaves the queue after its commit, never before.
task_reject_on_worker_lost = True  # And goes back into it when the process that held it is gone.
worker_prefetch_multiplier = 200  # Of a pool of one: as many messages as one transaction settles (worker/gather.py).
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
