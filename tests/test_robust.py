"""--recipe robust: one flag, with whatever other flags; and --stay-near, which holds a run near its
base model."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from minilm_retriever import Encoder
from minilm_retriever.__main__ import main
from minilm_retriever.data import read_pairs
from minilm_retriever.distributed import Ranks
from minilm_retriever.evaluation import evaluate_retrieval, retrieval_from_pairs
from minilm_retriever.flags import flag_name
from minilm_retriever.training.checkpoint import Position
from minilm_retriever.training.config import RECIPES, TrainConfig, with_example, with_recipe
from minilm_retriever.training.dataset import BatchRows
from minilm_retriever.training.run import train
from minilm_retriever.training.stay_near import StayNear
from minilm_retriever.training.validation import Validation
from tests.folder_edits import edit, modules
from tests.training.runs import log_rows, small_run, write_pairs

# --- the recipe -----------------------------------------------------------------------------------


def test_robust_is_one_flag_and_every_number_of_it_can_be_given():
    flags = with_recipe({"train": ("x.csv",), "out": "y", "recipe": "robust"})
    plain = TrainConfig(**flags)
    assert plain.distinct and plain.false_negatives == "avoid" and plain.mix == "auto"
    assert plain.patience is None and plain.epochs <= 16
    watched = with_recipe({**flags, "eval": "held_out.csv"})
    assert TrainConfig(**watched).patience
    given = with_recipe({"train": ("x.csv",), "out": "y", "recipe": "robust", "mix": "1"})
    assert TrainConfig(**given).mix == "1"
    assert with_recipe(with_example({"recipe": "robust"}))["patience"]  # it has held-out pairs


def robust(model, pairs, out, *words):
    """Exit status of the command."""
    flags = ["--train", pairs, "--model", str(model), "--device", "cpu", "--out", str(out)]
    return main(["train", *flags, "--recipe", "robust", *words])


ALONE = [  # each with --recipe robust, two passes
    "--batch-size 8",
    "--batch-size 2 --epochs 1",
    "--max-steps 3",
    "--no-distinct --no-symmetric --false-negatives keep",
    "--false-negatives mask --batch-size 8",
    "--guide --guide-all --guide-margin 0.1",
    "--matryoshka 8 32",
    "--cache-batch 5 --gradient-checkpointing",
    "--gradient-accumulation-steps 2 --batch-size 8",
    "--stay-near 0 --mix 0.5",
    "--learning-rate 0 --warmup-steps 0",
    "--label-smoothing 0.1 --dropout 0 --weight-decay 0.1 --max-length 8",
    "--query-prompt query: --document-prompt passage:",
    "--save-dtype float16 --eval-steps 1",
    "--general TEXTS",
    "--eval HELD --metric loss",
    "--eval HELD --patience 1 --eval-steps 1 --general SCORED",
    "--eval SCORED",
    "--eval BEIR",
    "--columns query document negative",
    "--columns query document negative --sample-negatives 1 --cache-batch 3",
]


@pytest.fixture()
def files(tmp_path):
    """The data that the flags above name."""
    rows = [("a nurse", "a river", 0.1), ("an engine", "engine", 4.5), ("code", "bread", 2.0)]
    scored = "".join(f"{a},{b},{score}\n" for a, b, score in rows)
    (tmp_path / "scored.csv").write_text(f"sentence1,sentence2,score\n{scored}", "utf-8")
    (tmp_path / "texts.txt").write_text("a nurse\nan engine\na river\n", "utf-8")
    triples = "".join(f"what {i},answer {i},{f'wrong {i}' * (i % 2)}\n" for i in range(20))
    (tmp_path / "triples.csv").write_text(f"query,document,negative\n{triples}", "utf-8")
    beir = Path(__file__).parent / "reference/beir"
    return {
        "HELD": write_pairs(tmp_path / "held_out.csv", 12, start=100),
        "SCORED": str(tmp_path / "scored.csv"),
        "TEXTS": str(tmp_path / "texts.txt"),
        "BEIR": str(next(path.parent for path in beir.rglob("corpus.jsonl"))),
        "triples": str(tmp_path / "triples.csv"),
        "pairs": write_pairs(tmp_path / "pairs.csv", 20),
    }


@pytest.mark.parametrize("words", ALONE)
def test_robust_keeps_all_of_it_but_the_flags_that_are_given(words, files, tiny_folder, tmp_path):
    given = [files.get(word, word) for word in words.split()]
    more = [] if {"--epochs", "--max-steps"} & {*given} else ["--epochs", "2"]
    pairs = files["triples" if "--columns" in given else "pairs"]
    assert robust(tiny_folder, pairs, tmp_path / "out", *given, *more) == 0
    record = json.loads((tmp_path / "out/training.json").read_text("utf-8"))
    flags = {item.name: flag_name(item) for item in fields(TrainConfig)}
    for name, value in RECIPES["robust"].items():
        if not {flags[name], flags[name].replace("--", "--no-")} & {*given, *more}:
            assert record["settings"][name] == value, name
    assert ("patience" in words) == (record["settings"]["patience"] == 1)
    assert 0 < record["mix"]["share"] <= 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--loss cosent", "--recipe robust is for pairs without scores, not for --loss cosent"),
        ("--loss cosine", "--recipe robust is for pairs without scores, not for --loss cosine"),
        ("--train SCORED", "--loss cos"),  # a loss of scores is named, which says the former
        ("--patience 2", "--patience needs --eval"),
        ("--mix most", "--mix is a share from 0 to 1, or auto, not most"),
        ("--matryoshka 8 4096", "--matryoshka"),
        ("--columns query", "columns"),
        ("--batch-size 1", "has no negatives"),
    ],
)
def test_what_robust_cannot_do_is_one_line(words, line, files, tiny_folder, tmp_path, capsys):
    given = [files.get(word, word) for word in words.split()]
    assert robust(tiny_folder, files["pairs"], tmp_path / "out", *given) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and line in last
    assert not (tmp_path / "out").exists()


def test_rows_of_several_files_and_too_few_of_them(files, tiny_folder, tmp_path, capsys):
    few = write_pairs(tmp_path / "few.csv", 2)
    words = ["--train", files["pairs"], few, "--epochs", "2"]
    assert robust(tiny_folder, files["pairs"], tmp_path / "out", *words) == 0
    assert robust(tiny_folder, few, tmp_path / "two", "--epochs", "2") == 0
    one = write_pairs(tmp_path / "one.csv", 1)
    assert robust(tiny_folder, one, tmp_path / "one") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")


SHAPES = {
    "a Dense module": modules("Dense", "Normalize"),
    "cut vectors": lambda m: edit(m, "config_sentence_transformers.json", truncate_dim=16),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", ["0", "0.5", "auto"])
def test_robust_mixes_all_that_was_trained(shape, share, files, tiny_copy, tmp_path):
    SHAPES[shape](tiny_copy)
    out = tmp_path / "out"
    assert robust(tiny_copy, files["pairs"], out, "--epochs", "2", "--mix", share) == 0
    names = [path.relative_to(tiny_copy) for path in tiny_copy.rglob("*.safetensors")]
    for name in names:
        base, mixed = (load_file(folder / name) for folder in (tiny_copy, out))
        same = [torch.equal(base[key], mixed[key]) for key in mixed]
        assert all(same) if share == "0" else not all(same), name


@pytest.fixture()
def config(tiny_folder, tmp_path):
    return small_run(tiny_folder, tmp_path)  # 12 steps


@pytest.fixture()
def held_out(tmp_path):
    return write_pairs(tmp_path / "held_out.csv", 12, start=100)


@pytest.mark.parametrize(
    ("copies", "epochs", "warned"), [(1, 16, False), (1, 17, True), (9, 2, True), (9, 1, False)]
)
def test_a_plan_that_repeats_each_pair_too_often_is_warned_of(
    copies, epochs, warned, config, tmp_path, capsys
):
    path = tmp_path / "pairs.csv"
    write_pairs(path, 10)
    header, *rows = path.read_text("utf-8").splitlines()
    path.write_text("\n".join([header, *rows * copies]) + "\n", "utf-8")
    assert train(config(train=(str(path),), epochs=epochs, dry_run=True)) == 0
    said = capsys.readouterr().err
    assert (f"each distinct pair is shown {copies * epochs} times" in said) == warned
    assert ("--recipe robust" in said) == warned


# --- held near ------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_term_is_the_mean_of_one_minus_cosine_over_all_rows(world_size):
    rng = torch.Generator().manual_seed(0)
    base = torch.randn(9, 4, generator=rng)
    text_ids = np.array([[0, 1, 2, 3, 4], [5, 6, 7, 8, 0]])
    vectors = torch.randn(2, 5, 4, generator=rng, requires_grad=True)
    added = torch.zeros(())
    for rank in range(world_size):
        ranks = Ranks(rank, world_size)
        held = StayNear(lambda v, ids: v.sum() * 0.0, 0.5, base, ranks)
        own = ranks.own_rows(5)
        rows = BatchRows(text_ids, text_ids)
        added = added + held(vectors[:, own].reshape(-1, 4), rows)
    pairs = [(vectors[c, b], base[text_ids[c, b]]) for c in range(2) for b in range(5)]
    cosines = [float((v @ b / v.norm() / b.norm()).detach()) for v, b in pairs]
    assert added.item() == pytest.approx(0.5 * (1 - np.mean(cosines)), abs=1e-6)
    added.backward()
    assert vectors.grad.abs().sum() > 0


def test_a_run_that_stays_near_moves_less(config, held_out, tmp_path):
    flags = {"eval": held_out, "learning_rate": 3e-3, "dropout": 0.0}
    assert train(config(**flags)) == 0
    assert train(config(**flags, stay_near=5.0, out=str(tmp_path / "near"))) == 0
    free, near = (log_rows(tmp_path / name)[-1]["general"]["agreement"] for name in ("out", "near"))
    assert near > free + 0.01


# --- near the best --------------------------------------------------------------------------------

MRR = [0.70, 0.80, 0.84, 0.83, 0.79, 0.82, 0.825]


@pytest.mark.parametrize(
    ("tolerance", "error", "best", "stale"),
    [
        (0.0, 0.02, 2, 4),  # the best
        (1.0, 0.02, 6, 0),  # the last within an error of it; one was below
        (1.0, 0.012, 3, 3),
        (3.0, 0.02, 6, 0),
        (1.0, 0.0, 2, 4),  # unknown
    ],
)
def test_the_last_weights_within_the_tolerance_of_the_best(tolerance, error, best, stale):
    for metric, sign in (("mrr@10", 1), ("loss", -1)):
        config = TrainConfig(train=("x",), eval="z", out="y", metric=metric, tolerance=tolerance)
        validation, position = Validation(None, None, None, config), Position()
        for step, value in enumerate(MRR):
            position.step = step
            validation.is_best({metric: sign * value, "standard_error": error}, position)
        assert (position.best_step, position.stale_evaluations) == (best, stale)
        assert position.best_metric == pytest.approx(0.84)


def test_the_standard_error_is_that_of_the_mean_over_queries(files, tiny_folder, tmp_path):
    given = ["--epochs", "1", "--eval", files["HELD"], "--mix", "1"]
    assert robust(tiny_folder, files["pairs"], tmp_path / "out", *given) == 0
    evaluated = [row["eval"] for row in log_rows(tmp_path / "out") if "eval" in row][-1]
    pairs = read_pairs(files["HELD"])
    task = retrieval_from_pairs(*pairs.texts)
    encode = Encoder.from_pretrained(tmp_path / "out", device="cpu").encode
    ranks = evaluate_retrieval(task, encode).per_query["mrr@10"]
    assert evaluated["standard_error"] == pytest.approx(ranks.std() / 12**0.5, abs=1e-6)
