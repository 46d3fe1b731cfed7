"""Records with fields replaced on read."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any


class Altered(Sequence):
    """Item i is records[places[i]] with the fields that replace(record, i) returns."""

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        places: Sequence[int],
        replace: Callable[[Mapping[str, Any], int], Mapping[str, Any]],
    ):
        self._records, self._places, self._replace = records, list(places), replace

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, item: int) -> dict[str, Any]:
        record = self._records[self._places[item]]
        return {**record, **self._replace(record, item)}
