"""What all tests share. Torch is imported where it is used: the process that hands tests out needs none."""

import os

import pytest


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    """Whatever ran before a test in its process: how tests are shared out depends on how long they take."""
    import torch

    torch.manual_seed(0)


@pytest.fixture
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed process wrote is safe in the kernel; only a power cut needs the sync, and it is slow."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="session")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one process leaves that labels the small pool alone."""
    from kill_labelling import contents, small_work

    from tutelage.labels.engines import label

    root = tmp_path_factory.mktemp("alone")
    label(small_work(), root)
    return contents(root)
