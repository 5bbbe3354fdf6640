"""docs/architecture.md quotes the update as it is."""

import inspect
import textwrap
from pathlib import Path

from memrl.learning.update import update

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"


def test_the_update_is_quoted_whole():
    source = inspect.getsource(update)
    body = textwrap.dedent(source[source.index("    # Measure:") :])
    assert f"```python\n{body}```" in PAGE.read_text(encoding="utf-8")
    assert source.count("\n") <= 60
