# A server of a model folder, on a CPU: docker build -t slmrec . && docker run -p 127.0.0.1:8000:8000 -v RUN:/run-folder:ro slmrec
# RUN is the output folder of a run; its link `best` leads to the model to ship.
FROM python:3.12-slim AS build
WORKDIR /build
RUN pip install --no-cache-dir uv && uv venv /opt/slmrec
COPY constraints.txt ./
# torch alone first, in its CPU build: this layer stays as it is while slmrec changes.
RUN uv pip install --no-cache --python /opt/slmrec/bin/python --torch-backend=cpu "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN uv pip install --no-cache --python /opt/slmrec/bin/python --torch-backend=cpu -c constraints.txt '.[serve]'

FROM python:3.12-slim
COPY --from=build /opt/slmrec /opt/slmrec
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin slmrec
# The models are local; what libraries cache goes to a folder that is writable for everyone.
ENV PATH="/opt/slmrec/bin:$PATH" HF_HUB_OFFLINE=1 HOME=/tmp PYTHONUNBUFFERED=1
USER 10001
VOLUME /run-folder
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
CMD ["slmrec", "serve", "--model", "/run-folder/best", "--host", "0.0.0.0", "--port", "8000"]
