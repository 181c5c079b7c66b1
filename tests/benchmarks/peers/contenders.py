"""Who takes part, which packages each needs, and in which mode it runs. docs/peers.md says more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Contender:
    """`adapter` is a script of this directory; without `requirements` it runs in this project's own environment.
    `overrides` are for requirements of its own that the registry does not have. `variables` are set for its processes,
    `options` told to them before each round."""

    name: str
    adapter: str
    requirements: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def processes(self) -> tuple[object, ...]:
        """Contenders for whom this is the same share their processes."""
        return self.adapter, self.variables


_REDIS = ("redis", "hiredis")
_LIMITS = ("limits[redis]==5.8.0", "hiredis")
_LITELLM = ("litellm[proxy]>=1.109,<1.110", *_REDIS)
_EXTRAS = ("litellm-proxy-extras>=0.4",)  # Only its database migrations, which are not used here.
_NO_NET = (("LITELLM_LOCAL_MODEL_COST_MAP", "True"),)  # Else it asks the net for prices when it starts.

CONTENDERS = (
    Contender("daycap", "daycap_wallet"),
    Contender("daycap, 3 s leases", "daycap_wallet", variables=(("DAYCAP_LEASE_TTL_SECONDS", "3"),)),
    Contender("Lua script", "lua_script"),
    Contender("tokencap", "tokencap_stream", ("tokencap==0.2.0", *_REDIS)),
    Contender("EscrowMint", "escrowmint_direct", ("escrowmint==0.5.0", "hiredis")),
    Contender("limits, fixed window", "limits_window", _LIMITS, options={"strategy": "fixed-window"}),
    Contender("limits, moving window", "limits_window", _LIMITS, options={"strategy": "moving-window"}),
    Contender("litellm", "litellm_proxy", _LITELLM, _EXTRAS, _NO_NET, {"fail_closed": False}),
    Contender("litellm, fail closed", "litellm_proxy", _LITELLM, _EXTRAS, _NO_NET, {"fail_closed": True}),
    Contender("interlock-agentgov", "agentgov_fleet", ("interlock-agentgov[postgres]==1.0.1",)),
)
