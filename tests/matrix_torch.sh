#!/usr/bin/env bash
# Run kernel tests on several releases of torch: `make matrix-torch TORCH="2.10.0 2.13.0 2.15.0"`.
#
# The C++ module is compiled against each release, and each release runs its own module. The first and the last release
# also run the module of each other. All other packages are those of PYTHON's environment. Where the index has no CPU
# build of a release, its CUDA libraries are installed too, because libtorch_python does not load without them: 5 GB. So
# a release is completed for its tests only, and removed after them. build/matrix/torch.txt gets one line per run.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$PWD/build/matrix
base=${PYTHON:-$PWD/.venv/bin/python}
read -ra tests <<<"${TESTS:-tests/kernels}"
site='import sysconfig; print(sysconfig.get_path("purelib"))'
export OMP_NUM_THREADS=1 MOP_KERNELS_WITH_CUDA=0
unset PYTHONPATH
mkdir -p "$folder"

install() { # RELEASE [OPTION]: into an environment that falls back on PYTHON's
    local python=$folder/torch-$1/bin/python
    if [ ! -x "$python" ]; then
        "$base" -m venv --without-pip "$folder/torch-$1"
        "$base" -c "$site" >"$("$python" -c "$site")/fallback.pth"
    fi
    "$base" -m pip --python "$python" install --quiet "${@:2}" "torch==$1"
}

compile() { # RELEASE: in a copy of the source tree. The headers and libtorch_cpu suffice
    install "$1" --no-deps
    rm -rf "$folder/built-$1"
    mkdir "$folder/built-$1"
    git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$folder/built-$1"
    cd "$folder/built-$1"
    "$folder/torch-$1/bin/python" setup.py --quiet build_ext --inplace >build.log 2>&1 || { cat build.log && exit 1; }
    cd - >/dev/null
}

failed=0
check() { # BUILT RELEASE
    local python=$folder/torch-$2/bin/python log=$folder/built-$1-on-$2.log found
    cd "$folder/built-$1"
    found=$("$python" -c 'import mop_kernels.backends as b; print(b.torch.__version__, b.build_info()["torch_built_with"])')
    case $found in "$2"*" $1"*) ;; *) echo "expected torch $2, built with $1; found $found" && exit 1 ;; esac >&2
    "$python" -m pytest -q "${tests[@]}" >"$log" 2>&1 || { failed=1 && tail -n 60 "$log"; }
    echo "$(date +%F) torch ${found/ /, module built with }: $(tail -n 1 "$log")" | tee -a "$folder/torch.txt"
    cd - >/dev/null
}

for release; do compile "$release"; done
for release; do
    install "$release"
    check "$release" "$release"
    [ "$1" = "${!#}" ] || [ "$release" != "$1" ] || check "${!#}" "$1"
    [ "$1" = "${!#}" ] || [ "$release" != "${!#}" ] || check "$1" "${!#}"
    rm -r "$folder/torch-$release"
done
exit $failed
