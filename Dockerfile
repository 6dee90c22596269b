# An image for launch/gke.sh: the code as it is here, and what requirements.txt pins.
#
#   docker build --build-arg EXTRA=tpu -t REGISTRY/lenext:1 .     # or EXTRA=cuda13
FROM python:3.13-slim
ARG EXTRA=tpu
WORKDIR /lenext
# Before the code, which changes more often.
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt \
    && pip install --no-cache-dir -c requirements.txt "jax[${EXTRA}]" gcsfs google-cloud-storage s3fs
COPY pyproject.toml README.md LICENSE ./
COPY lenext lenext
COPY configs configs
COPY experiments experiments
ENV PYTHONUNBUFFERED=1
