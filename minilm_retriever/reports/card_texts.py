"""What every model card says: how to use the model, words, whom to cite. `{names}` are filled in by
model_card.py."""

OURS = """\
from minilm_retriever import Encoder

{sentences}
encoder = Encoder.from_pretrained({folder})
embeddings = encoder.encode(sentences)
print(embeddings.shape)  # {shape}
print(encoder.similarity(embeddings, embeddings))"""

SENTENCE_TRANSFORMERS = """\
from sentence_transformers import SentenceTransformer

{sentences}
model = SentenceTransformer({folder})
embeddings = model.encode(sentences)
print(embeddings.shape)  # {shape}
print(model.similarity(embeddings, embeddings))"""

TRANSFORMERS = """\
import torch
from transformers import AutoModel, AutoTokenizer

{sentences}
tokenizer = AutoTokenizer.from_pretrained({folder})
model = AutoModel.from_pretrained({folder}).eval()
inputs = tokenizer(sentences, padding=True, truncation=True, max_length={limit}, return_tensors="pt")
with torch.no_grad():
    hidden = model(**inputs).last_hidden_state
mask = inputs["attention_mask"].unsqueeze(-1).float()
embeddings = {pooled}
{unit}print(embeddings.shape)  # {shape}"""

COMMANDS = """\
python train.py --model {folder} --train PAIRS.csv --out checkpoints/NAME
python encode.py TEXTS.txt --model {folder} --out vectors
minilm-retriever search vectors 'your question'"""

GLOSSARY = """\
- **Bi-encoder:** a model that turns each text into a vector by itself, so that texts can be encoded once and compared \
later.
- **In-batch negatives:** the other rows' texts of a batch, used as wrong answers.
- **MRR@10:** the mean over all queries of 1 / rank of the right text, 0 where it is not among the first ten."""

CITATIONS = """\
Sentence-BERT, the bi-encoder:

```bibtex
@inproceedings{reimers-2019-sentence-bert,
    title = "Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks",
    author = "Reimers, Nils and Gurevych, Iryna",
    booktitle = "Proceedings of the 2019 Conference on Empirical Methods in Natural Language Processing",
    month = "11",
    year = "2019",
    publisher = "Association for Computational Linguistics",
    url = "https://arxiv.org/abs/1908.10084",
}
```

The loss with in-batch negatives:

```bibtex
@misc{henderson2017efficient,
    title = "Efficient Natural Language Response Suggestion for Smart Reply",
    author = "Henderson, Matthew and Al-Rfou, Rami and Strope, Brian and Sung, Yun-hsuan and Lukacs, Laszlo and \
Guo, Ruiqi and Kumar, Sanjiv and Miklos, Balint and Kurzweil, Ray",
    year = "2017",
    eprint = "1705.00652",
    archivePrefix = "arXiv",
    primaryClass = "cs.CL",
}
```"""
