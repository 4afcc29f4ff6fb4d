#!/bin/sh
# Builds libvgpu.so for images as old as glibc 2.17 into target/dist-shim/, and checks what it needs.
#
#   crates/tessera-shim/build-dist.sh
#
# Needs python3 with venv (zig and cargo-zigbuild come from the Python index, once, into the cache) and readelf.
# TESSERA_CACHE names another cache folder.
set -eu

glibc=2.17
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
venv="${TESSERA_CACHE:-$HOME/.cache/tessera}/venv-zig"
out="$root/target/dist-shim"

case "$(uname -m)" in
    x86_64) target=x86_64-unknown-linux-gnu ;;
    aarch64) target=aarch64-unknown-linux-gnu ;;
    *) echo "build-dist: no build for $(uname -m)" >&2; exit 1 ;;
esac

if [ ! -x "$venv/bin/cargo-zigbuild" ] || ! "$venv/bin/python" -c 'import ziglang' 2>/dev/null; then
    echo "build-dist: installing zig and cargo-zigbuild into $venv" >&2
    rm -rf "$venv.new"
    python3 -m venv "$venv.new"
    rm -rf "$venv"
    mv "$venv.new" "$venv"
    # A moved environment keeps the old path in its scripts, so pip is run as a module.
    "$venv/bin/python" -m pip install --quiet cargo-zigbuild ziglang
fi

cd "$root"
PATH="$venv/bin:$PATH" cargo zigbuild --quiet --package tessera-shim --profile dist --target "$target.$glibc"

mkdir -p "$out"
cp "target/$target/dist/libvgpu.so" "$out/libvgpu.so.new"

# Every version that is asked of the C library must be one that the oldest image has.
too_new=$(readelf --dyn-syms --wide "$out/libvgpu.so.new" |
    sed -n 's/.* UND .*@GLIBC_\([0-9.]*\).*/\1/p' | sort -uV |
    while read -r version; do
        newest=$(printf '%s\n%s\n' "$version" "$glibc" | sort -V | tail -n 1)
        [ "$newest" = "$glibc" ] || echo "GLIBC_$version"
    done)
if [ -n "$too_new" ]; then
    echo "build-dist: libvgpu.so needs a newer C library than $glibc:" $too_new >&2
    exit 1
fi
# Only the C library's own parts: anything else may be absent from an image, and the preload would be ignored.
others=$(readelf --dynamic --wide "$out/libvgpu.so.new" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' |
    grep -v -E '^(libc\.so\.6|libdl\.so\.2|libpthread\.so\.0|librt\.so\.1|libm\.so\.6|ld-linux[-a-z0-9_]*\.so\.[0-9])$' || true)
if [ -n "$others" ]; then
    echo "build-dist: libvgpu.so needs libraries that an image may lack:" $others >&2
    exit 1
fi
mv "$out/libvgpu.so.new" "$out/libvgpu.so"
echo "$out/libvgpu.so"
