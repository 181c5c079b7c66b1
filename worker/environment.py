"""The environment of worker, beat, Flower and command line: only `DAYCAP_...` variables configure them."""

from __future__ import annotations

from collections.abc import MutableMapping

import click
from click.core import ParameterSource

from daycap.delivery.celery import ignore_celery_variables
from daycap.settings import Settings

_MOVES_FLOWER = ("FLOWER_BROKER_API", "FLOWER_CONF")
"""Variables that make Flower show another broker. Other FLOWER_... variables, such as a password, are kept."""

_MOVES_CELERY = ("broker", "result_backend", "loader", "config")


def apply(environ: MutableMapping[str, str], settings: Settings) -> None:
    """Remove the variables that would override daycap's settings, and set Flower's address and port.

    Celery reads its broker, result backend, loader and every command option from CELERY_... variables. On a host that
    also runs a Django or Airflow project they belong to that project. Flower reads its port from FLOWER_PORT, which
    Kubernetes sets for a service called `flower`.
    """
    ignore_celery_variables(environ)
    for name in _MOVES_FLOWER:
        environ.pop(name, None)
    environ["FLOWER_ADDRESS"] = settings.flower_address
    environ["FLOWER_PORT"] = str(settings.flower_port)


def refuse_options() -> None:
    """Exit if the `celery` command has an option, such as --broker, that daycap's settings would silently override."""
    context = click.get_current_context(silent=True)
    for name in _MOVES_CELERY:
        if context is not None and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = f"--{name.replace('_', '-')}"
            raise SystemExit(f"daycap: celery's {option} is not supported; set DAYCAP_BROKER_URL instead")
