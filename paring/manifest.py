"""The manifest of a packed file: one JSON object, deflated with a preset dictionary, behind its CRC-32.

On a small adapter names and configuration would outweigh the weights. The dictionary below holds what most
of them have in common, so that what is left is what sets this adapter apart. It is part of format version 1
and may never change: a new one needs a new format version.
"""

from __future__ import annotations

import json
import reprlib
import zlib
from collections.abc import Callable
from typing import Any

from paring.errors import BadFileError
from paring.untrusted import is_below, parse_json

MAX_MANIFEST = 32_000_000  # bytes, inflated: some 300,000 names
_MOST = 1 << 53  # numbers stay below: every JSON reader holds them exactly

_MODULES = (
    "base_model.model.model.layers.10.self_attn.q_proj.lora_A.weight k_proj v_proj "
    "o_proj.lora_B.weight mlp.gate_proj up_proj down_proj transformer.h.0.attn.c_attn c_proj mlp.c_fc "
    "distilbert.transformer.layer.0.attention.q_lin v_lin pre_classifier.weight classifier.bias score "
    "roberta.encoder.layer. bert.encoder.layer. decoder.layers.0.encoder_attn.q_proj "
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q to_k to_v to_out.0 ff.net.0.proj "
    "up_blocks mid_block text_encoder.text_model.encoder.layers.0. lora_unet_ lora_te_ "
    ".lora_down.weight .lora_up.weight .alpha processor.to_k_lora.down.weight lora.up.weight "
    '"base_model.model.encoder.layer.0.intermediate.dense.lora_A.weight",'
    '"base_model.model.encoder.layer.0.intermediate.dense.lora_B.weight",'
    '"base_model.model.encoder.layer.0.output.dense.lora_A.weight",'
    '"base_model.model.encoder.layer.0.output.dense.lora_B.weight",'
    '"base_model.model.encoder.layer.0.attention.self.query.lora_A.weight",'
    '"base_model.model.encoder.layer.0.attention.self.query.lora_B.weight",'
    '"base_model.model.encoder.layer.0.attention.self.value.lora_A.weight",'
    '"base_model.model.encoder.layer.0.attention.self.value.lora_B.weight",'
)
_CONFIG = (
    '{"config":{"alora_invocation_tokens":null,"alpha_pattern":{},"arrow_config":null,"auto_mapping":null,'
    '"base_model_name_or_path":"meta-llama/Llama-2-7b-hf","bias":"none","corda_config":null,'
    '"ensure_weight_tying":false,"eva_config":null,"exclude_modules":null,"fan_in_fan_out":false,'
    '"inference_mode":true,"init_lora_weights":true,"kasa_config":null,"layer_replication":null,'
    '"layers_pattern":null,"layers_to_transform":null,"loftq_config":{},"lora_alpha":16,"lora_bias":false,'
    '"lora_dropout":0.05,"lora_ga_config":null,"megatron_config":null,"megatron_core":"megatron.core",'
    '"modules_to_save":null,"monteclora_config":null,"peft_type":"LORA","peft_version":"0.21.2",'
    '"qalora_group_size":16,"r":8,"rank_pattern":{},"revision":null,"target_modules":["q_proj","k_proj","v_proj",'
    '"o_proj","gate_proj","up_proj","down_proj"],"target_parameters":null,"task_type":"CAUSAL_LM",'
    '"trainable_token_indices":null,"use_bdlora":null,"use_dora":false,"use_qalora":false,"use_rslora":false,'
    '"velora_config":null},'
)
_FRAME = (
    '"dialect":"peft","dropped":[],"error":0.5,"metadata":{"format":"pt"},"method":"compeft","modules":{"error":['
    '],"nonzero":[],"names":[],"payloads":[["pack","ternary",1,["carried","bytes",1,'
    '"recipe":{"alpha":"lsq","basis":"semidiscrete","bits_per_param":null,"carry":"lossless","density":null,'
    '"error":null,"ratio":20.0,"scope":"component","sweeps":8},"source":{"bytes":'
    ',"name":"adapter_model.safetensors","sha256":"'
    '"},"specs":[["F32",[8,4096]],["F16",[4096,8]],["BF16",[16,1024]]],"tensors":[0,1,0,1,0,1,2,1],'
    '"tool":"paring 0.1.0"}'
)
DICTIONARY = (_MODULES + _CONFIG + _FRAME).encode()


def dump(manifest: dict[str, Any]) -> bytes:
    """The deflated JSON (keys sorted, no spaces), padded with zeros so that all is a multiple of 8 bytes,
    behind its CRC-32 (uint32, little endian).
    """
    text = _text(manifest)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=DICTIONARY)
    body = deflate.compress(text) + deflate.flush()
    body += bytes(-(4 + len(body)) % 8)
    return zlib.crc32(body).to_bytes(4, "little") + body


