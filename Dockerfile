# Both programs in one image: docker build -t penstock .
# It runs as any user without a name, needs no capability and writes nothing.
# The test bed makes the last stage without a registry: e2e/src/cluster/image.rs.
FROM rust:1-trixie AS build
WORKDIR /penstock
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/penstock/target \
    cargo build --release --locked -p penstock-worker -p penstock-operator \
    && mkdir /out \
    && strip -o /out/penstock-worker target/release/penstock-worker \
    && strip -o /out/penstock-operator target/release/penstock-operator

FROM debian:trixie-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/ /usr/local/bin/
USER 65532:65532
