# shapespace: `make` alone prints this help.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DELETE_ON_ERROR:
.PHONY: help demo test check slow trust versions gpu docs figures gallery humans licenses bench clean

help:  ## print this help
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# torch first and by itself, so that no other package chooses its build
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "shapespace needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	@echo "installing into $(VENV): about a minute, most of it torch"
	$(PYTHON) -m venv $(VENV)
	$(PIP) $$(grep '^torch==' constraints.txt)
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	@touch $@

# an unseen pose of a training person, an unseen person; two poses of one person
UNSEEN := $(addprefix data/demo/scans/,04/walk/walk.000000.ply 24/walk/walk.000000.ply)
ENDS   := 00/walk/000000 00/limits/000000

demo: runs/demo/scores.md runs/demo/humans/scores.md runs/demo/fitted/codes.safetensors runs/demo/report.html  ## train on synthetic people, fit, evaluate, report: about 12 minutes on 2 cores
	@echo "The model trained now:"; cat runs/demo/scores.md
	@echo "humans, the packaged model, on the same scans:"; cat runs/demo/humans/scores.md
	@echo "Report, opens in a browser: runs/demo/report.html"
	@echo "Pictures: runs/demo/fits.png runs/demo/humans/fits.png runs/demo/interpolation/interpolation.png"
	@echo "Meshes: runs/demo/meshes runs/demo/fitted runs/demo/interpolation (with interpolation.glb)"
	@echo "Scores: runs/demo/scores.json. Curves: $(BIN)/tensorboard --logdir runs"

data/demo.h5: $(VENV)/ready
	$(BIN)/shapespace synthesize data/demo --people 24 --poses 9 --test-people 6 --poses-per-test-person 2 --seed 1
	$(BIN)/shapespace preprocess synthetic data/demo $@ --points 100000 --jobs 2

runs/demo/trained: data/demo.h5
	if test -f runs/demo/checkpoint.pt; then $(BIN)/shapespace train --resume runs/demo; \
	else $(BIN)/shapespace train data/demo.h5 --config articulated --split train --out runs/demo --optim.max-minutes 5; fi
	@touch $@

runs/demo/scores.md: runs/demo/trained
	$(BIN)/shapespace evaluate runs/demo data/demo.h5 --splits unseen_poses unseen_people

runs/demo/humans/scores.md: data/demo.h5
	$(BIN)/shapespace evaluate humans data/demo.h5 --splits unseen_poses unseen_people --limit 12 --out runs/demo/humans

runs/demo/fitted/codes.safetensors: runs/demo/trained
	$(BIN)/shapespace fit runs/demo $(UNSEEN) --out runs/demo/fitted

runs/demo/interpolation/interpolation.png: runs/demo/trained
	$(BIN)/shapespace interpolate runs/demo $(ENDS) --store data/demo.h5 --out runs/demo/interpolation

runs/demo/report.html: runs/demo/scores.md runs/demo/humans/scores.md runs/demo/interpolation/interpolation.png
	$(BIN)/shapespace report runs/demo > /dev/null

# One thread a process; memory that one step of a training frees stays with the process for the next (all three settings
# of malloc, docs/results/speed.md); modules are compiled once for all processes. The files of tests come in the order of
# tests/conftest.py.
MALLOC := MALLOC_TRIM_THRESHOLD_=1073741824 MALLOC_TOP_PAD_=67108864 MALLOC_MMAP_THRESHOLD_=33554432
QUICK  := OMP_NUM_THREADS=1 $(MALLOC) PYTHONDONTWRITEBYTECODE=

