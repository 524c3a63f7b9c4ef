# The two commands of the README: `make demo` and `make test`. Both install what they need, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_DIR ?= demo
DALLE2_DIR ?= demo-dalle2
GLIDE_DIR ?= demo-glide
IMAGEN_DIR ?= demo-imagen
SD_DIR ?= demo-stable-diffusion
INSTALLED := $(VENV)/.installed

.PHONY: install demo demo-glide demo-imagen demo-stable-diffusion demo-dalle2 test style quality bench bench-quick bench-full gpu

install: $(INSTALLED)

$(INSTALLED): setup.py constraints.txt
	$(if $(shell $(PYTHON) -c 'import sys; sys.version_info >= (3, 11) and print("new")' 2>/dev/null),,$(error \
		Python 3.11 or newer is needed and '$(PYTHON)' is not; name one, e.g. make $(MAKECMDGOALS) PYTHON=python3.12))
	$(if $(shell $(PYTHON) -c 'import venv, ensurepip; print("has")' 2>/dev/null),,$(error \
		'$(PYTHON)' has no venv module; on Debian and Ubuntu: apt-get install python3-venv))
	@echo "installing into $(VENV), which takes some minutes the first time"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,quality]'
	@touch $@

demo: install
	@$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --dynamo_backend no --mixed_precision no \
		scripts/train.py --output_dir $(DEMO_DIR)
	@$(BIN)/python scripts/demo.py $(DEMO_DIR)

# Text to image: captioned digits, and how many of 1,000 pictures follow their captions, at 16x16 and enlarged to 32x32.
demo-glide: install
	@$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --dynamo_backend no --mixed_precision no \
		scripts/train.py --system glide --output_dir $(GLIDE_DIR)
	@$(BIN)/python scripts/evaluate.py $(GLIDE_DIR) --metrics prompt --num_images 1000 --scheduler dpm-sde \
		--num_inference_steps 20 --guidance_scale 3
	@$(BIN)/python scripts/sample.py $(GLIDE_DIR) --prompts docs/prompts.txt --fast --output_dir $(GLIDE_DIR)/pictures

# The same with a text encoder that is taught first and then frozen: how many of 1,000 pictures follow their captions at
# 16x16, of real pictures that are enlarged to 32x32, and of both stages together.
demo-imagen: install
	@$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --dynamo_backend no --mixed_precision no \
		scripts/train.py --system imagen --output_dir $(IMAGEN_DIR)
	@$(BIN)/python scripts/evaluate.py $(IMAGEN_DIR)/upsampler --metrics prompt --num_images 1000 --scheduler dpm-sde \
		--num_inference_steps 20
	@$(BIN)/python scripts/evaluate.py $(IMAGEN_DIR) --metrics prompt --num_images 1000 --scheduler dpm-sde \
		--num_inference_steps 20 --guidance_scale 3
	@$(BIN)/python scripts/sample.py $(IMAGEN_DIR) --prompts docs/prompts.txt --fast --output_dir $(IMAGEN_DIR)/pictures

# The same at 32x32, with size and place, by way of latents: an autoencoder, what it leaves of 1,000 pictures, then a
# diffusion of its latents and how many of 1,000 pictures follow their captions.
demo-stable-diffusion: install
	@$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --dynamo_backend no --mixed_precision no \
		scripts/train.py --system stable-diffusion --output_dir $(SD_DIR)
	@$(BIN)/python scripts/evaluate.py $(SD_DIR)/autoencoder --metrics reconstruction prompt --num_images 1000
	@$(BIN)/python scripts/evaluate.py $(SD_DIR) --metrics prompt --num_images 1000 --scheduler dpm-sde \
		--num_inference_steps 20 --guidance_scale 3
	@$(BIN)/python scripts/sample.py $(SD_DIR) --prompts docs/prompts_placed.txt --fast --output_dir $(SD_DIR)/pictures

# The same by way of CLIP's embedding of a picture: a CLIP, a prior that draws its embeddings, a decoder that draws the
# picture; how many of 500 pictures drawn from real pictures' embeddings follow their captions, and of 1,000 from captions.
demo-dalle2: install
	@$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --dynamo_backend no --mixed_precision no \
		scripts/train.py --system dalle2 --output_dir $(DALLE2_DIR)
	@$(BIN)/python scripts/evaluate.py $(DALLE2_DIR) --metrics prompt --num_images 500 --scheduler dpm-sde \
		--num_inference_steps 20 --guidance_scale 3 --stage decoder
	@$(BIN)/python scripts/evaluate.py $(DALLE2_DIR) --metrics prompt --num_images 1000 --scheduler dpm-sde \
		--num_inference_steps 20 --guidance_scale 3
	@$(BIN)/python scripts/sample.py $(DALLE2_DIR) --prompts docs/prompts.txt --fast --output_dir $(DALLE2_DIR)/pictures
	@$(BIN)/python scripts/sample.py $(DALLE2_DIR) --variations docs/photo_1.png --fast \
		--num_images 11 --output_dir $(DALLE2_DIR)/variations
	@$(BIN)/python scripts/sample.py $(DALLE2_DIR) --fast --output_dir $(DALLE2_DIR)/between \
		--interpolate docs/photo_1.png docs/photo_2.png

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile \
		--no-loadscope-reorder --durations=25

style: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# What is faster than diffusers' own, and by how much: benchmarks/README.md. Each prints a table and writes JSON into
# benchmarks/out/SIZE. One thread, because ratios are steadier so; make bench THREADS=8 for more. What trains and draws
# for minutes takes all cores. MNIST=FOLDER_OR_HUB_NAME adds a second data set to bench-full.
THREADS ?= 1
MNIST ?=
RUN = $(BIN)/python benchmarks/$(1).py --size $(2)
MEASURE = OMP_NUM_THREADS=$(THREADS) $(RUN)
QUALITY := time_to_quality sampling
STEPS := overheads throughput memory data_path startup scaling

# A first look in minutes: few repetitions, and nothing about memory and quality, which need trainings.
bench-quick: install
	@$(foreach name,$(filter-out memory,$(STEPS)),$(call MEASURE,$(name),quick) &&) true

bench: install
	@$(foreach name,$(STEPS),$(call MEASURE,$(name),normal) &&) true
	@$(foreach name,$(QUALITY),$(call RUN,$(name),normal) &&) true

# Hours. What is in benchmarks/out/full already is not measured again, so the same command goes on after an interruption.
UNLESS_DONE = test -f benchmarks/out/full/$(1).json ||
bench-full: install
	@$(foreach name,$(STEPS) data_memory,{ $(call UNLESS_DONE,$(name)) $(call MEASURE,$(name),full); } &&) true
	@$(foreach name,$(QUALITY) prompt_following,{ $(call UNLESS_DONE,$(name)) $(call RUN,$(name),full); } &&) true
ifneq ($(MNIST),)
	@$(call UNLESS_DONE,time_to_quality_mnist) $(call RUN,time_to_quality,full) --data mnist --dataset_name $(MNIST)
endif

# On a machine with a CUDA GPU: the tests that need one, then its speed and memory against stock diffusers.
gpu: install
	$(BIN)/python -m pytest -m gpu
	@$(BIN)/python benchmarks/gpu.py
