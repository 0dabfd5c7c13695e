"""One table per form, sorted, and one that says with which setting each contestant ran."""

from __future__ import annotations

from typing import Any

from lmdali.tools.report_table import print_table


def print_results(document: dict[str, Any]) -> None:
    """All tables of one run."""
    for form in document["forms"]:
        _print_form(document, form)
    rows = {row["key"]: row for form in document["forms"] for row in form["rows"]}
    threads = document["num_threads"]
    print_table(
        "who took part, with the best setting found",
        ("", "version", "setting"),
        [
            (row["label"], " ".join((row["package"], row["version"])), row["setting"].format(n=threads))
            for row in rows.values()
        ],
    )


def _print_form(document: dict[str, Any], form: dict[str, Any]) -> None:
    measured = [row for row in form["rows"] if not row["error"]]
    print_table(
        f"{stored_form(document)} -> {form['title']}\n"
        f"ratio: to {form['reference']}, measured just before and after; CPU ratio: its CPU time over this row's\n"
        f"batches of {document['batch_size']}, {document['num_threads']} CPUs, {document['machine']['cpu']}, "
        f"{document['rounds']} rounds of {document['seconds']:g} s",
        ("", "images/s", "spread", "ratio", "range", "of ceiling", "CPU ms/image", "CPU ratio", "MB"),
        [_cells(row) for row in sorted(measured, key=lambda row: (row["kind"] == "part", -row["ratio"]))],
    )
    failed = [(row["label"], row["error"]) for row in form["rows"] if row["error"]]
    if failed:
        print_table(f"not measured: {form['title']}", ("", "why"), failed)


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["label"],
        f"{row['images_per_second']:,.0f}",
        f"± {(row['images_per_second_high'] - row['images_per_second_low']) / 2 / row['images_per_second']:.0%}",
        f"{row['ratio']:.2f}",
        f"{row['ratio_low']:.2f}-{row['ratio_high']:.2f}",
        "-" if row["of_ceiling"] is None else f"{row['of_ceiling']:.2f}",
        f"{1e3 * row['cpu_seconds_per_image']:.3f}",
        f"{row['cpu_ratio']:.2f}",
        f"{row['memory_bytes'] / 1e6:,.0f}",
    ]


def stored_form(document: dict[str, Any]) -> str:
    """What the records are: encoding, quality and size."""
    kind = "raw pixels"
    if document["encoding"] == "jpeg":
        kind = f"JPEG quality {document['quality']}" if document["quality"] else "JPEG"
    return f"{kind}, {document['image_size']} pixels, {document['bytes_per_image'] / 1e3:.1f} kB"
