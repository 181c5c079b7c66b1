"""The wallet: leases, holds, and the sync and async classes that reserve them."""
