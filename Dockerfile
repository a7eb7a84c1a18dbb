# The server with its base model and the public adapters, as one image.
#
#   docker build -t waybill .
#   docker run -p 127.0.0.1:8000:8000 -v adapters_store:/var/lib/waybill waybill --create-first-key default
#
# PYTHON_IMAGE is any Debian-like image with Python 3.11 or newer; TORCH_INDEX is a package index to take torch from
# (empty: the default one). DEVICE=cuda makes the image for an NVIDIA GPU: TORCH_INDEX must then have a CUDA build, as the
# default index does, and the host needs NVIDIA's driver and its container toolkit.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG DEVICE=cpu

FROM ${PYTHON_IMAGE} AS build
ARG TORCH_INDEX=
ARG DEVICE
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/app/venv/bin:$PATH
WORKDIR /src
# The compiler of the CPU's kernels; the final stage has none.
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends g++ >/dev/null \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /app/venv
# Dependencies first, so that a change of the source alone does not install them again.
COPY pyproject.toml constraints.txt ./
# Which Triton a build of torch works with, that build says itself.
RUN grep -v '^triton==' constraints.txt > pins.txt \
    && pip install --quiet --constraint pins.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch \
    && if [ "$DEVICE" = cuda ]; then \
         python -c "import torch, triton; assert torch.version.cuda, 'TORCH_INDEX has no CUDA build'"; \
       fi
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
      > requirements.txt \
    && pip install --quiet --constraint pins.txt --requirement requirements.txt
COPY LICENSE NOTICE README.md ./
COPY server server
# Kernels for every processor of this kind, not only for the one that builds; from /app, so that they go into the venv.
RUN pip install --quiet --no-deps . \
    && cd /app && python -m server.engine.native \
    && waybill model fetch

FROM ${PYTHON_IMAGE}
ARG DEVICE
LABEL org.opencontainers.image.title="Waybill" \
      org.opencontainers.image.description="A multi-tenant inference server for prompt-learning adapters on one frozen base model" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
# Triton compiles its launcher, a file of C, on the machine where it runs: that takes a C compiler and Python's headers.
RUN if [ "$DEVICE" = cuda ]; then \
      apt-get update -qq \
      && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends gcc libc6-dev >/dev/null \
      && rm -rf /var/lib/apt/lists/* \
      && python3 -c "import os, sysconfig as s; os.stat(os.path.join(s.get_paths()['include'], 'Python.h'))"; \
    fi
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin waybill \
    && install -d -o 10001 -g 10001 /var/lib/waybill /var/lib/waybill/adapters_store
COPY --from=build /app /app
COPY LICENSE NOTICE /app/
# A new named volume mounted at /var/lib/waybill starts as a copy of this.
COPY --chown=10001:10001 adapters_store/public /var/lib/waybill/adapters_store/public
ENV PATH=/app/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_OFFLINE=1 \
    WAYBILL_HOST=0.0.0.0 \
    WAYBILL_PORT=8000 \
    WAYBILL_STORE=/var/lib/waybill/adapters_store \
    WAYBILL_KEYS=/var/lib/waybill/keys.json \
    TRITON_CACHE_DIR=/var/lib/waybill/triton
WORKDIR /app
USER 10001:10001
VOLUME /var/lib/waybill
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "from urllib.request import ProxyHandler, build_opener; build_opener(ProxyHandler({})).open('http://127.0.0.1:8000/health/ready', timeout=4)"]
ENTRYPOINT ["waybill", "serve"]
