"""Samples from a Hugging Face dataset; the package `datasets` is imported only for these."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unetdist.errors import DataError, one_line
from unetdist.sharding.sources import DUPLICATE_KEY, Problem, RawSample, SampleSource
from unetdist.storage.remote import refusal

# Names in `datasets` of the kinds of files that it can read.
_KINDS = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json", ".csv": "csv"}


@dataclass(frozen=True)
class DatasetReader:
    """Reads rows of a Hugging Face dataset with two columns of encoded images."""

    rows: Any
    """A `datasets.Dataset`; pickled by reference to its files."""
    image_column: str
    mask_column: str

    def read(self, sample: RawSample) -> tuple[bytes, bytes]:
        """Encoded image and encoded mask."""
        row = self.rows[sample.row]
        return _encoded(row[self.image_column]), _encoded(row[self.mask_column])


def from_dataset(
    name: str,
    *,
    split: str = "train",
    image_column: str = "image",
    mask_column: str = "mask",
    key_column: str | None = None,
) -> SampleSource:
    """Rows of a Hugging Face dataset: a name on the hub, or a local file or folder (parquet, imagefolder).

    Keys are the row numbers, or the text of `key_column`.
    """
    rows = _load_dataset(name, split)
    wanted = {"--image-column": image_column, "--mask-column": mask_column}
    wanted |= {"--key-column": key_column} if key_column else {}
    for option, column in wanted.items():
        if column not in rows.column_names:
            raise DataError(
                f"no column {column!r}; it has {', '.join(rows.column_names)}: choose with {option}.",
                source=f"dataset {name}",
            )
    # Eight digits sort like numbers.
    keys = [str(key) for key in rows[key_column]] if key_column else [f"{row:08d}" for row in range(len(rows))]
    rows = _encoded_pictures(rows, name, {o: c for o, c in wanted.items() if o != "--key-column"})
    reader = DatasetReader(rows, image_column, mask_column)
    num_bytes = _mean_bytes(reader)
    problems: list[Problem] = []
    row_of: dict[str, int] = {}
    for row, key in enumerate(keys):
        if key in row_of:
            detail = one_line(f"row {row_of[key]} is also {key}")
            problems.append(Problem(DUPLICATE_KEY.format("image"), f"{name}, row {row}", detail))
        row_of.setdefault(key, row)
    samples = (
        RawSample(
            key=key,
            image=f"{name}:{split}:{row_of[key]}:{image_column}",
            mask=f"{name}:{split}:{row_of[key]}:{mask_column}",
            row=row_of[key],
            num_bytes=num_bytes,
            stamp=rows._fingerprint,
        )
        for key in sorted(row_of)
    )
    return SampleSource(tuple(samples), tuple(problems), reader)


def _load_dataset(name: str, split: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"--dataset needs the package datasets ({error}); pip install datasets.") from None
    if problem := refusal(name):
        raise DataError(problem, source=f"dataset {name}")
    path = Path(name)
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            loaded = datasets.load_from_disk(name)
            return loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
        if path.is_file():
            # `datasets` would search the hub for an unknown kind.
            if (kind := _KINDS.get(path.suffix.lower())) is None:
                raise ValueError(f"a file must end in one of {', '.join(_KINDS)}")
            return datasets.load_dataset(kind, data_files=name, split=split)
        return datasets.load_dataset(name, split=split)
    except Exception as error:
        raise DataError(
            f"cannot be loaded: {type(error).__name__}: {error}; check the name and "
            f"--split ({split}). A name on the hub also needs the network and perhaps `hf auth login`.",
            source=f"dataset {name}",
        ) from error


def _encoded_pictures(rows: Any, name: str, columns: dict[str, str]) -> Any:
    """`rows` with only `columns` (option -> column), whose cells are the bytes as stored."""
    from datasets import Image

    for option, column in columns.items():
        feature = rows.features[column]
        if not isinstance(feature, Image) and getattr(feature, "dtype", "") != "binary":
            raise DataError(
                f"column {column!r} holds {feature} instead of images; choose another with {option}.",
                source=f"dataset {name}",
            )
        rows = rows.cast_column(column, Image(decode=False))
    return rows.select_columns(list(columns.values()))


def _mean_bytes(reader: DatasetReader) -> int:
    """Size of a sample, estimated from the first rows; empty cells are reported later, with their row."""
    cells = reader.rows[:32]
    sizes = [len(cell["bytes"]) for column in cells.values() for cell in column if cell and cell["bytes"]]
    return 2 * sum(sizes) // max(1, len(sizes))


def _encoded(cell: Any) -> bytes:
    if cell is None:
        raise DataError("empty cell; remove the row, or leave it out with --skip-bad.")
    if cell["bytes"] is not None:
        return bytes(cell["bytes"])
    return Path(cell["path"]).read_bytes()
