# GLM on NVIDIA GPUs. Built from the top of the repository, run with the NVIDIA container toolkit:
#
#   docker build -f docker/cuda.dockerfile . -t glm-cuda                          every command of the README
#   docker build -f docker/cuda.dockerfile . -t glm-cuda-devel --target devel     and nvcc, git, shellcheck
#   docker run --gpus all --rm -it --ipc=host glm-cuda
#
# cuda102.dockerfile and cuda112.dockerfile, the names of the release, are links to this file: no torch that this code
# runs with is built for CUDA 10.2 or 11.2. The machine needs a driver for CUDA 13 (580 or newer).
#
# nvcc: DeepSpeed compiles its own optimizers and kernels when they are first used, with the compiler of torch's CUDA.
# Training here hands it torch's AdamW, with ZeRO and offloading as well, so the runtime image does without; devel is
# for DeepSpeed's own (ds_report lists them).
#
# What is not said here is as in cpu.dockerfile.

# CUDA 13.0 is that of torch 2.13.0, which brings its libraries; the base adds what the driver looks for.
FROM nvidia/cuda:13.0.2-base-ubuntu24.04 AS base
# A C compiler and Python's headers: Triton compiles what --compile makes. Ubuntu's own user 1000 makes room.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates gcc libc6-dev python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && userdel --remove ubuntu \
    && useradd --create-home --uid 1000 --shell /bin/bash glm \
    && install -d -o 1000 -g 1000 /home/glm/GLM
USER 1000:1000
WORKDIR /home/glm/GLM
ENV VIRTUAL_ENV=/home/glm/GLM/.venv PATH=/home/glm/GLM/.venv/bin:$PATH PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1

ARG TORCH_INDEX=https://download.pytorch.org/whl/cu130
COPY --chown=1000:1000 constraints.txt ./
RUN python3 -m venv .venv \
    && pip install "$(sed -n 's/^\(torch==[^ ;]*\).*/\1/p' constraints.txt)" --index-url "$TORCH_INDEX"
COPY --chown=1000:1000 pyproject.toml hatch_build.py requirements.txt ./
COPY --chown=1000:1000 scripts/launch.sh scripts/setup_environment.sh scripts/
RUN touch README.md \
    && bash -euo pipefail -c 'source scripts/launch.sh; source scripts/setup_environment.sh; setup_environment'

FROM base AS devel
USER 0:0
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        cuda-libraries-dev-13-0 cuda-minimal-build-13-0 g++ git less make shellcheck \
    && rm -rf /var/lib/apt/lists/*
USER 1000:1000
ENV CUDA_HOME=/usr/local/cuda
COPY --chown=1000:1000 . .
CMD ["bash"]

FROM base AS runtime
COPY --chown=1000:1000 . .
CMD ["bash"]
