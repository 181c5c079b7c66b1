"""How a fork and whatever must not be inherited half done wait for each other."""

from __future__ import annotations

import subprocess
import sys
import textwrap

from tests.processes import ROOT


def says(program: str) -> str:
    """What a program of its own writes: pytest's process has threads that a fork would warn of."""
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)
    assert done.stderr == ""
    return done.stdout


def test_fork_waits_for_what_is_whole() -> None:
    said = says("""
        import os, threading, time
        from daycap.process import whole
        begun, done = threading.Event(), []
        def work():
            with whole:
                begun.set()
                time.sleep(0.3)
                done.append("whole")
        thread = threading.Thread(target=work)
        thread.start()
        begun.wait()
        if os.fork() == 0:
            with whole:
                print(*done, flush=True)
            os._exit(0)
        os.wait()
        thread.join()
        with whole:
            print("again")
    """)

    assert said.split() == ["whole", "again"]


def test_fork_does_not_wait_for_ever() -> None:
    said = says("""
        import os, threading
        from daycap import process
        process._FORK_WAITS_S = 0.1
        begun, end = threading.Event(), threading.Event()
        def work():
            with process.whole:
                begun.set()
                end.wait()
        thread = threading.Thread(target=work)
        thread.start()
        begun.wait()
        if os.fork() == 0:
            with process.whole:
                print("child", flush=True)
            os._exit(0)
        os.wait()
        end.set()
        thread.join()
        with process.whole:
            print("parent")
    """)

    assert said.split() == ["child", "parent"]


def test_forks_are_not_starved() -> None:
    """Given a thread that takes the lock again as soon as it let go of it."""
    said = says("""
        import os, threading, time
        from daycap import process
        end = threading.Event()
        def work():
            while not end.is_set():
                with process.whole:
                    time.sleep(0.002)
        thread = threading.Thread(target=work)
        thread.start()
        begun = time.monotonic()
        for _ in range(20):
            if os.fork() == 0:
                os._exit(0)
            os.wait()
        print(time.monotonic() - begun < process._FORK_WAITS_S)
        end.set()
        thread.join()
    """)

    assert said.strip() == "True"


def test_isolated_interpreter_is_refused() -> None:
    """It has no daemon threads, or cannot import what is written in C: no money is held there."""
    said = says("""
        try:
            import _xxsubinterpreters as interpreters
            its = interpreters.create(isolated=True)
        except ImportError:
            import _interpreters as interpreters
            its = interpreters.create("isolated")
        interpreters.run_string(its, '''
        try:
            import logging
            logging.disable()
            from daycap import Wallet
            Wallet.from_env(caps={"agent-7": 1}, environ={}).reserve("agent-7", 1)
            print("lent")
        except Exception as error:
            print(type(error).__name__)
        '''.replace("        ", "", 9).replace("\\n        ", "\\n"))
    """)

    assert said.strip() in ("BudgetUnavailable", "ImportError")


def test_fork_hook_outlives_a_handlers_exception() -> None:
    """Python drops what an at-fork hook raises: the child would have half of its parent's locks."""
    said = says("""
        import os, signal, sys, threading
        sys.unraisablehook = lambda _: None
        from daycap import process

        class Wallet:
            forgot = 0

            def _end(self, timeout_s):
                pass

            def _forget(self):
                self.forgot += 1
                if self.forgot == 1:
                    signal.raise_signal(signal.SIGTERM)

        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        wallet = Wallet()
        process.watch(wallet)
        if os.fork() == 0:
            free = []
            thread = threading.Thread(target=lambda: free.append(process.whole.lock.acquire(timeout=5)))
            thread.start()
            thread.join()
            os._exit(0 if (wallet.forgot, process.here[0], free) == (2, 1, [True]) else 1)
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
        print("well")
    """)
    assert said.split() == ["well"]


def test_async_wallet_works_in_a_fork_of_an_ending_parent() -> None:
    """Its parent's executor takes no more work, and so does the child's."""
    says("""
        import asyncio, logging, concurrent.futures.thread as pool
        from daycap import AsyncWallet

        logging.disable()
        pool._shutdown = True
        async def main():
            async with AsyncWallet.from_env(caps={"agent-7": 100}) as wallet:
                (await wallet.reserve("agent-7", 60)).finalize(50)
                assert await wallet.flush() == ()
                assert (await wallet.spent("agent-7")).micros == 50

        asyncio.run(main())
    """)
