from itertools import count

import pytest
from hypothesis import settings

# A busy machine is no failure: what is promised is what comes out, not when.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
_numbers = count()


@pytest.fixture(autouse=True)
def _cache_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No test finds what another one or the user kept."""
    folder = tmp_path_factory.getbasetemp() / f"cache-{next(_numbers)}"
    monkeypatch.setenv("ONNXSLIM_CACHE", str(folder))
