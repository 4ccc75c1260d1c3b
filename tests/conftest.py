"""What every test starts from: no W&B account, no display, one thread."""

from __future__ import annotations

import os

import pytest

for variable in [name for name in os.environ if name.startswith("WANDB_")]:
    del os.environ[variable]  # the developer's project and key are not for tests
os.environ["WANDB_MODE"] = "disabled"
os.environ["MPLBACKEND"] = "Agg"
os.environ["OMP_NUM_THREADS"] = "1"  # small tensors: more threads only wait for one another
# Set before torch is first imported, so that subprocesses of tests inherit all of it.


@pytest.fixture(autouse=True)
def wandb_in_temporary_folders(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever W&B writes, it writes where pytest cleans up."""
    folder = tmp_path_factory.getbasetemp()
    for name in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(folder))
