# One image for all of daycap: worker, beat, Flower, release (migrations) and the command line. The Procfile has their
# commands; this image's own is the worker's. Tags are pinned; pin digests where you build: FROM python:...@sha256:...

FROM python:3.13-slim-bookworm AS build
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never
RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /app
COPY pyproject.toml uv.lock ./
RUN uv sync --locked --no-dev --extra cli --extra flower --no-install-project
COPY README.md LICENSE ./
COPY daycap daycap
COPY migrations migrations
RUN uv sync --locked --no-dev --extra cli --extra flower --no-editable

FROM python:3.13-slim-bookworm
RUN useradd --uid 10001 --user-group --no-log-init --home-dir /var/lib/daycap --create-home --shell /usr/sbin/nologin daycap
WORKDIR /app
# The library is in the environment; what Celery and Alembic find by their working directory lies beside it.
COPY --from=build /app/.venv .venv
COPY pyproject.toml celeryconfig.py ./
COPY migrations migrations
COPY worker worker
COPY tasks tasks
ENV PATH=/app/.venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    DAYCAP_METRICS_ADDRESS=0.0.0.0 DAYCAP_METRICS_PORT=9100 DAYCAP_BEAT_PORT=9100
USER 10001:10001
# A worker and beat answer at the same port: each has a container of its own.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:9100/healthz', timeout=4)"]
CMD ["celery", "-A", "worker", "worker", "--without-mingle", "--without-gossip", "--loglevel=INFO"]
