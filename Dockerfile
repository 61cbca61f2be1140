# docker build -t st-moe --build-arg GIT_COMMIT=HASH .
#
# GIT_COMMIT: the commit that summaries of runs name; the image has no git. Another CUDA: --build-arg PYTORCH_IMAGE, an image with the torch of requirements.txt.
ARG PYTORCH_IMAGE=pytorch/pytorch:2.13.0-cuda13.0-cudnn9-devel
FROM ${PYTORCH_IMAGE}

# HOME and USER also for `--user` with a number that the image does not know: caches need a place, torch a name.
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PATH=/opt/venv/bin:$PATH \
    HOME=/home/trainer \
    USER=trainer \
    HF_HOME=/workspace/runs/huggingface

# The deepspeed launcher reaches other hosts by ssh and pdsh. Versions are those of the base image's release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openssh-client pdsh \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /workspace

# Dependencies before code: changing the code does not install them again. In an environment above the image's packages,
# torch among them: where those belong to the system, its pip refuses to add to them (externally-managed-environment).
COPY requirements.txt ./
RUN python3 -m venv --without-pip --system-site-packages /opt/venv \
    && python -m pip install -r requirements.txt

COPY train.py convert.py fill.py evaluate.py plan.py pyproject.toml LICENSE README.md ./
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

ARG GIT_COMMIT
RUN printf '%s' "$GIT_COMMIT" >.commit

# Not root; runs/ is where data, runs and caches go: mount a volume there. Any other user may write there, too.
RUN useradd --create-home --uid 10001 trainer \
    && install --directory --owner=trainer --mode=1777 runs /home/trainer
USER 10001
VOLUME /workspace/runs

CMD ["python", "train.py", "--help"]
