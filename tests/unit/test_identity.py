"""Addresses of token-bound accounts are those that others publish; what is not an address or an anchor is refused."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daycap.errors import InvalidInput, InvalidSetting
from daycap.identity import (
    MAX_ANCHOR_CHARACTERS,
    REGISTRY,
    _create2,
    account_address,
    checksummed,
    identity_anchor,
    salt_of,
)

NO_SALT = bytes(32)

# The test values of ERC-55.
CHECKSUMMED = [
    "0x52908400098527886E0F7030069857D2E4169EE7",
    "0x8617E340B3D01FA5F11F306F4090FD50E238070D",
    "0xde709f2102306220921060314715629080e2fb77",
    "0x27b1fdb04752bbc536007a920d24acb045561c26",
    "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
    "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
    "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
    "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
]

# Examples 0 to 6 of EIP-1014: deployer, salt, init code, address.
CREATED = [
    ("00" * 20, "00" * 32, "00", "0x4D1A2e2bB4F88F0250f26Ffff098B0b30B26BF38"),
    ("deadbeef" + "00" * 16, "00" * 32, "00", "0xB928f69Bb1D91Cd65274e3c79d8986362984fDA3"),
    ("deadbeef" + "00" * 16, "00" * 12 + "feed" + "00" * 18, "00", "0xD04116cDd17beBE565EB2422F2497E06cC1C9833"),
    ("00" * 20, "00" * 32, "deadbeef", "0x70f2b2914A2a4b783FaEFb75f459A580616Fcb5e"),
    ("00" * 16 + "deadbeef", "00" * 28 + "cafebabe", "deadbeef", "0x60f3f640a8508fC6a86d45DF051962668E1e8AC7"),
    ("00" * 16 + "deadbeef", "00" * 28 + "cafebabe", "deadbeef" * 11, "0x1d8bfDC5D46DC4f61D6b6115972536eBE6A8854C"),
    ("00" * 20, "00" * 32, "", "0xE33C0C7F7df4809055C3ebA6c09CFe4BaF1BD9e0"),
]

_TOKENBOUND_V2 = "0x02101dfB77FDE026414827Fdc604ddAF224F0921"
"""The registry of ERC-6551 before the one that all chains share; it makes accounts of the same code."""

# Registry, implementation, salt, chain id, token contract, token id, account. The first is that of Looper 3802 on Base,
# as its collection's design of wallet activation pins it (2026-09-20), read from the chain; the others are what the
# tests of github.com/tokenbound/sdk expect (packages/sdk/src/test/config/base.ts), on Goerli.
ACCOUNTS = [
    (
        REGISTRY,
        "0x1e3787bC9B2E6D7763de1DcCF10E9d062f3b43bF",
        bytes.fromhex("ff28549509272e76f1d1c6ef7d6976d848c5ff6cb5068b2183c8d52f4cbe2bee"),
        8453,
        "0x1649CD37f4748807b4882FC48765bA0B2aFfa94a",
        3802,
        "0x88a30C57f5780F1a8112E6b486b5bFBe89Ac9a38",
    ),
    *(
        (_TOKENBOUND_V2, implementation, NO_SALT, 5, contract, token, account)
        for implementation, contract, token, account in (
            (
                "0x2D25602551487C3f3354dD80D76D54383A243358",
                "0x7a77F2cFB02546F217d39157471d5B5914DD7644",
                1,
                "0x5194b1c04Ed6464b3225324d6794f7d2698D8d1c",
            ),
            (
                "0x2D25602551487C3f3354dD80D76D54383A243358",
                "0x26c55c8D83d657b2FC1dF497f0C991e3612bc6B2",
                0,
                "0x33D622b211C399912eC0feaaf1caFD01AFA53980",
            ),
            (
                "0x2D25602551487C3f3354dD80D76D54383A243358",
                "0x26c55c8D83d657b2FC1dF497f0C991e3612bc6B2",
                1,
                "0xBEa4715752F2434cFE64209C26CD33B64D0cD138",
            ),
            (
                "0x276870d7908A8EE6828C71c5F461fE0C5FA9360e",
                "0x7a77F2cFB02546F217d39157471d5B5914DD7644",
                1,
                "0x4908e0E6EEe76E2975b85aD763d184FE16fEd2B8",
            ),
            (
                "0x9FefE8a875E7a9b0574751E191a2AF205828dEA4",
                "0x7a77F2cFB02546F217d39157471d5B5914DD7644",
                1,
                "0x00f964768A74d61B968514013e1Fb2bf35cC3836",
            ),
        )
    ),
]

GOOD: dict[str, Any] = {
    "implementation": "0x2D25602551487C3f3354dD80D76D54383A243358",
    "salt": NO_SALT,
    "chain_id": 1,
    "token_contract": "0x7a77F2cFB02546F217d39157471d5B5914DD7644",
    "token_id": 1,
}


@pytest.mark.parametrize("address", CHECKSUMMED)
def test_checksums_are_those_of_erc_55(address: str) -> None:
    assert checksummed(bytes.fromhex(address[2:])) == address


@pytest.mark.parametrize(("deployer", "salt", "init_code", "address"), CREATED)
def test_create2_puts_contracts_where_eip_1014_says(deployer: str, salt: str, init_code: str, address: str) -> None:
    parts = (bytes.fromhex(each) for each in (deployer, salt, init_code))
    assert checksummed(_create2(*parts)) == address


@pytest.mark.parametrize(("registry", "implementation", "salt", "chain", "contract", "token", "account"), ACCOUNTS)
def test_accounts_are_where_others_found_them(
    registry: str, implementation: str, salt: bytes, chain: int, contract: str, token: int, account: str
) -> None:
    derived = account_address(
        registry=registry,
        implementation=implementation,
        salt=salt,
        chain_id=chain,
        token_contract=contract,
        token_id=token,
    )
    assert derived == account


def test_a_salt_is_the_keccak_of_the_anchors_utf_8() -> None:
    # Hashes that every Keccak-256 is tried with; SHA3-256 gives others.
    assert salt_of("hello").hex() == "1c8aff950685c2ed4bc3174f3472287b56d9517b9c948127319a09a7a36deac8"
    assert salt_of("abc").hex() == "4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45"
    # And nothing is normalised: the same letter, composed and not, is two anchors.
    assert salt_of("caf\u00e9") != salt_of("cafe\u0301")


ANCHORS = st.text(min_size=1, max_size=MAX_ANCHOR_CHARACTERS).filter(lambda s: s.isprintable() and s.strip() == s)


@given(st.lists(ANCHORS, min_size=2, max_size=6, unique=True))
def test_two_anchors_never_give_one_address(anchors: list[str]) -> None:
    salts = [salt_of(anchor) for anchor in anchors]
    assert len({*salts}) == len(anchors)
    assert len({account_address(**{**GOOD, "salt": salt}) for salt in salts}) == len(anchors)


_UINT = st.integers(0, 2**256 - 1)
_BYTES20 = st.binary(min_size=20, max_size=20).map(lambda b: "0x" + b.hex())


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "registry": _BYTES20,
                "implementation": _BYTES20,
                "salt": st.binary(min_size=32, max_size=32),
                "chain_id": _UINT,
                "token_contract": _BYTES20,
                "token_id": _UINT,
            }
        ),
        min_size=2,
        max_size=2,
    ),
    st.sampled_from(["registry", "implementation", "salt", "chain_id", "token_contract", "token_id"]),
)
def test_every_input_counts(two: list[dict[str, Any]], name: str) -> None:
    one, other = two[0], {**two[0], name: two[1][name]}
    assert (account_address(**one) == account_address(**other)) == (one == other)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("implementation", "0x2d25602551487C3f3354dD80D76D54383A243358", "checksum"),  # One letter's case is wrong.
        ("implementation", "2D25602551487C3f3354dD80D76D54383A243358", "0x and 40 hex"),
        ("implementation", "0X2D25602551487C3f3354dD80D76D54383A243358", "0x and 40 hex"),
        ("implementation", "0x2D25602551487C3f3354dD80D76D54383A24335", "0x and 40 hex"),
        ("implementation", "0x2D25602551487C3f3354dD80D76D54383A24335\n", "0x and 40 hex"),
        ("token_contract", "0x" + "\u0661" * 40, "0x and 40 hex"),
        ("token_contract", b"\0" * 20, "0x and 40 hex"),
        ("registry", None, "0x and 40 hex"),
        ("salt", b"\0" * 31, "32 bytes"),
        ("salt", "00" * 16, "32 bytes"),
        ("chain_id", -1, r"2\*\*256 - 1"),
        ("chain_id", True, r"2\*\*256 - 1"),
        ("token_id", 2**256, r"2\*\*256 - 1"),
        ("token_id", "1", r"2\*\*256 - 1"),
        ("token_id", 1.0, r"2\*\*256 - 1"),
    ],
)
def test_what_is_not_of_the_form_is_refused_by_name(name: str, value: object, said: str) -> None:
    with pytest.raises(InvalidInput, match=f"{name} .*{said}"):
        account_address(**{**GOOD, name: value})


def test_an_address_in_one_case_needs_no_checksum() -> None:
    lower, upper = GOOD["implementation"].lower(), "0x" + GOOD["implementation"][2:].upper()
    assert account_address(**{**GOOD, "implementation": lower}) == account_address(**GOOD)
    assert account_address(**{**GOOD, "implementation": upper}) == account_address(**GOOD)
    assert account_address(**{**GOOD, "token_id": 2**256 - 1, "chain_id": 0})


@pytest.mark.parametrize(
    "value", ["", "a" * 257, " a", "a ", "a\n", "a\0b", "a\u200bb", "a\u00a0b", "\ud800", "a\x7f", None, 7, b"anchor"]
)
def test_what_cannot_be_an_anchor_is_refused(value: object) -> None:
    with pytest.raises(InvalidInput, match="identity anchor"):
        identity_anchor(value)


@pytest.mark.parametrize(
    "value", ["a", "a" * 256, "did:web:example.com#agent-7", "Agent 7 of caf\u00e9", "\u4ee3\u7406"]
)
def test_what_is_printable_can_be_an_anchor(value: str) -> None:
    assert identity_anchor(value) == value


def test_without_the_extra_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "Crypto.Hash", None)
    with pytest.raises(InvalidSetting, match=r"daycap\[identity\]"):
        salt_of("agent-7")
    assert identity_anchor("agent-7") == "agent-7"
