"""What a run keeps of the base model's general ability, and which share of its weights is
published."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr

from minilm_retriever import Encoder
from minilm_retriever.__main__ import main
from minilm_retriever.errors import UserError
from minilm_retriever.evaluation.general import (
    GeneralMeasure,
    read_general,
    read_sentences,
)
from minilm_retriever.evaluation.metrics import rank_correlation
from minilm_retriever.reports.run_record import SharePoint
from minilm_retriever.training.config import TrainConfig
from minilm_retriever.training.run import train
from minilm_retriever.training.share import bisect, choose_share
from tests.tiny import make_tiny_bert
from tests.training.runs import log_rows, small_run, write_pairs

# --- the measure ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_rank_correlation_is_scipys(seed):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=200).round(seed % 3)  # with ties
    b = a * rng.choice([-1, 0, 1]) + rng.normal(size=200)
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
    assert np.isnan(rank_correlation(a, np.ones(200)))


def test_the_packages_sentences_are_200_different_ones():
    sentences = read_sentences(None)
    assert len(sentences) == 200 and all(len(text) > 8 for text in sentences)


def turned(vectors):
    """The same vectors in other axes, so with the same cosines."""
    size = vectors.shape[1]
    axes, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))
    return (vectors @ axes).astype(np.float32)


def test_agreement_is_one_for_the_same_similarities_and_falls_with_noise(tiny):
    measure = read_general(None, tiny.encode)
    assert (measure.name, measure.measure(tiny.encode)) == ("agreement", pytest.approx(1.0))
    assert measure.measure(lambda texts: 3 * turned(tiny.encode(texts))) > 0.9999
    noise = np.random.default_rng(1).normal(size=(len(read_sentences(None)), 32))
    values = [
        measure.measure(lambda texts, s=s: (tiny.encode(texts) + s * noise).astype(np.float32))
        for s in (0.01, 0.1, 1)
    ]
    assert 1 > values[0] > values[1] > values[2] > -1


def test_somebodys_own_file_may_be_sentences_scored_pairs_or_a_beir_folder(tiny, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("a nurse\nan engine\n\na river\na nurse\nmusic at night\n", "utf-8")
    agreement = read_general(str(texts), tiny.encode)
    assert (agreement.name, agreement.data) == ("agreement", "texts.txt")
    assert agreement.measure(tiny.encode) == pytest.approx(1.0)

    rows = [("a nurse", "a river", 0.1), ("an engine", "engine", 4.5), ("code", "bread", 2.0)]
    scored = tmp_path / "sts.jsonl"
    keys = ("sentence1", "sentence2", "score")
    scored.write_text("".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows))
    spearman = read_general(str(scored), tiny.encode)
    left, right, scores = zip(*rows, strict=True)
    cosines = (tiny.encode(left) * tiny.encode(right)).sum(axis=1)
    assert spearman.name == "spearman"
    assert spearman.measure(tiny.encode) == pytest.approx(spearmanr(cosines, scores).statistic)

    beir = Path(__file__).parent / "reference/beir"
    folder = next(path.parent for path in beir.rglob("corpus.jsonl"))
    assert read_general(str(folder), tiny.encode).name == "ndcg@10"


def test_two_sentences_are_too_few(tiny, tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("one\ntwo\ntwo\n", "utf-8")
    with pytest.raises(UserError, match="2 different sentences are too few"):
        read_general(str(path), tiny.encode)


# --- the rule -------------------------------------------------------------------------------------


def measure(lost):
    return GeneralMeasure("x", "agreement", lost, lambda encode: 1.0)


def points(own, general):
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    return [SharePoint(*values) for values in zip(shares, own, general, strict=True)]


@pytest.mark.parametrize(
    ("own", "metric", "lost", "share"),
    [
        ([0.5, 0.6, 0.7, 0.8, 0.9], "mrr@10", 0.5, 1.0),  # all within the bound: the best
        ([0.5, 0.6, 0.7, 0.8, 0.9], "mrr@10", 0.035, 0.75),
        ([0.5, 0.6, 0.8, 0.7, 0.9], "mrr@10", 0.035, 0.5),
        ([0.5, 0.6, 0.8, 0.8, 0.9], "mrr@10", 0.035, 0.5),  # of equals the smaller share
        ([0.9, 0.6, 0.5, 0.4, 0.3], "loss", 0.035, 0.75),
        ([0.5, 0.6, 0.7, 0.8, 0.9], "mrr@10", 0.001, 0.25),  # none: the smallest
        ([0.9, 0.6, 0.7, 0.5, 0.4], "mrr@10", 0.5, 0.5),  # the base model is no candidate
        ([None] * 5, "mrr@10", 0.035, 0.75),  # nothing held out: the largest
        ([None] * 5, "mrr@10", 0.001, 0.25),
    ],
)
def test_auto_takes_the_best_share_within_the_bound(own, metric, lost, share):
    general = [1.0, 0.995, 0.98, 0.97, 0.94]
    assert choose_share(points(own, general), measure(lost), metric)[0] == share


@pytest.mark.parametrize("has_own", [True, False])
@pytest.mark.parametrize("edge", [0.01, 0.125, 0.3, 0.5, 0.8, 0.93, 1.0])
def test_auto_bisects_for_the_largest_share_within_the_bound(edge, has_own):
    def ability(share):
        return {"general": {"agreement": 1 - 0.04 * share / edge}}

    measured, owns = {0.0: ability(0), 1.0: ability(1)}, []

    def measure_share(share, own=True):
        measured[share] = ability(share)
        owns.extend([share] if own else [])

    bisect(measure(0.04 + 1e-9), measured, measure_share, has_own=has_own)
    within = [share for share in measured if 0 < share <= edge]
    assert max(within, default=0) == int(8 * edge) / 8
    assert len(measured) == (2 if edge == 1 and not has_own else 5)
    assert sorted(owns) == sorted({*within} - {1.0})  # nothing is held out against what is lost


def test_an_ability_that_was_not_finite_is_lost():
    measured = {share: {"general": {"agreement": 1.0 - share}} for share in (0.0, 0.25, 0.375, 0.5)}
    measured[1.0] = {"general": {"agreement": None}}
    met = []
    bisect(measure(0.3), measured, lambda share, **flags: met.append(share), has_own=False)
    assert met == [0.5, 0.25, 0.25, 0.375]


# --- a run ----------------------------------------------------------------------------------------


@pytest.fixture()
def config(tiny_folder, tmp_path):
    return small_run(tiny_folder, tmp_path)  # 12 steps


@pytest.fixture()
def held_out(tmp_path):
    return write_pairs(tmp_path / "held_out.csv", 12, start=100)


def weights(out):
    return load_file(f"{out}/model.safetensors")


def test_every_evaluation_measures_what_is_left_of_the_base_model(config, held_out, tiny):
    flags = config(eval=held_out, learning_rate=3e-3)
    assert train(flags) == 0
    rows = [row for row in log_rows(flags.out) if "eval" in row]
    values = [row["general"]["agreement"] for row in rows]
    assert [row["step"] for row in rows] == [0, 6, 12]
    assert values[0] == pytest.approx(1.0) and values[1] < 1
    now = Encoder.from_pretrained(flags.out)
    best = max(rows[1:], key=lambda row: row["eval"]["mrr@10"])
    expected = read_general(None, tiny.encode).measure(now.encode)
    assert best["general"]["agreement"] == pytest.approx(expected, abs=1e-5)
    for name in ("README.md", "report.html"):
        assert f"{expected:.4f}"[:6] in (Path(flags.out) / name).read_text("utf-8"), name


def test_a_large_loss_is_warned_of_once(config, held_out, capsys):
    flags = config(eval=held_out, learning_rate=0.05, epochs=4)
    assert train(flags) == 0
    assert (
        capsys.readouterr().err.count(
            "warning: agreement on 200 general sentences fell from 1.0000 to "
        )
        == 1
    )


def test_without_eval_nothing_is_measured_unless_it_is_asked_for(config, tmp_path):
    assert train(config()) == 0
    assert not any("general" in row for row in log_rows(tmp_path / "out"))
    texts = tmp_path / "texts.txt"
    texts.write_text("a nurse\nan engine\na river\n", "utf-8")
    assert train(config(general=str(texts), out=str(tmp_path / "other"))) == 0
    rows = [row for row in log_rows(tmp_path / "other") if "eval" in row]
    assert [(row["step"], row["eval"]) for row in rows] == [(0, {}), (6, {}), (12, {})]


@pytest.mark.parametrize(
    ("share", "with_eval"),
    [("0", True), ("0.3", False), ("1", False), ("auto", True), ("auto", False)],
)
def test_the_published_weights_are_that_share(share, with_eval, config, held_out, tmp_path):
    flags = {"learning_rate": 3e-3, "eval": held_out if with_eval else None}
    assert train(config(**flags)) == 0
    out = str(tmp_path / "mixed")
    assert train(config(**flags, mix=share, out=out)) == 0
    base, tuned, mixed = (weights(x) for x in (config().model, tmp_path / "out", out))
    record = json.loads((tmp_path / "mixed/training.json").read_text("utf-8"))["mix"]
    taken = record["share"]
    assert share == "auto" or taken == float(share)
    for name, tensor in mixed.items():
        line = base[name].double() + taken * (tuned[name].double() - base[name].double())
        assert torch.allclose(tensor.double(), line, rtol=0, atol=1e-6), name
        if taken in (0, 1):
            assert torch.equal(tensor, (tuned if taken else base)[name])
    assert f"base + {taken:g} x (fine-tuned - base)" in (Path(out) / "README.md").read_text()
    if share == "auto":
        shares = [point[0] for point in record["points"]]
        assert shares[0] == 0 and shares[-1] == 1 and taken in shares[1:] and len(shares) <= 5


def test_the_card_tells_of_the_published_weights_and_not_of_others(config, held_out, tmp_path):
    flags = config(eval=held_out, learning_rate=3e-3, mix="0")
    assert train(flags) == 0
    card = (tmp_path / "out/README.md").read_text("utf-8")
    before = log_rows(flags.out)[0]["eval"]["mrr@10"]
    assert f"| mrr@10 | {before:.4f} | {before:.4f} | +0.0000 |" in card
    assert "agreement 1.0000 before training, 1.0000 after" in card


@pytest.mark.parametrize("share", ["1.5", "-0.1", "nan", "inf", "half", ""])
def test_a_share_that_is_none_is_one_line(share, tmp_path):
    with pytest.raises(UserError, match="--mix is a share from 0 to 1, or auto"):
        TrainConfig(train=("x.csv",), out=str(tmp_path / "out"), mix=share)


# --- evaluate -------------------------------------------------------------------------------------


@pytest.fixture()
def two_models(tmp_path):
    """Two folders of one architecture, the second near the first."""
    base, far = (str(make_tiny_bert(tmp_path / f"m{seed}", seed=seed)) for seed in (1, 2))
    near = str(tmp_path / "near")
    assert main(["mix", base, far, "--share", "0.2", "--out", near]) == 0
    return ["--model", base, "--model", near]


def test_evaluate_says_what_each_model_keeps_of_the_first(two_models, held_out, capsys):
    assert main(["evaluate", held_out, *two_models, "--general", "--json"]) == 0
    general = json.loads(capsys.readouterr().out)["general"]
    assert general["measure"] == "agreement on 200 general sentences"
    assert general["models"]["m1"] == pytest.approx(1.0) and general["models"]["near"] < 0.9999
    assert main(["evaluate", held_out, *two_models, "--general"]) == 0
    assert "general ability, agreement on 200 general sentences: m1 1.0000" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("scored", [False, True])
def test_the_picture_has_both_ends_as_evaluate_measures_them(
    scored, two_models, held_out, tmp_path, capsys
):
    data = held_out
    if scored:
        rows = [("a nurse", "a river", 0.1), ("an engine", "engine", 4.5), ("code", "bread", 2.0)]
        data = str(tmp_path / "sts.csv")
        lines = [f"{a},{b},{score}" for a, b, score in rows]
        Path(data).write_text("\n".join(["sentence1,sentence2,score", *lines]) + "\n", "utf-8")
    page = tmp_path / "line.html"
    words = ["evaluate", data, *two_models, "--picture", str(page), "--json"]
    assert main(words) == 0
    first = json.loads(capsys.readouterr().out)
    name = "spearman" if scored else "mrr@10"
    text = page.read_text("utf-8")
    for share, result in ((0, first), (1, first["others"][0])):
        assert f"<tr><td>{share}</td><td>{result[name]:.4f}</td>" in text
    assert text.count("<tr><td>") == 5 and "share 0.75: " in text
    assert main(words) == 2
    assert "exists; choose another --picture" in capsys.readouterr().err


@pytest.mark.parametrize("models", [[], ["bm25"]])
def test_a_picture_needs_two_models(models, two_models, held_out, tmp_path, capsys):
    words = [word for model in models for word in ("--model", model)]
    out = ["--picture", str(tmp_path / "line.html")]
    assert main(["evaluate", held_out, *two_models[:2], *words, *out]) == 2
    assert "--model BASE --model TUNED" in capsys.readouterr().err
