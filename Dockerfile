# The command `action-attention` with the versions that constraints.txt pins; nothing else of the system is needed.
#   docker build --tag action-attention .
#   docker run --rm --volume "$PWD:/data" action-attention predict --pretrained=jhmdb21 --video=clip.avi
FROM python:3.13-slim
WORKDIR /opt/action_attention
COPY constraints.txt ./
RUN pip install --no-cache-dir --require-hashes --only-binary=:all: --requirement constraints.txt
COPY LICENSE README.md pyproject.toml setup.cfg ./
COPY action_attention action_attention
COPY data_prep data_prep
COPY experiments experiments
RUN pip install --no-cache-dir --no-deps --no-build-isolation .
# weights that are fetched stay in the mounted folder
ENV XDG_CACHE_HOME=/data/.cache
WORKDIR /data
ENTRYPOINT ["action-attention"]
