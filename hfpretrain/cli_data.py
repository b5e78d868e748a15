"""What `hfpretrain data` prints: a line per source, of what was prepared."""

import json
from typing import Any

import typer


def print_sources(lines: list[dict[str, Any]], shard: str | None, as_json: bool) -> None:
    """The counts of each source; of one that is not whole yet, that its share is prepared."""
    if as_json:
        typer.echo(json.dumps(lines))
        return
    from hfpretrain.data.filters import in_words

    width = max(len(line["source"]) for line in lines)
    for line in lines:
        if line.get("streamed"):
            typer.echo(f"{line['source']:<{width}}  streamed while training, nothing to prepare")
            continue
        if line["tokens"] is None:
            typer.echo(f"{line['source']:<{width}}  shard {shard} prepared")
            continue
        text = f"{line['documents']:,} documents, {line['tokens']:,} tokens, {line['bytes_per_token']:.2f} bytes each"
        left_out = {"bad rows skipped": line["skipped"], "blank texts left out": line["blank"]}
        told = "".join(f", {what}: {count:,}" for what, count in left_out.items() if count)
        if filtered := in_words(line["left_out"]):
            told += f", left out: {filtered}"
        typer.echo(f"{line['source']:<{width}}  {text}, {line['text_bytes'] / 1e6:,.1f} MB of text{told}")
    if any(line.get("tokens", 0) is None for line in lines):
        typer.echo("next  hfpretrain train, or data without --shard, joins the shards and prepares what is missing")
