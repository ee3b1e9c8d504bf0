# make train   a language model from nothing: environment, data, training, compression, score
# make test    lint and the fast tests of both backends, in the same environment     make test-all   and the slow ones
# make gpu-check, on a Mac make device-check   speed, parity and tests on one GPU: device_report.txt; installs nothing
# Any setting can be given: make train ITERATIONS=50 NUM_LAYERS=6     BACKEND=mlx|torch chooses the trainer

PYTHON ?= python3
BIN := .venv/bin
BACKEND ?= $(if $(filter Darwin,$(shell uname -s)),mlx,torch)

ifeq ($(filter torch mlx,$(BACKEND)),)
$(error BACKEND=$(BACKEND) is neither torch nor mlx)
endif

# `make train` lets the framework count the GPUs, which obeys CUDA_VISIBLE_DEVICES, and then makes `run`
ifneq ($(filter cpu float64,$(DEVICE) $(COMPUTE_DTYPE)),)
COUNT := print(0)
else ifeq ($(BACKEND),mlx)
COUNT := import mlx.core as mx; print(int(mx.is_available(mx.gpu)))
else
COUNT := import torch; print(torch.cuda.device_count())
endif

export VOCAB_SIZE ?= 2048
export DATA_PATH ?= data/pydoc_sp$(VOCAB_SIZE)
export RECIPE ?= laptop
export SAMPLE_TOKENS ?= 100

ifeq ($(BACKEND),mlx)
RUN := $(BIN)/python train_gpt_mlx.py
else ifneq ($(filter-out 0 1,$(GPUS)),)
RUN := $(BIN)/torchrun --standalone --local-addr 127.0.0.1 --nproc_per_node=$(GPUS) train_gpt.py
else
RUN := $(BIN)/python train_gpt.py
endif

.PHONY: train run test test-all lint install data clean gpu-check device-check

train: install
	@gpus=$(or $(GPUS),`$(BIN)/python -c '$(COUNT)'`) && $(MAKE) --no-print-directory run GPUS=$$gpus

run: data
	$(RUN)

install: .venv/.$(BACKEND) $(if $(findstring tensorboard,$(REPORT_TO)),.venv/.report)

data: install
	@case "$(DATA_PATH)" in data/pydoc_sp*) \
	  echo "data      English from Python's own documentation, in $(DATA_PATH)"; \
	  $(BIN)/python -m common.data pydoc --vocab-size $(VOCAB_SIZE) --out $(DATA_PATH);; esac

TEST := env -i $${HOME+HOME="$$HOME"} PATH="$$PATH" OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
  $(BIN)/python -m pytest --complete -n 3 --dist loadfile --no-loadscope-reorder

test: .venv/.torch .venv/.mlx .venv/.data .venv/.records .venv/.report .venv/.dev lint
	$(TEST) -m "not slow"

test-all: test
	$(TEST) -m slow

lint: .venv/.dev
	$(BIN)/ruff check .

gpu-check device-check:
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m tests.device.check

# One stamp for each extra that is installed. The name of the extra is the stamp's.
.venv/.%: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; v = sys.version_info; \
	  sys.exit(f"error: Python {v[0]}.{v[1]} is too old: make PYTHON=python3.11 or newer") if v < (3, 11) else None'
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@echo "install   the packages for '$*', into .venv"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt '.[$*]'
	@touch $@

clean:
	rm -rf .venv build *.egg-info
