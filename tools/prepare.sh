# Installs what the repository needs and the machine lacks. Sourced by ./up and ./check.
# Debian and Ubuntu packages are installed; elsewhere the missing programs are named.

prepare() {
    [[ -d $HOME/.cargo/bin ]] && PATH=$HOME/.cargo/bin:$PATH
    [[ -d /usr/local/go/bin ]] && PATH=$PATH:/usr/local/go/bin
    export PATH
    local missing=() sudo=()
    [[ $(id -u) -eq 0 ]] || sudo=(sudo)
    need() { command -v "$1" >/dev/null 2>&1 || missing+=("$2"); }
    need cc gcc
    need git git
    need curl curl
    need runc runc
    need mount mount
    need nsenter util-linux
    need ip iproute2
    need debootstrap debootstrap
    need python3 python3
    need nft nftables
    need go golang-go
    python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || missing+=(python3-venv)
    if ((${#missing[@]})); then
        if ! command -v apt-get >/dev/null 2>&1; then
            echo "error: missing: ${missing[*]}. Install them with your package manager, then run this again." >&2
            exit 1
        fi
        echo "== installing ${missing[*]} (Debian packages, about 1 min)"
        "${sudo[@]}" apt-get update -qq
        DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    fi
    if ! command -v cargo >/dev/null 2>&1 && apt-cache show rustup >/dev/null 2>&1; then
        echo "== installing Rust (Debian package rustup, then its stable toolchain)"
        DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq rustup >/dev/null
        rustup default stable
    fi
    if ! command -v cargo >/dev/null 2>&1; then
        echo "error: cargo is missing. Install Rust 1.95 or newer (rustup, or your distribution's package), then run this again." >&2
        exit 1
    fi
}
