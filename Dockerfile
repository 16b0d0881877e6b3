# Images of one package: `api` serves prices, `train` learns them, watches them and runs MLflow.
#   docker build --target api -t housing-mlops-api .
# Nothing here needs BuildKit. Everything that is installed is checked against a hash of requirements/*.lock.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS base
# Whoever runs owns /data and nothing else, so that the rest can be mounted read-only.
RUN groupadd --gid 10001 housing \
 && useradd --uid 10001 --gid housing --no-create-home --home-dir /tmp --shell /usr/sbin/nologin housing \
 && install -d -o housing -g housing /data
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    HOUSING_HOME=/data
WORKDIR /app

FROM base AS tools
COPY requirements/uv.lock requirements/
RUN pip install --quiet --no-cache-dir --require-hashes -r requirements/uv.lock \
 && /usr/local/bin/python -m venv --without-pip /opt/venv

FROM tools AS package
COPY setup.py settings.ini pyproject.toml README.md ./
COPY housing_mlops housing_mlops
RUN pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /wheels .

FROM tools AS api-requirements
COPY requirements/serve.lock requirements/
RUN uv pip install --quiet --no-cache --compile-bytecode --python /opt/venv/bin/python \
    --require-hashes -r requirements/serve.lock \
 && find /opt/venv -path '*/numpy/*' -type d -name tests -prune -exec rm -r {} +

# uv stays in this image: to copy a gigabyte into a cleaner stage takes longer than to install it.
FROM tools AS train
COPY requirements/train.lock requirements/
RUN uv pip install --quiet --no-cache --compile-bytecode --python /opt/venv/bin/python \
    --require-hashes -r requirements/train.lock
COPY --from=package /wheels /tmp/wheels
RUN pip --python /opt/venv/bin/python install --quiet --no-cache-dir --no-deps --no-index /tmp/wheels/*.whl
COPY nbs nbs
COPY deploy/monitor.py ./
USER housing
VOLUME /data
ENV MPLCONFIGDIR=/tmp/matplotlib \
    HOUSING_TRAINING_NOTEBOOK=/app/nbs/4_training/08_training.ipynb \
    HOUSING_REPORT_NOTEBOOK=/app/nbs/9_operations/03_report.ipynb
ENTRYPOINT ["housing-mlops"]
CMD ["train"]
ARG VERSION=0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="housing_mlops train" \
      org.opencontainers.image.description="Trains and registers models that price houses; MLflow server" \
      org.opencontainers.image.source="https://github.com/housing-mlops/housing-mlops" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV GIT_COMMIT=${REVISION}

# What a search or a large file of houses is computed by, where one machine is not enough.
FROM train AS scale
USER root
COPY requirements/scale.lock requirements/
RUN uv pip install --quiet --no-cache --compile-bytecode --python /opt/venv/bin/python \
    --require-hashes -r requirements/scale.lock
USER housing

FROM base AS api
COPY --from=api-requirements /opt/venv /opt/venv
COPY --from=package /wheels /tmp/wheels
RUN pip --python /opt/venv/bin/python install --quiet --no-cache-dir --no-deps --no-index /tmp/wheels/*.whl
USER housing
VOLUME /data
ENV HOUSING_HOST=0.0.0.0 HOUSING_PORT=8000
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["housing-mlops"]
CMD ["serve"]
ARG VERSION=0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="housing_mlops api" \
      org.opencontainers.image.description="Prices houses over HTTP" \
      org.opencontainers.image.source="https://github.com/housing-mlops/housing-mlops" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
