"""Progress bars as the callbacks that the core wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(description: str, total: int | None) -> Iterator[Callable[[int, int], None]]:
    """A tqdm bar on stderr as a callback (done, total); ``total`` None: not known beforehand."""
    from tqdm import tqdm

    with tqdm(total=total, desc=description, unit="seq", unit_scale=True) as bar:
        yield lambda done, total: bar.update(done - bar.n) and None
