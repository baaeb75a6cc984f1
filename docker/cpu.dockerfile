# GLM on machines without a GPU. Built from the top of the repository:
#
#   docker build -f docker/cpu.dockerfile . -t glm-cpu                            every command of the README
#   docker build -f docker/cpu.dockerfile . -t glm-cpu-devel --target devel       and a compiler, git, shellcheck
#   docker run --rm -it --ipc=host glm-cpu
#
# --ipc=host gives the processes that load data the shared memory of the machine instead of docker's 64 MB. The user is
# glm (1000), who owns the repository in /home/glm/GLM; what is to stay: -v "$PWD/checkpoints:/home/glm/GLM/checkpoints".

# Debian 12: its Python is the one that wrote constraints.txt.
FROM debian:bookworm-20251229-slim AS base
# Versions of Debian's packages come with the base image's release; their security updates are wanted.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 --shell /bin/bash glm \
    && install -d -o 1000 -g 1000 /home/glm/GLM
USER 1000:1000
WORKDIR /home/glm/GLM
# An active environment is what all scripts use.
ENV VIRTUAL_ENV=/home/glm/GLM/.venv PATH=/home/glm/GLM/.venv/bin:$PATH PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1

# Dependencies before code: a change of the code leaves this layer as it is. torch comes first, from the index of its
# builds without CUDA (a mirror: --build-arg TORCH_INDEX=...); the package itself is a path to this folder.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
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
    && apt-get install -y --no-install-recommends g++ git less make shellcheck \
    && rm -rf /var/lib/apt/lists/*
USER 1000:1000
COPY --chown=1000:1000 . .
CMD ["bash"]

FROM base AS runtime
COPY --chown=1000:1000 . .
CMD ["bash"]
