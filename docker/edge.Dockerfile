# The edge daemon: ONNX Runtime on the CPU, no PyTorch, amd64 and arm64.
#   docker build --file docker/edge.Dockerfile --tag neucodex-edge .
ARG BASE=python:3.11.9-slim-bookworm
# Where the package is built; needs gcc and Python's headers, or the codec is left in Python.
ARG BUILD_BASE=${BASE}

FROM ${BUILD_BASE} AS build
# Versions are those of the pinned base image's distribution.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY protos protos
COPY shared shared
COPY edge_agent edge_agent
COPY cloud_server cloud_server
COPY training training
COPY benchmarks benchmarks
# What nothing here runs is left out: the packages' own tests, ONNX Runtime's tools for transformers,
# debugging symbols.
ARG EXTRAS=edge
RUN python3 -m venv /opt/neucodex \
 && /opt/neucodex/bin/pip install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]" \
 && /opt/neucodex/bin/pip uninstall --yes pip setuptools \
 && find /opt/neucodex/lib -type d -name tests -prune -exec rm -r {} + \
 && rm -r /opt/neucodex/lib/python3*/site-packages/onnxruntime/transformers \
 && strip /opt/neucodex/lib/python3*/site-packages/zstandard/*.so \
 && ln -s "$(/opt/neucodex/bin/python -Ic 'import shared; print(shared.__path__[0])')/zoo" /opt/neucodex/zoo

FROM ${BASE}
COPY --from=build /opt/neucodex /opt/neucodex
ENV PATH=/opt/neucodex/bin:$PATH
# The model and what applications connect to are the daemon's own.
RUN useradd --system --uid 10001 --no-create-home neucodex \
 && install --directory --owner=neucodex --group=neucodex /var/lib/neucodex /run/neucodex
USER 10001
VOLUME ["/var/lib/neucodex", "/run/neucodex"]
EXPOSE 9465
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python3", "-c", "from edge_agent import Edge; Edge('unix:/run/neucodex/edge.sock').status()"]
ENTRYPOINT ["neucodex-edge"]
CMD ["run", "--config", "/etc/neucodex/edge.toml"]
