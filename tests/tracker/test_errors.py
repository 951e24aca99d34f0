import inspect
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracker import errors
from tracker.errors import NeuronScopeError, StorageError, UnknownLayerError, nearest

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, NeuronScopeError)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_reads_as_what_happened_and_what_to_do(kind: type[NeuronScopeError]) -> None:
    error = kind("Sparsity is 1.5.", hint="Give a number from 0 to 1.")
    assert str(error) == "Sparsity is 1.5. Give a number from 0 to 1."
    assert (error.what, error.hint) == ("Sparsity is 1.5.", "Give a number from 0 to 1.")
    assert str(kind("Nothing to add.")) == "Nothing to add."


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_survives_a_trip_between_processes(kind: type[NeuronScopeError]) -> None:
    error = pickle.loads(pickle.dumps(kind("what", hint="hint")))  # noqa: S301 (our own bytes)
    assert type(error) is kind
    assert (error.what, error.hint, str(error)) == ("what", "hint", "what hint")


def test_codes_tell_the_kinds_apart() -> None:
    codes = [kind.code for kind in KINDS]
    assert len(set(codes)) == len(codes) == 13
    assert {"plan", "unknown-layer", "missing-extra"} <= set(codes)


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.DataError, ValueError),
        (errors.PlanError, ValueError),
        (errors.UnknownLayerError, KeyError),
        (errors.ConfigError, ValueError),
        (errors.RecommendationError, ValueError),
        (errors.VerificationError, RuntimeError),
        (errors.StorageError, OSError),
        (errors.CheckpointError, ValueError),
        (errors.MissingExtraError, ImportError),
        (errors.ModelNameError, ValueError),
    ],
)
def test_callers_who_know_only_the_builtins_can_catch_them(kind: type[NeuronScopeError], builtin: type) -> None:
    assert issubclass(kind, builtin)


def test_an_unknown_layer_is_a_plan_error_and_reads_without_key_errors_quotes() -> None:
    error = UnknownLayerError("There is no layer 'conv11'.", hint="Did you mean 'conv1'?")
    assert isinstance(error, errors.PlanError)
    assert str(error) == "There is no layer 'conv11'. Did you mean 'conv1'?"


def test_a_storage_error_has_no_made_up_errno() -> None:
    assert StorageError("Cannot write x.").errno is None


def test_nearest_suggests_the_closest_name_and_nothing_far_off() -> None:
    assert nearest("conv11", ["conv1", "fc"]) == " Did you mean 'conv1'?"
    assert nearest("zzz", ["conv1", "fc"]) == ""
    assert nearest("conv1", []) == ""


@given(st.text(max_size=20), st.lists(st.text(max_size=20), max_size=5))
def test_nearest_only_ever_names_a_candidate(name: str, candidates: list[str]) -> None:
    hint = nearest(name, candidates)
    assert hint == "" or any(hint == f" Did you mean '{candidate}'?" for candidate in candidates)
