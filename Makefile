PYTHON ?= python3

.venv/bin/jingdu: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q -c constraints.txt -e ".[dev]"
	touch $@

.PHONY: reproduce test lint
reproduce: .venv/bin/jingdu
	.venv/bin/jingdu reproduce resnet

test: .venv/bin/jingdu
	.venv/bin/python -m pytest -n 2 --dist loadfile  # tests take one thread each

lint: .venv/bin/jingdu
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
