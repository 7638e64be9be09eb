# docker build -t minilm-retriever .
# docker run -v "$PWD:/data" minilm-retriever encode corpus.csv --text skills --model /model --out vectors/
# docker run -v "$PWD:/data" minilm-retriever search vectors/ "looks after teeth"
# docker run -v "$PWD:/data" -p 8000:8000 minilm-retriever serve vectors/ --model /model --host 0.0.0.0 --api-key KEY
FROM python:3.12-slim
COPY . /src
RUN pip install --no-cache-dir -c /src/constraints.txt \
        --extra-index-url https://download.pytorch.org/whl/cpu '/src[serve]' && \
    minilm-retriever fetch --out /model && rm -r /src && useradd --create-home app
USER app
WORKDIR /data
ENTRYPOINT ["minilm-retriever"]
CMD ["--help"]
