from __future__ import annotations

import pytest
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.openpgp import fingerprints

# A key that was made for this test; its private half is gone.
KEY = """\
-----BEGIN PGP PUBLIC KEY BLOCK-----

mDMEawLU/BYJKwYBBAHaRw8BAQdA/Rs635m0kks5GDP49E+PANT2oJTAAScnQWnf
0W3awTa0FU90aGVyIDxvQGV4YW1wbGUuY29tPoiQBBMWCAA4FiEE2okEheV+wLbi
3PYe7r/TsQ9XQjgFAmsC1PwCGwMFCwkIBwIGFQoJCAsCBBYCAwECHgECF4AACgkQ
7r/TsQ9XQjiXugD/WV5v6/ExZDnjDq9NiId2kGnhBeJn8qRkN6UE7nOaZrsBALq0
3Ta4zPm/t+xtAGfvpZZ8cDL6kDWh6LQ8SHIRpv0L
=gi1+
-----END PGP PUBLIC KEY BLOCK-----
"""
FINGERPRINT = "DA890485E57EC0B6E2DCF61EEEBFD3B10F574238"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (KEY, [FINGERPRINT]),
        (KEY.replace("\n", "\r\n"), [FINGERPRINT]),
        (KEY.replace("BLOCK-----\n\n", "BLOCK-----\nVersion: GnuPG v2\nComment: x\n\n", 1), [FINGERPRINT]),
        (f"words before\n{KEY}{KEY}", [FINGERPRINT, FINGERPRINT]),
        ("", []),
        ("<html>no such file</html>", []),
        (KEY.replace("\n\n", "\n\nAAAA", 1), []),
        ("\n".join(KEY.splitlines()[:3] + KEY.splitlines()[-1:]), []),
    ],
)
def test_fingerprints(text: str, expected: list[str]) -> None:
    assert fingerprints(text) == expected


def test_a_changed_key_has_another_fingerprint() -> None:
    line = KEY.splitlines()[3]
    changed = KEY.replace(line, line.swapcase(), 1)
    assert fingerprints(changed) != [FINGERPRINT]
