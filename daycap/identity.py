"""An agent's identity: its anchor, and the token-bound account that belongs to it (ERC-6551).

Computing an address needs Keccak (`pip install "daycap[identity]"`).
"""

from __future__ import annotations

import re

from daycap.errors import InvalidInput, InvalidSetting
from daycap.formats import shown

REGISTRY = "0x000000006551c19487814612e58FE06813775758"
"""The registry of ERC-6551, at the same address on every chain."""

MAX_ANCHOR_CHARACTERS = 256

_ADDRESS = re.compile(r"0x[0-9A-Fa-f]{40}", re.ASCII)
_UINT256 = 2**256
_PROXY = bytes.fromhex("3d60ad80600a3d3981f3363d3d373d3d3d363d73"), bytes.fromhex("5af43d82803e903d91602b57fd5bf3")
"""What ERC-6551 puts before and after the implementation's address: a minimal proxy with 128 bytes of data."""


def identity_anchor(value: object) -> str:
    """Return `value` if it is a valid anchor: 1..256 printable characters, without leading or trailing space.

    Anchors are compared byte for byte as UTF-8: two that look alike but differ in a byte are different anchors.
    Raises `InvalidInput`.
    """
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_ANCHOR_CHARACTERS:
        raise InvalidInput(f"not an identity anchor (1..{MAX_ANCHOR_CHARACTERS} characters): {shown(value, 160)}")
    # Excludes control characters, invisible ones, and lone surrogates, which have no UTF-8.
    if not value.isprintable() or value.strip() != value:
        raise InvalidInput(
            f"an identity anchor takes printable characters, without leading or trailing space: {shown(value, 160)}"
        )
    return value


def salt_of(anchor: str) -> bytes:
    """Return the salt of an identity anchor: keccak-256 of its UTF-8, 32 bytes. Raises `InvalidInput`."""
    return _keccak(identity_anchor(anchor).encode())


def account_address(
    *,
    implementation: str,
    salt: bytes,
    chain_id: int,
    token_contract: str,
    token_id: int,
    registry: str = REGISTRY,
) -> str:
    """Return the address of the account that ERC-6551's `registry` creates for a token, with its EIP-55 checksum.

    Addresses are `0x` and 40 hex digits; in mixed case, the EIP-55 checksum must be right. `salt` is 32 bytes.
    `chain_id` and `token_id` are from 0 to 2**256 - 1. Raises `InvalidInput` that names the invalid argument.
    """
    before, after = _PROXY
    salt = _bytes32("salt", salt)
    init_code = (
        before
        + _address("implementation", implementation)
        + after
        + salt
        + _uint256("chain_id", chain_id)
        + _address("token_contract", token_contract).rjust(32, b"\0")
        + _uint256("token_id", token_id)
    )
    return checksummed(_create2(_address("registry", registry), salt, init_code))


def checksummed(address: bytes) -> str:
    """Format 20 bytes as an address with EIP-55's checksum: a letter is upper case if the hash's digit is 8 or more."""
    digits = address.hex()
    pairs = zip(digits, _keccak(digits.encode()).hex(), strict=False)
    return "0x" + "".join(digit.upper() if check >= "8" else digit for digit, check in pairs)


def _create2(deployer: bytes, salt: bytes, init_code: bytes) -> bytes:
    """Return the address at which CREATE2 puts a contract (EIP-1014)."""
    return _keccak(b"\xff" + deployer + salt + _keccak(init_code))[12:]


def _address(name: str, value: object) -> bytes:
    if not isinstance(value, str) or not _ADDRESS.fullmatch(value):
        raise InvalidInput(f"{name} is not an address (0x and 40 hex digits): {shown(value, 80)}")
    digits = value.removeprefix("0x")
    address = bytes.fromhex(digits)
    if digits not in (digits.lower(), digits.upper()) and value != checksummed(address):
        raise InvalidInput(f"{name} has a wrong checksum; check it for typos: {value}")
    return address


def _bytes32(name: str, value: object) -> bytes:
    if not isinstance(value, bytes) or len(value) != 32:
        raise InvalidInput(f"{name} is not 32 bytes: {shown(value, 80)}")
    return value


def _uint256(name: str, value: object) -> bytes:
    if type(value) is not int or not 0 <= value < _UINT256:
        raise InvalidInput(f"{name} is not an int from 0 to 2**256 - 1: {shown(value, 80)}")
    return value.to_bytes(32, "big")


def _keccak(data: bytes) -> bytes:
    """Hash with Ethereum's Keccak-256. hashlib's SHA3-256 pads differently and gives another hash."""
    try:
        from Crypto.Hash import keccak  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise InvalidSetting('addresses need Keccak: pip install "daycap[identity]"') from error
    return keccak.new(digest_bits=256, data=data).digest()
