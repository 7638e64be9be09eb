"""The same prompts everywhere: in training, in its evaluation, in what is published, and in what
`evaluate`, `mine`, `encode` and `search` make of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from minilm_retriever import Encoder
from minilm_retriever.__main__ import main
from minilm_retriever.distributed import Ranks
from minilm_retriever.pretrained.model_folder import load_pretrained
from minilm_retriever.pretrained.prompts import retrieval_prompts
from minilm_retriever.training.config import TrainConfig
from minilm_retriever.training.prepare import guide_vectors, prepare
from minilm_retriever.training.run import train

JOBS = "cook nurse pilot baker judge tailor miner diver".split()
QUERY, DOCUMENT = "the work at school: ", "a team and "
TEXTS = [(f"looks for a {job}", f"{job} wanted, {len(job)} years") for job in JOBS]


def write(path: Path, rows, columns=("query", "document")) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return str(path)


def with_settings(folder: Path, *, pooled: bool = True, **settings: object) -> str:
    """The folder, these entries of config_sentence_transformers.json changed."""
    for name, changes in (
        ("config_sentence_transformers.json", settings),
        ("1_Pooling/config.json", {"include_prompt": pooled}),
    ):
        content = json.loads((folder / name).read_text("utf-8"))
        (folder / name).write_text(json.dumps({**content, **changes}), encoding="utf-8")
    return str(folder)


def scored(rows=TEXTS):
    return [(*row, i % 4) for i, row in enumerate(rows)]


def evaluated(capsys, *arguments) -> dict[str, float]:
    capsys.readouterr()
    assert main(["evaluate", *map(str, arguments), "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def logged(out: Path) -> list[dict[str, float]]:
    rows = map(json.loads, (out / "metrics.jsonl").read_text("utf-8").splitlines())
    return [row["eval"] for row in rows if "eval" in row]


FOLDERS = {
    "none": {},
    "own": {"prompts": {"query": QUERY, "document": DOCUMENT}},
    "passage": {"prompts": {"query": QUERY, "passage": DOCUMENT}},
    "default": {"prompts": {"other": QUERY}, "default_prompt_name": "other"},
    "empty document": {
        "prompts": {"query": QUERY, "document": ""},
        "default_prompt_name": "query",
    },
    "not pooled": {"prompts": {"query": QUERY, "document": DOCUMENT}, "pooled": False},
}
FLAGS = [(), ("--query-prompt", DOCUMENT), ("--query-prompt", "", "--document-prompt", QUERY)]
MIXTURES = [  # folder, flags, whether the pairs have scores: of each two some
    ("none", 0, True),
    ("none", 2, False),
    ("own", 0, False),
    ("own", 1, True),
    ("passage", 1, False),
    ("default", 0, True),
    ("default", 2, False),
    ("empty document", 0, False),
    ("not pooled", 0, False),
    ("not pooled", 2, True),
]


@pytest.mark.parametrize(("kind", "number", "scores"), MIXTURES)
def test_training_evaluates_as_evaluate_does_before_and_after(
    kind, number, scores, tiny_copy, tmp_path, capsys
):
    flags = FLAGS[number]
    model, out = with_settings(tiny_copy, **FOLDERS[kind]), tmp_path / "out"
    columns = ("sentence1", "sentence2", "score") if scores else ("query", "document")
    path = write(tmp_path / "pairs.csv", scored() if scores else TEXTS, columns)
    loss = ["--loss", "cosent"] if scores else []
    command = ["train", "--train", path, "--eval", path, "--model", model, "--out", str(out)]
    assert main([*command, *flags, *loss, "--max-steps", "1", "--batch-size", "4"]) == 0
    before, after = logged(out)
    metric = "spearman" if scores else "mrr@10"
    assert evaluated(capsys, path, "--model", model, *flags)[metric] == pytest.approx(
        before[metric]
    )
    # What was published needs no flags, unless both sides of scored pairs had prompts of their own.
    again = flags if scores else ()
    theirs = evaluated(capsys, path, "--model", out, *again)
    assert theirs[metric] == pytest.approx(after[metric], abs=1e-6)


def test_scored_pairs_of_one_prompt_publish_it_as_the_default(tiny_folder, tmp_path, capsys):
    path = write(tmp_path / "pairs.csv", scored(), ("sentence1", "sentence2", "score"))
    config = TrainConfig(
        train=(path,),
        eval=path,
        model=str(tiny_folder),
        out=str(tmp_path / "out"),
        loss="cosine",
        score_range=(0, 3),
        query_prompt=QUERY,
        document_prompt=QUERY,
        max_steps=2,
    )
    assert train(config) == 0
    theirs = evaluated(capsys, path, "--model", config.out)["spearman"]
    assert theirs == pytest.approx(logged(tmp_path / "out")[-1]["spearman"], abs=1e-6)
    encoder = Encoder.from_pretrained(config.out)
    np.testing.assert_array_equal(encoder.encode("cook"), encoder.encode("cook", prompt=QUERY))


def test_what_is_published_has_the_prompts_of_the_flags(tiny_folder, tmp_path):
    path, out = write(tmp_path / "pairs.csv", TEXTS), tmp_path / "out"
    flags = {"query_prompt": QUERY, "document_prompt": DOCUMENT, "max_steps": 1, "batch_size": 4}
    config = TrainConfig(train=(path,), model=str(tiny_folder), out=str(out), **flags)
    assert train(config) == 0
    published = json.loads((out / "config_sentence_transformers.json").read_text("utf-8"))
    assert published["prompts"] == {"query": QUERY, "document": DOCUMENT}
    assert published["default_prompt_name"] is None
    assert QUERY.strip() in (out / "README.md").read_text("utf-8")
    settings = json.loads((out / "training.json").read_text("utf-8"))["settings"]
    assert settings["query_prompt"] == QUERY and settings["document_prompt"] == DOCUMENT


def test_a_text_of_both_roles_has_the_prompt_of_each(tiny_folder, tmp_path):
    texts = [(f"a {job}", f"a {JOBS[i - 1]}") for i, job in enumerate(JOBS)]
    config = TrainConfig(
        train=(write(tmp_path / "pairs.csv", texts),),
        model=str(tiny_folder),
        out=str(tmp_path / "out"),
        query_prompt=QUERY,
        document_prompt=DOCUMENT,
        batch_size=8,
        dropout=0.0,
    )
    ready = prepare(config)
    assert len(ready.data.texts) == 8 and len(ready.data.tokens) == 16
    [batch] = next(ready.batches(0, 1))
    vectors = ready.base.encoder.eval()(batch.input_ids, batch.attention_mask)
    encoder = Encoder.from_pretrained(tiny_folder)
    for column, prompt in enumerate((QUERY, DOCUMENT)):
        named = [ready.data.texts[i] for i in batch.rows.texts[column]]
        ours = vectors[8 * column : 8 * column + 8].detach().numpy()
        np.testing.assert_allclose(ours, encoder.encode(named, prompt=prompt), atol=1e-5)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("pooled", [False, True])
def test_a_guide_reads_its_own_prompts_else_those_of_the_run(
    own, pooled, tiny_folder, tiny_copy, tmp_path
):
    prompts = {"query": "negotiation ", "document": "night "} if own else {}
    guide = with_settings(tiny_copy, prompts=prompts, pooled=pooled)
    config = TrainConfig(
        train=(write(tmp_path / "pairs.csv", TEXTS),),
        model=str(tiny_folder),
        out=str(tmp_path / "out"),
        guide=guide,
        query_prompt=QUERY,
    )
    ready = prepare(config)
    encoder = Encoder.from_pretrained(guide)
    expected = retrieval_prompts(encoder.model) if own else ready.data.prompts
    rows = [
        encoder.encode([ready.data.texts[i] for i in texts], prompt=prompt.text, normalize=True)
        for texts, prompt in zip(ready.data.by_role, expected, strict=True)
    ]
    torch.testing.assert_close(ready.objective.guide, torch.from_numpy(np.concatenate(rows)))
    alone = guide_vectors(guide, config, load_pretrained(tiny_folder), ready.data, Ranks())
    torch.testing.assert_close(ready.objective.guide, alone)


def test_commands_take_the_folders_prompts_or_those_of_the_flags(tiny_copy, tmp_path, capsys):
    """mine, encode and search give with a folder's prompts what they give with the same as
    flags."""
    path, plain = write(tmp_path / "pairs.csv", TEXTS), str(tiny_copy)
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"{document}\n" for _, document in TEXTS), encoding="utf-8")
    results = []
    for name in ("flags", "folder"):
        query, document = ["--query-prompt", QUERY], ["--document-prompt", DOCUMENT]
        if name == "folder":
            with_settings(tiny_copy, prompts={"query": QUERY, "document": DOCUMENT})
            query, document = [], []
        mined, vectors = tmp_path / f"{name}.jsonl", tmp_path / f"{name}.npz"
        flags = ["--model", plain, "--out", str(mined), "--margin", "0", "--cosines"]
        assert main(["mine", path, *flags, *query, *document]) == 0
        flags = ["--model", plain, "--out", str(vectors)]
        assert main(["encode", str(texts), *flags, *document]) == 0
        capsys.readouterr()
        assert main(["search", str(vectors), "looks for a cook", "--model", plain, *query]) == 0
        results.append((mined.read_text("utf-8"), capsys.readouterr().out))
    assert results[0] == results[1]
    without = tmp_path / "without.jsonl"
    empty = ["--query-prompt", "", "--document-prompt", ""]
    flags = ["--model", plain, "--out", str(without), "--margin", "0", "--cosines"]
    assert main(["mine", path, *flags, *empty]) == 0
    assert without.read_text("utf-8") != results[0][0]
