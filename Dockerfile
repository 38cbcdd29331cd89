# syntax=docker/dockerfile:1
# An image that scores pictures on a CPU. Build it in a clone of the repository, and give it models
# and pictures as a folder:
#
#   docker build -t pydfm .
#   docker run --rm -v "$PWD:/data" --user "$(id -u):$(id -g)" pydfm score parts.pydfm incoming -o scores.csv
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
# The compiler is that of the base, and stays behind with this stage.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim
LABEL org.opencontainers.image.title="pydfm" \
      org.opencontainers.image.description="How far is an image from what a model knows?" \
      org.opencontainers.image.licenses="Apache-2.0"
# torch's builds for the CPU alone: the package index has those with CUDA, some gigabytes of it.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    set -- /wheels/pydfm-*.whl \
    && python -m pip install --no-cache-dir --constraint /constraints.txt \
    --extra-index-url "${TORCH_INDEX}" "$1[offline,plot,report,tiff]" \
    && pydfm --version
# No root: what a picture's decoder might be made to do, it does without rights. HOME is for caches
# of weights and fonts, also of other users (docker run --user).
ENV HOME=/home/pydfm MPLBACKEND=agg PYTHONUNBUFFERED=1
RUN groupadd --gid 1000 pydfm \
    && useradd --uid 1000 --gid pydfm --create-home --home-dir "${HOME}" pydfm \
    && chmod 1777 "${HOME}" \
    && install --directory --owner pydfm --group pydfm /data
USER pydfm
WORKDIR /data
ENTRYPOINT ["pydfm"]
CMD ["--help"]