def load(raw: bytes | memoryview, where: str) -> dict[str, Any]:
    """The manifest in ``raw``. Raises BadFileError for damage, naming ``where``."""
    if len(raw) < 4 or zlib.crc32(raw[4:]) != int.from_bytes(raw[:4], "little"):
        raise BadFileError(f"{where}: the manifest is damaged (its checksum differs)")
    inflate = zlib.decompressobj(-15, zdict=DICTIONARY)
    try:
        text = inflate.decompress(raw[4:], MAX_MANIFEST)
    except zlib.error:
        raise BadFileError(f"{where}: the manifest cannot be inflated") from None
    if not inflate.eof or any(inflate.unused_data):
        raise BadFileError(f"{where}: the manifest is cut short or larger than {MAX_MANIFEST} bytes")
    facts = parse_json(text, f"{where}: the manifest")
    _check_types(facts, f"{where}: the manifest")
    return facts


def check(facts: dict[str, Any], where: str) -> None:
    """Refuse ``facts`` that no reader would take back, before any work is done for them.

    Raises BadFileError, beginning with ``where``, for a value of another type or range than
    ``docs/format.md`` gives it, for nesting too deep, for what JSON in UTF-8 cannot hold and for more than
    ``MAX_MANIFEST`` bytes.
    """
    _check_types(facts, where)
    try:
        size = len(_text(facts))
    except (ValueError, RecursionError) as error:  # infinity, a lone surrogate
        raise BadFileError(f"{where} cannot be put in a packed file: {error}") from None
    if size > MAX_MANIFEST:
        raise BadFileError(f"{where} takes {size} bytes, more than the {MAX_MANIFEST} of a manifest")


def _text(facts: dict[str, Any]) -> bytes:
    return json.dumps(
        facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def _check_types(facts: dict[str, Any], where: str) -> None:
    for key, sound in _SOUND.items():
        if key in facts and not sound(facts[key]):
            raise BadFileError(f"{where} makes no sense: {key} is {reprlib.repr(facts[key])}")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < _MOST  # type: ignore[operator]


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _is_source(value: object) -> bool:
    if not isinstance(value, dict) or set(value) != {"name", "bytes", "sha256"}:
        return False
    name, nbytes = value["name"], value["bytes"]
    # a file is made under this name: it must not be a path
    if not _is_text(name) or not 0 < len(name) <= 255 or set(name) & set("/\\\0") or name in (".", ".."):
        return False
    return _is_count(nbytes) and nbytes > 0 and _is_text(value["sha256"])


def _is_measured(value: object) -> bool:
    columns = value.values() if isinstance(value, dict) else [None]
    return all(isinstance(column, list) and all(map(_is_count, column)) for column in columns)


def _is_shallow(value: object, depth: int = 64) -> bool:
    """Whether JSON nests at most ``depth`` deep, so that what is written of it later can be, too."""
    if not isinstance(value, dict | list):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(_is_shallow(item, depth - 1) for item in inner)


def _are_files(value: object) -> bool:
    """Whether these are files beside the source: a name below a folder, all different, an entry, counts."""
    if not isinstance(value, list) or not all(isinstance(row, list) and len(row) == 5 for row in value):
        return False
    texts = all(_is_text(row[0]) and is_below(row[0]) and _is_text(row[1]) for row in value)
    names = {row[0] for row in value} if texts else set()
    # no file may be another one's folder
    parents = {name.rpartition("/")[0] for name in names}
    return (
        texts
        and len(names) == len(value)
        and not names & parents
        and all(_is_count(number) for row in value for number in row[2:])
    )


def _are_adapters(value: object) -> bool:
    """Whether these are the adapters of a pool: sound facts each, and names that can be told apart."""
    if not isinstance(value, list) or not value or not all(isinstance(each, dict) for each in value):
        return False
    names = [each.get("name") for each in value]
    if not all(_is_text(name) and name and not set(name) & set("/#\0") for name in names):
        return False
    sound = all(_SOUND[key](each[key]) for each in value for key in _SOUND if key in each)
    digests = all(_is_text(each.get("digest")) for each in value)
    nested = any("adapters" in each for each in value)
    return sound and digests and not nested and len(set(names)) == len(names)


#: key -> whether its value is of the type that ``docs/format.md`` gives it; a missing key is sound
_SOUND: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("tool", "dialect", "kind", "method"), _is_text),
    "error": _is_number,
    "elements": _is_count,
    "source": _is_source,
    "modules": _is_measured,
    "recipe": lambda value: isinstance(value, dict) and _is_shallow(value),
    "config": lambda value: isinstance(value, dict) and _is_shallow(value),
    "metadata": lambda value: isinstance(value, dict) and all(map(_is_text, value.values())),
    "dropped": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "adapters": _are_adapters,
    "beside": _are_files,
    "rounded": lambda value: isinstance(value, dict) and all(map(_is_number, value.values())),
}
