import os.path
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from neuronscope.imports import import_object
from tracker.errors import DataError, ModelNameError


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory to work in that holds a module `my_models`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_models.py").write_text("class zoo:\n    build = len\n")
    yield tmp_path
    sys.modules.pop("my_models", None)


def test_modules_of_the_current_directory_count(project: Path) -> None:
    assert import_object("my_models:zoo.build", ModelNameError) is len


def test_installed_modules_count() -> None:
    assert import_object("os.path:join", ModelNameError) is os.path.join


@pytest.mark.parametrize("name", ["my_models", ":build", "my_models:", ""])
def test_another_form_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="not of the form module:callable"):
        import_object(name, DataError)


@pytest.mark.parametrize("name", ["my_modells:build", "my_modells.deep:build"])
def test_a_missing_module_is_named(project: Path, name: str) -> None:
    with pytest.raises(ModelNameError, match="no module 'my_modells'"):
        import_object(name, ModelNameError)


def test_a_missing_attribute_suggests_the_nearest(project: Path) -> None:
    with pytest.raises(ModelNameError, match=r"'my_models' has no 'zo'.*Did you mean 'zoo'"):
        import_object("my_models:zo", ModelNameError)


def test_an_error_inside_the_module_is_its_own(project: Path) -> None:
    (project / "my_broken.py").write_text("import missing_dependency_of_mine")
    with pytest.raises(ModuleNotFoundError, match="missing_dependency_of_mine"):
        import_object("my_broken:build", ModelNameError)
