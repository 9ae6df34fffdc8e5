"""Write the rows of a corpus in every form that the package reads."""

from mop_t5.data import write_examples


def table_of(rows):
    """The rows as a table, with null where a row has no references."""
    import pyarrow as pa

    columns = {name: [getattr(row, name) for row in rows] for name in ("scenario", "dialogue", "summary", "id")}
    references = pa.array([list(row.references) or None for row in rows], pa.list_(pa.string()))
    return pa.table(columns).append_column("references", references)


def dataset_of(table):
    """A `datasets.Dataset`. Its fingerprint is given, because dill fails to make one outside of site-packages."""
    import datasets

    return datasets.Dataset(table, fingerprint="of-a-test")


def write_ipc(path, table, stream=False, batch=7):
    """Write a table in Arrow's file format or stream format, in small batches."""
    import pyarrow as pa

    with open(path, "wb") as file, (pa.ipc.new_stream if stream else pa.ipc.new_file)(file, table.schema) as writer:
        writer.write_table(table, batch)
    return path


def write_split(folder, form, split, rows):
    """Write one split of a corpus folder: "jsonl", "jsonl.gz", "parquet", "arrow", "stream" or "saved"."""
    import datasets
    import pyarrow.parquet as pq

    folder.mkdir(exist_ok=True)
    if form == "parquet":
        pq.write_table(table_of(rows), folder / f"{split}.parquet", row_group_size=11)
    elif form in ("arrow", "stream"):
        write_ipc(folder / f"{split}.arrow", table_of(rows), form == "stream")
    elif form == "saved":
        datasets.disable_progress_bars()
        name = {"valid": "validation"}.get(split, split)
        dataset_of(table_of(rows)).save_to_disk(str(folder / name), num_shards=2)
    else:
        write_examples(folder / f"{split}.{form}", rows)


FORMS = ("jsonl", "jsonl.gz", "parquet", "arrow", "stream", "saved")
