"""The environment of worker, beat, Flower and command line: `DAYCAP_...` decides, and no other program's settings."""

from __future__ import annotations

from collections.abc import MutableMapping

import click
from click.core import ParameterSource

from daycap.delivery.celery import ignore_celery_variables
from daycap.settings import Settings

_MOVES_FLOWER = ("FLOWER_BROKER_API", "FLOWER_CONF")
"""What would have Flower show another broker. All else in FLOWER_... is welcome: a password, certificates."""

_MOVES_CELERY = ("broker", "result_backend", "loader", "config")


def make_own(environ: MutableMapping[str, str], settings: Settings) -> None:
    """Drop what Celery would prefer to daycap's settings, and tell Flower where to listen.

    Celery takes broker, results, loader, and every option of its commands from CELERY_...; on a host of a Django or
    Airflow project those are that project's. Flower takes its port from FLOWER_PORT, which Kubernetes sets for a
    service called `flower`.
    """
    ignore_celery_variables(environ)
    for name in _MOVES_FLOWER:
        environ.pop(name, None)
    environ["FLOWER_ADDRESS"] = settings.flower_address
    environ["FLOWER_PORT"] = str(settings.flower_port)


def refuse_options() -> None:
    """End a `celery` command whose options ask for another broker than daycap's: they would be ignored."""
    context = click.get_current_context(silent=True)
    for name in _MOVES_CELERY:
        if context is not None and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = f"--{name.replace('_', '-')}"
            raise SystemExit(f"daycap: celery's {option} is not supported; set DAYCAP_BROKER_URL instead")
