"""docs/api.md runs as it is written."""

import contextlib
import io
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_blocks_run_in_their_order(monkeypatch):
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text("utf-8"), re.S)
    runnable = [block for block in blocks if "TrainerCallback" not in block]
    assert len(runnable) == len(blocks) - 1 == 4
    names: dict = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in runnable:
            exec(block, names)
    lines = printed.getvalue().splitlines()
    assert "binned_distance-16-log" in printed.getvalue()
    assert "0-63: 42 6.0" in lines
    assert re.match(r"-?0\.0\d of 6\.0 bits after 0 episodes", lines[-1])
