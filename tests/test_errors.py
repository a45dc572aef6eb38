import traceback

import pytest

from genrec import errors

BUILTINS = {
    errors.ConfigError: ValueError,
    errors.DataError: ValueError,
    errors.NotFitted: RuntimeError,
    errors.ArtifactError: OSError,
    errors.FingerprintMismatch: errors.ArtifactError,
    errors.MissingExtra: ImportError,
    errors.TrainingPaused: Exception,
}


@pytest.mark.parametrize(("cls", "builtin"), BUILTINS.items())
def test_each_error_is_ours_and_the_builtin_one(cls, builtin):
    error = cls("expected 3, got 4")
    assert isinstance(error, errors.GenrecError)
    assert isinstance(error, builtin)
    assert str(error) == "expected 3, got 4"
    assert error.hint is None
    assert not hasattr(error, "__notes__")


@pytest.mark.parametrize("cls", BUILTINS)
def test_the_hint_is_in_the_traceback_but_not_in_the_message(cls):
    try:
        raise cls("wrong", hint="do that")
    except errors.GenrecError as error:
        assert str(error) == "wrong"
        assert error.hint == "do that"
        assert "hint: do that" in "".join(traceback.format_exception(error))


def test_every_error_class_is_covered_here():
    ours = {v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, errors.GenrecError)}
    assert ours - {errors.GenrecError} == set(BUILTINS)


def test_require_returns_the_module_or_names_the_extra():
    assert errors.require("json", "none").loads("3") == 3
    with pytest.raises(errors.MissingExtra, match="no_such_module_here") as caught:
        errors.require("no_such_module_here", "plots")
    assert "genrec[plots]" in caught.value.hint
