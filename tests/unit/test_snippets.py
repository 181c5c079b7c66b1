"""Every Python snippet of the README and of docs/ runs, page by page, with a client that answers without a network."""

from __future__ import annotations

import asyncio
import inspect
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from types import CodeType, FrameType, SimpleNamespace
from typing import Any

import pytest

from daycap import AsyncWallet, Wallet, usd

ROOT = Path(__file__).resolve().parents[2]
USAGE = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
ANSWER = SimpleNamespace(cost=Decimal("0.0312"), usage=USAGE, text="hi")


class Client:
    """A provider's client, as the pages call it: each answer costs $0.0312."""

    chat = SimpleNamespace(completions=SimpleNamespace(create=lambda **_: ANSWER))

    def complete(self, _: str) -> SimpleNamespace:
        return ANSWER

    async def acomplete(self, _: object) -> SimpleNamespace:
        return ANSWER

    def stream(self, _: str) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(text="hi", usage=None)
        yield SimpleNamespace(text="", usage=USAGE)


Names = dict[str, Any]


def embed(page: Names) -> None:
    assert page["call"]("?") is ANSWER
    assert page["complete"]("?") is ANSWER


def fastapi(page: Names) -> None:
    from fastapi.testclient import TestClient

    with TestClient(page["app"]) as client:
        assert client.post("/agents/agent-7/ask", content="?").json() == {"answer": "hi"}
        assert client.post("/agents/nobody/ask").status_code == 402
        asyncio.run(client.app.state.wallet.close())  # type: ignore[attr-defined]
        assert client.post("/agents/agent-7/ask").status_code == 503


def litellm(page: Names) -> None:
    asked = page["ask"]([{"role": "user", "content": "?"}], mock_response="hi")
    assert asked.choices[0].message.content == "hi"


def prices(page: Names) -> None:
    assert page["chat"]([], 100) is ANSWER


CHECKS: Mapping[str, Callable[[Names], None]] = {
    "docs/how-to/embed.md": embed,
    "docs/how-to/fastapi.md": fastapi,
    "docs/how-to/litellm.md": litellm,
    "docs/how-to/prices.md": prices,
}
"""What calls the functions that a page defines. A page that leaves one uncalled fails."""

ELSEWHERE = {
    "docs/how-to/processes.md": "tests/integration/processes/test_page.py",  # several processes: needs a server
    "docs/how-to/testing.md": "test_the_tests_of_the_page_pass",
}

EMBEDDED: Mapping[str, tuple[str, ...]] = {
    "README.md": (),
    "docs/how-to/embedded.md": (),
    "docs/how-to/budgets.md": ("agent-7", "agent-8"),
}
"""Pages whose wallet keeps its ledger in a file of its own, and agents that the page adds from the shell."""


def snippets(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.S | re.M)


def pages() -> list[str]:
    found = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    with_code = {str(path.relative_to(ROOT)) for path in found} - ELSEWHERE.keys()
    return sorted(page for page in with_code if snippets(page))


@pytest.mark.filterwarnings("ignore:Item:UserWarning")  # Pydantic, of a type of LiteLLM's with fields to read only.
@pytest.mark.parametrize("page", pages())
def test_snippets_run(page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One after the other, as a reader types them; then the functions that they define are called."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    if page in EMBEDDED:
        monkeypatch.setenv("DAYCAP_LEDGER_URL", f"sqlite:///{tmp_path}/spend.db")
    else:
        caps_in_code(monkeypatch)
    names: Names = {"__name__": page, "client": Client()}
    if "Wallet.from_env(" not in snippets(page)[0]:
        names |= {"wallet": Wallet.from_env(), "usd": usd}
    for agent in EMBEDDED.get(page, ()):
        names["wallet"].add_agent(agent, usd(5))

    with noting_calls() as called:
        for number, each in enumerate(snippets(page)):
            exec(compile(each, f"{page}#{number}", "exec"), names)
        if check := CHECKS.get(page):
            check(names)

    assert [name for name, code in functions(names, page) if code not in called] == [], "defined, but never called"
    if (wallet := names.get("wallet")) is not None:
        assert wallet.close() == ()


def caps_in_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a page reads the environment, give the wallet a cap in memory."""
    for face in (Wallet, AsyncWallet):
        from_env = face.from_env
        monkeypatch.setattr(
            face,
            "from_env",
            lambda from_env=from_env, caps=None, environ=None: from_env(
                caps={"agent-7": usd(1)} if caps is None and environ is None else caps, environ=environ or {}
            ),
        )


@contextmanager
def noting_calls() -> Iterator[set[CodeType]]:
    """Collect the code of each function that is called, in this thread and in those that start meanwhile."""
    called: set[CodeType] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            called.add(frame.f_code)

    sys.setprofile(note)
    threading.setprofile(note)
    try:
        yield called
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def functions(names: Names, page: str) -> Iterator[tuple[str, CodeType]]:
    """The functions that the page defines, decorated ones included."""
    for name, value in names.items():
        code = getattr(inspect.unwrap(value), "__code__", None) if callable(value) else None
        if code is not None and code.co_filename.startswith(page):
            yield name, code


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_of_root_pages_lead_somewhere(page: str) -> None:
    """Those of docs/ are checked when the site is built."""
    links = re.findall(r"\]\(([^)#:]+)[^):]*\)", (ROOT / page).read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_tests_of_the_page_pass(tmp_path: Path) -> None:
    """The page on testing shows tests: pytest runs them, as it would in the reader's project."""
    (tmp_path / "test_page.py").write_text("\n\n".join(snippets("docs/how-to/testing.md")))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:langsmith_plugin"]

    done = subprocess.run(
        [*command, "test_page.py"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )

    assert "3 passed" in done.stdout, done.stdout + done.stderr
