"""The settings of a server of several models."""

from __future__ import annotations

import pytest

from bei_core.config.settings import Settings
from bei_core.errors import ConfigError


def load(flags: dict[str, object] | None = None, environ: dict[str, str] | None = None) -> Settings:
    return Settings.load(flags or {}, environ or {})


def test_each_model_has_settings_of_its_own() -> None:
    each = load({"models": ["a/b", "n=c/d", "/folder/x=y"], "port": 80}).each()
    assert [(one.model_id, one.served_model_name) for one in each] == [
        ("a/b", None),
        ("c/d", "n"),
        ("/folder/x=y", None),
    ]
    assert {(one.port, one.models) for one in each} == {(80, ())}


def test_one_model_keeps_the_settings_of_the_server() -> None:
    settings = load({"model_id": "a/b", "revision": "v1"})
    assert settings.each() == (settings,)
    (one,) = load({"models": ["n=a/b"], "revision": "v1", "pooling": "cls"}).each()
    assert (one.model_id, one.served_model_name, one.revision, one.pooling) == ("a/b", "n", "v1", "cls")
    assert load({"models": ["a/b"], "served_model_name": "n"}).each()[0].served_model_name == "n"
    assert load().each() == (load(),)


def test_models_come_from_every_source() -> None:
    expected = ("a/b", "n=c/d")
    assert Settings.from_truss_config({"model_metadata": {"bei": {"models": list(expected)}}}).models == expected
    assert load(environ={"BEI_MODELS": '["a/b", "n=c/d"]'}).models == expected
    assert load(environ={"BEI_MODELS": "a/b, n=c/d"}).models == expected
    assert load(environ={"MODELS": "a/b,c/d"}).models == (), "a name that others use too"
    with pytest.raises(ConfigError, match="BEI_MODELS is not JSON"):
        load(environ={"BEI_MODELS": '["a/b"'})


def test_the_stronger_source_says_how_many_models_there_are() -> None:
    environ = {"MODEL_ID": "a/b", "REVISION": "v1"}
    several = load({"models": ["c/d", "e/f"]}, environ)
    assert (several.models, several.model_id, several.revision) == (("c/d", "e/f"), None, None)
    one = load({"model_id": "a/b"}, {"BEI_MODELS": "c/d,e/f"})
    assert (one.models, one.model_id) == ((), "a/b")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"models": ["a/b"], "model_id": "c/d"}, "model_id and models exclude each other"),
        ({"models": ["a/b", "c/d"], "revision": "v1", "pooling": "cls"}, "revision, pooling cannot be set for several"),
        ({"models": ["a/b", "c/d"], "served_model_name": "n"}, "served_model_name cannot be set"),
        ({"models": ["n=a/b", "n=c/d"]}, "models has a name twice: n, n"),
        ({"models": ["a/b", "a/b"]}, "models has a name twice"),
        ({"models": [""]}, "--models is \\[''\\]"),
        ({"models": [3]}, "Expected `str`"),
    ],
)
def test_models_and_settings_that_exclude_each_other_are_refused(flags: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(flags)
