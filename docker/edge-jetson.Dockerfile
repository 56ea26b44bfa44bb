# The edge daemon on a Jetson, with the CUDA and TensorRT providers of ONNX Runtime. Give it an image
# of NVIDIA's for your JetPack that has Python 3.11 or newer, and put a wheel of onnxruntime-gpu for
# that Python and JetPack into docker/wheels (PyPI has none for aarch64):
#   docker build --file docker/edge-jetson.Dockerfile --build-arg BASE=... --tag neucodex-edge-jetson .
ARG BASE
# hadolint ignore=DL3006
FROM ${BASE} AS build
# Versions are those of the base image's distribution.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY docker/wheels wheels
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY protos protos
COPY shared shared
COPY edge_agent edge_agent
COPY cloud_server cloud_server
COPY training training
COPY benchmarks benchmarks
# The wheel's version is that of the JetPack, not the pinned one of PyPI.
RUN sed -i '/^onnxruntime/d' constraints.txt \
 && python3 -m venv /opt/neucodex \
 && /opt/neucodex/bin/pip install --no-cache-dir --find-links wheels \
    --constraint constraints.txt ".[edge-gpu]" \
 && /opt/neucodex/bin/pip uninstall --yes pip setuptools \
 && ln -s "$(/opt/neucodex/bin/python -Ic 'import shared; print(shared.__path__[0])')/zoo" /opt/neucodex/zoo

# hadolint ignore=DL3006
FROM ${BASE}
COPY --from=build /opt/neucodex /opt/neucodex
ENV PATH=/opt/neucodex/bin:$PATH
RUN useradd --system --uid 10001 --no-create-home --groups video neucodex \
 && install --directory --owner=neucodex --group=neucodex /var/lib/neucodex /run/neucodex
USER 10001
VOLUME ["/var/lib/neucodex", "/run/neucodex"]
EXPOSE 9465
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
  CMD ["python3", "-c", "from edge_agent import Edge; Edge('unix:/run/neucodex/edge.sock').status()"]
ENTRYPOINT ["neucodex-edge"]
CMD ["run", "--config", "/etc/neucodex/edge.toml"]
