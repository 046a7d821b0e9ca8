# One image for every service; the command chooses which one runs.
#   docker build -t splitfuse .
#   docker build --build-arg BASE_IMAGE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 -t splitfuse:cuda .
ARG BASE_IMAGE=python:3.12-slim

FROM ${BASE_IMAGE} AS base
# The CUDA images bring no Python; their distribution varies, so no version can be pinned.
# hadolint ignore=DL3008
RUN command -v python3 >/dev/null \
    || (apt-get update && apt-get install -y --no-install-recommends python3 python3-venv \
        && rm -rf /var/lib/apt/lists/*)

# The CPU backend for every instruction set; which one is used, the worker decides by its CPU. Made on
# the same base, so that it finds there the C library that it was linked with.
FROM base AS cpu-library
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY kernels kernels
RUN python3 -m kernels.cpu.build --all --into /opt/cpu-library

FROM base
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1

WORKDIR /app
COPY constraints.txt pyproject.toml ./
# torch first and alone: whatever index pip is given decides whether it is the CPU or a CUDA build.
ARG PIP_EXTRA_INDEX_URL
RUN pip install --no-cache-dir -c constraints.txt torch
COPY README.md LICENSE ./
COPY common common
COPY kernels kernels
COPY services services
COPY splitfuse splitfuse
RUN pip install --no-cache-dir -c constraints.txt -e .

COPY --from=cpu-library /opt/cpu-library /opt/cpu-library

# Nobody but root may change the code; the services write only to the model cache and /tmp.
RUN useradd --create-home --uid 10001 splitfuse && install -d -o splitfuse /models /keys
USER 10001
ENV SPLITFUSE_CACHE=/models SPLITFUSE_CPU_LIBRARY_DIR=/opt/cpu-library
EXPOSE 8000
ENTRYPOINT ["splitfuse"]
CMD ["serve", "--host", "0.0.0.0"]
