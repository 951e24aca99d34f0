import json
from pathlib import Path

import pytest

from tracker.errors import MissingExtraError
from tracker.extras import require


def test_an_installed_module_is_handed_over() -> None:
    assert require("json", "plot") is json
    assert require("json.decoder", "plot") is json.decoder


@pytest.mark.parametrize("module", ["surely_not_installed", "surely_not_installed.part"])
def test_a_missing_module_names_the_command_that_installs_it(module: str) -> None:
    with pytest.raises(MissingExtraError, match=r"'surely_not_installed'.*pip install 'neuronscope\[plot\]'") as caught:
        require(module, "plot")
    assert isinstance(caught.value, ImportError)


def test_a_broken_module_is_not_passed_off_as_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_installed.py").write_text("import its_own_missing_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="its_own_missing_dependency") as caught:
        require("half_installed", "plot")
    assert not isinstance(caught.value, MissingExtraError)
