"""The wallet: leases, holds, and the two faces that reserve them."""
