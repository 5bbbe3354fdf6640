"""A pack that was saved goes on in another process as if it had never stopped: curves and adapters to the byte."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file, save_file
from test_pack import MIXED
from test_replay import ROUNDS, FixedSampler

from memrl.config import TrainConfig
from memrl.learning.half_packs import HalfPacks
from memrl.learning.pack import Pack

PACK = [*MIXED, TrainConfig(N=8, algorithm="sft", n_steps=3, learning_rate=3e-3, lora_rank=16, seed=9)]
"""The widest leaves first, so the others are laid out anew before or after they are saved."""


class SeededSampler(FixedSampler):
    """Draws by the request's own seed, so that what was not kept is drawn again alike."""

    def _sample(self, request):
        self.generators[request.cell_id] = [np.random.default_rng(request.seed)]
        return super()._sample(request)


def go_on(pack, updates=None):
    """Trains for so many updates, or to the end; returns the curves, and the last adapters of each cell."""
    curves, adapters = [], {}
    while not pack.finished and (updates is None or len(curves) < updates):
        for part in getattr(pack, "_halves", [pack]):
            for place, config in enumerate(part.state.configs):
                tensors = part.state.adapters.export_peft(place)
                adapters.update({f"{config.cell_id}.{name}": t.numpy() for name, t in tensors.items()})
        pack.update()
        curves.append(pack.drain()[1])
    return pa.concat_tables(curves), adapters


def start(kind):
    return Pack(PACK) if kind == "pack" else HalfPacks.split(ROUNDS, backend=SeededSampler())


def load(kind, folder):
    return Pack.load(folder) if kind == "pack" else HalfPacks.load(folder, backend=SeededSampler())


def list_columns(curves):
    """Columns as bytes, in which a NaN equals itself."""
    columns = {name: curves[name].to_numpy() for name in curves.column_names}
    return {name: c.tolist() if name == "cell_id" else c.tobytes() for name, c in columns.items()}


@pytest.mark.parametrize(("kind", "updates"), [("pack", 2), ("pack", 4), ("half-packs", 2)])
def test_a_saved_pack_ends_the_same_in_another_process(tmp_path, kind, updates):
    pack = start(kind)
    go_on(pack, updates)
    assert (pack.live < len(PACK)) == (updates == 4 or kind == "half-packs")
    pack.save(tmp_path)
    curves, adapters = go_on(pack)
    subprocess.run([sys.executable, __file__, kind, tmp_path], check=True)
    assert list_columns(pq.read_table(tmp_path / "curves_again")) == list_columns(curves)
    assert len(curves) >= 5
    again = load_file(tmp_path / "adapters_again")
    assert again.keys() == adapters.keys()
    assert all(again[name].tobytes() == adapters[name].tobytes() for name in adapters)


def test_what_nobody_has_drained_is_not_lost_by_saving(tmp_path):
    pack = Pack(MIXED[:1])
    pack.update()
    with pytest.raises(ValueError, match="drain must come before save"):
        pack.save(tmp_path)


if __name__ == "__main__":
    torch.set_num_threads(1)
    curves_again, adapters_again = go_on(load(sys.argv[1], Path(sys.argv[2])))
    pq.write_table(curves_again, Path(sys.argv[2]) / "curves_again")
    save_file(adapters_again, Path(sys.argv[2]) / "adapters_again")
