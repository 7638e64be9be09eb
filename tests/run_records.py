"""A plausible run and a hostile one, for the tests of what tells about runs."""

import random
from dataclasses import replace

from minilm_retriever.reports.run_record import Column, Evaluation, RunRecord

LENGTHS = random.Random(0)

RUN = RunRecord(
    name="job-skills",
    base="sentence-transformers/all-MiniLM-L6-v2",
    base_revision="c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
    architecture={"layers": 6, "hidden size": 384, "attention heads": 12, "parameters": 22_713_216},
    max_length=256,
    dimension=384,
    pooling="mean",
    normalize=True,
    data=("train.csv",),
    rows=100_000,
    distinct_pairs=376,
    columns=(
        Column(
            "sentence_0", [14, 75, *(max(14, round(LENGTHS.gauss(32.7, 9))) for _ in range(998))]
        ),
        Column("sentence_1", [8, 79, *(max(8, round(LENGTHS.gauss(23.5, 8))) for _ in range(998))]),
    ),
    samples=(
        (
            "Keeps the looms of a mill running and mends broken threads.",
            "Weaving Machine maintenance Fibre knowledge",
        ),
        (
            "Advises on buying and selling companies.",
            "Mergers & acquisitions (M&A) Due diligence Valuation",
        ),
        ("Shows products to shoppers.", "Product knowledge Demonstration Sales"),
    ),
    loss_floor=0.0374,
    settings={"learning_rate": 5e-5, "batch_size": 16, "epochs": 3, "seed": 42, "device": None},
    defaults={"learning_rate": 2e-5, "batch_size": 16, "epochs": 3, "seed": 42, "device": None},
    steps=18_750,
    seconds=12_345.6,
    machine="2 x Some CPU, 8 GB",
    versions={"Python": "3.11.7", "minilm_retriever": "0.1.0", "PyTorch": "2.13.0+cpu"},
    log=((0.08, 500, 0.0787), (0.16, 1000, 0.047), (1.36, 8500, 0.0374), (2.96, 18500, 0.03612)),
    evaluation=Evaluation(
        data="heldout.csv",
        queries=320,
        documents=320,
        before={"accuracy@1": 0.604, "mrr@10": 0.738, "recall@10": 0.976},
        after={"accuracy@1": 0.712, "mrr@10": 0.815, "recall@10": 0.981},
        also_in_training=2,
    ),
    notes=("Resumed twice.", "The published weights are of step 18,000, the best by mrr@10."),
    language="en",
    license="apache-2.0",
    intended_use="Finding the skills that a job description asks for.",
    widget=(
        ("Looks after horses.", ("Grooming Feeding Stable management", "Python SQL Statistics")),
    ),
    similarities="[[1.     0.6812 0.0213]\n [0.6812 1.     0.1034]\n [0.0213 0.1034 1.    ]]",
)

HOSTILE_TEXT = (
    "a|b\n---\n`code` ``` *bold* _x_ [link](http://x) <script>alert('x')</script> & \"quoted\" "
    "'single' \\ ~~gone~~ é 漢字 👩‍🚀 \u2028 \u0085 \x07 \ud800 #: no, 2020-01-01 {braces} $math$ "
    "{{ 6 * 7 }} {% raw %} {# gone #}"
)

HOSTILE = replace(
    RUN,
    name=HOSTILE_TEXT,
    base=HOSTILE_TEXT,
    base_revision=None,
    data=(HOSTILE_TEXT,),
    columns=tuple(replace(column, name=HOSTILE_TEXT) for column in RUN.columns),
    samples=((HOSTILE_TEXT, HOSTILE_TEXT), ("x" * 100_000, "")),
    settings={HOSTILE_TEXT: HOSTILE_TEXT},
    machine=HOSTILE_TEXT,
    versions={HOSTILE_TEXT: HOSTILE_TEXT},
    evaluation=Evaluation(HOSTILE_TEXT, 1, 1, {HOSTILE_TEXT: float("nan"), "{{ x }}": 0.5}),
    notes=(HOSTILE_TEXT,),
    language="no",
    license=HOSTILE_TEXT,
    intended_use=HOSTILE_TEXT,
    limits=HOSTILE_TEXT,
    widget=((HOSTILE_TEXT, (HOSTILE_TEXT, "- x", "#", "2020-01-01", "no", "~", "")),),
)

BARE = RunRecord(
    name="x",
    base="y",
    max_length=8,
    dimension=4,
    pooling="cls",
    normalize=False,
    data=(),
    rows=0,
    columns=(Column("a", ()), Column("b", ())),
    samples=(),
    settings={},
    defaults={},
    steps=0,
    seconds=0.0,
    machine="m",
    versions={"Python": "3"},
    log=(),
)


def metrics(steps=18_750, every=500):
    """Rows of metrics.jsonl as a run like RUN writes them."""
    noise = random.Random(1)
    rows = []
    for step in range(every, steps + 1, every):
        row = {"step": step, "epoch": step * 3 / steps, "learning_rate": 5e-5 * (1 - step / steps)}
        row["loss"] = 0.037 + 0.05 * 2 ** (-step / 500) + noise.gauss(0, 0.002)
        row["tokens_per_second"] = noise.gauss(1650, 40)
        row["seconds"] = step * 0.66
        rows.append(row)
        if step % (4 * every) == 0:
            shape = 2 ** (-step / 2000)
            scores = {
                "mrr@10": 0.815 - 0.07 * shape,
                "recall@10": 0.981 - 0.01 * shape,
                "accuracy@1": 0.712 - 0.1 * shape,
            }
            rows.append({"step": step, "eval": {"loss": 0.12 + 0.1 * shape, **scores}})
    return rows
