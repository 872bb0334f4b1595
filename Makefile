PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CONSTRAINTS ?= constraints.txt

.PHONY: setup test test-batch test-browser test-newest-triton reliability soak lint demo motion tunnel picture bench bench-accept bench-accept-ratios bench-compare bench-control

setup: $(STAMP)

# CONSTRAINTS=floors.txt installs the oldest packages that are supported, CONSTRAINTS=/dev/null the newest
$(STAMP): setup.py constraints.txt floors.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c $(CONSTRAINTS) -e ".[dev]"
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# runs the parts one after the other, then prints how long each took
test: lint
	$(BIN)/python tests/parts.py \
		"tests: $(BIN)/pytest -q -n auto --dist worksteal" \
		"Triton's interpreter: TRITON_INTERPRET=1 $(BIN)/pytest -q -n auto --confcutdir tests/interpreter tests/interpreter" \
		"Triton's compiler: $(BIN)/pytest -q --confcutdir tests/compile tests/compile"

# runs the tests marked `fault` and writes their outcomes to docs/reliability.md
reliability: setup
	$(BIN)/pytest -q -n auto -m fault --reliability docs/reliability.md tests

# 200 transfers in one process: fails if its memory grows
soak: setup
	$(BIN)/python tests/soak.py

# batches on real Ray, with two nodes on this machine
test-batch: setup
	$(BIN)/pip install -q -c $(CONSTRAINTS) -e ".[batch]"
	$(BIN)/pytest -q tests/batch/with_ray

# the pages of `ditflow report` and `ditflow app`; needs chromium and chromedriver
test-browser: setup
	$(BIN)/pip install -q -c $(CONSTRAINTS) -e ".[dev,app]"
	$(BIN)/pytest -q tests/browser

# compiles every kernel with the newest Triton, beside the pinned one
NEWEST_TRITON := $(VENV)/newest-triton
test-newest-triton: setup
	$(BIN)/pip install -q --no-deps --upgrade --target $(NEWEST_TRITON) triton
	PYTHONPATH=$(NEWEST_TRITON) $(BIN)/pytest -q --confcutdir tests/compile tests/compile

demo: setup
	mkdir -p runs
	$(BIN)/python -m ditflow.small.clips runs/demo-clip.mp4 --seed 9
	$(BIN)/ditflow transfer --model small --video runs/demo-clip.mp4 --prompt "a blue square on a white background" \
		--output runs/demo

# every mode of the small models, on generated clips with known motion
motion: setup
	mkdir -p bench/results
	for style in rope sincos wan; do \
		$(BIN)/python -m bench.motion --pairs 12 --model-style $$style --json >bench/results/motion-$$style.json.new \
			&& mv bench/results/motion-$$style.json.new bench/results/motion-$$style.json || exit 1; \
	done

# the tables of docs/wind-tunnel.md, a stage after the other; STAGES="unguided" measures only some
STAGES ?= gradients unguided negative speeds guided guided-small wan rates directed-drawn directed-scale directed-mask directed-camera
tunnel: setup
	mkdir -p bench/results
	for stage in $(STAGES); do \
		$(BIN)/python -m bench.tunnel --stage $$stage --json >bench/results/tunnel-$$stage.json.new \
			&& mv bench/results/tunnel-$$stage.json.new bench/results/tunnel-$$stage.json || exit 1; \
	done
	$(BIN)/python -m bench.report

# the README's picture
picture: setup
	$(BIN)/python -m ditflow.pages.showcase docs/guided.gif

MEASURED := .benchmarks/ratios.json

# times our code beside its rivals: fails outside the bounds of bench/ratios.csv, or if a planted slowdown would pass
bench: setup
	mkdir -p $(dir $(MEASURED))
	$(BIN)/pytest -q bench/timed --benchmark-json=$(MEASURED)
	$(MAKE) bench-control

# our side does half as much work again: fails if that breaks no bound
bench-control: setup
	$(BIN)/pytest -q bench/timed --expect slowdown

# measures three times and sets every bound; use a quiet machine, and know why the ratios changed
bench-accept-ratios: setup
	mkdir -p $(dir $(MEASURED))
	for run in 1 2 3; do \
		$(BIN)/pytest -q bench/timed --expect nothing --benchmark-json=$(MEASURED).$$run || exit 1; \
	done
	$(BIN)/python -m bench.timed.bounds $(MEASURED).1 $(MEASURED).2 $(MEASURED).3

bench-compare: setup
	$(BIN)/python -m bench.compare $(or $(BASE),$(error no BASE given: make bench-compare BASE=REVISION))

# measures bench/expected.csv again: make bench-accept REASON="why it changed"
bench-accept: setup
	$(BIN)/python -m bench.gates.accept "$$REASON"