test: $(VENV)/ready  ## the test suite: 11 to 13 minutes on 2 cores
	$(QUICK) $(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

check: $(VENV)/ready  ## format, lint, types, layers of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	rm -rf build && $(PIP) --no-deps --target build/typed .
	cd build/typed && MYPYPATH= ../../$(BIN)/mypy --config-file ../../pyproject.toml --no-incremental -p shapespace

slow: $(VENV)/ready  ## the tests that take minutes
	$(PIP) --constraint constraints.txt --editable '.[dev,fuzz]' || echo "atheris is not available: its tests are skipped"
	$(BIN)/python -m pytest -q -m slow

trust: $(VENV)/ready  ## fault-injection tests (kills, full disks, damaged files) and their table: at most 30 minutes on 2 cores
	$(BIN)/python -m pytest -q tests/trust --full

# The suite on other versions (docs/development/versions.md): 3.N is a version of Python with the newest packages, and
# `lowest` is Python 3.11 with the lowest versions of pyproject.toml's ranges. PINS are further requirements, such as
# PINS='torch==2.13.0'. uv fetches an interpreter that is missing; UV_TORCH_BACKEND=cpu gets torch without CUDA.
VERSIONS ?= 3.11 3.12 3.13 3.14 lowest
TESTS    ?= tests

versions: $(VERSIONS:%=.venv.versions/%/result.txt)  ## the test suite on other versions of Python, numpy and torch: 12 minutes each on 2 cores
	@tail -n 1 $^

.venv.versions/%/result.txt: UV = $(VENV)/bin/uv pip install --quiet --python .venv.versions/$* $(PINS)
.venv.versions/%/result.txt: $(VENV)/ready pyproject.toml
	$(PIP) uv
	$(VENV)/bin/uv venv --quiet --clear --python $(if $(filter lowest,$*),3.11,$*) .venv.versions/$*
	$(UV) $(if $(filter lowest,$*),--resolution lowest-direct) --editable .
	$(UV) --editable '.[dev]'
	.venv.versions/$*/bin/python -c 'import sys, numpy, torch; print("Python", sys.version.split()[0], "numpy", numpy.__version__, "torch", torch.__version__)' > $@.part
	$(QUICK) .venv.versions/$*/bin/python -m pytest -q --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(TESTS) >> $@.part || { tail -n 40 $@.part; exit 1; }
	mv $@.part $@

gpu: $(VENV)/ready  ## times and results on a GPU against the CPU: at most eight minutes
	$(BIN)/python -m shapespace.tools._gpu --out runs/gpu

docs: $(VENV)/ready  ## the reference pages that are made from the code
	$(BIN)/python -m shapespace.tools._reference docs/reference

figures: $(VENV)/ready data/figures.h5  ## the figures of README and docs: about ten minutes on 2 cores
	$(BIN)/python -m shapespace.tools._figures data/figures.h5 docs/images

data/figures.h5: $(VENV)/ready
	$(BIN)/shapespace synthesize data/figures --people 1 --poses 2 --test-people 3 --poses-per-test-person 2 --seed 11
	$(BIN)/shapespace preprocess synthetic data/figures $@ --points 50000

# docs/guide/pictures.md quotes these lines, and a test compares them
gallery: $(VENV)/ready  ## the pictures of docs/guide/pictures.md and docs/guide/viewer.md
	rm -rf data/gallery runs/gallery && mkdir -p docs/images/pictures docs/images/viewer
	$(BIN)/shapespace synthesize data/gallery --people 2 --poses 2 --test-people 6 --poses-per-test-person 1 --seed 1
	$(BIN)/shapespace preprocess synthetic data/gallery data/gallery.h5 --points 50000
	$(BIN)/shapespace evaluate humans data/gallery.h5 --splits unseen_people --out runs/gallery
	$(BIN)/shapespace render runs/gallery/meshes/unseen_people/*.ply --size 260 --out docs/images/pictures/errors.png
	$(BIN)/shapespace render runs/gallery/meshes/unseen_people/07_punch_000000.ply --frames 24 --size 240 --out docs/images/pictures/turntable.gif
	$(BIN)/shapespace interpolate humans runs/gallery/codes.safetensors:03/limits/000000 runs/gallery/codes.safetensors:07/punch/000000 --steps 13 --out runs/gallery/interpolation
	$(BIN)/shapespace render runs/gallery/interpolation/*.obj --play --turn 0 --size 240 --out docs/images/pictures/interpolation.gif
	SHAPESPACE_SCREENSHOTS=$(CURDIR)/docs/images $(BIN)/python -m pytest -q -m slow tests/report/test_browser.py tests/viewer/test_browser.py -k "light_and_dark or docs"

# The packaged model: data (a quarter of an hour on 2 cores), a training and one that goes on from it (MINUTES and
# MORE_MINUTES of one core), tests (half an hour)
MINUTES ?= 70
MORE_MINUTES ?= 102
HUMANS := --config articulated --split train --model.code-dim 256 --model.num-parts 104 --model.hand-density 40 --optim.max-steps 1000000
VARIED := --motion-fraction 0.25 --poses-from wide --appearance varied --scanners varied
DRAWS := 4001 4002 4003
.SECONDARY: $(DRAWS:%=data/humans_%.h5)

humans: $(DRAWS:%=runs/humans/test_%/scores.json)  ## the packaged model anew, with its model card
	$(BIN)/python -c 'from shapespace import ShapeSpace; ShapeSpace.load("runs/humans").save("datasets/assets/humans.safetensors", compact=True)'
	$(BIN)/python -m shapespace.tools._model_card docs/results/humans.md docs/images/humans_worst.png $(foreach draw,$(DRAWS),runs/humans/test_$(draw):data/humans_$(draw)/captures.json:data/humans_$(draw).h5)

data/humans.h5: $(VENV)/ready
	$(BIN)/shapespace synthesize data/humans --people 120 --poses 12 --test-poses 0 --test-people 12 --poses-per-test-person 2 $(VARIED) --seed 2027
	$(BIN)/shapespace preprocess synthetic data/humans $@ --points 40000 --jobs 2

data/humans_%.h5: $(VENV)/ready
	$(BIN)/shapespace synthesize data/humans_$* --people 1 --poses 1 --test-poses 0 --test-people 24 --poses-per-test-person 2 $(VARIED) --seed $*
	$(BIN)/shapespace preprocess synthetic data/humans_$* $@ --points 100000 --jobs 2

runs/humans_start/trained: data/humans.h5
	if test -f runs/humans_start/checkpoint.pt; then OMP_NUM_THREADS=1 $(BIN)/shapespace train --resume runs/humans_start; \
	else OMP_NUM_THREADS=1 $(BIN)/shapespace train data/humans.h5 $(HUMANS) --out runs/humans_start --optim.max-minutes $(MINUTES); fi
	@touch $@

runs/humans/trained: runs/humans_start/trained
	if test -f runs/humans/checkpoint.pt; then OMP_NUM_THREADS=1 $(BIN)/shapespace train --resume runs/humans; \
	else OMP_NUM_THREADS=1 $(BIN)/shapespace train data/humans.h5 $(HUMANS) --init-from runs/humans_start --out runs/humans --optim.max-minutes $(MORE_MINUTES) --optim.encoder-share 0.12; fi
	@touch $@

runs/humans/test_%/scores.json: runs/humans/trained data/humans_%.h5
	$(BIN)/shapespace evaluate runs/humans data/humans_$*.h5 --splits unseen_people --metrics surface_distance part_distance vertex_distance --group-by data/humans_$*/captures.json --out runs/humans/test_$*
	$(BIN)/shapespace evaluate runs/humans data/humans_$*.h5 --splits unseen_people --method encode --out runs/humans/test_$*/encode

licenses: $(VENV)/ready  ## the licenses of what is installed here
	$(BIN)/pip-licenses --format=markdown --with-urls

bench: $(VENV)/ready  ## time and memory against the reference implementation
	$(BIN)/shapespace benchmark

clean:  ## remove the environment and build files; runs and data stay
	rm -rf $(VENV) .venv.versions build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
