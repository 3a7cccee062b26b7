"""``paring decompress``: back to an ordinary adapter."""

from __future__ import annotations

import click

from paring.cli import _common as common


@click.command("decompress", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("packed")
@click.option(
    "-o", "--output", required=True, metavar="OUT", help="A folder that PEFT loads, or a .safetensors file."
)
@click.option("--adapter", metavar="NAME", help="Which one of a pool: PACKED#NAME.")
@click.option("--base", metavar="BASE", help="Of a packed fine-tune: the model that it was tuned from.")
@click.option("--dtype", metavar="fp64|fp32|fp16|bf16", help="Cast to this.  [default: as in the source]")
@common.threads
@common.overwrite
@common.offline
@common.shown
def command(
    packed: str, output: str, adapter: str | None, base: str | None, dtype: str | None,
    threads: int | None, overwrite: bool, as_json: bool, quiet: bool, verbose: bool, debug: bool,
) -> None:  # fmt: skip
    """Decode a packed file to an ordinary adapter."""
    from paring import api

    click.get_current_context().call_on_close(lambda: common.tell_of_rest(output, ("resume",)))
    with common.progress(f"decompressing {packed}", quiet=quiet, verbose=verbose):
        report = api.decompress(
            packed, output, adapter=adapter, base=base, dtype=dtype, overwrite=overwrite, threads=threads
        )
    if as_json:
        common.print_json(report)
    elif not quiet:
        lost = "" if report.error is None else f", relative error {report.error:.3f}"
        sizes = f"{common.size(report.bytes_in or 0)} → {common.size(report.bytes_out or 0)}"
        common.console().print(
            f"[bold]{common.short(packed)}[/] decoded to [bold]{common.short(output)}[/]\n{sizes}{lost}, "
            f"{report.seconds:.1f} s"
        )
        for text in report.warnings:
            common.warn(text)
