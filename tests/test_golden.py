"""Golden packed files: later versions decode them bit for bit, as does a decoder made from the page."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from paring.checkpoint import digest
from paring.codecs import deflated_levels, residual, sparse, trellis
from paring.kernels.ternary import reference
from paring.kernels.trellis import tables
from paring.manifest import DICTIONARY
from paring.packed import open_source
from tests import plain_decoder
from tests.make_golden import CASES

FOLDER = Path(__file__).parents[1] / "fixtures" / "packed"
GOLDEN = json.loads((FOLDER / "golden.json").read_text())


def path_of(name):
    return FOLDER / f"{name}.paring.safetensors"


def test_every_file_is_listed_and_every_case_made():
    assert {path_of(name) for name in GOLDEN} == set(FOLDER.glob("*.safetensors"))
    assert set(GOLDEN) == set(CASES)


@pytest.mark.parametrize("name", GOLDEN)
def test_files_are_as_they_were_made(name):
    assert hashlib.sha256(path_of(name).read_bytes()).hexdigest() == GOLDEN[name]["sha256"]


@pytest.mark.parametrize("name", GOLDEN)
def test_decodes_bit_for_bit(name):
    opened = open_source(path_of(name), threads=2, whole=True)
    assert opened.digest_recorded == GOLDEN[name]["digest"]
    assert digest(opened.read_all()) == opened.digest() == GOLDEN[name]["digest"]


@pytest.mark.parametrize("name", GOLDEN)
def test_decodes_by_the_page_alone(name):
    told = plain_decoder.decode(path_of(name).read_bytes(), DICTIONARY)
    found = {
        n: (tensor.dtype, tensor.shape, tensor.tobytes())
        for n, tensor in open_source(path_of(name), whole=True).read_all()
    }
    assert told == found


def test_values_around_one_are_rounded_once():
    step = 2**-7  # of bf16 above one; below it is half of that
    expected = np.array([1 + step, 1, 1 - step / 2, 1 + step, 1 + step, 1, 1, 1 - step / 2, 1, 1 + step])
    assert (open_source(path_of("ia3_bf16_rounded_once")).read("ia3_l").f32() == expected).all()


def test_what_the_page_pins():
    page = (FOLDER.parents[1] / "docs" / "format.md").read_text()
    assert len(DICTIONARY) == 2674
    assert (
        hashlib.sha256(DICTIONARY).hexdigest()
        == "bbe3dffa973e1a24f74ed3459ab5b8f2509fd1ca5b8332f265c9cf789857a6e5"
    )
    table = np.array([reference.frequencies(q) for q in reference.DENSITIES[1:]], "<u2")
    assert hashlib.sha256(table.tobytes()).hexdigest() in page
    assert hashlib.sha256(DICTIONARY).hexdigest() in page
    assert list(reference.DENSITIES) == plain_decoder.DENSITIES
    assert all(str(q) in page.split("```")[1].split() for q in reference.DENSITIES[1:])
    levels = tables.coding_tables()[0][1:].astype("<u2")
    assert hashlib.sha256(levels.tobytes()).hexdigest() in page
    assert [*tables.RHO] == plain_decoder.RATIOS[1:]
    assert " ".join(map(str, tables.RHO)) in page.replace("\n", " ")
    for bits in tables.CHECKS:
        steps = tables.next_states(bits)
        assert (plain_decoder.H0[bits], plain_decoder.H1[bits]) == (steps[1, 0], steps[0, 1])


def test_goldens_cover_the_format():
    used = set()
    for name in GOLDEN:
        opened = open_source(path_of(name), whole=True)
        for held in opened.payloads:
            used |= {
                held.codec,
                *(spec.dtype for spec in held.specs),
                *(f"as {spec.stored_as}" for spec in held.specs),
            }
            used |= {f"ones {spec.dtype}" for spec in held.specs if spec.ones}
            if held.codec == "ternary":
                used |= {opened.planes(spec.name).layout for spec in held.specs if not spec.ones}
            if held.codec == "trellis":
                codec = {1: deflated_levels, 2: trellis}[held.version]
                read = codec.read(opened.payload(held), [spec.shape for spec in held.specs])
                kinds = {*read.layouts, *(f"class {cls}" for cls in read.classes)}
                kinds |= {f"bits {read.bits}", f"blocks {len(read.states)}"}
                used |= {f"trellis {held.version} {kind}" for kind in kinds}
            if held.codec == "sparse":
                rows, _ = sparse._read(opened.payload(held), [spec.shape for spec in held.specs])
                used |= {f"sparse {form}" for form, _ in rows}
            if held.codec == "residual":
                payload = opened.payload(held)
                rows = residual._rows(memoryview(payload), [spec.shape for spec in held.specs])[0]
                used.add(f"residual with trellis {payload[13]}")
                used |= {f"mix {row.kind}" for row in rows} | {f"left {row.left}" for row in rows}
    assert {"shards", *(f"{what} {kind}" for what in ("mix", "left") for kind in range(3))} <= used
    assert {f"residual with trellis {version}" for version in (0, 1, 2)} <= used
    assert {"sparse mask", "sparse 2:4", "F8_E4M3", "F8_E5M2", "I8", "C64"} <= used
    ones = {f"ones {dtype}" for dtype in ("F32", "F16", "BF16")}
    expected = {"ternary", "bytes", "as F16", "whole", "rows", "columns"} | ones
    assert expected | {"F64", "F32", "F16", "BF16", "I64", "U16", "BOOL"} <= used
    levels = {f"class {cls}" for cls in range(49)} | {f"bits {bits}" for bits in (2, 5, 8)}
    levels |= {"whole", "rows", "columns", "blocks 0", "blocks 2"}
    assert {f"trellis {version} {what}" for version in (1, 2) for what in levels} <= used
