"""Damaged inputs: one clear error each, nothing written, nothing left open, no model."""

import pickle
import re

import pytest
from damage import Bomb
from fault_outcome import Fault, outcome
from faults import FAULTS


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_damaged_input_is_refused(fault, tmp_path, monkeypatch):
    found = outcome(fault, tmp_path, monkeypatch)
    assert found.error is not None, "a model was returned"
    assert type(found.error) is fault.error, found.error

    assert found.error.__cause__ is None and (
        found.error.__context__ is None or found.error.__suppress_context__
    ), "another library's error hangs behind ours"
    assert re.search(fault.words, found.line), found.line
    assert found.written == () and found.changed == ()


def test_there_are_as_many_as_the_issue_asks_for():
    assert len(FAULTS) >= 30
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_the_bomb_is_one(tmp_path):
    """Unpickled, it goes off: that nothing appears above means that nothing was unpickled."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "executed"))).close()
    assert (tmp_path / "executed").exists()


def test_a_load_that_succeeds_or_writes_is_noticed(tmp_path, monkeypatch):
    sound = outcome(Fault("sound", lambda folder: None, ""), tmp_path / "a", monkeypatch)
    assert sound.error is None

    def writes(folder, **options):
        (folder / "new").write_text("")
        raise ValueError

    found = outcome(Fault("w", lambda f: None, "", attempt=writes), tmp_path / "b", monkeypatch)
    assert found.written == ("files/model/new",)
