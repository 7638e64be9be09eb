# Each target is one command that also works without make: see the lines below.
.PHONY: bench-gpu demo test lint interop clients bench faults

demo:     ## fine-tune, compare, encode and search on the example
	./setup.sh && .venv/bin/python examples/demo.py

test:     ## the whole test-suite, a process for each core
	./setup.sh && .venv/bin/minilm-retriever fetch
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive .venv/bin/python -m pytest -n auto --maxprocesses 8 --dist worksteal

lint:     ## style and types
	./setup.sh && .venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

interop:  ## against sentence-transformers 3.4.1 and 6.2.0, each in an environment of its own
	./setup.sh && .venv/bin/minilm-retriever fetch
	test -d checkpoints/interop || .venv/bin/python train.py --train examples/job_skills/train.csv --max-steps 5 --out checkpoints/interop
	.venv/bin/python tests/reference/interop.py --folder checkpoints/interop

clients:  ## beside LangChain, Chroma, MTEB, fastembed, ... (docs/clients.md), and the wheel alone, in environments of their own
	./setup.sh && .venv/bin/minilm-retriever fetch && .venv/bin/python tests/reference/clients.py

faults:   ## faults put in on purpose and counted, under an hour; writes tests/faults/scorecard.json
	./setup.sh && .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,fuzz]'
	.venv/bin/minilm-retriever fetch && .venv/bin/python -m tests.faults.campaign

bench-gpu: ## training, encoding and queries on one GPU beside what it could do: 6 minutes, no network
	.venv/bin/python benchmarks/bench_gpu.py

bench:    ## beside sentence-transformers, onnxruntime, fastembed, faiss and trec_eval; DATA=path and COLUMNS="a b" add other pairs
	./setup.sh && .venv/bin/minilm-retriever fetch && .venv/bin/python benchmarks/bench.py $(if $(DATA),--data $(DATA)) $(if $(COLUMNS),--columns $(COLUMNS))
	.venv/bin/python benchmarks/search.py --k 10 100
	.venv/bin/python benchmarks/metrics.py
	.venv/bin/python benchmarks/bootstrap_coverage.py
