# The README's two commands on a CPU.
#   docker build -t stitch_nb .
#   docker run --rm -v "$PWD/out:/out" stitch_nb                                # the sample clip, edited
#   docker run --rm stitch_nb bash -c "nbdev_test && pytest tests"              # every page and every test
# PIP_ARGS goes to pip, for example the index of PyTorch's smaller wheels for CPUs.
FROM python:3.12-slim
ARG PIP_ARGS=""
RUN apt-get update \
    && apt-get install -y --no-install-recommends git libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home reader && mkdir /out /stitch_nb && chown reader /out /stitch_nb
USER reader
ENV PATH="/home/reader/.local/bin:$PATH"
WORKDIR /stitch_nb
COPY --chown=reader . .
RUN pip install --no-cache-dir --user $PIP_ARGS -e . && pip install --no-cache-dir --user $PIP_ARGS -e '.[dev]'
CMD ["stitch_demo", "--out", "/out/stitch_run_demo"]
