"""For machine learning, in plain Python that any framework takes: samples read in batches, and
checkpoints that appear whole.

::

    import gfs.data
    from gfs.client import sync

    fs = sync.connect()
    files = gfs.data.Files(fs, [f"/samples/{n}" for n in range(1_000_000)])
    torch.utils.data.DataLoader(files, batch_size=256, shuffle=True, num_workers=4)

    with gfs.data.checkpoint(fs, "/runs/7/step-100", keep=3) as there:
        fs.put(model, f"{there}/model.pt")
    gfs.data.latest(fs, "/runs/7")  # "/runs/7/step-100"

It needs neither torch nor fsspec; ``fs`` may also be fsspec's file system for ``gfs://``.
"""

from gfs.data.checkpointing import checkpoint, checkpoints, latest
from gfs.data.files import Files

__all__ = ["Files", "checkpoint", "checkpoints", "latest"]
