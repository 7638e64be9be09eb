"""scikit-learn: the encoder as the first step of a pipeline."""

from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from minilm_retriever import Encoder

texts = ["He bakes bread.", "She ices cakes.", "He mends violins.", "She tunes pianos."]
encode = FunctionTransformer(Encoder("checkpoints/all-MiniLM-L6-v2").encode)
model = make_pipeline(encode, LogisticRegression()).fit(texts, ["food", "food", "music", "music"])
print(model.predict(["restores old cellos"])[0])  # music
