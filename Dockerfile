# docker build -t st-moe .        (another PyTorch or CUDA: --build-arg PYTORCH_IMAGE=…, with torch as in requirements.txt)
ARG PYTORCH_IMAGE=pytorch/pytorch:2.13.0-cuda13.0-cudnn9-devel
FROM ${PYTORCH_IMAGE}

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    HF_HOME=/workspace/runs/huggingface

# git: the run's summary names the commit. ssh and pdsh: the deepspeed launcher's way to other hosts. Their versions are
# those of the base image's release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git openssh-client pdsh \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /workspace

# Dependencies before code: changing the code does not install them again.
COPY requirements.txt ./
RUN pip install -r requirements.txt

COPY train.py convert.py pyproject.toml LICENSE README.md ./
COPY configs ./configs
COPY ds_configs ./ds_configs
COPY launch ./launch
COPY common ./common
COPY model ./model
COPY data ./data
COPY optim ./optim
COPY parallel ./parallel
COPY training ./training
COPY studies ./studies

# Not root; runs/ is where data, runs and caches go: mount a volume there.
RUN useradd --create-home --uid 10001 trainer \
    && install --directory --owner=trainer runs
USER 10001
VOLUME /workspace/runs

CMD ["python", "train.py", "--help"]
