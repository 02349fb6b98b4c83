#!/usr/bin/env bash
# Installs what tests/benches/libraries.rs asks for: the packages of Debian 12, and two libraries that it has none of, into the folder
# named (target/libraries/files by default). Needs root for the former.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
folder=${1:-target/libraries/files}
mkdir -p "$folder"

apt-get install -y --no-install-recommends pkg-config gstreamer1.0-plugins-base libcurl4-openssl-dev libgit2-dev libgstreamer1.0-dev \
    libjemalloc-dev liblua5.4-dev libpython3-dev librdkafka-dev librocksdb-dev libssl-dev

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [[ ! -e $folder/libduckdb.so ]]; then
    (cd "$work" && npm pack --silent @duckdb/node-bindings-linux-x64 && tar xzf duckdb-*.tgz package/libduckdb.so)
    mv "$work/package/libduckdb.so" "$folder"
fi
if [[ ! -e $folder/libonnxruntime.so ]]; then
    pip download --quiet --no-deps --dest "$work" onnxruntime
    (cd "$work" && unzip -q -o onnxruntime-*.whl 'onnxruntime/capi/libonnxruntime.so.*')
    mv "$work"/onnxruntime/capi/libonnxruntime.so.* "$folder/libonnxruntime.so"
fi
