"""Which occupation does a description tell of? A linear classifier on the vectors (needs
scikit-learn).

It learns from two texts an occupation, a description and the list of skills, and is tested on other
descriptions."""

from sklearn.linear_model import LogisticRegression

from minilm_retriever import Encoder
from minilm_retriever.data import read_pairs

encoder = Encoder.from_pretrained("checkpoints/all-MiniLM-L6-v2")
columns = ["description", "skills", "title"]
learn, test = (
    read_pairs(f"examples/job_skills/{name}.csv", columns) for name in ("train", "unseen_wordings")
)
descriptions, skills, titles = learn.texts
classifier = LogisticRegression(C=100.0).fit(encoder.encode(descriptions + skills), titles + titles)
vectors = encoder.encode(test.texts[0])
accuracy = classifier.score(vectors, test.texts[2])
print(f"accuracy on {len(test)} descriptions, {len(set(titles))} occupations: {accuracy:.4f}")
nearest = (vectors @ encoder.encode(skills).T).argmax(axis=1)
right = sum(titles[row] == title for row, title in zip(nearest, test.texts[2], strict=True))
print(f"by the nearest list of skills alone, nothing learnt: {right / len(test):.4f}")
