from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.wanmetal.comfyui.plugins.filter.filters import FilterModule

mirror = FilterModule().filters()["mirror"]
COMFYUI = "https://github.com/comfyanonymous/ComfyUI.git"


def entry(prefix: str, replacement: str) -> dict[str, str]:
    return {"prefix": prefix, "replacement": replacement}


@pytest.mark.parametrize(
    ("url", "mirrors", "expected"),
    [
        (COMFYUI, [], COMFYUI),
        (COMFYUI, [entry("https://example.org/", "http://m/")], COMFYUI),
        (COMFYUI, [entry("https://github.com/", "http://m/gh/")], "http://m/gh/comfyanonymous/ComfyUI.git"),
        (COMFYUI, [entry("https://github.com", "http://m/gh")], "http://m/gh/comfyanonymous/ComfyUI.git"),
        (COMFYUI, [entry("https://github.com", "http://m/gh/")], "http://m/gh/comfyanonymous/ComfyUI.git"),
        (COMFYUI, [entry("https://github.com/", "http://m/gh")], "http://m/gh/comfyanonymous/ComfyUI.git"),
        (COMFYUI, [entry("https://github.com/", "file:///")], "file:///comfyanonymous/ComfyUI.git"),
        (
            COMFYUI,
            [entry("https://github.com/", "file:///srv/m/")],
            "file:///srv/m/comfyanonymous/ComfyUI.git",
        ),
        (COMFYUI, [entry("https://github.com/comfyanonymous/ComfyUI", "http://m/c")], "http://m/c.git"),
        (COMFYUI, [entry(COMFYUI, "ssh://git@m/c.git")], "ssh://git@m/c.git"),
        (COMFYUI, [entry("https://git", "http://m")], COMFYUI),
        (
            "https://github.community/x",
            [entry("https://github.com", "http://m")],
            "https://github.community/x",
        ),
        ("http://h:80801/x", [entry("http://h:8080", "http://m")], "http://h:80801/x"),
        ("file:///a/b", [entry("file:///a/", "http://m/")], "http://m/b"),
    ],
)
def test_rewrite(url: str, mirrors: list[dict[str, str]], expected: str) -> None:
    assert mirror(url, mirrors) == expected


def test_the_first_entry_that_fits_wins() -> None:
    narrow = entry("https://github.com/comfyanonymous/", "file:///srv/comfy/")
    wide = entry("https://github.com/", "http://m/")
    assert mirror(COMFYUI, [narrow, wide]) == "file:///srv/comfy/ComfyUI.git"
    assert mirror(COMFYUI, [wide, narrow]) == "http://m/comfyanonymous/ComfyUI.git"


def test_a_replaced_url_is_not_replaced_again() -> None:
    mirrors = [entry("https://github.com/", "https://gitlab.com/"), entry("https://gitlab.com/", "http://m/")]
    assert mirror(COMFYUI, mirrors) == "https://gitlab.com/comfyanonymous/ComfyUI.git"


GOOD = entry("https://a/", "https://b/")


@pytest.mark.parametrize(
    ("mirrors", "message"),
    [
        (None, "must be a list"),
        ("https://m/", "must be a list"),
        (GOOD, "must be a list"),
        ([GOOD, "https://m/"], "mirrors[1] must have exactly the keys"),
        (
            [GOOD, {"prefix": "https://a/"}],
            "mirrors[1] must have exactly the keys prefix and replacement, found",
        ),
        ([{**GOOD, "url": "x"}], "found the keys ['prefix', 'replacement', 'url']"),
        ([GOOD, entry("github.com/", "https://b/")], "mirrors[1].prefix must begin with a scheme"),
        ([entry("https://a/", "/srv/mirror")], "mirrors[0].replacement must begin with a scheme"),
        ([entry("", "https://b/")], "mirrors[0].prefix"),
        ([entry("https://", "https://b/")], "mirrors[0].prefix"),
        ([entry("https:///x", "https://b/")], "mirrors[0].prefix"),
        ([{"prefix": "https://a/", "replacement": 3}], "mirrors[0].replacement"),
        ([entry("https://a/", "https://b/c d")], "white space"),
    ],
)
def test_a_bad_entry_is_named(mirrors: object, message: str) -> None:
    with pytest.raises(AnsibleFilterError) as caught:
        mirror("https://elsewhere/", mirrors)
    assert message in str(caught.value)


@pytest.mark.parametrize("replacement", ["https://me:hunter2@m/", "https://hunter2@m/", "ssh://me:hunter2@m/"])
def test_a_password_is_refused_and_not_shown(replacement: str) -> None:
    with pytest.raises(AnsibleFilterError, match="user name or a password") as caught:
        mirror(COMFYUI, [entry("https://a/", replacement)])
    assert "hunter2" not in str(caught.value)
    assert "mirrors[0].replacement" in str(caught.value)


@pytest.mark.parametrize("url", ["", None, 3])
def test_a_bad_url(url: object) -> None:
    with pytest.raises(AnsibleFilterError, match="the URL must be a text"):
        mirror(url, [])
