# Images of one package: `api` serves prices, `train` learns them, watches them and runs MLflow. `proxy` is Debian's
# HAProxy with a file of settings: it stands in front of the APIs. `scale` computes where one machine is not enough
# (docker-compose --profile scale), `feast` is for who looks houses up in Feast (docker-compose --profile feast).
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
    ORT_DISABLE_TELEMETRY=1 \
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
# With what makes traces: 6 MB, of which nothing is loaded before somebody asks for traces.
COPY requirements/otel.lock requirements/
RUN uv pip install --quiet --no-cache --compile-bytecode --python /opt/venv/bin/python \
    --require-hashes -r requirements/otel.lock \
 && find /opt/venv -path '*/numpy/*' -type d -name tests -prune -exec rm -r {} +

# One layer, from which goes what nobody runs: uv itself, the packages' own tests, their headers, and the part of
# Arrow that speaks to servers. The compiled modules stay: without them every start compiles anew.
FROM base AS train
COPY requirements/uv.lock requirements/train.lock requirements/
RUN pip install --quiet --no-cache-dir --require-hashes -r requirements/uv.lock \
 && /usr/local/bin/python -m venv --without-pip /opt/venv \
 && uv pip install --quiet --no-cache --compile-bytecode --python /opt/venv/bin/python \
    --require-hashes -r requirements/train.lock \
 && pip uninstall --quiet --yes uv \
 && cd /opt/venv/lib/python3.11/site-packages \
 && find . -type d '(' -name tests -o -name test ')' -prune -exec rm -r {} + \
 && find . -type f '(' -name '*.h' -o -name '*.hpp' -o -name '*.c' -o -name '*.cpp' -o -name '*.pyx' -o -name '*.pxd' ')' -delete \
 && rm pyarrow/libarrow_flight.so* pyarrow/_flight*
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

FROM base AS proxy
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends haproxy >/dev/null \
 && rm -rf /var/lib/apt/lists/*
COPY deploy/proxy/haproxy.cfg deploy/proxy/servers.py ./
USER housing
EXPOSE 8000
# HAProxy reads the addresses of HOUSING_PROXIES from a file, one a line. SIGUSR1 ends it when the last answer is given.
ENTRYPOINT ["/bin/sh", "-ec", "echo \"$HOUSING_PROXIES\" | tr ', ' '\\n\\n' > /tmp/outer.list; exec haproxy -q -db -f /app/haproxy.cfg"]
STOPSIGNAL SIGUSR1
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s --retries=3 \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8404/alive', timeout=2)"]
ARG VERSION=0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="housing_mlops proxy" \
      org.opencontainers.image.description="HAProxy in front of the APIs that price houses" \
      org.opencontainers.image.source="https://github.com/housing-mlops/housing-mlops" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# What a search or a large file of houses is computed by, where one machine is not enough.
FROM train AS scale
USER root
COPY requirements/scale.lock requirements/
RUN pip --python /opt/venv/bin/python install --quiet --no-cache-dir --require-hashes -r requirements/scale.lock
ENV DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False
USER housing

FROM base AS api
COPY --from=api-requirements /opt/venv /opt/venv
COPY --from=package /wheels /tmp/wheels
RUN pip --python /opt/venv/bin/python install --quiet --no-cache-dir --no-deps --no-index /tmp/wheels/*.whl
COPY deploy/passwords.py ./
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

# Feast cannot share an environment with the package: here are both, and one makes the other's definitions.
FROM tools AS feast-requirements
COPY requirements/feast.lock requirements/
RUN /usr/local/bin/python -m venv --without-pip /opt/feast \
 && uv pip install --quiet --no-cache --compile-bytecode --python /opt/feast/bin/python \
    --require-hashes -r requirements/feast.lock

FROM api AS feast
COPY --from=feast-requirements /opt/feast /opt/feast
EXPOSE 6566
HEALTHCHECK --interval=10s --timeout=5s --start-period=5m --retries=3 \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:6566/health', timeout=4)"]
ENTRYPOINT ["/bin/sh", "-ec"]
# What is registered follows from the declaration, and is made anew: the registry of a killed server may be half written,
# and `feast apply` would drop what is served of a declaration that is not this one.
CMD ["housing-mlops features definitions /data/feast; cd /data/feast; rm -f data/registry.db; /opt/feast/bin/feast apply; exec /opt/feast/bin/feast serve --host 0.0.0.0 --no-access-log"]
